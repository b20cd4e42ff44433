//! An allocator that counts and hands on, and what the kernel counts of this process.

#![expect(
    unsafe_code,
    reason = "an allocator cannot be written without; this one only hands on"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, with a count of what is asked of it.
pub(crate) struct Counting;

fn count() {
    ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came, and so does its answer.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps to what `GlobalAlloc` asks of it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above; the pointer came from here, and so from the system's allocator.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What this process has asked for until now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    /// Pieces of memory.
    pub(crate) allocations: u64,
    /// Reads and writes of files, and gathered writes to sockets: what the kernel counts for a
    /// process whoever asks. Where there is no such count, nothing.
    pub(crate) calls: Option<u64>,
}

impl Counts {
    pub(crate) fn now() -> Self {
        Self {
            allocations: ALLOCATIONS.load(Ordering::Relaxed),
            calls: calls(),
        }
    }
}

fn calls() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/io").ok()?;
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse::<u64>().ok()
    };
    Some(of("syscr:")? + of("syscw:")?)
}
