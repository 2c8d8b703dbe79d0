//! Triggers: whether the upstream states let a task run.
//!
//! The task runs of a mapped task count one by one, as they did in Prefect, so that
//! `any_successful` below a map runs if one element succeeded. Skipped counts as successful.

use std::fmt::Write;
use std::ops::AddAssign;

use super::super::flow::{Amount, Bounds, Trigger};
use super::super::state::State;

/// How the upstream task runs ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) total: u32,
    pub(super) failed: u32,
    pub(super) skipped: u32,
}

impl Counts {
    /// Counts one task run that is over.
    pub(super) fn of(state: State) -> Self {
        Self {
            total: 1,
            failed: u32::from(state.is_failed()),
            skipped: u32::from(state == State::Skipped),
        }
    }

    const fn successful(self) -> u32 {
        self.total - self.failed
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.total += other.total;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// What a trigger says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pull {
    Run,
    Skip,
    Fail,
}

impl Trigger {
    /// Decides by the counts. `all_*` hold where nothing is upstream, `any_*` do not.
    pub(super) fn pull(&self, counts: Counts) -> Pull {
        let (good, bad) = (counts.successful(), counts.failed);
        let holds = match self {
            Self::AllSuccessful => bad == 0,
            Self::AllFailed => good == 0,
            Self::AllFinished => true,
            Self::AnySuccessful => good > 0,
            Self::AnyFailed => bad > 0,
            Self::SomeSuccessful(bounds) => bounds.hold(good, counts.total),
            Self::SomeFailed(bounds) => bounds.hold(bad, counts.total),
            Self::NotAllSkipped if counts.total > 0 && counts.skipped == counts.total => {
                return Pull::Skip;
            }
            Self::NotAllSkipped => bad == 0,
            // Whoever has approved knows how they ended.
            Self::ManualOnly => true,
        };
        match holds {
            true => Pull::Run,
            false => Pull::Fail,
        }
    }

    /// Tells whether a failure upstream can be what keeps it from holding.
    pub(super) const fn wants_success(&self) -> bool {
        !matches!(
            self,
            Self::AllFailed | Self::AnyFailed | Self::SomeFailed(_) | Self::ManualOnly
        )
    }

    /// Returns the word that stands in definitions.
    const fn word(&self) -> &'static str {
        match self {
            Self::AllSuccessful => "all_successful",
            Self::AllFailed => "all_failed",
            Self::AllFinished => "all_finished",
            Self::AnySuccessful => "any_successful",
            Self::AnyFailed => "any_failed",
            Self::SomeSuccessful(_) => "some_successful",
            Self::SomeFailed(_) => "some_failed",
            Self::NotAllSkipped => "not_all_skipped",
            Self::ManualOnly => "manual_only",
        }
    }

    /// Says in words why it does not hold; `cause` is an upstream task that failed.
    pub(super) fn refusal(&self, counts: Counts, cause: Option<&str>) -> String {
        if let (Self::AllSuccessful | Self::NotAllSkipped, Some(cause)) = (self, cause) {
            return format!("the upstream task `{cause}` was not successful");
        }
        let mut text = format!(
            "the trigger `{}` does not hold: of {} upstream task runs {} were successful and {} \
             failed",
            self.word(),
            counts.total,
            counts.successful(),
            counts.failed
        );
        if let Self::SomeSuccessful(bounds) | Self::SomeFailed(bounds) = self {
            for (word, amount) in [("at least", bounds.at_least), ("at most", bounds.at_most)] {
                let _ = match amount {
                    Some(Amount::Count(count)) => write!(text, ", {word} {count} allowed"),
                    Some(Amount::Percent(percent)) => write!(text, ", {word} {percent}% allowed"),
                    None => Ok(()),
                };
            }
        }
        text
    }
}

