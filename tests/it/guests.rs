//! Guests, rude ones among them, run on the spot: each ends as it should, whatever it tries, and
//! what it says arrives. The stories of `flows` and `lifecycle` run others through server and agent.

use serde_json::{Value, json};

use crate::kit::local::{Ran, run};

#[test]
fn who_breaks_a_limit_is_failed_with_its_name() {
    let home = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let dir = format!("{}::/out:rw", out.path().display());
    let table = [
        ("rude-memory", vec![], "limit.memory"),
        ("rude-output", vec![], "limit.output"),
        ("rude-handles", vec![], "limit.handles"),
        ("rude-files", vec!["--allow-dir", &dir], "limit.handles"),
        ("rude-not-json", vec![], "payload.not-json"),
        ("rude-stack", vec![], "trap.oob"),
        ("panics", vec![], "trap.unreachable"),
    ];
    for (name, arguments, code) in table {
        let ran = run(home.path(), name, &arguments);
        assert_eq!(ran.code, Some(3), "{name}: {}", ran.talk);
        assert_eq!(ran.object["state"], "Failed", "{name}");
        assert_eq!(ran.object["code"], code, "{name}");
        assert_eq!(ran.object["result"], Value::Null, "{name}");
    }
}

#[test]
fn who_floods_is_cut_and_goes_on() {
    let home = tempfile::tempdir().unwrap();
    for name in ["rude-log-flood", "rude-stdout"] {
        let ran = run(home.path(), name, &[]);
        assert_eq!(ran.code, Some(0), "{name}");
        let lines: Vec<_> = ran.talk.lines().collect();
        assert!(lines.len() <= 10_010, "{name}: {} lines", lines.len());
        let dropped = lines.iter().filter(|line| line.contains("were dropped"));
        assert_eq!(dropped.count(), 1, "{name}");
        let bytes = &ran.object["tasks"][0]["usage"]["log_bytes"];
        assert!(bytes.as_u64().unwrap() <= 4 << 20, "{name}: {bytes}");
    }
    let cards = |ran: Ran| ran.object["cards"].as_array().map(Vec::len);
    assert_eq!(cards(run(home.path(), "rude-card-flood", &[])), Some(64));
    assert_eq!(cards(run(home.path(), "rude-card-again", &[])), Some(1));
}

#[test]
fn who_snoops_finds_nothing_and_is_on_record() {
    let home = tempfile::tempdir().unwrap();
    let ran = run(home.path(), "rude-snoop", &[]);
    assert_eq!(ran.object["result"], json!([]));
    let denials = ran.object["tasks"][0]["denials"].as_array().unwrap();
    let text = denials.iter().map(Value::to_string).collect::<String>();
    assert!(text.contains("--allow-net 127.0.0.1:80"), "{text}");
}

#[test]
fn what_is_not_allowed_here_is_refused_before_it_starts() {
    let home = tempfile::tempdir().unwrap();
    let table = [
        ("env", vec![], "--allow-env GREETING"),
        ("secrets", vec![], "--allow-secret token"),
        ("rude-files", vec![], "--allow-dir HOST::/out:rw"),
        (
            "fetches",
            vec!["--param", "url=http://127.0.0.1:9/"],
            "--allow-net ",
        ),
    ];
    for (name, arguments, line) in table {
        let ran = run(home.path(), name, &arguments);
        assert_eq!(ran.code, Some(1), "{name}: {}", ran.talk);
        assert!(ran.talk.contains(line), "{name}: {}", ran.talk);
        assert_eq!(ran.object, Value::Null, "{name}");
    }
    let ran = run(home.path(), "env", &["-e", "GREETING=hi"]);
    assert_eq!(ran.object["result"], json!([["GREETING=hi"], []]));
}

#[test]
fn branches_signals_and_skips_go_where_they_are_told() {
    let home = tempfile::tempdir().unwrap();
    let ran = run(home.path(), "branches", &[]);
    assert_eq!(ran.object["result"], "small 2");
    let tasks = ran.tasks();
    for line in ["half Success -", "triple Skipped -", "merge Success -"] {
        assert!(tasks.iter().any(|own| own == line), "{line} in {tasks:?}");
    }
    let ran = run(home.path(), "skips", &[]);
    assert_eq!(
        ran.tasks(),
        ["maybe Skipped -", "follows Skipped -", "always Success -"]
    );
    let ran = run(home.path(), "signals", &[]);
    assert_eq!(ran.object["result"], "done");
    assert_eq!(ran.object["tasks"][0]["message"], "early");
}

#[test]
fn the_cache_serves_a_second_run() {
    let home = tempfile::tempdir().unwrap();
    let first = run(home.path(), "caches", &[]);
    let second = run(home.path(), "caches", &[]);
    assert_eq!(first.object["result"], second.object["result"]);
    let is_cached = |ran: &Ran| ran.tasks().iter().any(|task| task.contains("Cached"));
    assert!(!is_cached(&first), "{:?}", first.tasks());
    assert!(is_cached(&second), "{:?}", second.tasks());
}

#[test]
fn what_a_task_says_and_shows_arrives() {
    let home = tempfile::tempdir().unwrap();
    let ran = run(home.path(), "logs", &[]);
    assert!(
        ran.talk.contains("warning: printed to stderr"),
        "{}",
        ran.talk
    );
    let ran = run(home.path(), "cards", &[]);
    let cards = ran.object["cards"].as_array().unwrap();
    let kinds: Vec<_> = cards.iter().map(|card| &card["content"]["kind"]).collect();
    assert_eq!(kinds, ["table", "link", "markdown", "progress"]);
}

/// Rust and libc share one heap, under libc's names.
#[test]
fn memory_keeps_what_was_written_to_it() {
    let home = tempfile::tempdir().unwrap();
    let ran = run(home.path(), "heap", &["--param", "steps=40000"]);
    assert_eq!(ran.object["state"], "Success", "{}", ran.talk);
    let most = ran.object["result"].as_u64().unwrap();
    let peak = &ran.object["tasks"][0]["usage"]["memory_peak_bytes"];
    let peak = peak.as_u64().unwrap();
    assert!(peak < 2 * most + (2 << 20), "{peak} bytes for {most}");
    let ran = run(home.path(), "bump", &[]);
    assert_eq!(ran.object["state"], "Success", "{}", ran.talk);
}
