//! Sums up what a region sold on a day, every night by itself.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use waft_sdk::prelude::*;

const MICROS_A_DAY: i64 = 24 * 60 * 60 * 1_000_000;

/// What was sold.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Report {
    region: String,
    day: String,
    /// By product, in cents.
    cents: BTreeMap<String, u64>,
}

/// Reads the sales of a day; without one, of the day before the run was due.
#[task(dir = ["/sales:ro"], retries = 3, retry_delay = "5m", backoff = "exponential")]
fn sum(region: String, day: Option<String>) -> TaskResult<Report> {
    let day = day.unwrap_or_else(|| date(run::scheduled_at_us().div_euclid(MICROS_A_DAY) - 1));
    let path = format!("/sales/{region}/{day}.csv");
    // The shop may be late with it, so that another attempt makes sense.
    let text = std::fs::read_to_string(&path)
        .map_err(|cause| Signal::fail(format!("cannot read `{path}`: {cause}")))?;
    let cents = summed(&text).map_err(|why| Signal::fail_for_good(format!("`{path}`: {why}")))?;
    log::info!("{} products in {path}", cents.len());
    Ok(Report { region, day, cents })
}

/// Shows the report to people.
#[task]
fn show(report: Report) -> TaskResult<Report> {
    let rows = report.cents.iter();
    cards::table(
        &format!("Sales in {} on {}", report.region, report.day),
        ["product", "sold"],
        rows.map(|(product, cents)| {
            [
                product.clone(),
                format!("{}.{:02}", cents / 100, cents % 100),
            ]
        }),
    );
    Ok(report)
}

/// Reports what a region sold.
#[flow(
    schedule = [
        cron("0 3 * * *", tz = "Europe/Berlin", name = "europe", params(region = "eu")),
        cron("0 3 * * *", tz = "America/New_York", name = "america", params(region = "us")),
    ],
    filters = [weekdays("tue-sat"), except("2026-12-26", "2027-01-02")],
    catch_up = "all",
    overlap = "queue",
)]
fn report(
    /// Whose sales: `eu` or `us`.
    region: Param<String>,
    /// Of which day, `yyyy-mm-dd`; without one, of the day before the run was due.
    day: Param<Option<String>>,
) -> Node<Report> {
    show(sum(region, day))
}

/// Adds up the lines of a file: a head, then product and cents.
fn summed(text: &str) -> Result<BTreeMap<String, u64>, String> {
    let mut cents = BTreeMap::new();
    for (nth, line) in text.lines().enumerate().skip(1) {
        let read = line
            .split_once(',')
            .and_then(|(product, cents)| Some((product, cents.trim().parse::<u64>().ok()?)));
        let Some((product, more)) = read else {
            return Err(format!("line {} is not `product,cents`: `{line}`", nth + 1));
        };
        *cents.entry(product.to_string()).or_default() += more;
    }
    Ok(cents)
}

/// Writes a number of days since 1970 as a date.
fn date(days: i64) -> String {
    // Years that begin in March end with the day that may be missing.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use waft_sdk::definition::{CatchUp, Overlap};
    use waft_sdk::testing;

    #[test]
    fn products_are_added_up() {
        let cents = summed("product,cents\nlamp,1250\nchair,9900\nlamp, 50\n").unwrap();
        assert_eq!(
            cents,
            BTreeMap::from([("chair".to_string(), 9_900), ("lamp".to_string(), 1_300)])
        );
        assert_eq!(
            summed("product,cents\nlamp,12.50\n").unwrap_err(),
            "line 2 is not `product,cents`: `lamp,12.50`"
        );
    }

    #[test]
    fn a_report_is_of_the_day_before_it_was_due() {
        for (days, expected) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (11_016, "2000-02-29"),
            (19_782, "2024-02-29"),
            (20_783, "2026-11-26"),
        ] {
            assert_eq!(date(days), expected);
        }
        testing::set_run(|info| info.scheduled_at_us = 20_783 * MICROS_A_DAY + 1);
        let Err(Signal::Fail(failure)) = sum::run("eu".to_string(), None) else {
            panic!("there is no such folder here");
        };
        let path = "cannot read `/sales/eu/2026-11-25.csv`";
        assert!(failure.message.starts_with(path), "{}", failure.message);
        assert!(!failure.is_final);
    }

    #[test]
    fn a_report_is_shown() {
        let report = Report {
            region: "eu".to_string(),
            day: "2026-11-25".to_string(),
            cents: BTreeMap::from([("lamp".to_string(), 1_205)]),
        };
        show::run(report).unwrap();
        assert_eq!(
            testing::cards(),
            [testing::Card::Table {
                title: "Sales in eu on 2026-11-25".to_string(),
                columns: vec!["product".to_string(), "sold".to_string()],
                rows: vec![vec!["lamp".to_string(), "12.05".to_string()]],
            }]
        );
    }

    #[test]
    fn every_region_has_its_night() {
        let schedule = testing::describe::<report>().unwrap().schedule.unwrap();
        let given: Vec<_> = schedule
            .clocks
            .iter()
            .map(|clock| {
                (
                    clock.name.as_str(),
                    clock.parameters[0].value.bytes.as_slice(),
                )
            })
            .collect();
        assert_eq!(given, [("europe", &b"\"eu\""[..]), ("america", b"\"us\"")]);
        assert_eq!(
            (schedule.catch_up, schedule.overlap),
            (CatchUp::All, Overlap::Queue)
        );
    }
}
