//! A `Result` behind another name: its error would be the output of a task that succeeded.

use waft_sdk::prelude::*;

type Done = Result<u64, String>;

#[task]
fn a() -> Done {
    Err("no".to_string())
}

fn main() {}
