//! A parameter without a schema.

use serde::{Deserialize, Serialize};
use waft_sdk::prelude::*;

#[derive(Serialize, Deserialize)]
struct Order {
    id: u64,
}

#[flow]
fn wired(order: Param<Order>) {}

fn main() {}
