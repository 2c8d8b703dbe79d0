//! Tests of the graph: a flow in a line or two, bodies as closures, and what was told as text.

mod kit;
mod map;
mod mark;
mod people;
mod redo;
mod resume;
mod slots;

use super::super::flow::{Amount, Backoff, Bounds, Cache, OnLost, Retries, Trigger};
use super::super::limit;
use super::super::state::Event;
use super::*;
use kit::{Flow, crash, fail, ok, text};

fn retries(count: u32) -> Option<Retries> {
    Some(Retries {
        count,
        delay_ms: 100,
        backoff: Backoff::Exponential,
        delay_max_ms: None,
        jitter_percent: 0,
    })
}

#[test]
fn a_chain_runs_in_order_and_passes_values_on() {
    let flow = Flow::new("a b c").pass("a", "b").pass("b", "c").output("c");
    let drive = flow.run(|key, attempt| match key {
        "a" => ok("1"),
        _ => ok(&format!("[{}]", text(&attempt.inputs[0].1))),
    });
    assert_eq!(
        drive.log,
        [
            "a start",
            "a succeed",
            "b start",
            "b succeed",
            "c start",
            "c succeed"
        ]
    );
    assert_eq!(drive.result(), "[[1]]");
    assert_eq!(drive.outcome().event, Event::Succeed);
}

#[test]
fn what_does_not_depend_is_ready_at_once() {
    let flow = Flow::new("a b c").order("a", "c").order("b", "c");
    let mut graph = flow.graph();
    let first = graph.next_attempt().unwrap();
    let second = graph.next_attempt().unwrap();
    assert_eq!(first.start.task_run.task, "a");
    assert_eq!(second.start.task_run.task, "b");
    assert!(graph.next_attempt().is_none());
}

#[test]
fn inputs_come_from_parameters_and_constants_too() {
    let flow = Flow::new("a")
        .parameter("p", "a", "x")
        .constant("[7]", "a", "y", false);
    let drive = flow.run(|_, attempt| {
        let names: Vec<_> = attempt
            .inputs
            .iter()
            .map(|(n, v)| format!("{n}={}", text(v)))
            .collect();
        ok(&format!("\"{}\"", names.join(" ")))
    });
    assert_eq!(drive.value("a"), "\"x=1 y=[7]\"");
}

#[test]
fn a_failure_stops_what_depends_on_it_and_is_named() {
    let flow = Flow::new("a b c").pass("a", "b").pass("b", "c");
    let drive = flow.run(|_, _| fail("boom"));
    assert_eq!(drive.states(), "a Failed, b TriggerFailed, c TriggerFailed");
    let outcome = drive.outcome();
    assert_eq!(outcome.event, Event::Fail);
    assert_eq!(outcome.message, "task `a` failed: boom");
    assert_eq!(outcome.code.as_deref(), Some("trap.x"));
}

#[test]
fn reference_tasks_alone_decide() {
    let flow = Flow::new("work tidy").order("work", "tidy");
    let flow = flow.change("tidy", |task| task.trigger = Trigger::AllFinished);
    let body = |key: &str, _: &Attempt| if key == "work" { fail("boom") } else { ok("1") };
    assert_eq!(flow.run(body).outcome().event, Event::Succeed);
    let drive = flow.reference("work").run(body);
    assert_eq!(drive.states(), "work Failed, tidy Success");
    assert_eq!(drive.outcome().message, "task `work` failed: boom");
}

#[test]
fn triggers_see_every_upstream_task_once() {
    let half = Bounds {
        at_least: Some(Amount::Percent(50)),
        at_most: None,
    };
    for (trigger, expected) in [
        (Trigger::AllSuccessful, "TriggerFailed"),
        (Trigger::AllFailed, "TriggerFailed"),
        (Trigger::AllFinished, "Success"),
        (Trigger::AnySuccessful, "Success"),
        (Trigger::AnyFailed, "Success"),
        (Trigger::SomeSuccessful(half), "Success"),
        (Trigger::SomeFailed(half), "Success"),
    ] {
        let flow = Flow::new("good bad last")
            .pass("good", "last")
            .order("good", "last");
        let flow = flow
            .pass("bad", "last")
            .change("last", |task| task.trigger = trigger);
        let drive = flow.run(|key, _| if key == "bad" { fail("") } else { ok("1") });
        assert_eq!(drive.state("last"), expected, "{trigger:?}");
    }
}

#[test]
fn what_failed_above_is_null_to_who_runs_nevertheless() {
    let flow = Flow::new("a b").pass("a", "b");
    let flow = flow.change("b", |task| task.trigger = Trigger::AllFinished);
    let drive = flow.run(|key, attempt| match key {
        "a" => fail(""),
        _ => ok(&text(&attempt.inputs[0].1)),
    });
    assert_eq!(drive.value("b"), "null");
}