impl Bounds {
    fn hold(&self, count: u32, total: u32) -> bool {
        // Both sides a hundredfold, so that a percentage needs no rounding.
        let scaled = |amount: Amount| match amount {
            Amount::Count(bound) => u64::from(bound) * 100,
            Amount::Percent(percent) => u64::from(percent) * u64::from(total),
        };
        let count = u64::from(count) * 100;
        self.at_least.is_none_or(|bound| count >= scaled(bound))
            && self.at_most.is_none_or(|bound| count <= scaled(bound))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(good: u32, skipped: u32, failed: u32) -> Counts {
        let total = good + skipped + failed;
        Counts {
            total,
            failed,
            skipped,
        }
    }

    #[test]
    fn every_trigger_on_every_mix() {
        use Pull::{Fail, Run, Skip};
        use Trigger as T;
        let mixes = [
            (0, 0, 0),
            (2, 0, 0),
            (0, 0, 2),
            (1, 0, 1),
            (0, 2, 0),
            (1, 1, 0),
            (0, 1, 1),
        ];
        let table = [
            (T::AllSuccessful, [Run, Run, Fail, Fail, Run, Run, Fail]),
            (T::AllFailed, [Run, Fail, Run, Fail, Fail, Fail, Fail]),
            (T::AllFinished, [Run, Run, Run, Run, Run, Run, Run]),
            (T::AnySuccessful, [Fail, Run, Fail, Run, Run, Run, Run]),
            (T::AnyFailed, [Fail, Fail, Run, Run, Fail, Fail, Run]),
            (T::NotAllSkipped, [Run, Run, Fail, Fail, Skip, Run, Fail]),
            (T::ManualOnly, [Run, Run, Run, Run, Run, Run, Run]),
        ];
        for (trigger, expected) in table {
            for ((good, skipped, failed), expected) in mixes.into_iter().zip(expected) {
                let counts = counts(good, skipped, failed);
                assert_eq!(trigger.pull(counts), expected, "{trigger:?} {counts:?}");
            }
        }
    }

    #[test]
    fn bounds_are_counts_or_shares() {
        let some = |at_least, at_most| Trigger::SomeSuccessful(Bounds { at_least, at_most });
        let (count, percent) = (|n| Some(Amount::Count(n)), |n| Some(Amount::Percent(n)));
        let table = [
            (some(count(2), None), 1, 2, Pull::Fail),
            (some(count(2), None), 2, 1, Pull::Run),
            (some(None, count(1)), 1, 2, Pull::Run),
            (some(None, count(1)), 2, 1, Pull::Fail),
            (some(percent(34), None), 1, 2, Pull::Fail),
            (some(percent(33), None), 1, 2, Pull::Run),
            (some(None, percent(33)), 1, 2, Pull::Fail),
            (some(None, percent(34)), 1, 2, Pull::Run),
            (some(count(1), count(1)), 1, 1, Pull::Run),
            (some(None, None), 0, 5, Pull::Run),
        ];
        for (trigger, good, failed, expected) in table {
            let counts = counts(good, 0, failed);
            assert_eq!(trigger.pull(counts), expected, "{trigger:?} {counts:?}");
        }
        let failed = Trigger::SomeFailed(Bounds {
            at_least: count(1),
            at_most: None,
        });
        assert_eq!(failed.pull(counts(5, 0, 0)), Pull::Fail);
        assert_eq!(failed.pull(counts(5, 0, 1)), Pull::Run);
    }

    #[test]
    fn a_refusal_says_what_was_counted() {
        let trigger = Trigger::SomeSuccessful(Bounds {
            at_least: Some(Amount::Percent(50)),
            at_most: None,
        });
        assert_eq!(
            trigger.refusal(counts(1, 0, 3), None),
            "the trigger `some_successful` does not hold: of 4 upstream task runs 1 were \
             successful and 3 failed, at least 50% allowed"
        );
        assert_eq!(
            Trigger::AllSuccessful.refusal(counts(0, 0, 1), Some("fetch")),
            "the upstream task `fetch` was not successful"
        );
    }
}
