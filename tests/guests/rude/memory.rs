//! Takes memory until there is none.

use waft_sdk::prelude::*;

#[task]
fn hog() -> TaskResult<usize> {
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1_u8; 16 * 1024 * 1024]);
        std::hint::black_box(&taken);
    }
}

/// Takes all memory.
#[flow]
fn memory() -> Node<usize> {
    hog()
}
