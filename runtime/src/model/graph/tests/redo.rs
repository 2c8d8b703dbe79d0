//! Tests of what a retry keeps.

use super::super::super::state::State;
use super::super::kept;
use super::kit::{self, Drive, Flow, fail, ok};

/// Lists what is kept of a run that has ended.
fn kept_of(flow: &Flow, drive: &Drive) -> Vec<String> {
    let kept = kept(flow.described(), &drive.earlier(|_| {}));
    let mut kept: Vec<_> = kept.iter().map(ToString::to_string).collect();
    kept.sort();
    kept
}

#[test]
fn what_failed_and_all_below_it_is_done_again() {
    let flow = Flow::new("a b c d").pass("a", "b").pass("b", "c");
    let drive = flow.run(|key, _| if key == "b" { fail("") } else { ok("1") });
    assert_eq!(kept_of(&flow, &drive), ["a", "d"]);
    let all = flow.run(|_, _| ok("1"));
    assert_eq!(kept_of(&flow, &all), ["a", "b", "c", "d"]);
}

#[test]
fn who_succeeded_because_of_a_failure_above_is_asked_again() {
    use super::super::super::flow::Trigger;
    let flow = Flow::new("a b c").order("a", "b").order("b", "c");
    let flow = flow.change("b", |task| task.trigger = Trigger::AllFinished);
    let drive = flow.run(|key, _| if key == "a" { fail("") } else { ok("1") });
    assert_eq!(drive.states(), "a Failed, b Success, c Success");
    assert!(kept_of(&flow, &drive).is_empty());
}

#[test]
fn elements_that_went_well_are_kept_down_their_lanes() {
    let flow = Flow::new("list m n sum").each("list", "m").each("m", "n");
    let flow = flow.change("m", |task| task.is_mapped = true);
    let flow = flow.change("n", |task| task.is_mapped = true);
    let flow = flow.pass("n", "sum").order("list", "sum");
    let drive = flow.run(|key, _| match key {
        "list" => ok("[1,2,3]"),
        "m[1]" | "n[2]" => fail(""),
        _ => ok("1"),
    });
    assert_eq!(
        kept_of(&flow, &drive),
        ["list", "m[0]", "m[2]", "n[0]"],
        "`sum` hangs on all of `n`"
    );
}

#[test]
fn an_element_is_done_again_with_the_one_above_it_even_if_it_went_well() {
    use super::super::super::flow::Trigger;
    let flow = Flow::new("list m n").each("list", "m").each("m", "n");
    let flow = flow.change("m", |task| task.is_mapped = true);
    let flow = flow.change("n", |task| {
        task.is_mapped = true;
        task.trigger = Trigger::AllFinished;
    });
    let drive = flow.run(|key, _| match key {
        "list" => ok("[1,2]"),
        "m[1]" => fail(""),
        _ => ok("1"),
    });
    assert_eq!(kept_of(&flow, &drive), ["list", "m[0]", "n[0]"]);
}

#[test]
fn a_task_that_is_mapped_in_one_version_only_is_another_one() {
    let plain = Flow::new("list m").pass("list", "m");
    let mapped = Flow::new("list m").each("list", "m");
    let mapped = mapped.change("m", |task| task.is_mapped = true);
    let drive = mapped.run(|key, _| if key == "list" { ok("[1]") } else { ok("1") });
    assert_eq!(kept_of(&plain, &drive), ["list"]);
    let renamed = Flow::new("list n").pass("list", "n");
    assert_eq!(kept_of(&renamed, &drive), ["list"]);
}

/// Whatever is kept, the new run ends as one that had it all from the start.
#[test]
fn a_retry_of_a_random_graph_ends_as_a_whole_run_does() {
    for seed in 0..300 {
        let (flow, bodies) = kit::random(seed);
        let broken = flow.run(
            |key, attempt| match kit::random_ending(bodies, key, attempt) {
                _ if (key.bytes().map(u64::from).sum::<u64>() + seed) % 5 == 0 => fail("broken"),
                end => end,
            },
        );
        let kept = kept(flow.described(), &broken.earlier(|_| {}));
        let earlier = broken.earlier(|_| {});
        let earlier: Vec<_> = earlier
            .into_iter()
            .filter(|run| kept.contains(&kit::name_of(run)))
            .map(|mut run| {
                if run.state == State::Success {
                    run.state = State::Cached;
                }
                run.decision = None;
                run
            })
            .collect();
        let body =
            |key: &str, attempt: &super::super::Attempt| kit::random_ending(bodies, key, attempt);
        let again = flow.resume(&broken, earlier, 0, body);
        let whole = flow.run(body);
        assert_eq!(
            again.outcome().event,
            whole.outcome().event,
            "seed {seed}: {} against {}",
            again.states(),
            whole.states()
        );
    }
}
