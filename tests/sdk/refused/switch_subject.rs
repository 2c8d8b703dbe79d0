//! A switch over floats.

use waft_sdk::prelude::*;

#[task]
fn name() -> TaskResult<String> {
    Ok(String::new())
}

#[task]
fn double(n: u64) -> TaskResult<u64> {
    Ok(n * 2)
}

#[flow]
fn wired(n: Param<f64>) -> Node<u64> {
    switch(n).case(1.0, || double(1)).otherwise(|| double(2))
}

fn main() {}
