//! What a storage answers that has no such bucket, or lets us do some things and not others.

use super::*;
use crate::kit::servers::{BUCKET, Front};

fn elsewhere(root: &Root) -> Root {
    let text = root.to_string();
    text.replace(BUCKET, "nobody-has-this").parse().unwrap()
}

/// A bucket or a container that is not there is out of reach, and named; a folder and a repository come about
/// with the first put.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_not_there_is_named() {
    for kind in [Kind::S3, Kind::Azure] {
        let mut house = House::new(kind).await;
        let digest = house.put(b"here").await.unwrap();
        let (root, access) = (elsewhere(&house.server.root), &house.server.access);
        let results = Results::open(&root, "mira", access, Clock::default()).unwrap();
        house.storage = Storage::open(&root, access).unwrap();
        let looked = house.storage.reach().await;
        let put = house.put(b"here").await.map(drop);
        let fetched = house.fetch(digest, b"here").await.map(drop);
        for (what, answer) in [
            ("reach", looked),
            ("results", results.reach().await),
            ("append", results.append(&Value::json("1")).await.map(drop)),
            ("put", put),
            ("fetch", fetched),
        ] {
            let error = answer.unwrap_err();
            assert!(
                matches!(error, StorageError::NoPlace { .. }),
                "{kind:?} {what}: {error:?}"
            );
            assert!(error.to_string().contains("`nobody-has-this`"), "{error}");
            assert!(error.hint().unwrap().contains("nobody-has-this"));
        }
    }
    for kind in [Kind::Local, Kind::Oci, Kind::Http] {
        let house = House::new(kind).await;
        let root = elsewhere(&house.server.root);
        let storage = Storage::open(&root, &house.server.access).unwrap();
        storage.reach().await.unwrap();
    }
    let house = House::new(Kind::Gcs).await;
    let root = elsewhere(&house.server.root);
    let storage = Storage::open(&root, &house.server.access).unwrap();
    assert!(storage.reach().await.is_err());
    house.storage.reach().await.unwrap();
}

/// Who may write and not read puts all the same, keeps results, and takes no root away by what it cannot see.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_only_write_puts_all_the_same() {
    let server = StorageServer::start_guarded(&["s3:PutObject"]).await;
    let mut house = House::over(server);
    house.storage.reach().await.unwrap();
    let digest = house.put(b"written").await.unwrap();
    house.put(b"written").await.unwrap();
    let unseen = house.fetch(digest, b"written").await.unwrap_err();
    assert!(
        matches!(unseen, StorageError::Withheld { .. }),
        "{unseen:?}"
    );
    assert!(unseen.hint().unwrap().contains("s3:ListBucket"));
    let (root, access) = (&house.server.root, &house.server.access);
    let results = Results::open(root, "mira", access, Clock::default()).unwrap();
    results.reach().await.unwrap();
    results.append(&Value::json("1")).await.unwrap();
    let listed = house.storage.list().await.unwrap();
    let listed = listed.try_collect::<Vec<_>>().await.unwrap_err();
    assert!(matches!(listed, StorageError::Denied { .. }), "{listed:?}");

    // Keys that nobody has open nothing at all.
    let keys = &mut house.server.access.variables;
    keys.insert("AWS_SECRET_ACCESS_KEY".to_owned(), "wrong".to_owned());
    house.storage = Storage::open(&house.server.root, &house.server.access).unwrap();
    let denied = house.storage.reach().await.unwrap_err();
    assert!(matches!(denied, StorageError::Denied { .. }), "{denied:?}");
}

/// Who may read and not write is told so before a task has run for nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_only_read_has_no_place_for_results() {
    let actions = ["s3:GetObject", "s3:ListBucket"];
    let house = House::over(StorageServer::start_guarded(&actions).await);
    house.storage.reach().await.unwrap();
    let absent = house.fetch(Digest::of(b"x"), b"x").await.unwrap_err();
    assert!(
        matches!(absent, StorageError::NotFound { .. }),
        "{absent:?}"
    );
    let (root, access) = (&house.server.root, &house.server.access);
    let results = Results::open(root, "mira", access, Clock::default()).unwrap();
    let denied = results.reach().await.unwrap_err();
    assert!(matches!(denied, StorageError::Denied { .. }), "{denied:?}");
    let put = house.put(b"x").await.unwrap_err();
    assert!(matches!(put, StorageError::Denied { .. }), "{put:?}");
}

/// GCS as it answers who may not list a bucket; nginx stands before an emulator that refuses nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_gcs_does_not_show_is_not_taken_for_a_refusal_of_all() {
    let mut house = House::new(Kind::Gcs).await;
    let inner = house.server.access.variables["STORAGE_EMULATOR_HOST"].clone();
    let refusal = "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>";
    let front = Front::start(&format!(
        "location / {{ if ($request_method = GET) {{ return 403 '{refusal}'; }} \
         if ($request_method = HEAD) {{ return 403; }} proxy_pass http://{inner}; }}"
    ))
    .await;
    let access = &mut house.server.access;
    let host = front.address.to_string();
    access
        .variables
        .insert("STORAGE_EMULATOR_HOST".to_owned(), host);
    house.storage = Storage::open(&house.server.root, &house.server.access).unwrap();
    house.storage.reach().await.unwrap();
    let digest = house.put(b"written").await.unwrap();
    let unseen = house.fetch(digest, b"written").await.unwrap_err();
    assert!(
        matches!(unseen, StorageError::Withheld { .. }),
        "{unseen:?}"
    );
}

/// Whoever registers a key learns nothing of what lies there: neither of what agents keep, nor of other files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registered_key_tells_nothing_of_what_lies_there() {
    let house = House::new(Kind::S3).await;
    let secret = b"not to be told";
    let digest = Digest::of(b"a guess");
    for kept in [
        "segments/00061c6a6d4b8000-0000000000000007",
        "team/segments/00061c6a6d4b8000-0000000000000007",
        "tasks/ab/abababababababababababababababababababababababababababababababab",
        "task-cache.key",
        &key::artifact(Digest::of(secret)),
    ] {
        house.server.plant(kept, &secret[..]).await;
        let asked = house.storage.fetch_artifact(kept, digest, 7, &house.cache);
        let refused = asked.await.unwrap_err();
        assert!(
            matches!(refused, StorageError::Refused { .. }),
            "{kept}: {refused:?}"
        );
    }
    house.server.plant("notes.txt", &secret[..]).await;
    for size in [7, secret.len() as u64] {
        let asked = house
            .storage
            .fetch_artifact("notes.txt", digest, size, &house.cache);
        let damaged = asked.await.unwrap_err();
        assert!(
            matches!(damaged, StorageError::Damaged { .. }),
            "{damaged:?}"
        );
        let said = format!("{damaged} {damaged:?}");
        let found = Digest::of(secret).to_string();
        assert!(!said.contains(&found), "{said}");
        assert!(size != 7 || !said.contains("14"), "{said}");
    }
}
