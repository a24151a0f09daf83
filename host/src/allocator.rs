//! The allocator of a process that stays.
//!
//! glibc gives each thread a heap of its own, up to eight for each CPU, and keeps in each what its threads once needed: a device that
//! a client has asked everything of has 13 MiB more than one that has two heaps, and goes on growing for hours (docs/soak.md). The
//! data path allocates nothing, and who looks may wait for another's turn: two are enough.

/// For a process that has no other thread yet.
#[cfg(target_env = "gnu")]
pub(crate) fn of_one_that_stays() {
    use nix::libc::{M_ARENA_MAX, M_MMAP_THRESHOLD, mallopt};

    /// What is at least as large is a mapping of its own and goes back to the system when it is freed, bytes: glibc's own value to
    /// begin with, which it raises up to 32 MiB unless it is told.
    const MAPPED_FROM: i32 = 128 << 10;
    const HEAPS: i32 = 2;
    for (parameter, value) in [(M_ARENA_MAX, HEAPS), (M_MMAP_THRESHOLD, MAPPED_FROM)] {
        // SAFETY: the call takes two numbers, and no other thread is there to allocate meanwhile.
        let taken = unsafe { mallopt(parameter, value) };
        debug_assert_eq!(taken, 1, "mallopt({parameter}, {value})");
    }
}

/// Other allocators are left as they are.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn of_one_that_stays() {}
