//! Whose turn it is: priority first, then one run from each project in turn, then due time.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use crate::model::id::ProjectId;

/// When each project was served last, by count. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<Served>>);

#[derive(Default)]
struct Served {
    count: u64,
    last: HashMap<ProjectId, u64>,
}

impl Turns {
    /// Sorts projects: who was served longest ago goes first.
    pub(super) fn sort(&self, projects: &mut [ProjectId]) {
        let served = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        projects.sort_by_key(|project| (served.last.get(project).copied(), *project));
    }

    /// Notes whom the last runs went to, in order.
    pub(super) fn note(&self, projects: impl IntoIterator<Item = ProjectId>) {
        let mut served = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for project in projects {
            served.count += 1;
            let count = served.count;
            served.last.insert(project, count);
        }
    }
}

/// Takes at most `count` items from queues in turn, one from each, in the order of `order`.
pub(super) fn deal<K: Hash + Eq, T>(
    order: &[K],
    queues: &mut HashMap<K, VecDeque<T>>,
    count: usize,
) -> Vec<T> {
    let mut dealt = Vec::new();
    loop {
        let before = dealt.len();
        for key in order {
            if dealt.len() == count {
                return dealt;
            }
            dealt.extend(queues.get_mut(key).and_then(VecDeque::pop_front));
        }
        if dealt.len() == before {
            return dealt;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_from_each_in_turn() {
        let queue = |items: &[&'static str]| items.iter().copied().collect::<VecDeque<_>>();
        let mut queues = HashMap::from([
            ("a", queue(&["a1", "a2", "a3", "a4"])),
            ("b", queue(&["b1"])),
            ("c", queue(&["c1", "c2"])),
        ]);
        let order = ["b", "a", "c"];
        assert_eq!(deal(&order, &mut queues, 4), ["b1", "a1", "c1", "a2"]);
        assert_eq!(deal(&order, &mut queues, 9), ["a3", "c2", "a4"]);
    }

    #[test]
    fn who_was_served_longest_ago_goes_first() {
        let turns = Turns::default();
        let [a, b, c] = [1, 2, 3].map(|n| ProjectId::at(0, n));
        turns.note([a, c, a]);
        let mut order = [a, b, c];
        turns.sort(&mut order);
        assert_eq!(order, [b, c, a]);
    }
}
