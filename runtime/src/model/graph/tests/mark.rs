//! Tests of task runs that end by hand.

use super::super::super::flow::{OnLost, Trigger};
use super::super::super::run::Usage;
use super::super::super::state::{Event, State};
use super::super::{Attempt, Chore, Ended, Ending, Graph};
use super::kit::{self, Flow, fail, mark, next, ok, text};
use super::retries;

/// Answers with what it is given.
fn passes(_: &str, attempt: &Attempt) -> Ending {
    match attempt.inputs.first() {
        Some((_, value)) => ok(&text(value)),
        None => ok("[1,2,3]"),
    }
}

#[test]
fn what_hangs_on_a_task_that_was_cancelled_sees_that_by_its_trigger() {
    let flow = Flow::new("a b c d").order("a", "b").order("a", "c");
    let flow = flow.change("c", |task| task.trigger = Trigger::AnyFailed);
    let said = mark(State::Cancelled, None);
    // While it runs, and before it has begun.
    for line in [1, 0] {
        let drive = flow.run_marked(kit::Order::Oldest, &[(line, "a", said.clone())], passes);
        assert_eq!(
            drive.states(),
            "a Cancelled, b TriggerFailed, c Success, d Success"
        );
        let moved = drive.moved("a");
        assert_eq!(moved.message, "cancelled by `ada`");
        assert_eq!(
            (moved.code.as_deref(), moved.attempts),
            (Some("cancelled"), line as u32)
        );
        let outcome = drive.outcome();
        assert_eq!(
            outcome.message,
            "task `a` was cancelled: cancelled by `ada`"
        );
        assert_eq!(outcome.event, Event::Fail);
    }
}

#[test]
fn an_output_that_is_given_by_hand_goes_on_and_is_kept_first() {
    let flow = Flow::new("a b").pass("a", "b").output("b");
    let said = mark(State::Success, Some("{\"rows\":3}"));
    let drive = flow.run_marked(kit::Order::Oldest, &[(1, "a", said.clone())], passes);
    assert_eq!(drive.result(), "{\"rows\":3}");
    assert_eq!(
        drive.log,
        [
            "a start",
            "a decide",
            "a mark-success",
            "b start",
            "b succeed"
        ]
    );
    assert_eq!(drive.moved("a").message, "marked Success by `ada`");
    let drive = flow.run_marked(
        kit::Order::Oldest,
        &[(0, "a", mark(State::Success, None))],
        passes,
    );
    assert_eq!(drive.result(), "null");
    // The task need not be begun, nor what is above it be over.
    let drive = flow.run_marked(kit::Order::Oldest, &[(1, "b", said)], passes);
    assert_eq!(drive.result(), "{\"rows\":3}");
    assert_eq!(drive.log[1], "b decide");
}

#[test]
fn an_end_that_comes_late_changes_nothing() {
    let flow = Flow::new("a").output("a");
    let mut graph = flow.graph();
    let attempt = graph.next_attempt().unwrap();
    let dropped = graph.decided(&"a".parse().unwrap(), mark(State::Success, Some("1")));
    assert_eq!(dropped, [attempt.slot]);
    assert!(graph.outcome().is_none(), "the output is not kept yet");
    assert!(graph.next_attempt().is_none());
    // A repeat has it heard, and kept no second time.
    assert!(
        graph
            .decided(&"a".parse().unwrap(), mark(State::Success, Some("1")))
            .is_empty()
    );
    assert!(matches!(graph.next_chore(), Some(Chore::Keep { .. })));
    assert!(graph.next_chore().is_none());
    let heard = graph
        .told()
        .into_iter()
        .filter(|it| it.event == Event::Decide);
    assert!(heard.map(|it| it.decided_at).all(|at| at.is_some()));
}

#[test]
fn what_waits_for_its_next_attempt_or_a_person_or_an_iteration_ends_too() {
    let said = [
        State::Skipped,
        State::Failed,
        State::Success,
        State::Cancelled,
    ];
    for (nth, state) in said.into_iter().enumerate() {
        let flow = Flow::new("a b").order("a", "b");
        let flow = flow.change("a", |task| task.retries = retries(3));
        let flow = flow.change("b", |task| task.skip_on_upstream_skip = false);
        let body = |key: &str, _: &Attempt| match (key, nth) {
            ("a", 0 | 3) => fail("no"),
            ("a", 1) => Ending::Pause("may it?".to_owned()),
            ("a", _) => next("1"),
            _ => ok("1"),
        };
        let drive = flow.run_marked(kit::Order::Oldest, &[(2, "a", mark(state, None))], body);
        assert_eq!(drive.state("a"), state.word(), "{:?}", drive.log);
        let below = match state.is_successful() {
            true => State::Success,
            false => State::TriggerFailed,
        };
        assert_eq!(drive.state("b"), below.word(), "{:?}", drive.log);
    }
}

