//! What lies under a root and should not: half-written, orphaned, expired, hostile, or a tag without its blob.

use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::json;
use waft::model::state::State;

use super::*;
use crate::kit::guests::guest;
use crate::kit::program::{Process, Processes, WAFT};
use crate::kit::terminal::{Person, on_a_terminal};
use crate::kit::witness::patient;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn said(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// Makes a file seem to be from so long ago.
fn age(path: &Path, by: Duration) {
    let at = std::time::SystemTime::from(Clock::default().now()) - by;
    std::fs::File::open(path).unwrap().set_modified(at).unwrap();
}

/// A component of so many bytes: `hello` with a custom section at its end.
pub(super) fn padded(folder: &Path, size: usize) -> PathBuf {
    let mut bytes = std::fs::read(guest("hello").unwrap()).unwrap();
    let name = b"\x07padding";
    let mut length = u32::try_from(name.len() + size).unwrap();
    bytes.push(0);
    while length > 0x7f {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(name);
    let mut noise = 1_u32;
    bytes.extend((0..size).map(|_| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (noise >> 24) as u8
    }));
    let file = folder.join("padded.wasm");
    std::fs::write(&file, bytes).unwrap();
    file
}

fn drafts(root: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(root.join("sha256")).into_iter().flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    let files = files.map(|file| file.unwrap().path());
    files
        .filter(|file| file.to_string_lossy().contains('#'))
        .collect()
}

/// A put that is killed leaves a file that nobody reads; `verify` names it, and after a day it goes, by hand or
/// with the next agent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_put_leaves_is_named_and_goes() {
    let processes = Processes::start(DAY / 24 / 12).await;
    let file = padded(processes.folder(), 100_000_000);
    let root = processes.folder().join("root");
    let place = format!("file://{}", root.display());
    let words = [
        "register",
        file.to_str().unwrap(),
        "--project",
        "demo",
        "--storage",
        &place,
    ];
    let left = loop {
        let register = Process::spawn(&mut processes.waft(words));
        let begun = async {
            loop {
                if let Some(draft) = drafts(&root).pop() {
                    return draft;
                }
                assert!(!root.join("sha256").exists() || artifacts(&root).is_empty());
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        };
        let draft = patient("a put to begin", begun).await;
        register.kill();
        if draft.exists() {
            break draft;
        }
        // It was faster than the signal.
        std::fs::remove_dir_all(&root).unwrap();
    };
    let key = left.strip_prefix(&root).unwrap().display().to_string();
    let verify = |words: &[&str]| {
        let mut command = processes.waft(["storage", "verify", &place]);
        command.args(words).output().unwrap()
    };
    let found = verify(&[]);
    let (out, err) = said(&found);
    assert_eq!(found.status.code(), Some(1), "{out} {err}");
    let line = format!("{key}: left by a writer that was killed (half-written)\n");
    assert_eq!(out, line, "{err}");
    // A writer may still be at it.
    assert_eq!(verify(&["--delete", "--yes"]).status.code(), Some(1));
    assert!(left.exists());
    age(&left, 2 * DAY);
    let asked = verify(&["--delete"]);
    assert_eq!(asked.status.code(), Some(2), "{:?}", said(&asked));
    let deleted = verify(&["--delete", "--yes"]);
    assert_eq!(deleted.status.code(), Some(0), "{:?}", said(&deleted));
    assert!(!left.exists());

    std::fs::write(&left, b"half").unwrap();
    let fresh = left.with_file_name(format!("{}#2", "ab".repeat(32)));
    std::fs::write(&fresh, b"half").unwrap();
    age(&left, 2 * DAY);
    let _mira = Process::spawn(
        processes
            .waft(["agent", "start", "--name", "mira"])
            .args(["--root", &place]),
    );
    let swept = async {
        while left.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    patient("the agent to sweep", swept).await;
    assert!(fresh.exists());
}

fn artifacts(root: &Path) -> Vec<PathBuf> {
    let folders = std::fs::read_dir(root.join("sha256")).into_iter().flatten();
    let files = folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap());
    let files = files.map(|file| file.unwrap().path());
    files
        .filter(|file| !file.to_string_lossy().contains('#'))
        .collect()
}

/// What nobody needs is named and deleted once it is old, and nothing else is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_needs_is_deleted_and_nothing_else() {
    let processes = Processes::start(DAY / 24 / 12).await;
    let home = processes.folder().join("home");
    let root = home.join("results");
    let place = format!("file://{}", root.display());
    processes.register("hello").await;
    let mira = processes.agent("mira");
    let run = processes.run("hello", json!({})).await;
    processes.ends_as(run, State::Success).await;
    drop(mira);
    let keep = |key: &str, bytes: &[u8], by: Duration| {
        let path = root.join(key);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        age(&path, by);
        path
    };
    let now = Clock::default().now();
    let begun = |days: u32| now.as_microsecond() - (days * DAY).as_micros() as i64;
    let segment = |days: u32| format!("segments/{:016x}-{:016x}", begun(days), 7);
    let orphan = keep(&segment(30), b"1", DAY);
    let fresh = keep(&segment(1), b"1", 30 * DAY);
    let own = key::artifact(Digest::of(b"nobody's"));
    let artifact = keep(&own, b"nobody's", 30 * DAY);
    let other = keep("notes.txt", b"mine", 300 * DAY);
    let outputs = TaskCache::open(&Root::local(&root).unwrap(), &Access::default()).unwrap();
    for (name, days) in [
        ("old", Some(-30)),
        ("late", Some(-1)),
        ("good", Some(1)),
        ("ever", None),
    ] {
        let key = CacheKey {
            project: "p",
            flow: "f",
            task: "t",
            by: CacheBy::Named(name, None),
        };
        let until = days.map(|days| now + SignedDuration::from_hours(24 * days));
        outputs.put(&key, &Value::json("1"), until).await.unwrap();
    }
    let verify = |words: &[&str]| {
        let mut command = processes.waft(["storage", "verify", &place]);
        command.args(words).output().unwrap()
    };
    let (out, err) = said(&verify(&[]));
    let count = |word: &str| out.lines().filter(|line| line.contains(word)).count();
    assert_eq!(count("orphaned: no run"), 1, "{out} {err}");
    assert_eq!(count("orphaned: no flow has it"), 1, "{out} {err}");
    assert_eq!(count(": expired"), 2, "{out} {err}");
    assert_eq!(count("no key that waft makes"), 1, "{out} {err}");
    assert_eq!(out.lines().count(), 5, "{out} {err}");
    let (_, err) = said(&verify(&["--delete", "--yes"]));
    assert!(err.contains("deleted 3 objects"), "{err}");
    for (path, is_there) in [
        (&orphan, false),
        (&fresh, true),
        (&artifact, false),
        (&other, true),
    ] {
        assert_eq!(path.exists(), is_there, "{}", path.display());
    }
    // What a run has returned is still there, and the next pass finds what it left.
    let kept = processes.ends(run).await;
    assert!(kept.result.is_some());
    processes.result(&kept);
    let (out, err) = said(&verify(&["--delete", "--yes"]));
    assert!(err.contains("deleted 0 objects"), "{out} {err}");
    assert_eq!(out.lines().count(), 2, "{out}");
}

