//! Tests of task runs that wait for slots of tags.

use std::collections::BTreeSet;

use super::super::super::run::Usage;
use super::super::super::state::{Event, State};
use super::super::{Attempt, Ended, Ending, Graph};
use super::kit::{Flow, cached, ok};

fn limited(tags: &[&str]) -> BTreeSet<String> {
    tags.iter().map(|tag| (*tag).to_owned()).collect()
}

fn end(graph: &mut Graph, attempt: &Attempt, ending: Ending) {
    let ended = Ended {
        ending,
        usage: Usage::default(),
        denials: Vec::new(),
    };
    assert_eq!(graph.ended(attempt.slot, ended, 0.0), None);
}

/// Takes all attempts that are ready; those that have to ask do.
fn ask(graph: &mut Graph) -> Vec<Attempt> {
    let mut begun = Vec::new();
    while let Some(attempt) = graph.next_attempt() {
        match attempt.has_to_ask {
            true => end(graph, &attempt, Ending::Queue),
            false => begun.push(attempt),
        }
    }
    begun
}

/// A task `m` with a tag, mapped over so many elements.
fn mapped(count: usize, parallel: Option<u32>) -> Graph {
    let array = format!("[{}]", vec!["1"; count].join(","));
    let flow = Flow::new("m").constant(&array, "m", "x", true);
    let flow = flow.change("m", |task| {
        task.is_mapped = true;
        task.tags = limited(&["db", "free"]);
        task.limits.parallel = parallel;
    });
    let mut graph = flow.graph();
    graph.limit(&limited(&["db"]));
    graph
}

#[test]
fn no_more_ask_at_one_time_than_are_worth_a_place_and_all_get_their_turn() {
    let mut graph = mapped(1_000, None);
    let mut done = 0;
    while graph.outcome().is_none() {
        assert!(ask(&mut graph).is_empty());
        let told = graph.told();
        let queued: Vec<_> = graph.queued().collect();
        assert!(
            queued.len() <= 100 && !queued.is_empty(),
            "{}",
            queued.len()
        );
        assert_eq!(graph.limited_tags(queued[0]), ["db"]);
        assert!(
            told.iter()
                .all(|it| it.attempts == 0 || it.event != Event::Queue)
        );
        let key = graph.key(queued[0]);
        graph.given(&key, 0);
        // A repeat is no second slot.
        graph.given(&key, 0);
        let attempt = graph.next_attempt().unwrap();
        assert_eq!((attempt.has_to_ask, attempt.number), (false, 1));
        assert_eq!(graph.key(attempt.slot), key);
        // Those who ask in its place are others.
        while let Some(next) = graph.next_attempt() {
            assert!(next.slot != attempt.slot, "a second attempt");
            end(&mut graph, &next, Ending::Queue);
        }
        end(&mut graph, &attempt, ok("1"));
        done += 1;
    }
    assert_eq!(done, 1_000);
}

#[test]
fn elements_under_a_limit_of_their_own_ask_as_many_as_may_run() {
    let mut graph = mapped(10, Some(2));
    assert!(ask(&mut graph).is_empty());
    assert_eq!(graph.queued().count(), 2);
    let first = graph.queued().next().unwrap();
    graph.given(&graph.key(first), 0);
    let attempt = graph.next_attempt().unwrap();
    assert!(graph.next_attempt().is_none(), "one runs and one waits");
    end(&mut graph, &attempt, ok("1"));
    assert!(ask(&mut graph).is_empty());
    assert_eq!(graph.queued().count(), 2);
}

#[test]
fn an_output_that_serves_again_needs_no_slot() {
    let mut graph = mapped(2, Some(1));
    while graph.outcome().is_none() {
        let attempt = graph.next_attempt().unwrap();
        assert!(attempt.has_to_ask);
        end(&mut graph, &attempt, cached("1"));
    }
    assert_eq!(graph.queued().count(), 0);
}

#[test]
fn who_waited_under_an_earlier_claim_asks_again_and_a_stop_ends_who_waits() {
    let flow = Flow::new("a").change("a", |task| task.tags = limited(&["db"]));
    let mut graph = flow.graph();
    graph.limit(&limited(&["db"]));
    assert!(ask(&mut graph).is_empty());
    let told = graph.told();
    let moved = told.last().unwrap();
    assert_eq!((moved.event, moved.attempts), (Event::Queue, 0));
    assert_eq!(moved.message, "waits for a slot of the tag `db`");
    // What a server would know of it now.
    let earlier = serde_json::json!({
        "task": "a", "map_index": null, "state": "Queued", "message": moved.message, "code": null,
        "attempts": moved.attempts, "failures": 0, "loop_count": 0, "started_at": null, "ended_at": null,
        "usage": {}, "result": null,
    });
    let mut graph = flow.graph_of(vec![serde_json::from_value(earlier).unwrap()], 0);
    graph.limit(&limited(&["db"]));
    let key = moved.task_run.clone();
    // It was given slots under the claim before: these are none of this one's.
    graph.given(&key, 0);
    let attempt = graph.next_attempt().unwrap();
    assert_eq!((attempt.has_to_ask, attempt.number), (true, 1));
    end(&mut graph, &attempt, Ending::Queue);
    assert!(graph.next_attempt().is_none());
    assert_eq!(graph.told().last().unwrap().event, Event::Queue);
    assert_eq!(graph.queued().count(), 1);
    graph.stop("cancelled");
    let told = graph.told();
    assert_eq!(told.last().unwrap().event, Event::Stop);
    assert_eq!(graph.queued().count(), 0);
    assert_eq!(State::Queued.after(Event::Stop), Ok(State::Cancelled));
    // Once there is no number of slots any more, nobody asks.
    graph = flow.graph();
    assert_eq!(ask(&mut graph).len(), 1);
}
