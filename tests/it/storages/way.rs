//! What happens on the way: servers that die, freeze or change what they send, and how far it is.

use std::time::Duration;

use super::left_over::padded;
use super::*;
use crate::kit::program::Processes;
use crate::kit::servers::Front;
use crate::kit::terminal::{Person, on_a_terminal};
use crate::kit::witness::patient;

const LEASE: Duration = Duration::from_secs(30);

fn large(size: u32) -> Vec<u8> {
    (0..size)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

/// Fetches until the first bytes have come, does something to the server, and answers how the fetch ends.
async fn fetch_and(
    house: &mut House,
    digest: Digest,
    size: usize,
    what: impl AsyncFnOnce(&mut House),
) -> Result<Vec<u8>, StorageError> {
    let (storage, cache) = (house.storage.clone(), house.cache.clone());
    let meter = storage.meter();
    let before = meter.moved();
    let fetching = tokio::spawn(async move { fetch(&storage, &cache, digest, size).await });
    let begun = async {
        while meter.moved() == before && !fetching.is_finished() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    patient("a download to begin", begun).await;
    what(house).await;
    fetching.await.unwrap()
}

/// A server that is killed in the middle of a download leaves nothing in the cache, and is asked again later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_while_it_sends_is_asked_again() {
    for kind in [Kind::S3, Kind::Oci, Kind::Http] {
        let mut house = House::new(kind).await;
        let whole = large(96 * 1024 * 1024);
        let digest = house.put(&whole).await.unwrap();
        house.storage = Storage::open(&house.server.root, &house.server.access).unwrap();
        let killed = async |house: &mut House| house.server.stop();
        let broken = fetch_and(&mut house, digest, whole.len(), killed).await;
        let broken = broken.map(drop).unwrap_err();
        assert!(
            matches!(broken, StorageError::Other { .. }),
            "{kind:?}: {broken:?}"
        );
        // The clients of the others ask for the rest, and meet nobody.
        let said = chain(&broken);
        let words = match kind {
            Kind::Oci => ": the connection ended in the middle",
            _ => ": Connection refused (os error 111)",
        };
        assert!(said.ends_with(words), "{kind:?}: {said}");
        let left = std::fs::read_dir(house.folder.path().join("cache")).unwrap();
        assert_eq!(left.count(), 0, "{kind:?}");
        house.server.resume().await;
        house.server.make_bucket().await;
        house.put(&whole).await.unwrap();
        assert!(house.fetch(digest, &whole).await.unwrap() == whole);
    }
}

/// One that only stops sending is waited for so long, and told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_freezes_is_not_waited_for_without_end() {
    let mut house = House::new(Kind::Http).await;
    // Two minutes' worth: however busy the machine is, it freezes long before the end.
    let whole = large(32 * 1024 * 1024);
    let digest = house.put(&whole).await.unwrap();
    let data = house.server.data();
    let front = Front::start(&format!("root {}; limit_rate 256k;", data.display())).await;
    let root = format!("http://{}/files/", front.address).parse().unwrap();
    house.storage = Storage::open(&root, &house.server.access).unwrap();
    let frozen = async |_: &mut House| front.freeze();
    let silent = fetch_and(&mut house, digest, whole.len(), frozen).await;
    let silent = silent.map(drop).unwrap_err();
    assert!(matches!(silent, StorageError::Other { .. }), "{silent:?}");
    assert!(
        format!("{silent:?}").contains("no answer for 30 s"),
        "{silent:?}"
    );
}

/// What a server on the way changes, or cuts off, is never handed out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_changed_on_the_way_is_damage() {
    let mut house = House::new(Kind::Http).await;
    let text = "a component, all of it text\n".repeat(10_000);
    let digest = house.put(text.as_bytes()).await.unwrap();
    let inner = house.server.address();
    for (what, replaced) in [
        ("another", "sub_filter 'all' 'not';"),
        ("shorter", "sub_filter 'all of it' '';"),
    ] {
        let front = Front::start(&format!(
            "location / {{ proxy_pass http://{inner}; sub_filter_types *; {replaced} sub_filter_once off; }}"
        ))
        .await;
        let root = format!("http://{}/files/", front.address).parse().unwrap();
        house.storage = Storage::open(&root, &house.server.access).unwrap();
        house.forget();
        let changed = house.fetch(digest, text.as_bytes()).await.unwrap_err();
        assert!(
            matches!(
                changed,
                StorageError::Damaged { .. } | StorageError::Other { .. }
            ),
            "{what}: {changed:?}"
        );
        let left = std::fs::read_dir(house.folder.path().join("cache")).unwrap();
        assert_eq!(left.count(), 0, "{what}");
    }
}

/// Checks that a command that says nothing to a terminal draws no bar of that name.
fn assert_plain(processes: &Processes, words: &[&str], store: &StorageServer, bar: &str) {
    let mut command = processes.waft(words.iter().copied());
    let plain = command.envs(store.environment()).output().unwrap();
    assert!(plain.status.success(), "{plain:?}");
    let said = String::from_utf8_lossy(&plain.stderr).into_owned();
    assert!(!said.contains(bar) && !said.contains('\x1b'), "{said}");
}

