//! Shapes that `Schema` cannot be derived for.

use serde::{Deserialize, Serialize};
use waft_sdk::prelude::*;

#[derive(Schema)]
struct Pair(u64, u64);

#[derive(Schema)]
enum Shape {
    Circle(f64),
}

#[derive(Serialize, Deserialize, Schema)]
struct Flat {
    #[serde(flatten)]
    rest: std::collections::HashMap<String, u64>,
}

#[derive(Schema)]
struct Of<T> {
    inner: T,
}

fn main() {}
