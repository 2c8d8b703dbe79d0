//! The examples, run by the real program as their pages say: what they return, what they show, and
//! what is refused when a power is not granted. `flows` runs `wordcount` through server and agent.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::kit::guests::guest;
use crate::kit::local::run;
use crate::kit::program::WAFT;
use crate::kit::repository;

#[test]
fn hello_greets() {
    let home = tempfile::tempdir().unwrap();
    let ran = run(home.path(), "hello", &["--param", "name=Ada"]);
    assert_eq!(ran.code, Some(0), "{}", ran.talk);
    assert_eq!(ran.object["result"], "Hello, Ada!");
    assert!(ran.talk.contains("greet | greeting Ada"), "{}", ran.talk);
}

#[test]
fn approval_asks_before_it_publishes() {
    let home = tempfile::tempdir().unwrap();
    let ran = run(home.path(), "approval", &["--yes"]);
    assert_eq!(ran.code, Some(0), "{}", ran.talk);
    assert_eq!(ran.object["result"], "There will be maintenance tonight.");
    assert_eq!(ran.object["tasks"][1]["attempts"], 2);
    let ran = run(home.path(), "approval", &[]);
    assert_eq!(ran.code, Some(3), "{}", ran.talk);
    assert_eq!(ran.object["state"], "Cancelled");
    assert_eq!(ran.object["result"], Value::Null);
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

/// What the attribute says is what a host is told, and what `inspect` shows.
#[test]
fn clocks_say_when_they_run() {
    let home = tempfile::tempdir().unwrap();
    let inspect = |arguments: &[&str]| {
        let output = Command::new(WAFT)
            .arg("inspect")
            .arg(guest("clocks").unwrap())
            .args(arguments)
            .env("WAFT_HOME", home.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let shown: Value = serde_json::from_str(&inspect(&["--json"])).unwrap();
    assert_eq!(
        shown["schedule"],
        json!({
            "clocks": [
                {
                    "name": "nightly",
                    "rule": {"cron": {"line": "0 2 * * *", "time_zone": "Europe/Berlin"}},
                    "starts_at": "2026-12-01T00:00:00Z",
                    "ends_at": "2027-11-30T23:00:00Z",
                    "parameters": {"region": "eu", "count": 3},
                },
                {
                    "name": "interval",
                    "rule": {"interval_ms": 5_400_000},
                    "starts_at": null,
                    "ends_at": null,
                    "parameters": {"region": "us"},
                },
                {
                    "name": "dates",
                    "rule": {"dates": ["2026-12-24T09:00:00Z", "2026-12-31T23:30:00.5Z"]},
                    "starts_at": null,
                    "ends_at": null,
                    "parameters": {"region": "all"},
                },
            ],
            "filters": [
                {"weekdays": {"days": [1, 2, 3, 4, 6], "time_zone": "America/New_York"}},
                {"between_times": {"from": "22:00", "until": "06:00", "time_zone": "UTC"}},
                {"skip_dates": {"dates": ["2026-12-25", "2026-12-26"], "time_zone": "Asia/Tokyo"}},
            ],
            "catch_up": "all",
            "overlap": "cancel_old",
        })
    );
    let text = inspect(&[]);
    let lines = text
        .lines()
        .skip_while(|line| !line.starts_with("schedule"));
    let lines: Vec<&str> = lines.take(8).collect();
    assert_eq!(
        lines,
        [
            "schedule    nightly: `0 2 * * *` in Europe/Berlin  [from 2026-12-01T00:00:00Z; \
             until 2027-11-30T23:00:00Z; count = 3; region = \"eu\"]",
            "            interval: every 90m  [region = \"us\"]",
            "            dates: 2026-12-24T09:00:00Z, 2026-12-31T23:30:00.5Z  [region = \"all\"]",
            "            on mon-thu, sat in America/New_York",
            "            between 22:00 and 06:00 in UTC",
            "            except on 2026-12-25, 2026-12-26 in Asia/Tokyo",
            "            catch up: all",
            "            overlap: cancel-old",
        ]
    );
}

#[test]
fn report_sums_up_a_day() {
    let home = tempfile::tempdir().unwrap();
    let sales = tempfile::tempdir().unwrap();
    std::fs::create_dir(sales.path().join("eu")).unwrap();
    let file = sales.path().join("eu/2026-11-25.csv");
    std::fs::write(file, "product,cents\nlamp,1250\nchair,9900\nlamp,50\n").unwrap();
    let dir = format!("{}::/sales:ro", sales.path().display());
    let given = ["--param", "region=eu", "--param", "day=2026-11-25"];
    let arguments = [&given[..], &["--allow-dir", &dir]].concat();
    let ran = run(home.path(), "report", &arguments);
    assert_eq!(ran.code, Some(0), "{}", ran.talk);
    assert_eq!(
        ran.object["result"],
        json!({"region": "eu", "day": "2026-11-25", "cents": {"chair": 9_900, "lamp": 1_300}})
    );
    let content = &ran.object["cards"][0]["content"];
    assert_eq!(
        content["rows"],
        json!([["chair", "99.00"], ["lamp", "13.00"]])
    );
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
