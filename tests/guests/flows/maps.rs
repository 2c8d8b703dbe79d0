//! Maps over a list parameter, over two lists at once, and over what was mapped; then reduces.

use waft_sdk::prelude::*;

#[task(parallel = 2)]
fn double(value: i64) -> TaskResult<i64> {
    Ok(value * 2)
}

#[task]
fn add(left: i64, right: i64, offset: i64) -> TaskResult<i64> {
    Ok(left + right + offset)
}

#[task]
fn sum(values: Vec<i64>) -> TaskResult<i64> {
    Ok(values.iter().sum())
}

/// Doubles every value, adds value, double and offset, and answers the sum: `[1, 2, 3]` and 10 make 48.
#[flow]
fn maps(
    #[default(vec![1, 2, 3])] values: Param<Vec<i64>>,
    #[default(10)] offset: Param<i64>,
) -> Node<i64> {
    let doubled = double::map(values);
    sum(add::map(values, doubled, unmapped(offset)))
}
