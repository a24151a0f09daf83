//! The log of dirty pages: a bit for each page of the guest that the device has written to. "vhost-user protocol, Migration".
//!
//! Place: the front-end shares the file while it copies the guest's memory elsewhere, and clears the bits of what it copies. Whoever
//! writes into the guest says so here: where chains go back (`backend::queue::complete`) and in the device half of a ring.
//!
//! Invariants: a page is marked after it was written, and before the front-end is told that a ring has stopped. A bit is set by an
//! atomic read and write even where it seems to be set: on x86, too, a plain load could overtake the store into the page, and find
//! the bit of a copy that is already under way. Nothing is ever written outside of the log: what lies beyond it is counted.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{GuestRegions, MemoryError, SharedArea};

/// Bytes that a bit stands for: `VHOST_LOG_PAGE`.
pub const LOG_PAGE: u64 = 0x1000;

/// A log, mapped until dropped.
#[derive(Debug)]
pub struct DirtyLog {
    area: SharedArea,
    marked: AtomicU64,
    outside: AtomicU64,
}

impl DirtyLog {
    /// The log of `len` bytes at `offset` of the file.
    ///
    /// # Errors
    /// It is empty, its file is shorter or cannot be mapped.
    pub fn open(file: OwnedFd, offset: u64, len: u64) -> Result<Self, MemoryError> {
        let reason = |error: MemoryError| match error {
            MemoryError::EmptyRegion { .. } => "it has no bytes".to_owned(),
            MemoryError::ShortFile { needed, have, .. } => {
                format!("its file has {have} bytes, and {needed} are announced")
            }
            MemoryError::Map { reason, .. } => reason,
            other => other.to_string(),
        };
        let area = SharedArea::open(file, offset, len).map_err(|error| MemoryError::Log { reason: reason(error) })?;
        Ok(DirtyLog { area, marked: AtomicU64::new(0), outside: AtomicU64::new(0) })
    }

    /// Does it reach to the end of this memory?
    ///
    /// # Errors
    /// It does not.
    pub fn covers(&self, memory: &GuestRegions) -> Result<(), MemoryError> {
        let ends = memory.regions().iter().map(|region| region.gpa.0.saturating_add(region.size));
        self.reaches(ends.max().unwrap_or(0))
    }

    /// Does it reach to `end`, the address behind the last byte?
    ///
    /// # Errors
    /// It does not.
    pub fn reaches(&self, end: u64) -> Result<(), MemoryError> {
        let (have, needed) = (self.area.len() as u64, end.div_ceil(LOG_PAGE).div_ceil(8));
        if have >= needed { Ok(()) } else { Err(MemoryError::LogTooSmall { have, needed }) }
    }

    /// `len` bytes at `gpa` have been written.
    #[inline]
    pub fn mark(&self, gpa: u64, len: u64) {
        let Some(last) = len.checked_sub(1) else { return };
        let (mut page, last) = (gpa / LOG_PAGE, gpa.saturating_add(last) / LOG_PAGE);
        while page <= last {
            // Those of a byte together.
            let end = last.min(page | 7);
            let bits = (0xff_u8 << (page % 8)) & (0xff >> (7 - end % 8));
            match usize::try_from(page / 8).ok().and_then(|at| self.area.byte(at)) {
                Some(byte) => {
                    let fresh = bits & !byte.fetch_or(bits, Ordering::AcqRel);
                    if fresh != 0 {
                        self.marked.fetch_add(u64::from(fresh.count_ones()), Ordering::Relaxed);
                    }
                }
                None => {
                    self.outside.fetch_add(1, Ordering::Relaxed);
                    return;
                }
            }
            page = end + 1;
        }
    }

    /// All of this memory may have been written.
    pub fn mark_all(&self, memory: &GuestRegions) {
        memory.regions().iter().for_each(|region| self.mark(region.gpa.0, region.size));
    }

    /// Pages that were marked and were not at that moment: a page that the front-end has copied in between counts again.
    #[must_use]
    pub fn marked(&self) -> u64 {
        self.marked.load(Ordering::Relaxed)
    }

    /// Ranges that lay beyond the log, in part or wholly. With a log that [covers](DirtyLog::covers) the memory there are none.
    #[must_use]
    pub fn outside(&self) -> u64 {
        self.outside.load(Ordering::Relaxed)
    }

    /// Has its file shrunk under it, so that marks go nowhere?
    #[must_use]
    pub fn lost(&self) -> bool {
        self.area.lost()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::memory::testing::GuestRam;
    use crate::memory::{Gpa, Memory};

    /// A log, and the file that it is in.
    fn log(len: u64) -> (DirtyLog, SharedArea) {
        let file = SharedArea::file(len).unwrap();
        let seen = SharedArea::open(file.try_clone().unwrap(), 0, len).unwrap();
        (DirtyLog::open(file, 0, len).unwrap(), seen)
    }

    /// The numbers of the pages that are marked.
    fn pages(seen: &SharedArea) -> Vec<usize> {
        let is_set = |page: &usize| seen.byte(page / 8).unwrap().load(Ordering::Relaxed) & 1 << (page % 8) != 0;
        (0..8 * seen.len()).filter(is_set).collect()
    }

    #[test]
    fn each_page_that_a_range_touches_is_marked_and_no_other() {
        for (gpa, len, expected) in [
            (0, 0, vec![]),
            (0, 1, vec![0]),
            (0xfff, 1, vec![0]),
            (0xfff, 2, vec![0, 1]),
            (0x7fff, 2, vec![7, 8]),
            (0x5000, 0x4000, (5..9).collect()),
            (0x6800, 0x10_000, (6..23).collect()),
            (0x1f000, 0x1000, vec![31]),
        ] {
            let (log, seen) = log(4);
            log.mark(gpa, len);
            log.mark(gpa, len);
            assert_eq!(pages(&seen), expected, "{gpa:#x}+{len:#x}");
            assert_eq!((log.marked(), log.outside()), (expected.len() as u64, 0));
        }
    }

    #[test]
    fn what_lies_beyond_the_log_is_counted_and_nothing_is_written_there() {
        let (log, seen) = log(8);
        for (gpa, len) in [(64 * 0x1000, 1), (u64::MAX, 1), (u64::MAX - 5, u64::MAX), (63 * 0x1000, 0x1001)] {
            log.mark(gpa, len);
        }
        assert_eq!((pages(&seen), log.outside()), (vec![63], 4));
    }

    #[test]
    fn a_log_that_does_not_reach_to_the_end_of_memory_says_how_long_it_must_be() {
        let memory = |end: u64| GuestRam::with_regions(&[(Gpa(0), 0x1000), (Gpa(end - 0x1000), 0x1000)]).unwrap();
        let (log, _) = log(8);
        assert_eq!(log.covers(memory(64 * 0x1000).memory()), Ok(()));
        let error = log.covers(memory(65 * 0x1000).memory()).unwrap_err();
        assert_eq!(error, MemoryError::LogTooSmall { have: 8, needed: 9 });
        assert_eq!(log.covers(&Arc::new(Memory::empty())), Ok(()));
    }

    #[test]
    fn a_log_that_cannot_be_is_refused() {
        let open = |offset, len| DirtyLog::open(SharedArea::file(100).unwrap(), offset, len).unwrap_err().to_string();
        assert_eq!(open(0, 0), "the log of dirty pages cannot be used: it has no bytes");
        assert_eq!(
            open(0, 101),
            "the log of dirty pages cannot be used: its file has 100 bytes, and 101 are announced"
        );
        assert!(open(u64::MAX - 7, 16).contains("wraps"));
    }
}
