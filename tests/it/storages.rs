//! What every storage promises, on a real server of each kind: one function a promise, run over all of
//! them, and again over a store whose n-th operation goes wrong.
//!
//! What an emulator cannot show is a line of [`GAPS`], printed by its test, and not left out in silence.

use std::sync::Arc;

use futures::TryStreamExt as _;
use futures::future::{join_all, try_join_all};
use jiff::{SignedDuration, Timestamp};
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode};
use tempfile::TempDir;
use waft::clock::Clock;
use waft::config::Access;
use waft::model::artifact::Digest;
use waft::model::value::Value;
use waft::storage::{
    ArtifactCache, Before, CacheBy, CacheKey, Kind, Put, Results, Root, Storage, StorageError,
    TaskCache, connect, key,
};

use crate::kit::faults::{Fault, Faulty};
use crate::kit::servers::StorageServer;

mod credentials;
mod faults;
mod left_over;
mod mending;
mod reach;
mod realm;
mod way;

/// What the servers of these tests cannot show, and what stands in for it.
const GAPS: &[(Kind, &str)] = &[
    (
        Kind::Gcs,
        "fake-gcs-server knows no preconditions: a put of what exists is shown by reading it again",
    ),
    (
        Kind::Gcs,
        "fake-gcs-server answers for a missing bucket with 500 and without a code: out of reach, in its own words",
    ),
    (
        Kind::Gcs,
        "fake-gcs-server refuses nobody: nginx before it does, in the words of the real one",
    ),
    (
        Kind::Azure,
        "Azurite knows keys and signatures, but no managed identity and no role that may write and not read",
    ),
    (
        Kind::Gcs,
        "fake-gcs-server takes a plain PUT only as one by a signed URL, and leaves its ETag out: a proxy of the tests helps",
    ),
    (
        Kind::Oci,
        "a registry knows no conditional put: of two puts under one tag the later one counts",
    ),
    (
        Kind::Oci,
        "a Docker registry keeps a blob that it has, even one that it was told to delete: nginx before it deletes",
    ),
    (
        Kind::Http,
        "a web server is read-only: files are put there by the test, and there is no list",
    ),
];

/// One storage under test, with a cache that is empty at first.
struct House {
    server: StorageServer,
    storage: Storage,
    cache: ArtifactCache,
    folder: TempDir,
}

impl House {
    async fn new(kind: Kind) -> Self {
        Self::over(StorageServer::start(kind).await)
    }

    #[expect(clippy::print_stdout, reason = "it stands in the output of the test")]
    fn over(server: StorageServer) -> Self {
        for (_, gap) in GAPS.iter().filter(|(kind, _)| *kind == server.root.kind()) {
            println!("not shown: {gap}");
        }
        let folder = tempfile::tempdir().unwrap();
        Self {
            storage: Storage::open(&server.root, &server.access).unwrap(),
            cache: ArtifactCache::open(&folder.path().join("cache")).unwrap(),
            server,
            folder,
        }
    }

    fn kind(&self) -> Kind {
        self.server.root.kind()
    }

    /// Puts bytes there as an artifact; into a web server by other means.
    async fn put(&self, bytes: &[u8]) -> Result<Digest, StorageError> {
        self.put_over(bytes).await?;
        Ok(Digest::of(bytes))
    }

    /// As `put`, and answers what lay there.
    async fn put_over(&self, bytes: &[u8]) -> Result<Before, StorageError> {
        let put = put(&self.storage, &self.server, &self.folder, bytes).await?;
        assert_eq!(put.key, key::artifact(Digest::of(bytes)));
        Ok(put.before)
    }

    async fn fetch(&self, digest: Digest, bytes: &[u8]) -> Result<Vec<u8>, StorageError> {
        fetch(&self.storage, &self.cache, digest, bytes.len()).await
    }

    /// Empties the cache, as on another machine.
    fn forget(&mut self) {
        let folder = tempfile::tempdir().unwrap();
        self.cache = ArtifactCache::open(&folder.path().join("cache")).unwrap();
        self.folder = folder;
    }
}

