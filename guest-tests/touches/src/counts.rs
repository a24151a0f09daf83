//! Which pages are watched, and what the CPU did there.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of a page.
const PAGE_SIZE: u64 = 4096;
/// Pages below this address can be watched: 64 GiB, a bit each.
const LIMIT: u64 = 64 << 30;
const WORDS: usize = (LIMIT / PAGE_SIZE / 64) as usize;

/// The one that QEMU's callbacks count in.
pub(crate) static COUNTS: Counts = Counts::new();

/// An access of the CPU's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    /// Guest-physical.
    pub(crate) at: u64,
    pub(crate) bytes: u64,
    pub(crate) is_store: bool,
    pub(crate) by_kernel: bool,
}

/// A bit for each page, and four sums. All may be looked at and changed by several virtual CPUs at once.
pub(crate) struct Counts {
    watched: [AtomicU64; WORDS],
    /// Loads and stores, each by programs and by the kernel.
    bytes: [[AtomicU64; 2]; 2],
}

/// What was counted, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sums {
    pub(crate) loaded: [u64; 2],
    pub(crate) stored: [u64; 2],
}

impl fmt::Display for Sums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([load_user, load_kernel], [store_user, store_kernel]) = (self.loaded, self.stored);
        write!(f, "loaded user {load_user} kernel {load_kernel} stored user {store_user} kernel {store_kernel}")
    }
}

impl Counts {
    const fn new() -> Counts {
        Counts { watched: [const { AtomicU64::new(0) }; WORDS], bytes: [const { [const { AtomicU64::new(0) }; 2] }; 2] }
    }

    /// Counts an access if its page is watched.
    pub(crate) fn add(&self, access: Access) {
        let page = access.at / PAGE_SIZE;
        let word = usize::try_from(page / 64).ok().and_then(|index| self.watched.get(index));
        if word.is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 == 1) {
            self.bytes[usize::from(access.is_store)][usize::from(access.by_kernel)]
                .fetch_add(access.bytes, Ordering::Relaxed);
        }
    }

    /// Watches these pages, by their numbers, and no others; how many they are.
    ///
    /// # Errors
    /// A page lies where none can be watched. Then none is.
    pub(crate) fn watch(&self, runs: &[Range<u64>], limit: u64) -> Result<u64, String> {
        for word in &self.watched {
            word.store(0, Ordering::Relaxed);
        }
        let limit = limit.min(LIMIT);
        if let Some(run) = runs.iter().find(|run| run.end > limit / PAGE_SIZE) {
            return Err(format!("page {:#x} is not below {limit:#x}", (run.end - 1).saturating_mul(PAGE_SIZE)));
        }
        for page in runs.iter().cloned().flatten() {
            if let Some(word) = usize::try_from(page / 64).ok().and_then(|index| self.watched.get(index)) {
                word.fetch_or(1 << (page % 64), Ordering::Relaxed);
            }
        }
        Ok(self.watched.iter().map(|word| u64::from(word.load(Ordering::Relaxed).count_ones())).sum())
    }

    /// What was counted since the last call.
    pub(crate) fn take(&self) -> Sums {
        let [loaded, stored] = &self.bytes;
        let take = |two: &[AtomicU64; 2]| [0, 1].map(|by: usize| two[by].swap(0, Ordering::Relaxed));
        Sums { loaded: take(loaded), stored: take(stored) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_watched_pages_count_each_kind_apart() {
        static OWN: Counts = Counts::new();
        assert_eq!(OWN.watch(&[3..5, 63..65, 4..5], u64::MAX), Ok(4));
        let access = |at, bytes, is_store, by_kernel| OWN.add(Access { at, bytes, is_store, by_kernel });
        access(3 * PAGE_SIZE - 1, 1, false, true);
        access(3 * PAGE_SIZE, 8, false, true);
        access(5 * PAGE_SIZE - 1, 1, false, false);
        access(5 * PAGE_SIZE, 1, false, true);
        access(64 * PAGE_SIZE, 4, true, true);
        access(LIMIT, 4, true, true);
        access(u64::MAX, 4, true, true);
        let sums = OWN.take();
        assert_eq!(sums, Sums { loaded: [1, 8], stored: [0, 4] });
        assert_eq!(sums.to_string(), "loaded user 1 kernel 8 stored user 0 kernel 4");
        assert_eq!(OWN.take(), Sums::default());
        let refused = OWN.watch(&[0..1, 7..9], 8 * PAGE_SIZE).expect_err("out of reach");
        assert!(refused.contains("0x8000"), "{refused}");
        access(0, 1, false, true);
        access(3 * PAGE_SIZE, 1, false, true);
        assert_eq!(OWN.take(), Sums::default(), "nothing is watched any more");
    }
}