#[test]
fn a_skip_runs_down_unless_a_task_does_not_mind() {
    let flow = Flow::new("a b c d")
        .pass("a", "b")
        .pass("b", "c")
        .pass("c", "d");
    let flow = flow.change("c", |task| task.skip_on_upstream_skip = false);
    let drive = flow.run(|key, _| match key {
        "a" => Ending::Skip("nothing new".to_owned()),
        _ => ok("1"),
    });
    assert_eq!(drive.states(), "a Skipped, b Skipped, c Success, d Success");
    assert_eq!(drive.outcome().event, Event::Succeed);
}

#[test]
fn not_all_skipped_skips_if_all_were() {
    let flow = Flow::new("a b c")
        .order("a", "c")
        .order("b", "c")
        .change("c", |task| {
            task.trigger = Trigger::NotAllSkipped;
            task.skip_on_upstream_skip = false;
        });
    let skip = || Ending::Skip(String::new());
    assert_eq!(
        flow.run(|key, _| if key == "c" { ok("1") } else { skip() })
            .state("c"),
        "Skipped"
    );
    assert_eq!(
        flow.run(|key, _| if key == "a" { skip() } else { ok("1") })
            .state("c"),
        "Success"
    );
    let drive = flow.run(|key, _| if key == "a" { skip() } else { fail("") });
    assert_eq!(drive.state("c"), "TriggerFailed");
}

#[test]
fn branches_are_taken_by_value_and_merged() {
    for (value, taken) in [
        ("\"x\"", "x"),
        ("true", "yes"),
        ("7", "seven"),
        ("8", "other"),
    ] {
        let flow = Flow::new("cond x yes seven other join")
            .when("x", "cond", &["\"x\""], false)
            .when("yes", "cond", &["true"], false)
            .when("seven", "cond", &["6", "7"], false)
            .when("other", "cond", &["\"x\"", "true", "6", "7"], true)
            .merge("join", &["x", "yes", "seven", "other"])
            .output("join");
        let drive = flow.run(|key, _| {
            if key == "cond" {
                ok(value)
            } else {
                ok(&format!("\"{key}\""))
            }
        });
        assert_eq!(drive.result(), format!("\"{taken}\""));
        for name in ["x", "yes", "seven", "other"] {
            let expected = if name == taken { "Success" } else { "Skipped" };
            assert_eq!(drive.state(name), expected, "{value} {name}");
        }
    }
}

#[test]
fn a_branch_hangs_on_scalars_only() {
    for value in ["[1]", "1.5", "null", "{}"] {
        let flow = Flow::new("cond a").when("a", "cond", &["1"], true);
        let drive = flow.run(|_, _| ok(value));
        assert_eq!(drive.state("a"), "Failed", "{value}");
        assert_eq!(drive.outcome().code.as_deref(), Some("payload.not-json"));
    }
}

#[test]
fn a_nested_branch_is_not_taken_if_the_outer_one_is_not() {
    let flow = Flow::new("outer inner leaf otherwise")
        .when("inner", "outer", &["true"], false)
        .when("leaf", "outer", &["true"], false)
        .when("leaf", "inner", &["1"], false)
        .when("otherwise", "outer", &["true"], false)
        .when("otherwise", "inner", &["1"], true)
        .change("leaf", |task| task.skip_on_upstream_skip = false)
        .change("otherwise", |task| task.skip_on_upstream_skip = false);
    let drive = flow.run(|_, _| ok("false"));
    assert_eq!(
        drive.states(),
        "outer Success, inner Skipped, leaf Skipped, otherwise Skipped"
    );
    let drive = flow.run(|key, _| if key == "outer" { ok("true") } else { ok("2") });
    assert_eq!(
        drive.states(),
        "outer Success, inner Success, leaf Skipped, otherwise Success"
    );
    let drive = flow.run(|key, _| if key == "outer" { ok("true") } else { fail("") });
    assert_eq!(
        drive.states(),
        "outer Success, inner Failed, leaf TriggerFailed, otherwise TriggerFailed"
    );
}

#[test]
fn a_merge_takes_the_first_that_was_not_skipped_and_keeps_what_is_kept_nowhere() {
    let flow = Flow::new("a b join")
        .merge("join", &["a", "b"])
        .output("join");
    let drive = flow.run(|key, _| ok(&format!("\"{key}\"")));
    assert_eq!(drive.result(), "\"a\"");
    let skip = |key: &str| match key {
        "a" => Ending::Skip(String::new()),
        _ => ok("\"b\""),
    };
    assert_eq!(flow.run(|key, _| skip(key)).result(), "\"b\"");
    let drive = flow.run(|_, _| Ending::Skip(String::new()));
    assert_eq!(drive.state("join"), "Skipped");
    let flow = Flow::new("a join")
        .merge("join", &["a"])
        .constant("5", "join", "else", false);
    let drive = flow.output("join").run(|_, _| Ending::Skip(String::new()));
    assert_eq!(drive.result(), "5");
    assert!(drive.log.contains(&"join succeed".to_owned()));
}

