//! The allocator of a component: talc, under the C names by which libc and Rust ask for memory.
//!
//! libc's own allocator is 12 KB of code, a fifth of a small flow. Defining the whole family of its names
//! keeps it out: the linker takes libc's object only for a name that nobody else has. It is the whole heap
//! of the component and no `#[global_allocator]`: what the host passes in (`cabi_realloc`) is freed by
//! Rust in one call and by libc in another, so every block must be one that `free` knows.

use std::alloc::{GlobalAlloc, Layout};
use std::arch::wasm32::memory_grow;
use std::ffi::c_int;
use std::ptr;
use talc::base::Talc;
use talc::base::binning::Binning;
use talc::cell::TalcSyncCell;
use talc::source::Source;
use talc::wasm::WasmBinning;

static HEAP: TalcSyncCell<Pages, WasmBinning> = TalcSyncCell::new_wasm(Pages { end: None });

const PAGE: usize = 64 * 1024;

/// Pages that the heap grows by beside those that are asked for, so that a guest which fills its memory
/// piece by piece calls its host seldom.
const SPARE: usize = 8;

/// The linear memory, from the end of the static data.
#[derive(Debug)]
struct Pages {
    /// Where the newest stretch of the heap ends.
    end: Option<ptr::NonNull<u8>>,
}

// SAFETY: it neither allocates nor reaches for `HEAP`.
unsafe impl Source for Pages {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        unsafe extern "C" {
            static __heap_base: u8;
            static __heap_end: u8;
        }

        if !talc.is_metadata_established() {
            let base = (&raw const __heap_base).cast_mut();
            let size = (&raw const __heap_end as usize).saturating_sub(base as usize);
            // SAFETY: between these two the linker leaves what the module begins with to the heap. What
            // lies behind them was grown, perhaps by an allocator of the flow's own, and is theirs.
            talc.source.end = unsafe { talc.claim(base, size) };
            if talc.source.end.is_some() {
                return Ok(());
            }
        }
        let least = (layout.size() + layout.align()) / PAGE + 1;
        let mut pages = least + SPARE;
        let mut grown = memory_grow::<0>(pages);
        if grown == usize::MAX {
            pages = least;
            grown = memory_grow::<0>(pages);
        }
        if grown == usize::MAX {
            return Err(());
        }
        let base = (grown * PAGE) as *mut u8;
        // The last byte of a whole memory of 4 GiB is left alone: its end is no address.
        let end = (base as usize).saturating_add(pages * PAGE) as *mut u8;
        let size = end as usize - base as usize;
        // SAFETY: these pages are new, and whoever else grows the memory gets others.
        talc.source.end = match talc.source.end {
            Some(old) if old.as_ptr() == base => Some(unsafe { talc.extend(old, end) }),
            _ => unsafe { talc.claim(base, size) },
        };
        talc.source.end.map(drop).ok_or(())
    }
}

/// How blocks are aligned for who asks for nothing: what wasm can load, and no more. C may expect 16, for
/// long doubles only, and wasm loads those wherever they lie; 16 would cost every small block 8 bytes.
const ALIGNMENT: usize = 8;

const _: () = assert!(size_of::<Head>() <= ALIGNMENT);

/// What is kept before a block: of the C names only `malloc` is told how large it is.
#[derive(Clone, Copy)]
struct Head {
    size: usize,
    align: usize,
}

impl Head {
    /// What the heap was asked for: the block, and one alignment before it.
    fn layout(self) -> Option<Layout> {
        Layout::from_size_align(self.size.checked_add(self.align)?, self.align).ok()
    }

    /// Reads what is kept before `block`.
    ///
    /// # Safety
    ///
    /// `block` is one that [`take`] answered and that was not given back.
    unsafe fn of(block: *mut u8) -> Self {
        // SAFETY: `take` wrote it.
        unsafe { block.cast::<Self>().sub(1).read() }
    }
}

/// A block; null if there is no memory, or no such alignment.
fn take(align: usize, size: usize) -> *mut u8 {
    let align = align.max(ALIGNMENT);
    let head = Head { size, align };
    let Some(layout) = head.layout() else {
        return ptr::null_mut();
    };
    // SAFETY: the layout is not empty, and the block begins one alignment into it, behind the head.
    unsafe {
        let start = HEAP.alloc(layout);
        if start.is_null() {
            return start;
        }
        let block = start.add(align);
        block.cast::<Head>().sub(1).write(head);
        block
    }
}

#[unsafe(no_mangle)]
extern "C" fn malloc(size: usize) -> *mut u8 {
    take(ALIGNMENT, size)
}

#[unsafe(no_mangle)]
extern "C" fn calloc(count: usize, size: usize) -> *mut u8 {
    let Some(size) = count.checked_mul(size) else {
        return ptr::null_mut();
    };
    let block = take(ALIGNMENT, size);
    if !block.is_null() {
        // SAFETY: the block has this size. Freed memory is handed out again, so it may hold anything.
        unsafe { block.write_bytes(0, size) };
    }
    block
}

#[unsafe(no_mangle)]
extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut u8 {
    take(align, size)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn posix_memalign(out: *mut *mut u8, align: usize, size: usize) -> c_int {
    /// `ENOMEM` of wasi-libc.
    const NO_MEMORY: c_int = 48;

    let block = take(align, size);
    if block.is_null() {
        return NO_MEMORY;
    }
    // SAFETY: the caller's promise.
    unsafe { out.write(block) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() {
        return malloc(size);
    }
    // SAFETY: the caller's promise about `block`; `take` made it with this head and this layout.
    unsafe {
        let head = Head::of(block);
        let head_after = Head { size, ..head };
        let (Some(old), Some(new)) = (head.layout(), head_after.layout()) else {
            return ptr::null_mut();
        };
        // talc compares the end of a block with that of its place, and the end must be an address.
        if (block as usize).checked_add(new.size()).is_none() {
            return ptr::null_mut();
        }
        let start = HEAP.realloc(block.sub(head.align), old, new.size());
        if start.is_null() {
            return start;
        }
        let block = start.add(head.align);
        block.cast::<Head>().sub(1).write(head_after);
        block
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn malloc_usable_size(block: *mut u8) -> usize {
    if block.is_null() {
        return 0;
    }
    // SAFETY: the caller's promise.
    unsafe { Head::of(block).size }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn free(block: *mut u8) {
    if block.is_null() {
        return;
    }
    // SAFETY: the caller's promise; `take` made the block with this head and this layout.
    unsafe {
        let head = Head::of(block);
        if let Some(layout) = head.layout() {
            HEAP.dealloc(block.sub(head.align), layout);
        }
    }
}

/// The names by which libc's own functions call them.
#[unsafe(no_mangle)]
extern "C" fn __libc_malloc(size: usize) -> *mut u8 {
    malloc(size)
}

#[unsafe(no_mangle)]
extern "C" fn __libc_calloc(count: usize, size: usize) -> *mut u8 {
    calloc(count, size)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __libc_free(block: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { free(block) }
}
