//! What the calendar does to schedules: clocks put forward and back, days that a zone leaves out, leap
//! days, short months; and where a search ends.

use serde_json::json;

use super::*;

fn schedule(rules: &[serde_json::Value], filters: serde_json::Value) -> Schedule {
    let clock = |(nth, rule)| json!({"name": format!("c{nth}"), "rule": rule});
    let clocks: Vec<_> = rules.iter().enumerate().map(clock).collect();
    let schedule = json!({"clocks": clocks, "filters": filters});
    let schedule: Schedule = serde_json::from_value(schedule).unwrap();
    schedule.check(&[]).unwrap();
    schedule
}

fn cron(line: &str, zone: &str) -> serde_json::Value {
    json!({"cron": {"line": line, "time_zone": zone}})
}

fn minutes(minutes: u64) -> serde_json::Value {
    json!({"interval_ms": minutes * 60_000})
}

/// Returns the next instants in UTC, without the seconds that all of them lack.
fn next(schedule: &Schedule, after: &str, count: usize) -> Vec<String> {
    let ticks = schedule.next_after(after.parse().unwrap(), count);
    let shown = |tick: &Tick| tick.at.strftime("%F %H:%M").to_string();
    ticks.iter().map(shown).collect()
}

/// On Lord Howe Island clocks go forward by half an hour, from 02:00, and back by half an hour, to 01:30.
#[test]
fn half_an_hour_is_lost_and_comes_twice() {
    let zone = "Australia/Lord_Howe";
    let lost = schedule(&[cron("15 2 * * *", zone)], json!([]));
    assert_eq!(
        next(&lost, "2026-10-02T00:00:00Z", 3),
        ["2026-10-02 15:45", "2026-10-03 15:30", "2026-10-04 15:15"],
        "02:15 is lost on 4 October: the first moment after the gap takes its place"
    );
    let twice = schedule(&[cron("45 1 * * *", zone)], json!([]));
    assert_eq!(
        next(&twice, "2026-04-03T00:00:00Z", 3),
        ["2026-04-03 14:45", "2026-04-04 14:45", "2026-04-05 15:15"],
        "01:45 comes twice on 5 April, and counts once"
    );
}

/// What is asked for every so many minutes by the wall clock, over both changes of Berlin.
#[test]
fn a_cron_line_of_minutes_over_both_changes() {
    let often = schedule(&[cron("*/30 * * * *", "Europe/Berlin")], json!([]));
    assert_eq!(
        next(&often, "2026-03-29T00:00:00Z", 3),
        ["2026-03-29 00:30", "2026-03-29 01:00", "2026-03-29 01:30"]
    );
    assert_eq!(
        next(&often, "2026-10-24T23:30:00Z", 6),
        [
            "2026-10-25 00:00",
            "2026-10-25 00:30",
            "2026-10-25 01:00",
            "2026-10-25 01:30",
            "2026-10-25 02:00",
            "2026-10-25 02:30"
        ]
    );
}

/// An interval knows no wall clock; what a filter lets through does.
#[test]
fn a_filter_asks_the_wall_clock_about_each_instant() {
    let zone = "Australia/Lord_Howe";
    let filter = json!([{"between_times": {"from": "01:30", "until": "02:00", "time_zone": zone}}]);
    let quarters = schedule(&[minutes(15)], filter);
    assert_eq!(
        next(&quarters, "2026-04-04T00:00:00Z", 5),
        [
            "2026-04-04 14:30",
            "2026-04-04 14:45",
            "2026-04-04 15:00",
            "2026-04-04 15:15",
            "2026-04-05 15:00"
        ],
        "the half hour that comes twice is let through twice"
    );
    let filter = json!([{"between_times": {"from": "02:00", "until": "02:30", "time_zone": zone}}]);
    let quarters = schedule(&[minutes(15)], filter);
    assert_eq!(
        next(&quarters, "2026-10-03T00:00:00Z", 1),
        ["2026-10-04 15:00"],
        "the half hour that is lost lets nothing through"
    );
    let nepal = json!([{"between_times": {"from": "00:00", "until": "00:15", "time_zone": "Asia/Kathmandu"}}]);
    assert_eq!(
        next(&schedule(&[minutes(15)], nepal), "2026-01-01T00:00:00Z", 2),
        ["2026-01-01 18:15", "2026-01-02 18:15"],
        "Nepal is 5:45 ahead"
    );
}

/// In Beirut clocks go forward at midnight, so that one day of the year has none.
#[test]
fn a_midnight_that_is_lost() {
    let daily = schedule(&[cron("0 0 * * *", "Asia/Beirut")], json!([]));
    assert_eq!(
        next(&daily, "2026-03-27T00:00:00Z", 4),
        [
            "2026-03-27 22:00",
            "2026-03-28 22:00",
            "2026-03-29 21:00",
            "2026-03-30 21:00"
        ]
    );
}

/// Samoa went over the date line and had no 30 December 2011, a Friday.
#[test]
fn a_day_that_a_zone_left_out() {
    let zone = "Pacific/Apia";
    let fridays = json!([{"weekdays": {"days": [5], "time_zone": zone}}]);
    assert_eq!(
        next(
            &schedule(&[minutes(720)], fridays),
            "2011-12-29T10:00:00Z",
            2
        ),
        ["2012-01-05 12:00", "2012-01-06 00:00"]
    );
    let skipped = json!([{"skip_dates": {"dates": ["2011-12-31"], "time_zone": zone}}]);
    assert_eq!(
        next(
            &schedule(&[minutes(720)], skipped),
            "2011-12-29T12:00:00Z",
            3
        ),
        ["2011-12-30 00:00", "2011-12-31 12:00", "2012-01-01 00:00"]
    );
}