/// A list, a mapped task one element at a time, and what takes all of them.
fn mapped() -> Flow {
    let flow = Flow::new("list m all").each("list", "m").pass("m", "all");
    let flow = flow.change("m", |task| {
        task.is_mapped = true;
        task.limits.parallel = Some(1);
    });
    flow.change("all", |task| task.trigger = Trigger::AllFinished)
        .output("all")
}

#[test]
fn one_element_ends_and_the_others_have_their_turn() {
    let flow = mapped();
    // The first holds the turn, the second is held, the third is known before there is any.
    for (line, key, result) in [
        (3, "m[0]", "[null,2,3]"),
        (3, "m[1]", "[1,null,3]"),
        (0, "m[2]", "[1,2,null]"),
    ] {
        let said = mark(State::Cancelled, None);
        let drive = flow.run_marked(kit::Order::Oldest, &[(line, key, said)], passes);
        assert_eq!(drive.result(), result, "{:?}", drive.log);
        assert_eq!(drive.most_running, 1);
    }
    let said = mark(State::Success, Some("7"));
    let drive = flow.run_marked(kit::Order::Oldest, &[(3, "m[1]", said)], passes);
    assert_eq!(drive.result(), "[1,7,3]");
}

#[test]
fn a_mapped_task_ends_with_all_of_its_elements_that_are_not_over() {
    let flow = mapped();
    let said = |state, output| [(5, "m", mark(state, output))];
    let cancelled = said(State::Cancelled, None);
    let drive = flow.run_marked(kit::Order::Oldest, &cancelled, passes);
    assert_eq!(drive.result(), "[1,null,null]");
    assert_eq!(drive.state("m"), "Mapped");
    assert_eq!(
        drive.moved("m").message,
        "2 of 3 task runs were not successful"
    );
    let drive = flow.run_marked(kit::Order::Oldest, &said(State::Success, Some("0")), passes);
    assert_eq!(drive.result(), "[1,0,0]");
    // Before there are elements it ends as a whole, and so do those who are mapped over it.
    let flow = flow.change("all", |task| task.is_mapped = false);
    let whole = [(0, "m", mark(State::Success, Some("[4,5]")))];
    let drive = flow.run_marked(kit::Order::Oldest, &whole, passes);
    assert_eq!(drive.result(), "[4,5]");
    assert_eq!(drive.states(), "list Success, m Success, all Success");
}

#[test]
fn who_waits_for_a_slot_ends_too_and_the_line_goes_on() {
    let list: Vec<String> = (0..102).map(|nth| nth.to_string()).collect();
    let list = format!("[{}]", list.join(","));
    let flow = Flow::new("m").constant(&list, "m", "own", true);
    let flow = flow.change("m", |task| {
        task.is_mapped = true;
        task.tags.insert("db".to_owned());
    });
    let mut graph = flow.graph();
    graph.limit(&["db".to_owned()].into());
    let asks = |graph: &mut Graph| {
        let slot = graph.next_attempt()?.slot;
        let ended = Ended {
            ending: Ending::Queue,
            usage: Usage::default(),
            denials: Vec::new(),
        };
        graph.ended(slot, ended, 0.0);
        slot.map_index()
    };
    let asked = std::iter::from_fn(|| asks(&mut graph)).count();
    assert_eq!(asked, 100, "two of them ask later");
    let mut cancel = |key: &str| {
        let said = mark(State::Cancelled, None);
        let ended = graph.decided(&key.parse().unwrap(), said);
        assert_eq!(ended.len(), 1);
        asks(&mut graph)
    };
    // One that has not asked leaves the line as it is; one that has makes room for the last.
    assert_eq!(cancel("m[100]"), None);
    assert_eq!(cancel("m[7]"), Some(101));
    // Slots that come too late for it do nothing.
    graph.given(&"m[7]".parse().unwrap(), 0);
    assert!(graph.next_attempt().is_none());
    assert_eq!(graph.queued().count(), 100);
}

#[test]
fn an_element_that_there_is_not_is_over_at_once() {
    let flow = mapped();
    for line in [0, 4] {
        let said = mark(State::Skipped, None);
        let drive = flow.run_marked(kit::Order::Oldest, &[(line, "m[7]", said)], passes);
        assert_eq!(drive.result(), "[1,2,3]");
        let moved = drive.moved("m[7]");
        assert_eq!(
            (moved.event, &*moved.message),
            (Event::Stop, "`m` has no such element")
        );
        // Nor is it one for the next claim.
        let again = flow.resume(&drive, drive.earlier(|_| {}), 0, passes);
        assert_eq!(again.result(), "[1,2,3]");
    }
}

