//! An argument of a flow that is no `Param`.

use waft_sdk::prelude::*;

#[flow]
fn wired(n: u64) {}

fn main() {}