/// What was registered while somebody thought about the question stays, and so does what is young enough to be on
/// its way to the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_registered_meanwhile_is_not_deleted() {
    let processes = Processes::start(DAY / 24 / 12).await;
    let root = processes.folder().join("root");
    let place = format!("file://{}", root.display());
    let keep = |bytes: &[u8], by: Duration| {
        let path = root.join(key::artifact(Digest::of(bytes)));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        age(&path, by);
        path
    };
    let hello = guest("hello").unwrap();
    let wanted = keep(&std::fs::read(&hello).unwrap(), 30 * DAY);
    let young = keep(b"on its way", 6 * DAY);
    let old = keep(b"nobody's", 8 * DAY);
    // While the question stands there, somebody registers.
    let register = format!(
        "{WAFT} register {} --project demo --storage {place}",
        hello.display()
    );
    let person = Person {
        asked: "delete 2 objects",
        meanwhile: &register,
    };
    let words = ["storage", "verify", &place, "--delete"];

    let out = on_a_terminal(&processes, &words, &[], person);
    assert!(out.contains("deleted 1 object"), "{out}");
    for (path, is_there) in [(&wanted, true), (&young, true), (&old, false)] {
        assert_eq!(path.exists(), is_there, "{}: {out}", path.display());
    }
}

