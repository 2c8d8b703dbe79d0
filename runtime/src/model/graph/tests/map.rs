//! Tests of mapped tasks: elements, lanes, joins and limits.

use serde_json::json;

use super::super::super::flow::Trigger;
use super::super::super::limit;
use super::super::super::state::Event;
use super::super::Ending;
use super::kit::{self, Flow, fail, ok, text};
use super::retries;

#[test]
fn a_map_zips_the_shortest_and_joins_in_order() {
    let flow = Flow::new("list m join").change("m", |task| task.is_mapped = true);
    let flow = flow
        .each("list", "m")
        .constant("[10,20,30]", "m", "y", true);
    let flow = flow
        .constant("\"same\"", "m", "z", false)
        .pass("m", "join")
        .output("join");
    let drive = flow.run(|key, attempt| match key {
        "list" => ok("[1, 2]"),
        "join" => ok(&text(&attempt.inputs[0].1)),
        _ => {
            let parts: Vec<_> = attempt.inputs.iter().map(|(_, v)| text(v)).collect();
            ok(&format!("[{}]", parts.join(",")))
        }
    });
    assert_eq!(drive.result(), "[[1,10,\"same\"],[2,20,\"same\"]]");
    assert_eq!(
        drive.states(),
        "list Success, m Mapped, m[0] Success, m[1] Success, join Success"
    );
}

#[test]
fn an_empty_map_is_mapped_and_joins_to_nothing() {
    let flow = Flow::new("m n join").change("m", |task| task.is_mapped = true);
    let flow = flow
        .change("n", |task| task.is_mapped = true)
        .constant("[]", "m", "x", true);
    let drive = flow
        .each("m", "n")
        .pass("n", "join")
        .output("join")
        .run(|_, attempt| ok(&text(&attempt.inputs[0].1)));
    assert_eq!(drive.states(), "m Mapped, n Mapped, join Success");
    assert_eq!(drive.result(), "[]");
}

#[test]
fn the_result_of_a_mapped_task_is_its_joined_output() {
    let flow = Flow::new("m").change("m", |task| task.is_mapped = true);
    let drive = flow
        .constant("[1,2]", "m", "x", true)
        .output("m")
        .run(|_, attempt| ok(&text(&attempt.inputs[0].1)));
    assert_eq!(drive.result(), "[1,2]");
}

#[test]
fn elements_wait_for_their_own_element_only() {
    let flow = Flow::new("m n").change("m", |task| task.is_mapped = true);
    let flow = flow
        .change("n", |task| task.is_mapped = true)
        .constant("[1,2]", "m", "x", true);
    let drive = flow
        .each("m", "n")
        .run_in(kit::Order::Newest, |_, _| ok("1"));
    let at = |line: &str| drive.log.iter().position(|own| own == line).unwrap();
    assert!(at("n[1] succeed") < at("m[0] succeed"), "{:?}", drive.log);
    assert!(at("m map") < at("n map"));
}

#[test]
fn one_failed_element_fails_its_own_line_only() {
    let flow = Flow::new("m n sum any").change("m", |task| task.is_mapped = true);
    let flow = flow
        .change("n", |task| task.is_mapped = true)
        .constant("[0,1,2]", "m", "x", true);
    let flow = flow.each("m", "n").pass("n", "sum").pass("n", "any");
    let flow = flow.change("any", |task| task.trigger = Trigger::AnySuccessful);
    let drive = flow.reference("sum").run(|key, attempt| match key {
        "m[1]" => fail("boom"),
        "any" => ok(&text(&attempt.inputs[0].1)),
        _ => ok("1"),
    });
    assert_eq!(
        drive.states(),
        "m Mapped, m[0] Success, m[1] Failed, m[2] Success, \
         n Mapped, n[0] Success, n[1] TriggerFailed, n[2] Success, sum TriggerFailed, any Success"
    );
    assert_eq!(drive.value("any"), "[1,null,1]");
    assert_eq!(drive.outcome().message, "task `m[1]` failed: boom");
}

