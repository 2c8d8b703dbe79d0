//! The examples, run by the real program as their pages say: what they return, what they show, and
//! what is refused when a power is not granted. `flows` runs `wordcount` through server and agent.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::kit::local::run;
use crate::kit::repository;

#[test]
fn hello_greets() {
    let home = tempfile::tempdir().unwrap();
    let ran = run(home.path(), "hello", &["--param", "name=Ada"]);
    assert_eq!(ran.code, Some(0), "{}", ran.talk);
    assert_eq!(ran.object["result"], "Hello, Ada!");
    assert!(ran.talk.contains("greet | greeting Ada"), "{}", ran.talk);
}

/// The main job on real input: this repository's own lock file.
#[test]
fn lockfile_reports_a_real_lock_file() {
    let home = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(repository().join("Cargo.lock")).unwrap();
    let packages = text.matches("[[package]]").count();
    let dir = format!("{}::/repo:ro", repository().display());
    let ran = run(home.path(), "lockfile", &["--allow-dir", &dir]);
    assert_eq!(ran.code, Some(0), "{}", ran.talk);
    assert_eq!(ran.object["state"], "Success");

    let report = &ran.object["result"];
    assert_eq!(report["packages"], packages);
    let registries = report["by_registry"].as_object().unwrap();
    let counted: u64 = registries.values().filter_map(Value::as_u64).sum();
    assert_eq!(counted, packages as u64, "{registries:?}");
    assert!(!report["several_versions"].as_object().unwrap().is_empty());
    assert_eq!(report["deepest_chains"].as_array().unwrap().len(), 10);
    assert_eq!(report["from_git"], "no package comes from git");

    let tasks = ran.object["tasks"].as_array().unwrap();
    let of = |name: &'static str| tasks.iter().filter(move |task| task["task"] == name);
    let mapped = of("examine").filter(|task| task["map_index"].is_u64());
    assert!(packages > 100, "{packages} packages");
    assert_eq!(mapped.count(), packages);
    let verify = of("verify").next().unwrap();
    assert_eq!(verify["state"], "Success");
    assert_eq!(verify["attempts"], 2, "a retry that really happened");
    assert_eq!(of("list_git").next().unwrap()["state"], "Skipped");

    let [card] = &ran.object["cards"].as_array().unwrap()[..] else {
        panic!("{}", ran.object["cards"]);
    };
    assert_eq!(card["content"]["kind"], "markdown");
    let shown = card["content"]["text"].as_str().unwrap();
    let title = format!("# {packages} packages\n");
    assert!(shown.starts_with(&title), "{shown}");
}

#[test]
fn lockfile_is_refused_without_its_folder() {
    let home = tempfile::tempdir().unwrap();
    let ran = run(home.path(), "lockfile", &[]);
    assert_eq!(ran.code, Some(1), "{}", ran.talk);
    let line = "--allow-dir HOST::/repo:ro";
    assert!(ran.talk.contains(line), "{}", ran.talk);
}

#[test]
fn fetch_gets_a_page_from_this_machine() {
    let home = tempfile::tempdir().unwrap();
    let (url, asked) = answers_once("<!doctype html>\n<p>Hello");
    let url = format!("url={url}");
    let granted = ["--param", &url, "--allow-net", "127.0.0.1:*"];
    let ran = run(home.path(), "fetch", &granted);
    assert_eq!(ran.code, Some(0), "{}", ran.talk);
    assert_eq!(
        ran.object["result"],
        json!({
            "status": 200, "content_type": "text/html", "bytes": 24,
            "first_line": "<!doctype html>",
        })
    );
    let kind = &ran.object["cards"][0]["content"]["kind"];
    assert_eq!(kind, "link");
    assert_eq!(asked.join().unwrap(), "GET /page HTTP/1.1");
}

#[test]
fn fetch_is_refused_without_the_network() {
    let home = tempfile::tempdir().unwrap();
    let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    server.set_nonblocking(true).unwrap();
    let url = format!("url=http://{}/", server.local_addr().unwrap());
    let ran = run(home.path(), "fetch", &["--param", &url]);
    assert_eq!(ran.code, Some(1), "{}", ran.talk);
    let line = "--allow-net '127.0.0.1:*'";
    assert!(ran.talk.contains(line), "{}", ran.talk);
    assert_eq!(ran.object, Value::Null, "nothing ran");
    assert!(server.accept().is_err(), "nobody came");
}

/// Starts a server that answers one request with a page, and says in the end what was asked of it.
fn answers_once(page: &'static str) -> (String, JoinHandle<String>) {
    let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://{}/page", server.local_addr().unwrap());
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
        page.len()
    );
    let asked = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let request = BufReader::new(stream.try_clone().unwrap()).lines();
        let head: Vec<_> = request
            .map(Result::unwrap)
            .take_while(|line| !line.is_empty())
            .collect();
        stream.write_all(answer.as_bytes()).unwrap();
        head[0].clone()
    });
    (url, asked)
}