/// On a terminal a large upload shows how far it is; elsewhere there are plain lines.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_upload_shows_how_far_it_is_on_a_terminal_only() {
    let processes = Processes::start(LEASE).await;
    let store = StorageServer::start(Kind::Oci).await;
    let file = padded(processes.folder(), 100_000_000);
    let root = store.root.to_string();
    let words = [
        "register",
        file.to_str().unwrap(),
        "--project",
        "demo",
        "--storage",
        &root,
        "--yes",
    ];
    let shown = on_a_terminal(&processes, &words, &store.environment(), Person::default());
    assert!(shown.contains("registered demo/hello version 1"), "{shown}");
    assert!(shown.contains("storing"), "{shown}");
    assert!(shown.contains("/95.4"), "the whole size in {shown}");

    let again = StorageServer::start(Kind::Oci).await;
    let root = again.root.to_string();
    let words = [
        "register",
        file.to_str().unwrap(),
        "--project",
        "demo",
        "--storage",
        &root,
        "--yes",
    ];
    assert_plain(&processes, &words, &again, "storing");
}

/// So does a large download, whose size the storage tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_download_shows_how_far_it_is_on_a_terminal_only() {
    let processes = Processes::start(LEASE).await;
    let store = StorageServer::start(Kind::Http).await;
    let file = padded(processes.folder(), 20_000_000);
    std::fs::copy(&file, store.data().join("files/hello.wasm")).unwrap();
    // Two seconds' worth: a bar comes only where something takes its time.
    let data = store.data();
    let front = Front::start(&format!("root {}; limit_rate 10m;", data.display())).await;
    let place = format!("http://{}/files/hello.wasm", front.address);
    let words = ["register", &place, "--project", "demo", "--yes"];
    let shown = on_a_terminal(&processes, &words, &store.environment(), Person::default());
    assert!(shown.contains("registered demo/hello version 1"), "{shown}");
    assert!(shown.contains("fetching hello.wasm"), "{shown}");
    assert!(shown.contains("/19."), "the whole size in {shown}");

    assert_plain(&processes, &words, &store, "fetching");
}

/// A registry may keep its blobs elsewhere, and send there. Its login stays with it, and what comes from there is
/// checked as ever. A server of files that sends elsewhere is refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registry_that_keeps_its_blobs_elsewhere_gives_no_login_away() {
    let mut house = House::over(StorageServer::start_locked(Kind::Oci).await);
    let whole = bytes(29);
    let digest = house.put(&whole).await.unwrap();
    let (inner, data) = (house.server.address(), house.server.data());
    let blobs = data.join("docker/registry/v2/blobs/sha256");
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("elsewhere.log");
    // What opens the registry must not open this one: it is written down, and refused.
    let elsewhere = Front::start(&format!(
        "access_log {} combined; location / {{ if ($http_authorization) {{ return 403; }} root {}; }}",
        log.display(),
        blobs.display()
    ))
    .await;
    let with_login = reqwest::Client::new()
        .get(format!("http://{}/", elsewhere.address))
        .basic_auth("ada", Some("secret"));
    assert_eq!(with_login.send().await.unwrap().status(), 403);
    std::fs::write(&log, "").unwrap();
    let front = Front::start(&format!(
        "location / {{ proxy_pass http://{inner}; proxy_set_header Host $http_host; }} \
         location ~ \"^/v2/.*/blobs/sha256:(?<hex>(?<head>[0-9a-f]{{2}}).*)$\" {{ \
         if ($http_authorization = '') {{ return 418; }} \
         if ($request_method = GET) {{ return 307 http://{}/$head/$hex/data?signed=yes; }} \
         proxy_pass http://{inner}; proxy_set_header Host $http_host; }}",
        elsewhere.address
    ))
    .await;
    let config = house.server.access.at_home(".docker/config.json").unwrap();
    let login = std::fs::read_to_string(&config).unwrap();
    let login = login.replace(&inner.to_string(), &front.address.to_string());
    std::fs::write(&config, login).unwrap();
    let root: Root = format!("oci://{}/{}", front.address, house.server.root.path())
        .parse()
        .unwrap();
    house.storage = Storage::open(&root, &house.server.access).unwrap();
    house.forget();
    assert_eq!(house.fetch(digest, &whole).await.unwrap(), whole);
    let asked = std::fs::read_to_string(&log).unwrap();
    assert!(
        asked.contains("signed=yes") && !asked.contains(" 403 "),
        "{asked}"
    );

    let damage = whole[1..].to_vec();
    house.server.plant(&key::artifact(digest), damage).await;
    house.forget();
    let damaged = house.fetch(digest, &whole).await.unwrap_err();
    assert!(
        matches!(damaged, StorageError::Damaged { .. }),
        "{damaged:?}"
    );
}
