//! Redoing: what a new run keeps of one that did not succeed.
//!
//! A task is done again if it was not successful, or if one above it is done again and nobody has done this one
//! by hand. Of a mapped task the elements are looked at one by one.

use std::collections::{HashMap, HashSet};

use super::super::flow::{Definition, Mapping, Source};
use super::super::run::{Decision, TaskRun, TaskRunKey};
use super::super::state::State;

/// How much of a task is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Whole,
    /// Only elements.
    Elements,
    Nothing,
}

/// What a task hangs on, and whether element on element only.
type Above<'a> = HashMap<&'a str, bool>;

/// Returns which task runs of an earlier run hold for a new run of this definition.
///
/// The definition may be of a newer version than the earlier run was: tasks are the same that have the same
/// name and are both mapped or both not.
#[must_use]
pub fn kept(definition: &Definition, earlier: &[TaskRun]) -> HashSet<TaskRunKey> {
    let above = above(definition);
    let mut wholes: HashMap<&str, State> = HashMap::new();
    let mut elements: HashMap<&str, Vec<(u32, State)>> = HashMap::new();
    for run in earlier {
        match run.map_index {
            None => drop(wholes.insert(&run.task, run.state)),
            Some(index) => elements
                .entry(&run.task)
                .or_default()
                .push((index, run.state)),
        }
    }
    // What somebody has done by hand holds whatever is done again above it.
    let by_hand = earlier.iter().filter(|run| {
        let is_mark = run.decision.as_ref().is_some_and(Decision::is_mark);
        run.map_index.is_none() && run.state.is_successful() && is_mark
    });
    let by_hand: HashSet<&str> = by_hand.map(|run| &*run.task).collect();
    let own = |name: &str, is_mapped: bool| {
        let of_it = elements.get(name).map_or(&[][..], Vec::as_slice);
        let has_failed = of_it.iter().any(|(_, state)| !state.is_successful());
        let whole = wholes.get(name).copied();
        let is_mapped_too = whole == Some(State::Mapped) || !of_it.is_empty();
        match whole {
            // A mapped task without elements, such as a skipped one, is like any other.
            Some(state)
                if state.is_successful() && !has_failed && (is_mapped || !is_mapped_too) =>
            {
                Kept::Whole
            }
            _ if is_mapped && !of_it.is_empty() => Kept::Elements,
            _ => Kept::Nothing,
        }
    };
    let mut kept: HashMap<&str, Kept> = HashMap::new();
    for task in &definition.tasks {
        kept.insert(&task.name, own(&task.name, task.is_mapped));
    }
    // Downwards, until nothing changes any more: a definition has no circles.
    loop {
        let mut has_changed = false;
        for task in &definition.tasks {
            let before = kept[&*task.name];
            if before == Kept::Whole && by_hand.contains(&*task.name) {
                continue;
            }
            let mut now = before;
            for (from, is_lane) in above.get(&*task.name).into_iter().flatten() {
                now = match (kept.get(from).copied().unwrap_or(Kept::Nothing), is_lane) {
                    (Kept::Whole, _) => now,
                    (Kept::Elements, true) if now != Kept::Nothing => Kept::Elements,
                    _ => Kept::Nothing,
                };
            }
            if now != before {
                kept.insert(&task.name, now);
                has_changed = true;
            }
        }
        if !has_changed {
            break;
        }
    }
    // Element by element, again downwards.
    let mut holds: HashSet<TaskRunKey> = HashSet::new();
    let mut order: Vec<&str> = Vec::new();
    sort(definition, &above, &mut order);
    for name in order {
        let how = kept[name];
        if how == Kept::Nothing {
            continue;
        }
        let key = |map_index| TaskRunKey {
            task: name.to_owned(),
            map_index,
        };
        if how == Kept::Whole {
            holds.insert(key(None));
        }
        for (index, state) in elements.get(name).into_iter().flatten() {
            let lanes = above.get(name).into_iter().flatten();
            let lanes = lanes.filter(|_| !(how == Kept::Whole && by_hand.contains(name)));
            let mut lanes = lanes.filter(|(from, is_lane)| {
                // What is above and whole has no element that is done again.
                **is_lane && kept.get(*from) == Some(&Kept::Elements)
            });
            let is_kept_above = lanes.all(|(from, _)| {
                holds.contains(&TaskRunKey {
                    task: (*from).to_owned(),
                    map_index: Some(*index),
                })
            });
            if state.is_successful() && is_kept_above {
                holds.insert(key(Some(*index)));
            }
        }
    }
    holds
}

fn above(definition: &Definition) -> HashMap<&str, Above<'_>> {
    let mapped: HashSet<&str> = (definition.tasks.iter())
        .filter(|task| task.is_mapped)
        .map(|task| &*task.name)
        .collect();
    let mut above: HashMap<&str, Above<'_>> = HashMap::new();
    for edge in &definition.edges {
        if let Source::Task(from) = &edge.from {
            let is_each = edge.mapping == Mapping::Each && edge.input.is_some();
            let both = mapped.contains(&**from) && mapped.contains(&*edge.to);
            let is_lane = above
                .entry(&edge.to)
                .or_default()
                .entry(from)
                .or_insert(true);
            *is_lane &= is_each && both;
        }
    }
    for task in &definition.tasks {
        for condition in &task.conditions {
            if let Source::Task(from) = &condition.subject {
                above.entry(&task.name).or_default().insert(from, false);
            }
        }
    }
    above
}

/// Sorts tasks so that each comes after what it hangs on.
fn sort<'a>(
    definition: &'a Definition,
    above: &HashMap<&'a str, Above<'a>>,
    order: &mut Vec<&'a str>,
) {
    let mut below: HashMap<&str, Vec<&'a str>> = HashMap::new();
    let mut waits: HashMap<&str, usize> = HashMap::new();
    for task in &definition.tasks {
        let own = above.get(&*task.name);
        waits.insert(&task.name, own.map_or(0, HashMap::len));
        for from in own.into_iter().flat_map(HashMap::keys) {
            below.entry(from).or_default().push(&task.name);
        }
    }
    let ready = definition.tasks.iter().map(|task| &*task.name);
    order.extend(ready.filter(|name| waits[name] == 0));
    let mut at = 0;
    while at < order.len() {
        for name in below.remove(order[at]).unwrap_or_default() {
            if let Some(left) = waits.get_mut(name) {
                *left -= 1;
                if *left == 0 {
                    order.push(name);
                }
            }
        }
        at += 1;
    }
}