/// Puts bytes; none can be put into a web server, where they are planted.
async fn put(
    storage: &Storage,
    server: &StorageServer,
    folder: &TempDir,
    bytes: &[u8],
) -> Result<Put, StorageError> {
    let digest = Digest::of(bytes);
    if server.root.kind() == Kind::Http {
        let key = key::artifact(digest);
        server.plant(&key, bytes.to_vec()).await;
        let before = Before::Absent;
        return Ok(Put { key, before });
    }
    // It is mapped while it is put, so no other put may write it.
    let file = tempfile::NamedTempFile::new_in(folder)
        .unwrap()
        .into_temp_path();
    std::fs::write(&file, bytes).unwrap();
    storage
        .put_artifact(&file, digest, bytes.len() as u64, "a-flow")
        .await
}

async fn fetch(
    storage: &Storage,
    cache: &ArtifactCache,
    digest: Digest,
    size: usize,
) -> Result<Vec<u8>, StorageError> {
    let key = key::artifact(digest);
    let file = storage
        .fetch_artifact(&key, digest, size as u64, cache)
        .await?;
    Ok(std::fs::read(file).unwrap())
}

/// What is shown of an error: it, and what it comes from.
fn chain(error: &StorageError) -> String {
    let mut next: Option<&dyn std::error::Error> = Some(error);
    let all = std::iter::from_fn(|| {
        let error = next?;
        next = error.source();
        Some(error.to_string())
    });
    all.collect::<Vec<_>>().join(": ")
}

/// Bytes of several chunks that no two tests share.
fn bytes(seed: u32) -> Vec<u8> {
    (0..2_500_000_u32)
        .map(|n| (n.wrapping_mul(seed) >> 5) as u8)
        .collect()
}

async fn what_was_put_is_fetched_from_anywhere(house: &mut House) {
    let bytes = bytes(7);
    house.storage.reach().await.unwrap();
    let digest = house.put(&bytes).await.unwrap();
    assert_eq!(
        house.put(&bytes).await.unwrap(),
        digest,
        "put again it is the same"
    );
    assert_eq!(house.fetch(digest, &bytes).await.unwrap(), bytes);
    house.forget();
    assert_eq!(house.fetch(digest, &bytes).await.unwrap(), bytes);
    assert!(house.storage.meter().moved() >= bytes.len() as u64 || house.kind() == Kind::Local);
}

async fn many_put_one_at_a_time(house: &mut House) {
    let bytes = bytes(11);
    let puts = join_all((0..4).map(|_| house.put(&bytes))).await;
    assert!(puts.iter().all(Result::is_ok), "{puts:?}");
    assert_eq!(
        house.fetch(Digest::of(&bytes), &bytes).await.unwrap(),
        bytes
    );
}

async fn a_file_that_is_not_its_digest_is_not_put(house: &mut House) {
    let file = house.folder.path().join("wrong");
    std::fs::write(&file, bytes(13)).unwrap();
    let digest = Digest::of(b"something else");
    let put = house
        .storage
        .put_artifact(&file, digest, 2_500_000, "a-flow")
        .await;
    let refused = put.unwrap_err();
    match house.kind() {
        Kind::Http => assert!(
            matches!(refused, StorageError::Unable { .. }),
            "{refused:?}"
        ),
        _ => assert!(
            matches!(refused, StorageError::Damaged { .. }),
            "{refused:?}"
        ),
    }
    let absent = house.fetch(digest, &bytes(13)).await.unwrap_err();
    assert!(
        matches!(absent, StorageError::NotFound { .. }),
        "{absent:?}"
    );
}

async fn damage_is_never_handed_out_and_is_mended_by_a_put(house: &mut House) {
    let whole = bytes(17);
    let digest = house.put(&whole).await.unwrap();
    let mut other = whole.clone();
    other[1_500_000] ^= 1;
    for damage in [other, whole[1..].to_vec()] {
        house.server.plant(&key::artifact(digest), damage).await;
        house.forget();
        let refused = house.fetch(digest, &whole).await.unwrap_err();
        let StorageError::Damaged {
            root,
            key,
            wanted,
            got,
        } = &refused
        else {
            panic!("{refused:?}");
        };
        assert_eq!(*root, house.server.root.to_string());
        assert_eq!(*key, key::artifact(digest));
        assert_ne!(wanted, got);
        match house.kind() {
            Kind::Oci => {
                let kept = house.put(&whole).await.unwrap_err();
                assert!(matches!(kept, StorageError::Kept { .. }), "{kept:?}");
                house
                    .server
                    .plant(&key::artifact(digest), whole.clone())
                    .await;
            }
            Kind::Http => drop(house.put(&whole).await.unwrap()),
            _ => {
                let before = house.put_over(&whole).await.unwrap();
                assert_eq!(before, Before::Damaged(got.clone()));
                assert_eq!(house.put_over(&whole).await.unwrap(), Before::Whole);
            }
        }
        assert_eq!(house.fetch(digest, &whole).await.unwrap(), whole);
    }
}

