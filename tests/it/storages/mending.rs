//! Artifacts that were damaged where they lie, and what registering them again does about it.

use std::process::Output;
use std::time::Duration;

use serde_json::json;
use waft::config::hostname;
use waft::model::label::Labels;
use waft::model::state::State;

use super::*;
use crate::kit::guests::guest;
use crate::kit::program::{Process, Processes};
use crate::kit::servers::Front;
use crate::kit::world::registration;

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

/// What a flow has and its storage has not is found, and the same file registered again puts it back. What only
/// the list of a storage leaves out is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_registered_and_gone_is_missing() {
    let processes = Processes::start(LEASE).await;
    let (hello, echo) = (guest("hello").unwrap(), guest("echo").unwrap());
    let digest = Digest::of(&std::fs::read(&hello).unwrap());
    let key = key::artifact(digest);
    for kind in [Kind::S3, Kind::Gcs, Kind::Azure, Kind::Oci] {
        let server = StorageServer::start(kind).await;
        let root = server.root.to_string();
        let waft = |words: &[&str]| {
            let mut command = processes.waft(words.iter().copied());
            command.envs(server.environment()).output().unwrap()
        };
        let verify = |code: i32| {
            let found = waft(&["storage", "verify", &root]);
            let text = said(&found);
            assert_eq!(found.status.code(), Some(code), "{kind:?}: {text}");
            text
        };
        for file in [&hello, &echo] {
            let file = file.to_str().unwrap();
            let put = waft(&["register", file, "--project", "demo", "--storage", &root]);
            assert!(put.status.success(), "{kind:?}: {}", said(&put));
        }
        assert!(verify(0).contains("2 artifacts read, 0 findings"));
        if kind == Kind::Oci {
            let data = server.data().join("docker/registry/v2");
            let tags = data.join("repositories").join(server.root.path());
            let tags = std::fs::read_dir(tags.join("_manifests/tags")).unwrap();
            let hex = digest.to_hex();
            let is_of_hello = |name: &str| name.contains(&hex) || name.contains("hello");
            let tags = tags.map(|tag| tag.unwrap());
            let own = tags.filter(|tag| is_of_hello(&tag.file_name().to_string_lossy()));
            let own: Vec<_> = own.map(|tag| tag.path()).collect();
            assert_eq!(own.len(), 2, "{own:?}");
            own.iter()
                .for_each(|tag| std::fs::remove_dir_all(tag).unwrap());
            assert!(verify(0).contains("2 artifacts read, 0 findings"));
            let blob = data.join("blobs/sha256").join(&hex[..2]).join(&hex);
            std::fs::remove_dir_all(blob).unwrap();
        } else {
            server.remove(&key).await;
        }
        let text = verify(1);
        for words in [
            &*format!("{key}: missing: demo/hello version "),
            " has it (artifact)",
            "1 artifact read, 1 finding;",
            "1 of 2 objects in ",
            &format!("waft register FILE --storage {root}"),
        ] {
            assert!(text.contains(words), "{kind:?}: {words} in {text}");
        }
        let file = hello.to_str().unwrap();
        let again = waft(&["register", file, "--project", "demo", "--storage", &root]);
        assert!(
            said(&again).contains("where it was not"),
            "{}",
            said(&again)
        );
        assert!(verify(0).contains("2 artifacts read, 0 findings"));
    }
}

/// A folder of the same path on another machine may have what is not here: that is said, and no finding.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lies_on_another_machine_is_not_missing_here() {
    let processes = Processes::start(LEASE).await;
    let root = processes.folder().join("flows");
    std::fs::create_dir_all(&root).unwrap();
    let place = Root::local(&root).unwrap();
    let mut elsewhere = registration("hello", &place).await;
    std::fs::remove_dir_all(root.join("sha256")).unwrap();
    elsewhere.labels = Labels::from_iter(["a-machine-elsewhere"]);
    processes.client.register("demo", &elsewhere).await.unwrap();
    let place = place.to_string();
    let verify = || {
        let verified = processes.waft(["storage", "verify", &place]).output();
        let verified = verified.unwrap();
        (verified.status.code(), said(&verified))
    };
    let (code, text) = verify();
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("1 artifact registered in a folder of this path"),
        "{text}"
    );
    // And of this one it is.
    elsewhere.labels = Labels::from_iter([hostname()]);
    processes.client.register("demo", &elsewhere).await.unwrap();
    let (code, text) = verify();
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains(": missing: demo/hello version 2 has it"),
        "{text}"
    );
    // Who asks no server finds nothing missing, and says so.
    let mut alone = processes.waft(["storage", "verify", &place]);
    let alone = alone.env("WAFT_HOME", processes.folder().join("other"));
    let alone = alone.output().unwrap();
    let text = said(&alone);
    assert!(alone.status.success(), "{text}");
    assert!(
        text.contains("nothing counts as missing or orphaned: no server"),
        "{text}"
    );
}

/// An object that waft has put somewhere is registered under the root that it was put under, which is the one that
/// agents have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waft_has_put_is_registered_under_its_own_root() {
    let echo = guest("echo").unwrap();
    let bytes = std::fs::read(&echo).unwrap();
    let key = key::artifact(Digest::of(&bytes));
    for kind in [Kind::S3, Kind::Gcs, Kind::Azure, Kind::Http] {
        let processes = Processes::start(LEASE).await;
        let server = StorageServer::start(kind).await;
        let root = server.root.to_string();
        server.plant(&key, bytes.clone()).await;
        let place = format!("{}/{key}", root.trim_end_matches('/'));
        let register = || {
            let mut command = processes.waft(["register", &place, "--project", "demo"]);
            let output = command.envs(server.environment()).output().unwrap();
            (output.status.success(), said(&output))
        };
        let (is_done, text) = register();
        assert!(is_done, "{kind:?}: {text}");
        let fetched = format!("agents fetch it with --root {root}\n");
        assert!(text.contains(&fetched), "{kind:?}: {text}");
        let mut agent = processes.waft(["agent", "start", "--name", "mira", "--root", &root]);
        let _agent = Process::spawn(agent.envs(server.environment()));
        let run = processes.run("echo", json!({"text": "there"})).await;
        processes.ends_as(run, State::Success).await;
        // What is not what its key says is not registered.
        server.plant(&key, bytes[..bytes.len() - 1].to_vec()).await;
        let (is_done, text) = register();
        assert!(
            !is_done && text.contains("is damaged: expected"),
            "{kind:?}: {text}"
        );
    }
}
