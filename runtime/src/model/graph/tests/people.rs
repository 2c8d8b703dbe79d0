//! Tests of task runs that wait for a person.

use super::super::super::flow::Trigger;
use super::super::super::state::{Event, State};
use super::super::{Attempt, Ending};
use super::kit::{Flow, decision, fail, ok, text};
use super::retries;

/// Asks once, and answers who approved.
fn asks(attempt: &Attempt) -> Ending {
    match &attempt.approval {
        None => Ending::Pause("shall it?".to_owned()),
        Some(approval) => ok(&format!("\"{}\"", approval.by)),
    }
}

#[test]
fn a_task_that_asks_goes_on_when_somebody_approves_and_others_go_on_meanwhile() {
    let flow = Flow::new("a b c").pass("a", "c").output("c");
    let flow = flow.change("a", |task| task.retries = retries(3));
    let body = |key: &str, attempt: &Attempt| match key {
        "a" => asks(attempt),
        "c" => ok(&text(&attempt.inputs[0].1)),
        _ => ok("1"),
    };
    let mut drive = flow.run_alone(body);
    assert_eq!(drive.states(), "a Paused, b Success");
    assert_eq!(drive.paused(), ["a"]);
    assert_eq!(drive.moved("a").message, "shall it?");
    drive.decide("b", false);
    assert_eq!(drive.paused(), ["a"], "nobody asked for `b`");
    drive.decide("a", false);
    assert_eq!(drive.moved("a").message, "approved by `ada`");
    drive.go_on(body);
    assert_eq!(drive.result(), "\"ada\"");
    let moved = drive.moved("a");
    assert_eq!(
        (moved.attempts, moved.failures),
        (2, 0),
        "no retry was taken"
    );
}

#[test]
fn who_is_declined_fails_for_good() {
    let flow = Flow::new("a b").order("a", "b");
    let flow = flow.change("a", |task| task.retries = retries(3));
    let mut drive = flow.run_alone(|_, attempt| asks(attempt));
    drive.decide("a", true);
    assert_eq!(drive.states(), "a Failed, b TriggerFailed");
    let outcome = drive.outcome();
    assert_eq!(outcome.code.as_deref(), Some("declined"));
    assert_eq!(outcome.message, "task `a` failed: declined by `ada`");
}

#[test]
fn who_asks_again_is_not_let_go_by_what_was_said_before() {
    let flow = Flow::new("a").output("a");
    let body = |_: &str, attempt: &Attempt| match attempt.number {
        1 | 2 => Ending::Pause(format!("question {}", attempt.number)),
        _ => ok("1"),
    };
    let mut drive = flow.run_alone(body);
    drive.decide("a", false);
    drive.go_on(body);
    assert_eq!(drive.paused(), ["a"]);
    assert_eq!(drive.moved("a").message, "question 2");
    drive.decide("a", false);
    drive.go_on(body);
    assert_eq!(drive.outcome().event, Event::Succeed);
}

#[test]
fn a_manual_trigger_asks_once_all_above_is_over_however_it_ended() {
    for ending in [ok("1"), fail("no")] {
        let flow = Flow::new("a b").pass("a", "b").reference("b");
        let flow = flow.change("b", |task| task.trigger = Trigger::ManualOnly);
        let mut drive = flow.run_alone(|_, _| ending.clone());
        assert_eq!(drive.paused(), ["b"]);
        assert_eq!(drive.moved("b").attempts, 0);
        drive.decide("b", false);
        drive.go_on(|_, attempt| {
            assert_eq!(attempt.approval.as_ref().unwrap().by, "ada");
            ok("2")
        });
        assert_eq!(drive.outcome().event, Event::Succeed);
    }
    // What is skipped asks nobody.
    let flow = Flow::new("a b").pass("a", "b");
    let flow = flow.change("b", |task| task.trigger = Trigger::ManualOnly);
    let drive = flow.run_alone(|_, _| Ending::Skip(String::new()));
    assert_eq!(drive.states(), "a Skipped, b Skipped");
}

#[test]
fn a_mapped_task_with_a_manual_trigger_asks_once_and_its_elements_ask_for_themselves() {
    let flow = Flow::new("list m n").change("m", |task| task.is_mapped = true);
    let flow = flow.change("n", |task| {
        task.is_mapped = true;
        task.trigger = Trigger::ManualOnly;
    });
    let flow = flow.each("list", "m").each("m", "n").output("n");
    let body = |key: &str, attempt: &Attempt| match key {
        "list" => ok("[1,2]"),
        "m[1]" => asks(attempt),
        _ => ok(&text(&attempt.inputs[0].1)),
    };
    let mut drive = flow.run_alone(body);
    assert_eq!(drive.paused(), ["m[1]"], "`n` waits for all of `m`");
    drive.decide("m[1]", false);
    drive.go_on(body);
    assert_eq!(drive.paused(), ["n"]);
    drive.decide("n", false);
    drive.go_on(body);
    assert_eq!(drive.result(), "[1,\"ada\"]");
}

#[test]
fn what_was_decided_while_nobody_had_the_run_is_known_when_it_is_taken_up() {
    let flow = Flow::new("a b").pass("a", "b").output("b");
    let flow = flow.change("b", |task| task.trigger = Trigger::ManualOnly);
    let body = |key: &str, attempt: &Attempt| match key {
        "a" => asks(attempt),
        _ => ok(&text(&attempt.inputs[0].1)),
    };
    let first = flow.run_alone(body);
    let still = flow.take_up(first.earlier(|_| {}), body);
    assert_eq!((still.paused(), still.log.len()), (vec!["a".to_owned()], 0));
    let decided = |is_declined: bool| {
        first.earlier(|run| {
            run.state = State::Pending;
            run.decision = Some(decision(is_declined));
        })
    };
    let approved = flow.take_up(decided(false), body);
    assert_eq!(approved.log, ["a start", "a succeed", "b pause"]);
    let declined = flow.take_up(decided(true), body);
    assert_eq!(declined.log, ["a fail", "b pause"]);
}

#[test]
fn a_decision_that_comes_before_the_task_run_is_got_to_is_kept_for_it() {
    let flow = Flow::new("list m").change("m", |task| task.is_mapped = true);
    let flow = flow.each("list", "m").output("m");
    let body = |key: &str, attempt: &Attempt| match key {
        "list" => ok("[1,2]"),
        _ => asks(attempt),
    };
    let first = flow.run_alone(body);
    assert_eq!(first.paused(), ["m[0]", "m[1]"]);
    // The array has still to be read when the decision comes.
    let mut graph = flow.graph_of(first.earlier(|_| {}), 0);
    graph.decided(&"m[1]".parse().unwrap(), decision(false));
    let told = graph.told();
    assert_eq!(told[0].event, Event::Decide, "it was heard");
    let super::super::Chore::Load { target, .. } = graph.next_chore().unwrap() else {
        panic!("nothing is read");
    };
    let list = super::super::super::value::Value::json("[1,2]");
    graph.loaded(target, Ok(list));
    assert_eq!(graph.next_attempt().unwrap().slot.map_index(), Some(1));
    assert_eq!(graph.paused().len(), 1);
}

#[test]
fn a_stop_ends_what_waits_for_a_person_too() {
    let flow = Flow::new("a b").change("b", |task| task.trigger = Trigger::ManualOnly);
    let mut drive = flow.run_alone(|_, attempt| asks(attempt));
    assert_eq!(drive.paused(), ["a", "b"]);
    drive.stop();
    assert_eq!(drive.states(), "a Cancelled, b Cancelled");
    assert!(drive.paused().is_empty());
}