async fn what_is_not_there_or_too_large_is_told(house: &mut House) {
    let digest = Digest::of(b"never put");
    let absent = house.fetch(digest, b"never put").await.unwrap_err();
    assert!(
        matches!(absent, StorageError::NotFound { .. }),
        "{absent:?}"
    );
    let bytes = bytes(19);
    let digest = house.put(&bytes).await.unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let key = key::artifact(digest);
    let got = house
        .storage
        .download(&key, 3_000_000, &mut file)
        .await
        .unwrap();
    assert_eq!(got, (digest, bytes.len() as u64));
    let large = house
        .storage
        .download(&key, 2_000_000, &mut file)
        .await
        .unwrap_err();
    assert!(
        matches!(
            large,
            StorageError::TooLarge {
                size: 2_500_000,
                ..
            }
        ),
        "{large:?}"
    );
}

async fn no_key_leads_elsewhere(house: &mut House) {
    let digest = house.put(b"inside").await.unwrap();
    for key in [
        "../inside",
        "a/../../inside",
        "/etc/passwd",
        "",
        "a//b",
        "sha256/..",
        "?x",
        "%2e%2e/x",
    ] {
        let fetched = house
            .storage
            .fetch_artifact(key, digest, 6, &house.cache)
            .await;
        let refused = fetched.unwrap_err();
        assert!(
            matches!(refused, StorageError::Refused { .. }),
            "{key}: {refused:?}"
        );
    }
}

async fn what_lies_there_is_listed(house: &mut House) {
    let mut wanted = Vec::new();
    for bytes in [&b"one"[..], b"two"] {
        wanted.push((
            key::artifact(house.put(bytes).await.unwrap()),
            bytes.len() as u64,
        ));
    }
    wanted.sort();
    match house.storage.list().await {
        Ok(found) => {
            let found: Vec<_> = found.try_collect().await.unwrap();
            let mut found: Vec<_> = found
                .into_iter()
                .map(|found| (found.key, found.size))
                .collect();
            found.sort();
            assert_eq!(found, wanted);
        }
        Err(error) => {
            assert_eq!(house.kind(), Kind::Http, "{error}");
            assert!(error.to_string().contains("cannot be listed"), "{error}");
        }
    }
}

async fn results_are_read_back_by_anybody(house: &mut House) {
    let (root, access) = (&house.server.root, &house.server.access);
    let opened = Results::open(root, "mira", access, Clock::default());
    if house.kind() == Kind::Http {
        let refused = opened.unwrap_err().to_string();
        assert!(refused.contains("read-only"), "{refused}");
        return;
    }
    let results = opened.unwrap();
    let values: Vec<_> = (0..300).map(|n| Value::json(format!("[{n}]"))).collect();
    let values = [vec![Value::json("")], values].concat();
    let kept = try_join_all(values.iter().map(|value| results.append(value)));
    let references = kept.await.unwrap();
    let mut segments: Vec<_> = references
        .iter()
        .map(|reference| &reference.segment)
        .collect();
    segments.dedup();
    assert!(
        segments.len() <= 3,
        "{} segments for 301 small values",
        segments.len()
    );
    let later = Results::open(root, "mira", access, Clock::default()).unwrap();
    for (value, reference) in values.iter().zip(&references).step_by(50) {
        assert_eq!(later.read(reference).await.unwrap(), *value);
        let looked = Results::look_up(reference, "mira", access).await;
        assert_eq!(looked.unwrap(), *value);
    }
    let mut forged = references[1].clone();
    forged.segment = "../../secret".to_owned();
    assert!(later.read(&forged).await.is_err());
    forged = references[1].clone();
    forged.offset += 1;
    let moved = later.read(&forged).await.unwrap_err();
    assert!(matches!(moved, StorageError::Damaged { .. }), "{moved:?}");
}