#[test]
fn what_was_said_while_nobody_had_the_run_is_done_by_whoever_takes_it_up() {
    let flow = mapped().change("m", |task| task.on_lost = OnLost::Fail);
    // `m[0]` is over, `m[1]` was at work.
    let first = flow.run_until(5, passes);
    assert_eq!(first.states(), "list Success, m[0] Success, m[1] Running");
    let whole = |state, output| {
        let mut earlier = first.earlier(|_| {});
        let mut run = earlier[0].clone();
        (run.task, run.state, run.result) = ("m".to_owned(), State::Pending, None);
        run.decision = Some(mark(state, output));
        earlier.push(run);
        flow.resume(&first, earlier, 1, passes)
    };
    assert_eq!(whole(State::Cancelled, None).result(), "[1,null,null]");
    assert_eq!(whole(State::Success, Some("9")).result(), "[1,9,9]");
    let earlier = first.earlier(|run| {
        if run.map_index == Some(1) {
            run.decision = Some(mark(State::Success, Some("5")));
        }
    });
    assert_eq!(flow.resume(&first, earlier, 1, passes).result(), "[1,5,3]");
    let plain = Flow::new("a b").pass("a", "b").output("b");
    let first = plain.run_until(1, passes);
    let earlier = first.earlier(|run| run.decision = Some(mark(State::Skipped, None)));
    let plain = plain.change("b", |task| task.skip_on_upstream_skip = false);
    let again = plain.resume(&first, earlier, 1, passes);
    assert_eq!(again.log[0], "a mark-skipped");
}

/// Whatever is marked, and whenever: what was not over is as somebody said, and nothing hangs.
#[test]
fn random_graphs_keep_the_rules_while_somebody_marks() {
    let (mut ended, mut taken_up) = (0, 0);
    for seed in 0..600 {
        let (flow, bodies) = kit::random(seed);
        let body = |key: &str, attempt: &Attempt| kit::random_ending(bodies, key, attempt);
        let order = kit::Order::Random(seed);
        let calm = flow.run_in(order, body);
        let keys: Vec<_> = (calm.final_states().into_keys())
            .filter_map(|name| {
                name.split_once(' ').map(|(task, index)| match index {
                    "None" => task.to_owned(),
                    some => format!(
                        "{task}[{}]",
                        some.trim_start_matches("Some(").trim_end_matches(')')
                    ),
                })
            })
            .collect();
        let pick = usize::try_from(seed).unwrap();
        let key = &keys[pick % keys.len()];
        let line = (pick / 7) % (calm.log.len() + 1);
        let state = [
            State::Success,
            State::Skipped,
            State::Failed,
            State::Cancelled,
        ][pick % 4];
        let said = mark(state, (state == State::Success).then_some("[1]"));
        let drive = flow.run_marked(order, &[(line, key, said.clone())], body);
        let ends = [
            Event::MarkSuccess,
            Event::MarkSkipped,
            Event::MarkFailed,
            Event::MarkCancelled,
        ];
        let by_hand = drive.log.iter().filter(|line| {
            ends.iter()
                .any(|event| line.ends_with(&format!(" {event}")))
        });
        let by_hand: Vec<_> = by_hand.collect();
        // An element is one; the whole of a mapped task may be several.
        assert!(
            !key.contains('[') || by_hand.len() <= 1,
            "seed {seed}: {:?}",
            drive.log
        );
        ended += by_hand.len();
        // Lost in the middle, and said before anybody takes it up again.
        let part = flow.run_until(line, body);
        let mut earlier = part.earlier(|_| {});
        let target = key.parse::<super::super::super::run::TaskRunKey>().unwrap();
        let known = earlier.iter_mut().find(|run| kit::name_of(run) == target);
        if let Some(run) = known.filter(|run| !run.state.is_over()) {
            run.decision = Some(said);
            let rest = flow.resume(&part, earlier, 1, body);
            let end = rest.final_states()[&format!("{} {:?}", target.task, target.map_index)];
            // A whole whose elements were begun ends with them.
            assert!(
                end == state || end == State::Mapped,
                "seed {seed}: {:?}",
                rest.log
            );
            taken_up += 1;
        }
    }
    assert!(ended > 200 && taken_up > 20, "{ended}, {taken_up}");
}
