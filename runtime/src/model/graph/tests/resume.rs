//! Tests of runs that are interrupted: resumed, stopped, and at random.

use super::super::super::flow::OnLost;
use super::super::super::limit;
use super::super::super::state::{Event, State};
use super::super::Attempt;
use super::kit::{self, Drive, Flow, crash, fail, ok, text};
use super::retries;

#[test]
fn what_is_over_is_not_run_again_and_its_output_is_read() {
    let flow = Flow::new("a b c").pass("a", "b").pass("b", "c").output("c");
    let first = flow.run(|key, _| if key == "c" { crash() } else { ok("[1]") });
    let earlier = first.earlier(|run| {
        if run.task == "c" {
            run.state = State::Running;
            run.attempts = 1;
        }
    });
    let second = flow.resume(&first, earlier, 1, |_, attempt| {
        ok(&text(&attempt.inputs[0].1))
    });
    assert_eq!(second.log, ["c start", "c succeed"]);
    assert_eq!(second.moved("c").attempts, 2);
    assert_eq!(second.result(), "[1]");
}

#[test]
fn elements_that_are_over_are_not_run_again() {
    let flow = Flow::new("list m sum").change("m", |task| task.is_mapped = true);
    let flow = flow.each("list", "m").pass("m", "sum").output("sum");
    let body = |key: &str, attempt: &Attempt| match key {
        "list" => ok("[1,2,3]"),
        "sum" => ok(&text(&attempt.inputs[0].1)),
        _ => ok(&format!("1{}", text(&attempt.inputs[0].1))),
    };
    let first = flow.run(body);
    let earlier = first.earlier(|run| match (run.task.as_str(), run.map_index) {
        ("m", Some(1)) => run.state = State::Running,
        ("m", None) | ("sum", _) => run.state = State::Pending,
        _ => {}
    });
    let second = flow.resume(&first, earlier, 1, body);
    assert_eq!(
        second.log,
        [
            "m[1] start",
            "m[1] succeed",
            "m map",
            "sum start",
            "sum succeed"
        ]
    );
    assert_eq!(second.result(), "[11,12,13]");
    let earlier = first.earlier(|run| {
        if run.task == "sum" {
            run.state = State::Pending;
        }
    });
    let third = flow.resume(&first, earlier, 1, body);
    assert_eq!(third.log, ["sum start", "sum succeed"]);
    assert_eq!(third.result(), "[11,12,13]");
}

#[test]
fn who_needs_a_lost_output_crashes_and_says_whose_it_was() {
    let flow = Flow::new("a b c").pass("a", "b").output("b");
    let mut first = flow.run(|key, _| if key == "a" { ok("[1]") } else { crash() });
    let earlier = first.earlier(|run| {
        if run.task != "a" {
            run.state = State::Pending;
        }
    });
    first.kept.clear();
    let second = flow.resume(&first, earlier, 1, |_, _| ok("2"));
    assert_eq!(second.log, ["c start", "b crash", "c succeed"]);
    let outcome = second.outcome();
    assert_eq!(outcome.event, Event::Crash);
    assert_eq!(outcome.code.as_deref(), Some("results.lost"));
    let said = "the output of `a`, which is finished, cannot be read any more: it is gone";
    assert!(outcome.message.contains(said), "{}", outcome.message);
}

#[test]
fn a_loop_is_taken_up_with_its_value() {
    let flow = Flow::new("a").output("a");
    let body = |_: &str, attempt: &Attempt| {
        let so_far = attempt.loop_value.as_ref().map_or_else(String::new, text);
        match attempt.loop_count {
            2 => ok(&format!("[{so_far}]")),
            n => kit::next(&format!("{so_far}{n}")),
        }
    };
    let first = flow.run_until(4, body);
    assert_eq!(first.log.last().unwrap(), "a loop");
    let second = flow.resume(&first, first.earlier(|_| {}), 1, body);
    assert_eq!(second.log, ["a start", "a succeed"]);
    assert_eq!(second.result(), "[01]");
}

