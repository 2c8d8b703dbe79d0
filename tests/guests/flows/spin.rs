//! Never ends by itself.

use waft_sdk::prelude::*;

#[task]
fn turn() -> TaskResult<u64> {
    let mut turns: u64 = 0;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}

/// Never ends.
#[flow]
fn spin() -> Node<u64> {
    turn()
}
