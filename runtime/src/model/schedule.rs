//! Schedules: rules that yield instants.
//!
//! Who makes runs of them is the scheduler (`server/duty`). Wall-clock rules follow the time zone
//! over daylight saving: an instant that does not exist moves behind the gap, one that comes twice
//! counts once.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde::{Deserialize, Serialize};

use super::flow::is_name;
use super::parameter::{self, Parameter};

/// When runs are made without being asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Where instants come from.
    pub clocks: Vec<Clock>,
    /// Which of them count; all must hold.
    #[serde(default)]
    pub filters: Vec<Filter>,
    /// What is done about instants that were missed.
    #[serde(default)]
    pub catch_up: CatchUp,
    /// What is done about an instant at which a run of the same flow is still going.
    #[serde(default)]
    pub overlap: Overlap,
}

/// One source of instants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    /// Unique in the schedule.
    pub name: String,
    /// What it ticks by.
    pub rule: Rule,
    /// No run before this instant.
    #[serde(default)]
    pub starts_at: Option<Timestamp>,
    /// No run after this instant.
    #[serde(default)]
    pub ends_at: Option<Timestamp>,
    /// Parameters of the runs that it makes.
    #[serde(default)]
    pub parameters: BTreeMap<String, serde_json::Value>,
}

/// What a clock ticks by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Every so many milliseconds.
    IntervalMs(u64),
    /// A cron line in a time zone.
    Cron {
        /// Five fields.
        line: String,
        /// A name of the IANA database.
        time_zone: String,
    },
    /// These instants.
    Dates(Vec<Timestamp>),
}

/// Which instants count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Days of the week, 1 (Monday) to 7.
    Weekdays {
        /// The days.
        days: Vec<u8>,
        /// Where they are days.
        time_zone: String,
    },
    /// From and until, `hh:mm`.
    BetweenTimes {
        /// From, inclusive.
        from: String,
        /// Until, exclusive.
        until: String,
        /// Where they are times.
        time_zone: String,
    },
    /// Dates left out, `yyyy-mm-dd`.
    SkipDates {
        /// The dates.
        dates: Vec<String>,
        /// Where they are dates.
        time_zone: String,
    },
}

/// What is done about instants that passed while no server was up, or while the schedule was paused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CatchUp {
    /// The newest one only.
    #[default]
    Last,
    /// All of them, the newest thousand at most.
    All,
    /// None of them.
    Skip,
}

/// What is done about an instant at which a run of the same flow is still going: one that was begun,
/// whoever asked for it, or an earlier one of the schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Both run.
    #[default]
    Allow,
    /// The new one is left out.
    Skip,
    /// The new one waits.
    Queue,
    /// The old one is cancelled, and the new one waits until that is over.
    CancelOld,
}

/// Says what is wrong with a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadSchedule {
    /// It has no clock, or too many.
    #[error("it has {0} clocks; 1 to {CLOCKS_MAX} are allowed")]
    Clocks(usize),
    /// A clock is not usable.
    #[error("clock `{clock}`: {why}")]
    Clock {
        /// Which one.
        clock: String,
        /// Why.
        why: String,
    },
    /// A filter is not usable.
    #[error("a filter is not usable: {0}")]
    Filter(String),
}

/// One instant of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tick {
    /// When.
    pub at: Timestamp,
    /// The name of the clock.
    pub clock: String,
}

macro_rules! policy_words {
    ($($policy:ident: $($variant:ident = $word:literal),*;)*) => {$(
        impl $policy {
            /// Returns the word that stands in the database and on the command line.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl FromStr for $policy {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    other => {
                        Err(format!("`{}` is none of {}", other.escape_default(), [$($word),*].join(", ")))
                    }
                }
            }
        }
    )*};
}

policy_words! {
    CatchUp: Last = "last", All = "all", Skip = "skip";
    Overlap: Allow = "allow", Skip = "skip", Queue = "queue", CancelOld = "cancel-old";
}

