//! An error that is none.

use waft_sdk::prelude::*;

struct Oops;

#[task]
fn a() -> Result<u64, Oops> {
    Err(Oops)
}

fn main() {}