async fn a_segment_is_deleted_once_and_a_second_time(house: &mut House) {
    let (root, access) = (&house.server.root, &house.server.access);
    if house.kind() == Kind::Http {
        let key = "segments/0000000000000001-0000000000000002";
        let refused = house.storage.delete_segment(key).await.unwrap_err();
        assert!(refused.to_string().contains("read-only"), "{refused}");
        return;
    }
    let open = || Results::open(root, "mira", access, Clock::default()).unwrap();
    let [mira, nas, other] = [open(), open(), open()];
    let value = Value::json("1");
    let (first, second) = (mira.append(&value).await, nas.append(&value).await);
    let (first, second) = (first.unwrap(), second.unwrap());
    let (one, two) = (first.segment.as_str(), second.segment.as_str());
    if house.kind() == Kind::Oci {
        for refused in [
            other.delete(one).await,
            house.storage.delete_segment(two).await,
        ] {
            let refused = refused.unwrap_err();
            assert!(matches!(refused, StorageError::Refused { .. }), "{refused}");
        }
        assert_eq!(mira.read(&first).await.unwrap(), value);
        return;
    }
    for _ in 0..2 {
        other.delete(one).await.unwrap();
        house.storage.delete_segment(two).await.unwrap();
    }
    for reference in [&first, &second] {
        let lost = other.read(reference).await.unwrap_err();
        assert!(matches!(lost, StorageError::NotFound { .. }), "{lost}");
    }
}

async fn outputs_serve_later_runs_until_they_expire(house: &mut House) {
    if house.kind() == Kind::Http {
        return;
    }
    let (root, access) = (&house.server.root, &house.server.access);
    let key = CacheKey {
        project: "demo",
        flow: "f",
        task: "t",
        by: CacheBy::Named("k", None),
    };
    let (now, value) = (Timestamp::UNIX_EPOCH, Value::json("[1]"));
    let later = now + SignedDuration::from_secs(60);
    let first = TaskCache::open(root, access).unwrap();
    assert_eq!(first.get(&key, now).await, None);
    first.put(&key, &value, Some(later)).await.unwrap();
    let second = TaskCache::open(root, access).unwrap();
    assert_eq!(second.get(&key, now).await, Some(value.clone()));
    assert_eq!(second.get(&key, later).await, None);
    second.put(&key, &Value::json("[2]"), None).await.unwrap();
    assert_eq!(first.get(&key, later).await, Some(Value::json("[2]")));
}

/// Runs every promise over one kind of storage.
async fn keeps_its_promises(house: &mut House) {
    what_was_put_is_fetched_from_anywhere(house).await;
    many_put_one_at_a_time(house).await;
    a_file_that_is_not_its_digest_is_not_put(house).await;
    damage_is_never_handed_out_and_is_mended_by_a_put(house).await;
    what_is_not_there_or_too_large_is_told(house).await;
    no_key_leads_elsewhere(house).await;
    results_are_read_back_by_anybody(house).await;
    a_segment_is_deleted_once_and_a_second_time(house).await;
    outputs_serve_later_runs_until_they_expire(house).await;
}

macro_rules! promises {
    ($($name:ident: $kind:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let mut house = House::new(Kind::$kind).await;
            what_lies_there_is_listed(&mut house).await;
            keeps_its_promises(&mut house).await;
        }
    )*};
}

promises! {
    a_folder_keeps_its_promises: Local,
    s3_keeps_its_promises: S3,
    gcs_keeps_its_promises: Gcs,
    azure_keeps_its_promises: Azure,
    a_registry_keeps_its_promises: Oci,
    a_web_server_keeps_its_promises: Http
}