impl Schedule {
    /// Checks everything that can be wrong with a schedule of a flow with these parameters.
    ///
    /// Its runs are made by nobody who could be asked, so every required parameter must be given by
    /// each clock.
    ///
    /// # Errors
    ///
    /// Names the first thing that is wrong.
    pub fn check(&self, parameters: &[Parameter]) -> Result<(), BadSchedule> {
        if !(1..=CLOCKS_MAX).contains(&self.clocks.len()) {
            return Err(BadSchedule::Clocks(self.clocks.len()));
        }
        for (nth, clock) in self.clocks.iter().enumerate() {
            let bad = |why: String| BadSchedule::Clock {
                clock: clock.name.escape_default().take(128).collect(),
                why,
            };
            if !is_name(&clock.name) || self.clocks[..nth].iter().any(|c| c.name == clock.name) {
                return Err(bad(
                    "its name is not allowed, or taken by another clock".to_owned()
                ));
            }
            parameter::bind(parameters, &clock.parameters).map_err(|why| bad(why.to_string()))?;
            Beat::of(clock).map_err(bad)?;
        }
        if self.filters.len() > FILTERS_MAX {
            return Err(BadSchedule::Filter(format!(
                "there are {}, and at most {FILTERS_MAX} are allowed",
                self.filters.len()
            )));
        }
        for filter in &self.filters {
            Sieve::of(filter).map_err(BadSchedule::Filter)?;
        }
        Ok(())
    }

    /// Returns the ticks of the next `count` instants after `after`, in order.
    ///
    /// Two clocks that tick at the same instant make two ticks, as they may give other parameters;
    /// of an instant, all are returned.
    /// The search ends after 10,000 candidates or five years, so a rule that never ticks
    /// (`0 0 31 2 *`) costs little and yields nothing.
    #[must_use]
    pub fn next_after(&self, after: Timestamp, count: usize) -> Vec<Tick> {
        let sieves: Vec<_> = self
            .filters
            .iter()
            .filter_map(|f| Sieve::of(f).ok())
            .collect();
        let end = after.checked_add(SEARCH.hours()).unwrap_or(Timestamp::MAX);
        let mut ticks: Vec<Tick> = Vec::new();
        for clock in &self.clocks {
            let Ok(beat) = Beat::of(clock) else { continue };
            let mut at = after;
            let mut found = 0;
            for _ in 0..CANDIDATES_MAX {
                let Some(next) = beat.next(at).filter(|next| *next <= end) else {
                    break;
                };
                at = next;
                if clock.ends_at.is_some_and(|end| next > end) || found == count {
                    break;
                }
                let closed = sieves.iter().filter(|sieve| !sieve.lets(next));
                match closed.map(|sieve| sieve.opening(next)).max() {
                    None => {
                        found += 1;
                        ticks.push(Tick {
                            at: next,
                            clock: clock.name.clone(),
                        });
                    }
                    // What ticks before it is left out, too; a tick at that very instant is not.
                    Some(opening) => at = at.max(just_before(opening)),
                }
            }
        }
        ticks.sort();
        let mut instants: Vec<_> = ticks.iter().map(|tick| tick.at).collect();
        instants.dedup();
        match count.checked_sub(1).and_then(|last| instants.get(last)) {
            Some(last) => ticks.retain(|tick| tick.at <= *last),
            None if count == 0 => ticks.clear(),
            None => {}
        }
        ticks
    }
}

/// Most clocks of one schedule.
const CLOCKS_MAX: usize = 64;
/// Most filters of one schedule: each is asked about every candidate, while other writes wait.
const FILTERS_MAX: usize = 16;
/// Most candidates that one clock is asked for in one search.
const CANDIDATES_MAX: usize = 10_000;
/// Changes of a zone's offset in which a day left out is looked for: more than five years have.
const CHANGES_MAX: usize = 64;
/// How far ahead a search looks: five years.
const SEARCH: i64 = 5 * 366 * 24;
/// The shortest interval in milliseconds.
const INTERVAL_MS_MIN: u64 = 1_000;
/// The longest interval in milliseconds: a hundred years, so that sums stay in range.
const INTERVAL_MS_MAX: u64 = 100 * 366 * 24 * 60 * 60 * 1_000;

/// A clock, ready to be asked.
struct Beat {
    rule: Kind,
    starts_at: Option<Timestamp>,
}

