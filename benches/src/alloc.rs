//! Exact counts of allocations.
//!
//! The crates that count them put atomic operations or a `RefCell` around every allocation, or take `realloc` from
//! the allocator, which makes it a copy: all of that would be timed as well, and peers that allocate would look
//! slower than they are. Three additions to a thread's own counters are not seen in any figure.
#![expect(
    unsafe_code,
    reason = "an allocator cannot be written without; each call is passed on as it came"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

/// What was allocated, by one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocated {
    /// How often, growing what there is included.
    pub times: u64,
    /// How much, as it was asked for.
    pub bytes: u64,
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

thread_local! {
    static ALLOCATED: Cell<Allocated> = const { Cell::new(Allocated { times: 0, bytes: 0 }) };
    static FREED: Cell<u64> = const { Cell::new(0) };
}

/// What this thread allocates while it runs `code`.
pub fn allocated_by(code: impl FnOnce()) -> Allocated {
    let before = ALLOCATED.get();
    code();
    let after = ALLOCATED.get();
    Allocated {
        times: after.times - before.times,
        bytes: after.bytes - before.bytes,
    }
}

/// What `make` makes, and how many bytes this thread has allocated for it and not freed yet; as they were asked for, without
/// what the allocator adds.
///
/// # Panics
///
/// If it has freed more than it has allocated.
pub fn held_by<T>(make: impl FnOnce() -> T) -> (T, u64) {
    let before = held();
    let made = make();
    let held = held().wrapping_sub(before);
    assert!(held <= u64::MAX / 2, "it freed what others had allocated");
    (made, held)
}

/// How many bytes this thread has allocated and not freed yet. Only differences have a meaning: threads free what others have
/// allocated.
#[must_use]
pub fn held() -> u64 {
    ALLOCATED.get().bytes.wrapping_sub(FREED.get())
}

fn count(bytes: usize) {
    // A constant without a destructor: reaching it allocates nothing, and it outlives every other thread-local.
    let Allocated {
        times,
        bytes: so_far,
    } = ALLOCATED.get();
    ALLOCATED.set(Allocated {
        times: times + 1,
        bytes: so_far + bytes as u64,
    });
}

fn count_freed(bytes: usize) {
    FREED.set(FREED.get() + bytes as u64);
}

// SAFETY: every call goes to `System` with its arguments as they came, and its answer back.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as promised by the caller.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        count_freed(layout.size());
        // SAFETY: as promised by the caller.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count_freed(layout.size());
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;

    use super::*;

    #[test]
    fn counts_what_this_thread_asks_for_and_nothing_else() {
        assert_eq!(allocated_by(|| ()), Allocated::default());
        let of_a_box = allocated_by(|| drop(black_box(Box::new([0_u8; 24]))));
        assert_eq!(
            of_a_box,
            Allocated {
                times: 1,
                bytes: 24
            }
        );
        let grown = allocated_by(|| {
            let mut bytes = Vec::<u8>::with_capacity(10);
            bytes.reserve_exact(black_box(30));
            black_box(bytes);
        });
        assert_eq!(
            grown,
            Allocated {
                times: 2,
                bytes: 40
            }
        );
        let elsewhere = std::thread::spawn(|| black_box(vec![1_u8; 100]));
        let joined = allocated_by(|| drop(elsewhere.join()));
        assert_eq!(joined.times, 0);
    }

    #[test]
    fn counts_what_is_held_and_not_what_was_freed_again() {
        let (bytes, held) = held_by(|| {
            drop(black_box(Box::new([0_u8; 24])));
            let mut bytes = Vec::<u8>::with_capacity(10);
            bytes.reserve_exact(black_box(30));
            bytes
        });
        assert_eq!((bytes.capacity(), held), (30, 30));
        let (_, held) = held_by(|| drop(black_box(vec![0_u8; 100])));
        assert_eq!(held, 0);
    }
}
