//! What comes between the program and its C library in tests: a wall clock that can be set wrong, and a disk
//! that remembers what it was told to keep.
//!
//! `kit/preload.rs` compiles it by itself and has it loaded before the C library.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, AtomicPtr, AtomicUsize, Ordering};

unsafe extern "C" {
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn mmap(
        at: *mut c_void,
        size: usize,
        access: c_int,
        how: c_int,
        fd: c_int,
        from: i64,
    ) -> *mut c_void;
}

const NEXT: *mut c_void = usize::MAX as *mut c_void;
const READ: c_int = 1;
const SHARED: c_int = 1;

const REALTIME: c_int = 0;
const REALTIME_COARSE: c_int = 5;

#[repr(C)]
pub struct Time {
    seconds: i64,
    parts: i64,
}

/// Returns the function of the C library that one of ours stands before.
fn next(kept: &AtomicPtr<c_void>, name: &CStr) -> *mut c_void {
    let mut found = kept.load(Ordering::Relaxed);
    if found.is_null() {
        found = unsafe { dlsym(NEXT, name.as_ptr()) };
        assert!(!found.is_null());
        kept.store(found, Ordering::Relaxed);
    }
    found
}

/// Returns by how many seconds the wall clock is ahead: the number in the file `WAFT_TEST_CLOCK`.
fn ahead() -> i64 {
    const NONE: usize = 1;
    static SECONDS: AtomicUsize = AtomicUsize::new(0);
    let mut place = SECONDS.load(Ordering::Acquire);
    if place == 0 {
        let mapped = || {
            let file = File::open(std::env::var_os("WAFT_TEST_CLOCK")?).ok()?;
            let at = unsafe { mmap(std::ptr::null_mut(), 8, READ, SHARED, file.as_raw_fd(), 0) };
            (at != NEXT).then_some(at as usize)
        };
        place = mapped().unwrap_or(NONE);
        SECONDS.store(place, Ordering::Release);
    }
    match place {
        NONE => 0,
        place => unsafe { (*(place as *const AtomicI64)).load(Ordering::Relaxed) },
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Time) -> c_int {
    static OWN: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    type Get = unsafe extern "C" fn(c_int, *mut Time) -> c_int;
    unsafe {
        let get: Get = std::mem::transmute(next(&OWN, c"clock_gettime"));
        let done = get(clock, time);
        if done == 0 && matches!(clock, REALTIME | REALTIME_COARSE) {
            (*time).seconds += ahead();
        }
        done
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn gettimeofday(time: *mut Time, zone: *mut c_void) -> c_int {
    static OWN: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    type Get = unsafe extern "C" fn(*mut Time, *mut c_void) -> c_int;
    unsafe {
        let get: Get = std::mem::transmute(next(&OWN, c"gettimeofday"));
        let done = get(time, zone);
        if done == 0 && !time.is_null() {
            (*time).seconds += ahead();
        }
        done
    }
}

type Sync = unsafe extern "C" fn(c_int) -> c_int;

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fsync(fd: c_int) -> c_int {
    static OWN: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    unsafe {
        let sync: Sync = std::mem::transmute(next(&OWN, c"fsync"));
        synced(fd, sync(fd))
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn fdatasync(fd: c_int) -> c_int {
    static OWN: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
    unsafe {
        let sync: Sync = std::mem::transmute(next(&OWN, c"fdatasync"));
        synced(fd, sync(fd))
    }
}

/// A file was written to the disk: from here on that is what a power cut leaves of it.
fn synced(fd: c_int, done: c_int) -> c_int {
    if done == 0
        && let Err(error) = keep(fd)
    {
        // Nothing would be left of what the program believes to be safe.
        panic!("cannot keep what is on the disk: {error}");
    }
    done
}

/// Keeps the database as it is now in the folder `WAFT_TEST_DISK`, whole or not at all.
fn keep(fd: c_int) -> io::Result<()> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    static ONE: Mutex<()> = Mutex::new(());
    let folder = FOLDER.get_or_init(|| std::env::var_os("WAFT_TEST_DISK").map(PathBuf::from));
    let Some(folder) = folder else {
        return Ok(());
    };
    let path = fs::read_link(format!("/proc/self/fd/{fd}"))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !matches!(name.as_ref(), "server.db" | "server.db-wal") {
        return Ok(());
    }
    let _one = ONE.lock();
    let new = folder.join(format!("{name}.new"));
    fs::copy(&path, &new)?;
    fs::rename(&new, folder.join(name.as_ref()))
}
