//! A default of another type.

use waft_sdk::prelude::*;

#[flow]
fn wired(#[default("five")] n: Param<u64>) {}

fn main() {}
