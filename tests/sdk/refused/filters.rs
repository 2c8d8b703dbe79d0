//! Filters and policies that mean nothing.

use waft_sdk::prelude::*;

#[flow(filters = weekdays("mon-fri"))]
fn a() {}

#[flow(schedule = interval("1h"), filters = weekdays("Monday"))]
fn b() {}

#[flow(schedule = interval("1h"), filters = weekdays("mon-fri", "fri"))]
fn c() {}

#[flow(schedule = interval("1h"), filters = between("22:00", "24:00"))]
fn d() {}

#[flow(schedule = interval("1h"), filters = between("06:00", "06:00"))]
fn e() {}

#[flow(schedule = interval("1h"), filters = between("06:00"))]
fn f() {}

#[flow(schedule = interval("1h"), filters = except("2026-02-30"))]
fn g() {}

#[flow(schedule = interval("1h"), filters = except("2026-12-25", zone = "UTC"))]
fn h() {}

#[flow(schedule = interval("1h"), filters = [])]
fn i() {}

#[flow(schedule = interval("1h"), catch_up = "none")]
fn j() {}

#[flow(schedule = interval("1h"), overlap = "cancel_old")]
fn k() {}

#[flow(schedule = interval("1h"), overlaps = "skip")]
fn l() {}

fn main() {}
