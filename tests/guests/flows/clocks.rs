//! A schedule with everything that an attribute can say of one.

use waft_sdk::prelude::*;

#[task]
fn weigh(region: String, count: u64) -> TaskResult<String> {
    Ok(format!("{count} in {region}"))
}

/// Weighs what a region has.
#[flow(
    schedule = [
        cron(
            "0 2 * * *",
            tz = "Europe/Berlin",
            name = "nightly",
            starts = "2026-12-01T00:00:00Z",
            ends = "2027-12-01T00:00:00+01:00",
            params(region = "eu", count = 3),
        ),
        interval("90m", params(region = "us")),
        dates("2026-12-24T09:00:00Z", "2026-12-31T23:30:00.5Z", params(region = "all")),
    ],
    filters = [
        weekdays("mon-thu", "sat", tz = "America/New_York"),
        between("22:00", "06:00"),
        except("2026-12-25", "2026-12-26", tz = "Asia/Tokyo"),
    ],
    catch_up = "all",
    overlap = "cancel-old",
)]
fn clocks(region: Param<String>, #[default(1)] count: Param<u64>) -> Node<String> {
    weigh(region, count)
}