#[test]
fn a_skipped_element_skips_its_line_and_the_join() {
    let flow = Flow::new("m n sum").change("m", |task| task.is_mapped = true);
    let flow = flow
        .change("n", |task| task.is_mapped = true)
        .constant("[0,1]", "m", "x", true);
    let drive = flow
        .each("m", "n")
        .pass("n", "sum")
        .run(|key, _| match key {
            "m[0]" => Ending::Skip(String::new()),
            _ => ok("1"),
        });
    assert_eq!(
        drive.states(),
        "m Mapped, m[0] Skipped, m[1] Success, n Mapped, n[0] Skipped, n[1] Success, sum Skipped"
    );
}

#[test]
fn what_cannot_be_mapped_fails_with_a_word() {
    let map = |value: &'static str| {
        let flow = Flow::new("list m").change("m", |task| task.is_mapped = true);
        let drive = flow.each("list", "m").run(move |key, _| match key {
            "list" => ok(value),
            _ => ok("1"),
        });
        (drive.state("m"), drive.outcome().code.unwrap_or_default())
    };
    assert_eq!(map("{}"), ("Failed".into(), "payload.not-json".into()));
    assert_eq!(map("1],[2"), ("Failed".into(), "payload.not-json".into()));
    let many: &str = Box::leak(format!("[{}1]", "1,".repeat(limit::MAP_ELEMENTS_MAX)).into());
    assert_eq!(map(many), ("Failed".into(), "limit.map".into()));
}

#[test]
fn outputs_that_are_not_json_cannot_be_joined() {
    let flow = Flow::new("m sum").change("m", |task| task.is_mapped = true);
    let flow = flow.constant("[1]", "m", "x", true).pass("m", "sum");
    let drive = flow.run(|_, _| kit::ok_as("text/plain", "hello"));
    assert_eq!(drive.states(), "m Mapped, m[0] Success, sum Failed");
    assert_eq!(drive.outcome().code.as_deref(), Some("payload.not-json"));
}

#[test]
fn a_map_of_what_failed_fails_by_its_trigger() {
    let flow = Flow::new("list m n").change("m", |task| task.is_mapped = true);
    let flow = flow
        .change("n", |task| task.is_mapped = true)
        .each("list", "m")
        .each("m", "n");
    let drive = flow.run(|_, _| fail("boom"));
    assert_eq!(
        drive.states(),
        "list Failed, m TriggerFailed, n TriggerFailed"
    );
    let drive = flow.run(|_, _| Ending::Skip(String::new()));
    assert_eq!(drive.states(), "list Skipped, m Skipped, n Skipped");
}

#[test]
fn a_mapped_task_keeps_to_its_own_limit() {
    let flow = Flow::new("m")
        .constant("[1,2,3,4,5]", "m", "x", true)
        .change("m", |task| {
            task.is_mapped = true;
            task.limits.parallel = Some(2);
            task.retries = retries(1);
        });
    let drive = flow.run(|key, attempt| match (key, attempt.number) {
        ("m[1]", 1) => fail(""),
        _ => ok("1"),
    });
    assert_eq!(drive.most_running, 2);
    assert_eq!(drive.outcome().event, Event::Succeed);
}

#[test]
fn a_hundred_thousand_elements_take_no_square_of_that() {
    let list: Vec<_> = (0..limit::MAP_ELEMENTS_MAX).collect();
    let list = json!(list).to_string();
    let flow = Flow::new("list m n sum")
        .each("list", "m")
        .each("m", "n")
        .pass("n", "sum");
    let flow = flow
        .pass("list", "n")
        .change("m", |task| task.is_mapped = true);
    let flow = flow.change("n", |task| task.is_mapped = true).output("sum");
    let drive = flow.run(|key, attempt| match key {
        "list" => ok(&list),
        "sum" => ok(&text(&attempt.inputs[0].1).len().to_string()),
        _ => ok("1"),
    });
    assert_eq!(
        drive.result(),
        (2 * limit::MAP_ELEMENTS_MAX + 1).to_string()
    );
}