/// Names and things that somebody else put into a folder are shown, and break nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_full_of_hostile_things_is_listed() {
    let processes = Processes::start(DAY / 24 / 12).await;
    let root = processes.folder().join("root");
    let own = key::artifact(Digest::of(b"good"));
    let shard = root.join(&own);
    std::fs::create_dir_all(shard.parent().unwrap()).unwrap();
    std::fs::write(&shard, b"good").unwrap();
    let names: [&[u8]; 9] = [
        b"\x1b[2Jcleared",
        b"two\nlines",
        b"\xff\xfe",
        b"a#1",
        b"#",
        b"...",
        b"%2e%2e",
        b" ",
        b"-rf",
    ];
    for name in names {
        std::fs::write(root.join(std::ffi::OsStr::from_bytes(name)), b"x").unwrap();
    }
    std::fs::write(root.join("x".repeat(255)), b"x").unwrap();
    let link =
        |target: &str, name: &str| std::os::unix::fs::symlink(target, root.join(name)).unwrap();
    link("/etc/passwd", "passwd");
    link(".", "round");
    link("nowhere", "dangling");
    let pipe = root.join(key::artifact(Digest::of(b"a pipe")));
    std::fs::create_dir_all(pipe.parent().unwrap()).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap();
    assert!(made.success());
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();

    let place = format!("file://{}", root.display());
    let listed = processes.waft(["storage", "ls", &place]).output().unwrap();
    let (out, err) = said(&listed);
    assert!(listed.status.success(), "{err}");
    assert!(!out.contains('\x1b') && !out.contains("root:"), "{out}");
    for word in [
        "a symbolic link",
        "a device, a pipe or a socket",
        "artifact",
        "not waft's",
    ] {
        assert!(out.contains(word), "{word} in {out}");
    }
    // A head, the artifact, the names, the long one, three links, the pipe and the socket.
    assert_eq!(
        out.lines().count(),
        1 + 1 + names.len() + 1 + 3 + 2,
        "{out}"
    );
    let verified = processes
        .waft(["storage", "verify", &place])
        .output()
        .unwrap();
    let (out, err) = said(&verified);
    assert_eq!(verified.status.code(), Some(1), "{err}");
    assert!(err.contains("1 artifact read"), "{err}");
    assert!(!out.contains('\x1b'), "{out}");
}

/// One tag whose blob is gone is named, and those after it are looked at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tag_without_its_blob_is_named_and_the_rest_is_read() {
    let house = House::new(Kind::Oci).await;
    let mut keys = Vec::new();
    for bytes in [&b"one"[..], b"two", b"three"] {
        keys.push(key::artifact(house.put(bytes).await.unwrap()));
    }
    let gone = Digest::of(b"two").to_hex();
    let blobs = house.server.data().join("docker/registry/v2/blobs/sha256");
    std::fs::remove_dir_all(blobs.join(&gone[..2]).join(&gone)).unwrap();
    let found = house.storage.list().await.unwrap();
    let found: Vec<_> = found.try_collect().await.unwrap();
    assert_eq!(found.len(), 3, "{found:?}");
    for one in found {
        let is_gone = one.key == keys[1];
        assert_eq!(one.odd.is_some(), is_gone, "{one:?}");
        assert!(keys.contains(&one.key), "{one:?}");
    }
}