/// Conditional put is what "exists" rests on; a store that ignores it must be one that we know of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_put_of_what_exists_is_refused_where_the_storage_can() {
    for kind in [Kind::Local, Kind::S3, Kind::Azure] {
        let server = StorageServer::start(kind).await;
        let store = connect(&server.root, &server.access).unwrap();
        let path = ObjectPath::from("once");
        store
            .put_opts(&path, "1".into(), PutMode::Create.into())
            .await
            .unwrap();
        let again = store
            .put_opts(&path, "2".into(), PutMode::Create.into())
            .await;
        assert!(
            matches!(again, Err(object_store::Error::AlreadyExists { .. })),
            "{kind:?}: {again:?}"
        );
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "1");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storage_that_goes_away_and_comes_back_is_used_again() {
    for kind in [Kind::S3, Kind::Gcs, Kind::Azure, Kind::Oci, Kind::Http] {
        let mut house = House::new(kind).await;
        let digest = house.put(b"here").await.unwrap();
        house.server.stop();
        house.forget();
        let away = house.fetch(digest, b"here").await.unwrap_err();
        assert!(
            matches!(away, StorageError::Other { .. }),
            "{kind:?}: {away:?}"
        );
        let chain = chain(&away);
        let words = match kind {
            // The proxy before the emulator is there still.
            Kind::Gcs => "502 Bad Gateway",
            _ => "Connection refused (os error 111)",
        };
        assert!(chain.ends_with(words), "{chain}");
        assert!(!chain.contains("Generic"), "{chain}");
        assert!(house.storage.reach().await.is_err(), "{kind:?}");
        house.server.resume().await;
        // The emulators of clouds forget what they had.
        house.server.make_bucket().await;
        house.put(b"here").await.unwrap();
        assert_eq!(
            house.fetch(digest, b"here").await.unwrap(),
            b"here",
            "{kind:?}"
        );
    }
}

/// A web server that sends elsewhere is not followed there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_to_another_host_is_refused() {
    let house = House::new(Kind::Http).await;
    let digest = house.put(b"inside").await.unwrap();
    let target = format!("{}{}", house.server.root, key::artifact(digest));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let redirect = axum::Router::new().fallback(move || {
        let target = target.clone();
        async move { axum::response::Redirect::temporary(&target) }
    });
    let serving = tokio::spawn(async move { axum::serve(listener, redirect).await });
    let root: Root = format!("http://{address}/files/").parse().unwrap();
    let storage = Storage::open(&root, &Access::default()).unwrap();
    let refused = storage
        .check_artifact(&key::artifact(digest), digest, 6)
        .await
        .unwrap_err();
    serving.abort();
    assert!(matches!(refused, StorageError::Other { .. }), "{refused:?}");
    let said = format!("{refused:?}");
    assert!(said.contains("redirect"), "{said}");
}

/// A registry throws away what no manifest names: a blob alone is not there yet, and a put mends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_artifact_whose_manifest_is_missing_is_put_whole() {
    let house = House::new(Kind::Oci).await;
    let digest = house.put(b"a component").await.unwrap();
    let tag = format!("wasm-{}", digest.to_hex());
    let manifests = house.server.data().join("docker/registry/v2/repositories");
    let tags = manifests
        .join(house.server.root.path())
        .join("_manifests/tags");
    std::fs::remove_dir_all(tags.join(&tag)).unwrap();
    let lost = house.storage.find_tag(&tag).await.unwrap_err();
    assert!(matches!(lost, StorageError::NotFound { .. }), "{lost:?}");
    house.put(b"a component").await.unwrap();
    let found = house.storage.find_tag(&tag).await.unwrap();
    assert_eq!(found, (key::artifact(digest), digest, 11));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_tells_other_tools_what_it_holds() {
    let house = House::new(Kind::Oci).await;
    let digest = house.put(b"a component").await.unwrap();
    let version = ("demo", "a-flow", 1);
    let named = house.storage.name_version(digest, version).await.unwrap();
    assert_eq!(named.as_deref(), Some("demo.a-flow.1"));
    let found = house.storage.find_tag("demo.a-flow.1").await.unwrap();
    assert_eq!(found, (key::artifact(digest), digest, 11));
    let url = format!(
        "http://{}/v2/{}/manifests/demo.a-flow.1",
        house.server.root.place(),
        house.server.root.path()
    );
    let http = reqwest::Client::new();
    let accept = "application/vnd.oci.image.manifest.v1+json";
    let answer = http.get(url).header("accept", accept).send().await.unwrap();
    let manifest: serde_json::Value = answer.json().await.unwrap();
    assert_eq!(
        manifest["config"]["mediaType"],
        "application/vnd.wasm.config.v0+json"
    );
    assert_eq!(manifest["layers"][0]["mediaType"], "application/wasm");
    assert_eq!(manifest["layers"][0]["digest"], digest.to_string());
    assert_eq!(manifest["annotations"]["dev.waft.flow"], "a-flow");
    let absent = house.storage.find_tag("none").await.unwrap_err();
    assert!(
        matches!(absent, StorageError::NotFound { .. }),
        "{absent:?}"
    );
}