#[test]
fn retries_count_failures_of_the_flow_and_wait_longer_each_time() {
    let flow = Flow::new("a").change("a", |task| task.retries = retries(3));
    let drive = flow.run(|_, attempt| match attempt.number {
        1 => fail("no"),
        2 => crash(),
        3 => Ending::TimeOut {
            message: "slow".to_owned(),
        },
        4 => Ending::Retry {
            message: "later".to_owned(),
            after_ms: Some(7),
        },
        _ => ok("1"),
    });
    assert_eq!(drive.delays, [100, 200, 7]);
    assert_eq!(
        drive.log,
        [
            "a start",
            "a retry",
            "a start",
            "a retry",
            "a start",
            "a retry",
            "a start",
            "a retry",
            "a start",
            "a succeed"
        ]
    );
    let drive = flow.run(|_, _| fail("no"));
    assert_eq!(drive.delays, [100, 200, 400]);
    assert_eq!(drive.state("a"), "Failed");
}

#[test]
fn what_ends_without_a_retry() {
    let last = |ending: fn() -> Ending, retries: Option<Retries>| {
        let flow = Flow::new("a").change("a", |task| task.retries.clone_from(&retries));
        let drive = flow.run(|_, _| ending());
        let outcome = drive.outcome();
        (
            drive.log.len(),
            drive.state("a"),
            outcome.message,
            outcome.code.unwrap_or_default(),
        )
    };
    let is_final = || Ending::Fail {
        message: "no".to_owned(),
        code: None,
        is_final: true,
    };
    assert_eq!(
        last(is_final, retries(3)),
        (
            2,
            "Failed".into(),
            "task `a` failed: no".into(),
            String::new()
        )
    );
    let slow = || Ending::TimeOut {
        message: "over 5 ms".to_owned(),
    };
    assert_eq!(
        last(slow, None),
        (
            2,
            "TimedOut".into(),
            "task `a` timed out: over 5 ms".into(),
            "limit.wall".into()
        )
    );
    let again = || Ending::Retry {
        message: "later".to_owned(),
        after_ms: None,
    };
    let text =
        "task `a` failed: it asked for another attempt, but none of its 0 retries is left: later";
    assert_eq!(
        last(again, None),
        (2, "Failed".into(), text.into(), String::new())
    );
}

#[test]
fn our_own_faults_are_tried_again_twice_and_are_never_the_flows() {
    let flow = Flow::new("a").change("a", |task| task.retries = retries(9));
    let drive = flow.run(|_, _| crash());
    assert_eq!(drive.log.len(), 6);
    assert_eq!(drive.state("a"), "Crashed");
    assert_eq!(drive.outcome().event, Event::Crash);
    let flow = flow.change("a", |task| task.on_lost = OnLost::Fail);
    assert_eq!(flow.run(|_, _| crash()).log, ["a start", "a crash"]);
}

#[test]
fn a_loop_goes_on_with_its_value() {
    let flow = Flow::new("a")
        .output("a")
        .change("a", |task| task.retries = retries(1));
    let drive = flow.run(|_, attempt| {
        let so_far = attempt.loop_value.as_ref().map_or_else(String::new, text);
        match (attempt.loop_count, attempt.number) {
            (1, 2) => fail("each iteration has its retries"),
            (3, _) => ok(&format!("[{so_far}]")),
            _ => kit::next(&format!("{so_far}{}", attempt.loop_count)),
        }
    });
    assert_eq!(drive.result(), "[012]");
    assert_eq!(drive.log.iter().filter(|line| *line == "a loop").count(), 3);
}

#[test]
fn a_loop_without_end_is_ended() {
    let drive = Flow::new("a").run(|_, _| kit::next("1"));
    assert_eq!(drive.outcome().code.as_deref(), Some("limit.loops"));
    let starts = drive.log.iter().filter(|line| *line == "a start").count();
    assert_eq!(starts, limit::LOOPS_MAX as usize);
}

#[test]
fn a_long_chain_of_skips_does_not_overflow() {
    let names: Vec<_> = (0..limit::TASKS_MAX).map(|n| format!("t{n}")).collect();
    let mut flow = Flow::new(&names.join(" "));
    for pair in names.windows(2) {
        flow = flow.pass(&pair[0], &pair[1]);
    }
    let drive = flow.run(|_, _| Ending::Skip(String::new()));
    assert_eq!(drive.log.len(), limit::TASKS_MAX + 1);
}

#[test]
fn a_cached_output_takes_no_attempt() {
    let flow = Flow::new("a b").pass("a", "b").change("a", |task| {
        task.cache = Some(Cache::default());
    });
    let drive = flow.run(|key, _| match key {
        "a" => kit::cached("1"),
        _ => ok("2"),
    });
    assert_eq!(drive.states(), "a Cached, b Success");
    assert_eq!(drive.moved("a").attempts, 0);
}
