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

fn main() {}
