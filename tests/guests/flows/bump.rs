//! Brings an allocator of its own, beside the one that the SDK gives to libc.

use std::alloc::{GlobalAlloc, Layout};
use std::arch::wasm32::memory_grow;
use std::cell::Cell;
use waft_sdk::prelude::*;

unsafe extern "C" {
    fn malloc(size: usize) -> *mut u8;
}

const PAGE: usize = 64 * 1024;

/// Hands out memory in one direction and never takes any back.
struct Bump {
    next: Cell<usize>,
    end: Cell<usize>,
}

// SAFETY: a component has one thread.
unsafe impl Sync for Bump {}

// SAFETY: every stretch is handed out once, from pages that this allocator grew.
unsafe impl GlobalAlloc for Bump {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mut start = self.next.get().next_multiple_of(layout.align());
        if start + layout.size() > self.end.get() {
            let pages = layout.size() / PAGE + 1;
            start = memory_grow::<0>(pages) * PAGE;
            self.end.set(start + pages * PAGE);
        }
        self.next.set(start + layout.size());
        start as *mut u8
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static HEAP: Bump = Bump {
    next: Cell::new(0),
    end: Cell::new(0),
};

/// Fills memory from both sides, and looks whether either wrote into the other.
#[task]
fn both(rounds: u64) -> TaskResult<u64> {
    let mut texts = Vec::new();
    let mut blocks = Vec::new();
    for round in 0..rounds {
        texts.push(format!("text {round:04}").repeat(20));
        // SAFETY: the block is used within its size.
        unsafe {
            let at = malloc(200);
            at.write_bytes(round as u8, 200);
            blocks.push(std::slice::from_raw_parts(at, 200));
        }
    }
    for (round, (text, block)) in texts.iter().zip(&blocks).enumerate() {
        let text_is_whole = *text == format!("text {round:04}").repeat(20);
        if !text_is_whole || block.iter().any(|byte| *byte != round as u8) {
            return Err(Signal::fail(format!("round {round} was written over")));
        }
    }
    Ok(rounds)
}

/// Two heaps in one memory.
#[flow]
fn bump() -> Node<u64> {
    both(5_000)
}