enum Kind {
    Interval(i64),
    Cron(Box<croner::Cron>, TimeZone),
    /// In order.
    Dates(Vec<Timestamp>),
}

impl Beat {
    fn of(clock: &Clock) -> Result<Self, String> {
        let rule = match &clock.rule {
            Rule::IntervalMs(ms) if (INTERVAL_MS_MIN..=INTERVAL_MS_MAX).contains(ms) => {
                Kind::Interval(i64::try_from(*ms).unwrap_or(i64::MAX))
            }
            Rule::IntervalMs(ms) => {
                return Err(format!(
                    "an interval of {ms} ms is below 1 s or above 100 years"
                ));
            }
            Rule::Cron { line, time_zone } => Kind::Cron(Box::new(cron(line)?), zone(time_zone)?),
            Rule::Dates(dates) if (1..=CANDIDATES_MAX).contains(&dates.len()) => {
                let mut dates = dates.clone();
                dates.sort_unstable();
                Kind::Dates(dates)
            }
            Rule::Dates(dates) => {
                return Err(format!(
                    "{} dates; 1 to {CANDIDATES_MAX} are allowed",
                    dates.len()
                ));
            }
        };
        Ok(Self {
            rule,
            starts_at: clock.starts_at,
        })
    }

    /// Returns the first instant after `after` and not before the start.
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        let before_start = self
            .starts_at
            .and_then(|start| start.checked_sub(jiff::SignedDuration::from_micros(1)).ok());
        let after = before_start.map_or(after, |start| start.max(after));
        match &self.rule {
            Kind::Interval(ms) => {
                let origin = self
                    .starts_at
                    .unwrap_or(Timestamp::UNIX_EPOCH)
                    .as_microsecond();
                let step = ms.checked_mul(1_000)?;
                let passed = (after.as_microsecond() - origin).div_euclid(step) + 1;
                let next = origin.checked_add(passed.checked_mul(step)?)?;
                Timestamp::from_microsecond(next).ok()
            }
            Kind::Cron(cron, zone) => {
                let local = after.to_zoned(zone.clone());
                let next = match cron.find_next_occurrence(&local, false) {
                    Ok(next) => next,
                    // There is none, or it would be on a day that the zone has left out.
                    Err(_) => {
                        let local = day_left_out(zone, after)?.to_zoned(zone.clone());
                        cron.find_next_occurrence(&local, true).ok()?
                    }
                };
                Some(next.timestamp())
            }
            Kind::Dates(dates) => {
                let passed = dates.partition_point(|date| *date <= after);
                dates.get(passed).copied()
            }
        }
    }
}

fn cron(line: &str) -> Result<croner::Cron, String> {
    let bad = |why: &dyn std::fmt::Display| {
        let line: String = line.escape_default().take(120).collect();
        format!("`{line}` is not a cron line: {why}")
    };
    if line.len() > 120 || line.split_whitespace().count() != 5 {
        return Err(bad(
            &"expected five fields: minute, hour, day, month, weekday",
        ));
    }
    croner::parser::CronParser::builder()
        .seconds(croner::parser::Seconds::Disallowed)
        .year(croner::parser::Year::Disallowed)
        .build()
        .parse(line)
        .map_err(|why| bad(&why))
}

/// Returns the first instant after a day that a zone has left out: it went over the date line.
fn day_left_out(zone: &TimeZone, after: Timestamp) -> Option<Timestamp> {
    const HALF_DAY: i32 = 12 * 60 * 60;
    let mut changes = zone.following(after).take(CHANGES_MAX);
    changes
        .find(|change| {
            let before = zone.to_offset(just_before(change.timestamp()));
            change.offset().seconds() - before.seconds() > HALF_DAY
        })
        .map(|change| change.timestamp())
}

fn just_before(at: Timestamp) -> Timestamp {
    at.saturating_sub(jiff::SignedDuration::from_micros(1))
        .unwrap_or(Timestamp::MIN)
}

fn zone(name: &str) -> Result<TimeZone, String> {
    TimeZone::get(name).map_err(|_| {
        let name: String = name.escape_default().take(80).collect();
        format!("`{name}` is not a time zone: expected a name such as `UTC` or `Europe/Berlin`")
    })
}

