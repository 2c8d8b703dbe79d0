//! Takes and gives back memory under libc's names, as C in a flow would, and looks whether blocks keep what
//! was written to them.

use std::ffi::c_int;
use std::hint::black_box;
use waft_sdk::prelude::*;

unsafe extern "C" {
    fn malloc(size: usize) -> *mut u8;
    fn calloc(count: usize, size: usize) -> *mut u8;
    fn realloc(block: *mut u8, size: usize) -> *mut u8;
    fn aligned_alloc(align: usize, size: usize) -> *mut u8;
    fn posix_memalign(out: *mut *mut u8, align: usize, size: usize) -> c_int;
    fn free(block: *mut u8);
}

struct Block {
    at: *mut u8,
    align: usize,
    size: usize,
    byte: u8,
}

impl Block {
    fn keeps(&self, size: usize) -> bool {
        // SAFETY: the block is live and has `size` bytes at least.
        unsafe { std::slice::from_raw_parts(self.at, size) }
            .iter()
            .all(|byte| *byte == self.byte)
    }
}

/// Answers how many bytes were live at most.
#[task]
fn shuffle(steps: u64) -> TaskResult<u64> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let mut blocks: Vec<Block> = Vec::new();
    let mut most = 0;
    for step in 0..steps {
        let size = 1 << next(15);
        let size = size + next(size);
        let byte = next(256) as u8;
        // SAFETY: blocks are given back once, and each is used within its size.
        unsafe {
            match next(8) {
                0..=2 if !blocks.is_empty() => {
                    let gone = blocks.swap_remove(next(blocks.len()));
                    if !gone.keeps(gone.size) {
                        return Err(Signal::fail(format!("step {step}: a block changed")));
                    }
                    free(gone.at);
                    continue;
                }
                3 if !blocks.is_empty() => {
                    let at = next(blocks.len());
                    let block = &mut blocks[at];
                    block.at = realloc(block.at, size);
                    if block.at as usize % block.align != 0 {
                        return Err(Signal::fail(format!(
                            "step {step}: realloc lost the alignment"
                        )));
                    }
                    if !block.keeps(size.min(block.size)) {
                        return Err(Signal::fail(format!("step {step}: realloc lost bytes")));
                    }
                    (block.size, block.byte) = (size, byte);
                    block.at.write_bytes(byte, size);
                    continue;
                }
                _ => {}
            }
            let (at, align) = match next(4) {
                0 => (malloc(size), 8),
                1 => {
                    let at = calloc(2, size);
                    if std::slice::from_raw_parts(at, 2 * size)
                        .iter()
                        .any(|byte| *byte != 0)
                    {
                        return Err(Signal::fail(format!("step {step}: calloc is not zero")));
                    }
                    (at, 8)
                }
                2 => (aligned_alloc(256, size), 256),
                _ => {
                    let mut at = std::ptr::null_mut();
                    assert_eq!(posix_memalign(&mut at, 4096, size), 0);
                    (at, 4096)
                }
            };
            if at.is_null() || at as usize % align != 0 {
                return Err(Signal::fail(format!(
                    "step {step}: {at:?} is not aligned to {align}"
                )));
            }
            at.write_bytes(byte, size);
            blocks.push(Block {
                at,
                align,
                size,
                byte,
            });
        }
        most = most.max(blocks.iter().map(|block| block.size as u64).sum());
        if blocks.len() > 300 || step + 1 == steps {
            for block in blocks.drain(..) {
                if !block.keeps(block.size) {
                    return Err(Signal::fail(format!(
                        "step {step}: a block changed at last"
                    )));
                }
                // SAFETY: it is live.
                unsafe { free(block.at) };
            }
        }
    }
    // SAFETY: blocks of nothing are blocks, and go as they came.
    unsafe {
        for at in [
            malloc(black_box(0)),
            calloc(black_box(0), 8),
            realloc(malloc(black_box(8)), black_box(0)),
        ] {
            if at.is_null() {
                return Err(Signal::fail("a block of nothing is none"));
            }
            free(black_box(at));
        }
    }
    // SAFETY: what nobody can have is refused; the compiler would answer for itself without the black box.
    let refused = unsafe {
        [
            malloc(black_box(usize::MAX - 4)),
            calloc(black_box(usize::MAX), 2),
        ]
    };
    if black_box(refused).iter().any(|at| !at.is_null()) {
        return Err(Signal::fail("more memory than there is was given"));
    }
    Ok(most)
}

/// Takes memory until there is no more, and goes on with less. Answers how much there was.
#[task(memory = "32MiB")]
fn fill(after: u64) -> TaskResult<u64> {
    const SIZE: usize = 100_000;

    let _ = after;
    let mut blocks = Vec::with_capacity(1_000);
    // SAFETY: blocks are given back once, and each is used within its size.
    unsafe {
        loop {
            let at = black_box(malloc(black_box(SIZE)));
            if at.is_null() {
                break;
            }
            at.write_bytes(1, SIZE);
            blocks.push(at);
        }
        let count = blocks.len();
        for at in blocks.drain(count / 2..) {
            free(at);
        }
        let again = black_box(malloc(black_box(SIZE)));
        if again.is_null() {
            return Err(Signal::fail("what was given back is not given again"));
        }
        Ok(count as u64)
    }
}

/// Shuffles blocks of memory, and then takes all there is.
#[flow]
fn heap(#[default(20_000u64)] steps: Param<u64>) -> Node<u64> {
    let most = shuffle(steps);
    fill(most.clone());
    most
}