#[test]
fn a_lost_attempt_is_made_again_unless_it_must_not() {
    let running = |flow: &Flow, lost| {
        let first = flow.run_until(1, |_, _| ok("1"));
        flow.resume(&first, first.earlier(|_| {}), lost, |_, _| ok("1"))
    };
    let flow = Flow::new("a");
    assert_eq!(running(&flow, 1).log, ["a start", "a succeed"]);
    assert_eq!(
        running(&flow, limit::LOST_MAX).log,
        ["a start", "a succeed"]
    );
    let drive = running(&flow, limit::LOST_MAX + 1);
    assert_eq!(drive.log, ["a crash"]);
    assert_eq!(drive.outcome().code.as_deref(), Some("lost.agent"));
    let flow = flow.change("a", |task| task.on_lost = OnLost::Fail);
    assert_eq!(running(&flow, 1).log, ["a crash"]);
}

#[test]
fn a_lost_attempt_does_not_count_against_the_retries() {
    let flow = Flow::new("a").change("a", |task| task.retries = retries(1));
    let first = flow.run_until(1, |_, _| ok("1"));
    let second = flow.resume(&first, first.earlier(|_| {}), 1, |_, attempt| {
        if attempt.number == 2 {
            fail("")
        } else {
            ok("1")
        }
    });
    assert_eq!(second.log, ["a start", "a retry", "a start", "a succeed"]);
}

#[test]
fn the_outputs_of_a_mapped_output_task_are_read_for_the_result() {
    let flow = Flow::new("m").change("m", |task| task.is_mapped = true);
    let flow = flow.constant("[1,2,3]", "m", "x", true).output("m");
    let body = |_: &str, attempt: &Attempt| ok(&format!("1{}", text(&attempt.inputs[0].1)));
    let whole = flow.run(body);
    for finished in 1..=3 {
        let earlier = whole.earlier(|run| match run.map_index {
            Some(index) if index >= finished => run.state = State::Running,
            None if finished < 3 => run.state = State::Pending,
            _ => {}
        });
        let rest = flow.resume(&whole, earlier, 1, body);
        assert_eq!(rest.result(), "[11,12,13]", "{finished} were finished");
    }
    let mut whole = flow.run(body);
    let earlier = whole.earlier(|_| {});
    whole.kept.clear();
    let rest = flow.resume(&whole, earlier, 1, body);
    assert!(
        rest.try_result().is_err(),
        "outputs that are gone are no nulls"
    );
}

#[test]
fn what_waited_for_a_retry_waits_on_and_only_failures_of_the_flow_count() {
    let flow = Flow::new("a").change("a", |task| task.retries = retries(2));
    let body = |_: &str, _: &Attempt| fail("");
    let first = flow.run_until(2, body);
    assert_eq!(first.log.last().unwrap(), "a retry");
    // Two agents die during the second attempt, and the flow has one retry left all the same.
    let earlier = first.earlier(|run| {
        run.state = State::Running;
        run.attempts = 3;
    });
    let second = flow.resume(&first, earlier, 2, body);
    assert_eq!(second.log, ["a start", "a retry", "a start", "a fail"]);
    let waiting = flow.resume(&first, first.earlier(|_| {}), 0, body);
    assert_eq!(
        waiting.log,
        ["a rest", "a start", "a retry", "a start", "a fail"]
    );
}

#[test]
fn a_run_is_ended_by_what_ended_it_also_after_a_loss() {
    let flow = Flow::new("a b").pass("a", "b");
    let flow = flow.change("a", |task| task.on_lost = OnLost::Fail);
    let first = flow.run(|_, _| crash());
    assert_eq!(first.outcome().event, Event::Crash);
    let second = flow.resume(&first, first.earlier(|_| {}), 1, |_, _| ok("1"));
    assert!(second.log.is_empty(), "{:?}", second.log);
    assert_eq!(second.outcome(), first.outcome());
}

