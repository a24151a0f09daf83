//! Fault containment: a shared file that shrinks under its mapping must not kill the process.
//!
//! Place: every mapping of guest memory carries a guard. Whoever touches guest memory need not know; who owns the
//! session asks [`GuestRegions::lost`](super::GuestRegions::lost) now and then and drops the session when it says yes.
//!
//! Operation:
//! 1. The first guard installs a SIGBUS handler, for the life of the process, and remembers the one it replaces.
//! 2. A guard writes the bounds of its mapping into a fixed table.
//! 3. A load or store beyond the file's end raises SIGBUS. The handler looks the address up in the table, maps
//!    anonymous zero pages over the rest of the mapping from the faulting page on, marks the mapping as lost and
//!    returns: the instruction runs again and finds zeroes. What lies before the page is left alone.
//! 4. An address in no mapping of ours is somebody else's fault: the handler passes it on to the one before it, or
//!    restores the default action, under which the instruction kills the process as it should.
//!
//! The same happens when a page cannot be had at all (no huge page left, a bad one, a full tmpfs): the session is lost,
//! the process is not.
//!
//! Invariants: the handler only loads and stores atomics and calls `mmap` and `sigaction`, plain system calls, and
//! leaves `errno` as it was: async-signal-safe. A slot's bounds are read under its version number (a seqlock), so the
//! handler never acts on the bounds of a slot that is changing hands; the slot it looks for cannot be, as the faulting
//! thread is using the mapping.
//!
//! Limits: [`SLOTS`] mappings at a time. With `F_SEAL_SHRINK` on a memfd no file can shrink and none of this runs; it
//! is the same code all the same. A system call given a lost address returns `EFAULT` and raises nothing.

use std::cell::UnsafeCell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};

/// Mappings that can be guarded at the same time, over all sessions of the process.
pub const SLOTS: usize = 2048;

#[derive(Debug)]
struct Slot {
    /// Is it some guard's?
    taken: AtomicBool,
    /// Odd while the bounds change.
    version: AtomicU32,
    /// First byte; 0 when nothing is guarded.
    start: AtomicUsize,
    /// One past the last byte.
    end: AtomicUsize,
    /// Page size of the mapping.
    page: AtomicUsize,
    /// Set by the handler.
    lost: AtomicBool,
}

impl Slot {
    const fn empty() -> Self {
        Slot {
            taken: AtomicBool::new(false),
            version: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        }
    }

    /// Called by the slot's owner only.
    fn set(&self, start: usize, end: usize, page: usize) {
        self.version.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(end, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        self.version.fetch_add(1, Ordering::Release);
    }

    /// The bounds and page size, unless they are changing.
    fn get(&self) -> Option<(usize, usize, usize)> {
        let before = self.version.load(Ordering::Acquire);
        let seen =
            (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed), self.page.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        (before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before).then_some(seen)
    }
}

static TABLE: [Slot; SLOTS] = [const { Slot::empty() }; SLOTS];

/// Slots that were ever taken lie below this: the handler looks no further.
static HIGH: AtomicUsize = AtomicUsize::new(0);

/// Answers for one mapping until dropped.
#[derive(Debug)]
pub(super) struct Guard {
    slot: &'static Slot,
}

impl Guard {
    /// Guards `len` bytes from `start`, mapped from a file in pages of `page` bytes.
    pub(super) fn new(start: usize, len: usize, page: usize) -> io::Result<Self> {
        install();
        for (at, slot) in TABLE.iter().enumerate() {
            if slot.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                slot.lost.store(false, Ordering::Relaxed);
                HIGH.fetch_max(at + 1, Ordering::Relaxed);
                slot.set(start, start.saturating_add(len), page);
                return Ok(Guard { slot });
            }
        }
        Err(io::Error::other(format!("more than {SLOTS} mappings of guest memory")))
    }

    /// Has the handler replaced pages of the mapping?
    pub(super) fn lost(&self) -> bool {
        self.slot.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.slot.set(0, 0, 0);
        self.slot.taken.store(false, Ordering::Release);
    }
}

/// The action that was there before ours: written once before the handler is installed, then only read.
struct Previous(UnsafeCell<MaybeUninit<libc::sigaction>>);
// SAFETY: written once inside `Once::call_once`, before the handler that reads it can run.
unsafe impl Sync for Previous {}
static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::uninit()));

fn install() {
    static ONCE: Once = Once::new();
    if cfg!(miri) {
        // There are no signals, and no files that could shrink.
        return;
    }
    ONCE.call_once(|| {
        // SAFETY: zero is a valid `sigaction`; the pointers are to live values of the right type; the handler is
        // async-signal-safe (see Invariants). PREVIOUS is filled before the second call makes the handler reachable.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, ptr::null(), (*PREVIOUS.0.get()).as_mut_ptr());
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
        }
    });
}

extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a SA_SIGINFO handler a valid siginfo; `__errno_location` is this thread's own.
    let (address, raised_by_kernel, errno) =
        unsafe { ((*info).si_addr() as usize, (*info).si_code > 0, *libc::__errno_location()) };
    let contained = raised_by_kernel && contain(address);
    if !contained {
        pass_on(signal, info, context);
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
}

/// Fills the mapping that `address` is in with zero pages, from its page on. `false`: no mapping of ours.
fn contain(address: usize) -> bool {
    for slot in TABLE.iter().take(HIGH.load(Ordering::Relaxed)) {
        let Some((start, end, page)) = slot.get() else { continue };
        if start == 0 || page == 0 || address < start || address >= end {
            continue;
        }
        let from = address - (address - start) % page;
        // SAFETY: [from, end) lies inside a mapping that its guard answers for and that is still mapped, as the
        // faulting thread is using it (Invariants); nothing but guest bytes lives there, so replacing them with
        // zeroes invalidates no Rust object.
        let mapped = unsafe {
            libc::mmap(
                from as *mut libc::c_void,
                end - from,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        slot.lost.store(true, Ordering::Relaxed);
        return true;
    }
    false
}

/// Not ours: what would have happened without us.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: PREVIOUS was filled before this handler was installed; a handler found there has the signature that
    // its flags say, by the contract of `sigaction`.
    unsafe {
        let previous = (*PREVIOUS.0.get()).assume_init_ref();
        let handler = previous.sa_sigaction;
        if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
            // Returning runs the faulting instruction again, now under the default action.
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = libc::SIG_DFL;
            libc::sigaction(signal, &raw const action, ptr::null_mut());
            if (*info).si_code <= 0 {
                libc::raise(signal);
            }
        } else if previous.sa_flags & libc::SA_SIGINFO != 0 {
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                std::mem::transmute(handler);
            handler(signal, info, context);
        } else {
            let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
            handler(signal);
        }
    }
}
