//! Dice: graphs and endings that a seed makes.

use serde_json::json;

use super::super::super::super::flow::Body;
use super::super::super::{Attempt, Ending};
use super::{Flow, fail, next, ok};

/// A small generator, so that a seed always means the same.
pub(in super::super) struct Dice(pub(in super::super) u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound as u64).unwrap()
    }

    fn one_in(&mut self, bound: usize) -> bool {
        self.below(bound) == 0
    }
}

/// Makes a flow of a few tasks with every kind of dependency.
pub(in super::super) fn random(seed: u64) -> (Flow, u64) {
    use super::super::super::super::flow::{Retries, Trigger};
    let mut dice = Dice(seed);
    let count = 1 + dice.below(8);
    let names: Vec<_> = (0..count).map(|n| format!("t{n}")).collect();
    let mut flow = Flow::new(&names.join(" "));
    for (at, name) in names.iter().enumerate() {
        let is_mapped = dice.one_in(2);
        if is_mapped {
            flow = flow.constant("[1,2,3]", name, "own", true);
        }
        for from in &names[..at] {
            if dice.one_in(3) {
                flow = match dice.below(4) {
                    0 => flow.order(from, name),
                    1 if is_mapped => flow.each(from, name),
                    2 => flow.when(name, from, &["1"], dice.one_in(2)),
                    _ => flow.pass(from, name),
                };
            }
        }
        let triggers = [
            Trigger::AllSuccessful,
            Trigger::AllSuccessful,
            Trigger::AllFinished,
            Trigger::AnySuccessful,
            Trigger::AnyFailed,
            Trigger::NotAllSkipped,
            Trigger::ManualOnly,
        ];
        flow = flow.change(name, |task| {
            task.is_mapped = is_mapped;
            task.trigger = triggers[dice.below(triggers.len())];
            task.skip_on_upstream_skip = dice.one_in(2);
            if dice.one_in(3) {
                let retries = json!({"count": 50, "delay_ms": dice.below(2)});
                task.retries = Some(serde_json::from_value::<Retries>(retries).unwrap());
            }
            if is_mapped && dice.one_in(3) {
                task.limits.parallel = Some(1);
            }
            if at > 0 && !is_mapped && dice.one_in(6) {
                task.body = Body::Merge;
            }
        });
    }
    (flow.output(&names[count - 1]), dice.roll())
}

/// Decides by the name of the task run and the attempt alone, so that the order does not matter.
/// What happens on a retry differs from before it, and settles after a few attempts.
pub(in super::super) fn random_ending(bodies: u64, key: &str, attempt: &Attempt) -> Ending {
    let name = key
        .bytes()
        .fold(bodies, |hash, byte| hash.wrapping_mul(31) + u64::from(byte));
    let mut dice = Dice(name ^ u64::from(attempt.loop_count));
    match dice.below(8) {
        0 => fail("no"),
        1 => Ending::Skip(String::new()),
        2 => ok("[1,2]"),
        3 if attempt.loop_count < 3 => next("1"),
        4 if attempt.approval.is_none() => Ending::Pause("may it?".to_owned()),
        _ => ok("1"),
    }
}
