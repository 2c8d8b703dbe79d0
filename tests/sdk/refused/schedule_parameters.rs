//! Clocks that give a flow what it does not take, or not what it wants.

use waft_sdk::prelude::*;

#[flow(schedule = [interval("1h", params(who = "Ada")), interval("2h")])]
fn a(who: Param<String>) {}

#[flow(schedule = interval("1h", params(whom = "Ada")))]
fn b(#[default("Bob")] who: Param<String>, #[default(1)] count: Param<u64>) {}

#[flow(schedule = interval("1h", params(who = "Ada", who = "Bob")))]
fn c(who: Param<String>) {}

#[flow(schedule = interval("1h", params("Ada")))]
fn d(who: Param<String>) {}

#[flow(schedule = interval("1h", params = "Ada"))]
fn e(who: Param<String>) {}

fn main() {}
