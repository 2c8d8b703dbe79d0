//! Artifacts that were damaged where they lie, and what registering them again does about it.

use std::process::Output;
use std::time::Duration;

use super::*;
use crate::kit::guests::guest;
use crate::kit::program::Processes;
use crate::kit::servers::Front;

const LEASE: Duration = Duration::from_secs(30);

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Docker's registry answers that it deleted a blob and goes on with its bytes; others take them away. Here nginx
/// does that for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_deletes_what_is_damaged_takes_it_anew() {
    let mut house = House::new(Kind::Oci).await;
    let whole = bytes(23);
    let digest = house.put(&whole).await.unwrap();
    let (inner, data) = (house.server.address(), house.server.data());
    let front = Front::start(&format!(
        "location / {{ proxy_pass http://{inner}; proxy_set_header Host $http_host; }} \
         location ~ \"^/v2/.*/blobs/sha256:(?<hex>(?<head>[0-9a-f]{{2}}).*)$\" {{ \
         if ($request_method = DELETE) {{ rewrite ^ /gone/$head/$hex/data last; }} \
         proxy_pass http://{inner}; proxy_set_header Host $http_host; }} \
         location /gone/ {{ alias {}/docker/registry/v2/blobs/sha256/; dav_methods DELETE; }}",
        data.display()
    ))
    .await;
    let root = format!("oci://{}/{}", front.address, house.server.root.path());
    house.storage = Storage::open(&root.parse().unwrap(), &house.server.access).unwrap();
    let damage = whole[1..].to_vec();
    house.server.plant(&key::artifact(digest), damage).await;
    let before = house.put_over(&whole).await.unwrap();
    assert_eq!(before, Before::Damaged("2499999 bytes".to_owned()));
    house.forget();
    assert_eq!(house.fetch(digest, &whole).await.unwrap(), whole);
    assert_eq!(house.put_over(&whole).await.unwrap(), Before::Whole);
}

/// A registry that keeps a damaged blob cannot be mended from here: who registers is told who can, and not to do
/// once more what was just done. Once the blob is gone, the same command puts it there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_keeps_what_is_damaged_says_so() {
    let processes = Processes::start(LEASE).await;
    let file = guest("hello").unwrap();
    let digest = Digest::of(&std::fs::read(&file).unwrap());
    let file = file.to_str().unwrap();
    for (server, words) in [
        (StorageServer::start_keeping().await, "405 UNSUPPORTED"),
        (StorageServer::start(Kind::Oci).await, "goes on with"),
    ] {
        let root = server.root.to_string();
        let waft = |words: &[&str]| {
            let mut command = processes.waft(words.iter().copied());
            command.envs(server.environment()).output().unwrap()
        };
        let register = || waft(&["register", file, "--project", "demo", "--storage", &root]);
        let first = register();
        assert!(first.status.success(), "{first:?}");
        server.plant(&key::artifact(digest), &b"damage"[..]).await;

        let found = waft(&["storage", "verify", &root]);
        let text = said(&found);
        assert_eq!(found.status.code(), Some(1), "{text}");
        assert!(text.contains("damaged: it is sha256:"), "{text}");
        let mend = format!("waft register FILE --storage {root}");
        assert!(text.contains(&mend), "{text}");

        let kept = register();
        let text = said(&kept);
        assert_eq!(kept.status.code(), Some(1), "{text}");
        let registry = format!("`{}`", server.root.place());
        for word in [words, &registry, &digest.to_string(), "its operator"] {
            assert!(text.contains(word), "{word} in {text}");
        }
        assert!(!text.contains(&mend), "{text}");

        // As its operator would.
        let hex = digest.to_hex();
        let blobs = server.data().join("docker/registry/v2/blobs/sha256");
        std::fs::remove_dir_all(blobs.join(&hex[..2]).join(&hex)).unwrap();
        let again = register();
        let text = said(&again);
        assert!(again.status.success(), "{text}");
        assert!(text.contains("where it was not"), "{text}");
        let verified = waft(&["storage", "verify", &root]);
        assert!(verified.status.success(), "{}", said(&verified));
    }
}

/// What is not there at all is no empty storage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_that_is_not_there_has_no_list() {
    for kind in [Kind::Local, Kind::S3, Kind::Gcs, Kind::Azure, Kind::Oci] {
        let house = House::new(kind).await;
        let list = async |root: &Root| {
            let storage = Storage::open(root, &house.server.access).unwrap();
            storage.list().await?.try_collect::<Vec<_>>().await
        };
        house.put(b"here").await.unwrap();
        assert_eq!(list(&house.server.root).await.unwrap().len(), 1, "{kind:?}");
        let text = house.server.root.to_string();
        let elsewhere: Root = match kind {
            Kind::Local => format!("{text}-none").parse().unwrap(),
            _ => text.replace("flows", "nobody-has-this").parse().unwrap(),
        };
        let error = list(&elsewhere).await.unwrap_err();
        // The emulator of GCS has no word for it.
        let is_named = matches!(error, StorageError::NoPlace { .. }) || kind == Kind::Gcs;
        assert!(is_named, "{kind:?}: {error:?}");
        let prefix: Root = format!("{text}/deeper").parse().unwrap();
        if matches!(kind, Kind::S3 | Kind::Gcs | Kind::Azure) {
            assert_eq!(list(&prefix).await.unwrap(), [], "{kind:?}");
        }
    }
}
