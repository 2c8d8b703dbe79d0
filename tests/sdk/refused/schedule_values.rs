//! Clocks that give a parameter a value of another type.

use waft_sdk::prelude::*;

#[flow(schedule = interval("1h", params(count = "three")))]
fn a(count: Param<u64>) { let _ = count; }

#[flow(schedule = interval("1h", params(who = 3)))]
fn b(who: Param<String>) { let _ = who; }

fn main() {}
