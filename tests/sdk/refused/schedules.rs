//! Schedules that no clock understands.

use waft_sdk::prelude::*;

#[flow(schedule = cron("0 0 * * * *"))]
fn a() {}

#[flow(schedule = cron("0 * * * *", tz = "Central European Time"))]
fn b() {}

#[flow(schedule = interval("10ms"))]
fn c() {}

#[flow(schedule = dates("tomorrow"))]
fn d() {}

#[flow(schedule = weekly("monday"))]
fn e() {}

#[flow(schedule = interval("1h"))]
fn f(who: Param<String>) {}

#[flow(schedule = cron("75 * * * *"))]
fn g() {}

#[flow(schedule = cron("0 0 * * JAN"))]
fn h() {}

#[flow(schedule = cron("0 0 31 2,4 *"))]
fn i() {}

#[flow(schedule = [interval("1h", name = "often"), interval("2h", name = "often")])]
fn j() {}

#[flow(schedule = interval("1h", tz = "UTC"))]
fn k() {}

#[flow(schedule = interval("1h", starts = "2026-02-29T00:00:00Z"))]
fn l() {}

#[flow(schedule = interval("1h", starts = "2026-12-01T00:00:00+01:00", ends = "2026-11-30T22:59:59Z"))]
fn m() {}

#[flow(schedule = dates("2026-12-01T09:00:00Z", "2026-12-01T10:00:00+01:00"))]
fn n() {}

#[flow(schedule = [])]
fn o() {}

fn main() {}