/// A filter, ready to be asked.
struct Sieve {
    zone: TimeZone,
    kind: SieveKind,
}

enum SieveKind {
    Weekdays(Vec<i8>),
    Times(Time, Time),
    Dates(BTreeSet<Date>),
}

impl Sieve {
    fn of(filter: &Filter) -> Result<Self, String> {
        let time = |text: &str| {
            let wrong = || {
                format!(
                    "`{}` is not a time: expected `hh:mm`",
                    text.escape_default()
                )
            };
            Time::strptime("%H:%M", text).map_err(|_| wrong())
        };
        let (kind, time_zone) = match filter {
            Filter::Weekdays { days, time_zone } => {
                let days: Vec<i8> = days.iter().filter_map(|d| i8::try_from(*d).ok()).collect();
                if days.is_empty() || days.iter().any(|day| !(1..=7).contains(day)) {
                    return Err("weekdays are 1 (Monday) to 7 (Sunday)".to_owned());
                }
                (SieveKind::Weekdays(days), time_zone)
            }
            Filter::BetweenTimes {
                from,
                until,
                time_zone,
            } => match (time(from)?, time(until)?) {
                (from, until) if from == until => {
                    return Err("between two equal times nothing is let through".to_owned());
                }
                (from, until) => (SieveKind::Times(from, until), time_zone),
            },
            Filter::SkipDates { dates, time_zone } => {
                let dates: Result<_, _> = dates.iter().map(|date| date.parse::<Date>()).collect();
                let dates = dates.map_err(|why| format!("dates are `yyyy-mm-dd`: {why}"))?;
                (SieveKind::Dates(dates), time_zone)
            }
        };
        Ok(Self {
            zone: zone(time_zone)?,
            kind,
        })
    }

    /// Returns an instant after one that it does not let, before which it lets none.
    ///
    /// Where the zone changes its offset it may be early: the search then looks again from there.
    fn opening(&self, at: Timestamp) -> Timestamp {
        let there = at.to_zoned(self.zone.clone());
        let first = match &self.kind {
            SieveKind::Times(from, _) if there.time() < *from => there.date().to_datetime(*from),
            SieveKind::Times(from, _) => match there.date().tomorrow() {
                Ok(tomorrow) => tomorrow.to_datetime(*from),
                Err(_) => return Timestamp::MAX,
            },
            _ => match there.date().tomorrow() {
                Ok(tomorrow) => tomorrow.to_datetime(Time::midnight()),
                Err(_) => return Timestamp::MAX,
            },
        };
        let first = self.zone.to_timestamp(first).unwrap_or(Timestamp::MAX);
        match self.zone.following(at).next() {
            Some(change) => first.min(change.timestamp()),
            None => first,
        }
    }

    fn lets(&self, at: Timestamp) -> bool {
        let there = at.to_zoned(self.zone.clone());
        match &self.kind {
            SieveKind::Weekdays(days) => days.contains(&there.weekday().to_monday_one_offset()),
            SieveKind::Times(from, until) if from <= until => {
                (*from..*until).contains(&there.time())
            }
            // From 22:00 until 06:00 goes over midnight.
            SieveKind::Times(from, until) => there.time() >= *from || there.time() < *until,
            SieveKind::Dates(dates) => !dates.contains(&there.date()),
        }
    }
}