#[test]
fn leap_days_and_short_months() {
    let leap = schedule(&[cron("0 0 29 2 *", "UTC")], json!([]));
    assert_eq!(
        next(&leap, "2026-01-01T00:00:00Z", 2),
        ["2028-02-29 00:00"],
        "the one after it is further away than a search goes"
    );
    let long = schedule(&[cron("0 0 31 * *", "UTC")], json!([]));
    assert_eq!(
        next(&long, "2026-01-01T00:00:00Z", 5),
        [
            "2026-01-31 00:00",
            "2026-03-31 00:00",
            "2026-05-31 00:00",
            "2026-07-31 00:00",
            "2026-08-31 00:00"
        ]
    );
    let last = schedule(&[cron("0 0 L * *", "UTC")], json!([]));
    assert_eq!(
        next(&last, "2028-01-31T00:00:00Z", 2),
        ["2028-02-29 00:00", "2028-03-31 00:00"]
    );
    // Where day and weekday are both named, either will do.
    let either = schedule(&[cron("0 0 13 * FRI", "UTC")], json!([]));
    assert_eq!(
        next(&either, "2026-02-06T00:00:00Z", 3),
        ["2026-02-13 00:00", "2026-02-20 00:00", "2026-02-27 00:00"]
    );
}

#[test]
fn clocks_that_meet_make_a_tick_each_and_count_as_one_instant() {
    let date = json!({"dates": ["2026-01-01T12:00:00Z", "2026-01-01T12:00:00Z"]});
    let rules = [cron("0 */6 * * *", "UTC"), minutes(180), date];
    let three = schedule(&rules, json!([]));
    let ticks = three.next_after("2026-01-01T06:00:00Z".parse().unwrap(), 2);
    let shown: Vec<_> = ticks
        .iter()
        .map(|tick| (tick.clock.as_str(), tick.at.to_string()))
        .collect();
    let noon = || "2026-01-01T12:00:00Z".to_owned();
    assert_eq!(
        shown,
        [
            ("c1", "2026-01-01T09:00:00Z".to_owned()),
            ("c0", noon()),
            ("c1", noon()),
            ("c2", noon()),
        ]
    );
    assert!(three.next_after(ticks[0].at, 0).is_empty());
}

/// What a filter leaves out is passed over at once, and what never comes is not looked for without end.
#[test]
fn a_search_passes_over_what_is_left_out_and_ends() {
    let at = |second: i64| {
        let midnight: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        midnight.checked_add(second.seconds()).unwrap()
    };
    let max = i64::try_from(CANDIDATES_MAX).unwrap();
    let filter =
        json!([{"between_times": {"from": "12:00", "until": "12:01", "time_zone": "UTC"}}]);
    let every_second = schedule(&[json!({"interval_ms": 1_000})], filter);
    let noon = 12 * 60 * 60;
    assert_eq!(every_second.next_after(at(noon - max), 1).len(), 1);
    let far = every_second.next_after(at(noon - max - 1), 1);
    assert_eq!(
        far[0].at,
        at(noon),
        "further away than candidates are asked about"
    );
    // Filters that let nothing through at all, and every clock that there may be.
    let never = json!([
        {"weekdays": {"days": [1], "time_zone": "Asia/Kathmandu"}},
        {"weekdays": {"days": [4], "time_zone": "Asia/Kathmandu"}},
    ]);
    let yearly = schedule(&[cron("0 0 1 1 *", "UTC")], never);
    assert!(yearly.next_after(at(0), 5).is_empty());
}

/// Samoa went over the date line and had no 30 December 2011, and so no noon on that day.
#[test]
fn a_cron_line_goes_on_after_a_day_that_its_zone_left_out() {
    let noon = schedule(&[cron("0 12 * * *", "Pacific/Apia")], json!([]));
    assert_eq!(
        next(&noon, "2011-12-29T00:00:00Z", 3),
        ["2011-12-29 22:00", "2011-12-30 22:00", "2011-12-31 22:00"]
    );
}

/// On a Saturday, Monday is further away than the candidates of one search.
#[test]
fn a_quick_clock_is_found_behind_a_filter() {
    let filter = json!([{"weekdays": {"days": [1, 2, 3, 4, 5], "time_zone": "UTC"}}]);
    let quick = schedule(&[json!({"interval_ms": 10_000})], filter);
    assert_eq!(
        next(&quick, "2026-11-28T00:00:00Z", 1),
        ["2026-11-30 00:00"]
    );
}

/// The same instant as from and until lets nothing through.
#[test]
fn a_window_of_nothing_is_refused() {
    let filter =
        json!([{"between_times": {"from": "06:00", "until": "06:00", "time_zone": "UTC"}}]);
    let json = json!({"clocks": [{"name": "c", "rule": minutes(15)}], "filters": filter});
    let schedule: Schedule = serde_json::from_value(json).unwrap();
    assert!(schedule.check(&[]).is_err());
}