#[test]
fn a_run_has_no_more_task_runs_than_a_claim_hands_back() {
    let count = limit::MAP_ELEMENTS_MAX;
    let array = format!("[{}]", vec!["0"; count].join(","));
    let mut flow = Flow::new("a b c d");
    for task in ["a", "b", "c", "d"] {
        flow = flow
            .change(task, |task| task.is_mapped = true)
            .constant(&array, task, "x", true);
    }
    let drive = flow.run_until(0, |_, _| ok("1"));
    let ended: Vec<_> = drive
        .log
        .iter()
        .filter(|line| line.ends_with("fail"))
        .collect();
    assert_eq!(ended, ["c fail", "d fail"]);
    assert_eq!(drive.moved("c").code.as_deref(), Some("limit.map"));
}

#[test]
fn an_output_that_cannot_be_read_crashes_who_needs_it() {
    let flow = Flow::new("a b").pass("a", "b");
    let mut first = flow.run(|_, _| ok("1"));
    let earlier = first.earlier(|run| {
        if run.task == "b" {
            run.state = State::Pending;
        }
    });
    first.kept.clear();
    let second = flow.resume(&first, earlier, 1, |_, _| ok("1"));
    assert_eq!(second.log, ["b crash"]);
    assert_eq!(second.outcome().event, Event::Crash);
}

#[test]
fn a_stop_ends_everything_that_is_not_over() {
    let flow = Flow::new("a b m")
        .pass("a", "b")
        .change("m", |task| task.is_mapped = true);
    let flow = flow.constant("[1,2]", "m", "x", true);
    let mut drive = flow.run_until(2, |_, _| ok("1"));
    drive.stop();
    assert_eq!(
        drive.states(),
        "a Cancelled, b Cancelled, m Cancelled, m[0] Cancelled"
    );
}

#[test]
fn random_graphs_keep_the_rules() {
    for seed in 0..400 {
        let (flow, bodies) = kit::random(seed);
        let order = kit::Order::Random(seed);
        let first = flow.run_in(order, |key, attempt| {
            kit::random_ending(bodies, key, attempt)
        });
        let again = flow.run_in(order, |key, attempt| {
            kit::random_ending(bodies, key, attempt)
        });
        assert_eq!(first.log, again.log, "seed {seed}");
        let other = flow.run(|key, attempt| kit::random_ending(bodies, key, attempt));
        assert_eq!(first.states(), other.states(), "seed {seed}");
        assert_eq!(first.outcome(), other.outcome(), "seed {seed}");
        interrupted(seed, &flow, bodies, &first);
    }
}

/// Loses the agent after every so many ends and takes the run up again: the end must be the same.
fn interrupted(seed: u64, flow: &Flow, bodies: u64, whole: &Drive) {
    let steps = usize::try_from(seed % 13).unwrap();
    let part = flow.run_until(steps, |key, attempt| {
        kit::random_ending(bodies, key, attempt)
    });
    let earlier = part.earlier(|_| {});
    let body = |key: &str, attempt: &Attempt| kit::random_ending(bodies, key, attempt);
    let rest = flow.resume(&part, earlier, 1, body);
    let mut states = part.final_states();
    for (key, state) in rest.final_states() {
        let before = states.insert(key.clone(), state);
        assert!(
            before.is_none_or(|before| before == state),
            "seed {seed}: {key} ended twice"
        );
    }
    assert_eq!(
        states,
        whole.final_states(),
        "seed {seed}, lost after {steps}"
    );
    let (ended, once) = (rest.outcome(), whole.outcome());
    assert_eq!(ended, once, "seed {seed}, lost after {steps}");
    if ended.event == Event::Succeed {
        let (result, once) = (rest.try_result(), whole.try_result());
        assert_eq!(result, once, "seed {seed}, lost after {steps}");
    }
}