#[cfg(test)]
mod calendar;

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(rule: Rule) -> Schedule {
        let clock = Clock {
            name: "c".to_owned(),
            rule,
            starts_at: None,
            ends_at: None,
            parameters: BTreeMap::new(),
        };
        Schedule {
            clocks: vec![clock],
            filters: Vec::new(),
            catch_up: CatchUp::Last,
            overlap: Overlap::Allow,
        }
    }

    fn cron_in(line: &str, time_zone: &str) -> Schedule {
        schedule(Rule::Cron {
            line: line.to_owned(),
            time_zone: time_zone.to_owned(),
        })
    }

    fn next(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
        let ticks = schedule.next_after(after.parse().unwrap(), count);
        ticks.iter().map(|tick| tick.at.to_string()).collect()
    }

    #[test]
    fn cron_follows_the_wall_clock_over_both_changes() {
        let daily = cron_in("30 2 * * *", "Europe/Berlin");
        // 02:30 does not exist on 29 March 2026: the run moves to the first moment after the gap.
        assert_eq!(
            next(&daily, "2026-03-28T00:00:00Z", 3),
            [
                "2026-03-28T01:30:00Z",
                "2026-03-29T01:00:00Z",
                "2026-03-30T00:30:00Z"
            ]
        );
        // 02:30 comes twice on 25 October 2026: it runs once.
        assert_eq!(
            next(&daily, "2026-10-24T00:00:00Z", 3),
            [
                "2026-10-24T00:30:00Z",
                "2026-10-25T00:30:00Z",
                "2026-10-26T01:30:00Z"
            ]
        );
    }

    #[test]
    fn intervals_count_from_their_start() {
        let mut every = schedule(Rule::IntervalMs(90 * 60 * 1000));
        assert_eq!(
            next(&every, "2026-01-01T00:00:00Z", 2),
            ["2026-01-01T01:30:00Z", "2026-01-01T03:00:00Z"]
        );
        every.clocks[0].starts_at = Some("2026-01-01T00:10:00Z".parse().unwrap());
        every.clocks[0].ends_at = Some("2026-01-01T01:40:00Z".parse().unwrap());
        assert_eq!(
            next(&every, "2025-12-01T00:00:00Z", 9),
            ["2026-01-01T00:10:00Z", "2026-01-01T01:40:00Z"]
        );
    }

    #[test]
    fn filters_leave_out_and_clocks_are_merged() {
        let mut both = cron_in("0 12 * * *", "UTC");
        let noon = "2026-01-03T06:00:00Z".parse().unwrap();
        let dates = Clock {
            name: "d".to_owned(),
            rule: Rule::Dates(vec![noon]),
            ..both.clocks[0].clone()
        };
        both.clocks.push(dates);
        assert_eq!(
            next(&both, "2026-01-02T12:00:00Z", 2),
            ["2026-01-03T06:00:00Z", "2026-01-03T12:00:00Z"]
        );
        let utc = || "UTC".to_owned();
        both.filters = vec![
            Filter::Weekdays {
                days: vec![1, 2, 3, 4, 5],
                time_zone: utc(),
            },
            Filter::SkipDates {
                dates: vec!["2026-01-05".to_owned()],
                time_zone: utc(),
            },
        ];
        assert_eq!(
            next(&both, "2026-01-02T12:00:00Z", 1),
            ["2026-01-06T12:00:00Z"]
        );
        both.filters = vec![Filter::BetweenTimes {
            from: "22:00".to_owned(),
            until: "07:00".to_owned(),
            time_zone: utc(),
        }];
        assert_eq!(
            next(&both, "2026-01-02T12:00:00Z", 5),
            ["2026-01-03T06:00:00Z"]
        );
    }

    #[test]
    fn what_never_ticks_ends_soon() {
        assert!(next(&cron_in("0 0 31 2 *", "UTC"), "2026-01-01T00:00:00Z", 1).is_empty());
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        let none: [Parameter; 0] = [];
        for bad in [
            cron_in("* * * *", "UTC"),
            cron_in("* * * * * *", "UTC"),
            cron_in("99 * * * *", "UTC"),
            cron_in("* * * * *", "Mars/Olympus"),
            schedule(Rule::IntervalMs(999)),
            schedule(Rule::IntervalMs(u64::MAX)),
            schedule(Rule::Dates(Vec::new())),
            Schedule {
                clocks: Vec::new(),
                ..cron_in("* * * * *", "UTC")
            },
        ] {
            assert!(bad.check(&none).is_err(), "{bad:?}");
        }
        let required = Parameter {
            name: "p".to_owned(),
            description: String::new(),
            schema: serde_json::json!({"type": "string"}),
            default: None,
        };
        let why = cron_in("* * * * *", "UTC").check(&[required]).unwrap_err();
        assert_eq!(
            why.to_string(),
            "clock `c`: the parameter `p` is required and was not given"
        );
    }
}
