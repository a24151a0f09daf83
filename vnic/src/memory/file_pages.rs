//! Which of the guest's pages are a file's: what observers write beside an address.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

const PAGE_SIZE: u64 = 4096;

/// Most pages a file may have (16 GiB): nobody's word is taken for memory without end.
pub const MAX_PAGES: u64 = 4 << 20;

/// A run of file pages that are contiguous in guest-physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageRun {
    /// Index of the first file page.
    pub page: u64,
    /// Its guest-physical address, bytes.
    pub gpa: u64,
    /// How many pages.
    pub count: u64,
}

/// Runs that cannot be a file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRuns {
    /// More pages than are kept.
    #[error("{0} pages to watch, at most {MAX_PAGES}")]
    TooMany(u64),
    /// No file, or no memory, reaches that far.
    #[error("{count} pages from page {page} of a file, at {gpa:#x}: they end beyond 2^64 bytes")]
    Beyond {
        /// Index of the first.
        page: u64,
        /// Its address.
        gpa: u64,
        /// How many.
        count: u64,
    },
}

/// Where a file's pages are in guest-physical memory.
#[derive(Debug, Default)]
pub struct FilePages {
    by_frame_number: HashMap<u64, u64>,
}

impl FilePages {
    /// The pages of these runs.
    ///
    /// # Errors
    /// They are more than [`MAX_PAGES`], or reach beyond what addresses can say.
    pub fn new(runs: &[PageRun]) -> Result<Self, BadRuns> {
        let total = runs.iter().fold(0u64, |sum, run| sum.saturating_add(run.count));
        if total > MAX_PAGES {
            return Err(BadRuns::TooMany(total));
        }
        let mut by_frame_number = HashMap::with_capacity(total as usize);
        for &PageRun { page, gpa, count } in runs {
            let first = gpa / PAGE_SIZE;
            if page.max(first).checked_add(count).and_then(|end| end.checked_mul(PAGE_SIZE)).is_none() {
                return Err(BadRuns::Beyond { page, gpa, count });
            }
            by_frame_number.extend((0..count).map(|at| (first + at, page + at)));
        }
        Ok(FilePages { by_frame_number })
    }

    /// The file page that holds the byte at `gpa`.
    #[must_use]
    pub fn page_at(&self, gpa: u64) -> Option<u64> {
        self.by_frame_number.get(&(gpa / PAGE_SIZE)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_found_by_any_address_in_it() {
        let pages = FilePages::new(&[PageRun { page: 7, gpa: 0x5000, count: 2 }]).unwrap();
        let at = [0x4fff, 0x5000, 0x5fff, 0x6fff, 0x7000].map(|gpa| pages.page_at(gpa));
        assert_eq!(at, [None, Some(7), Some(7), Some(8), None]);
    }

    #[test]
    fn runs_that_no_file_can_have_are_refused_by_name() {
        let refused = |page, gpa, count| FilePages::new(&[PageRun { page, gpa, count }]).unwrap_err();
        assert_eq!(refused(0, 0, MAX_PAGES + 1), BadRuns::TooMany(MAX_PAGES + 1));
        assert_eq!(refused(0, 0, u64::MAX), BadRuns::TooMany(u64::MAX));
        for (page, gpa, count) in [(u64::MAX, 0, 1), (1 << 52, 0, 1), ((1 << 52) - 1, 0, 1), (0, u64::MAX, 1)] {
            assert_eq!(refused(page, gpa, count), BadRuns::Beyond { page, gpa, count });
        }
        assert!(FilePages::new(&[PageRun { page: (1 << 52) - 2, gpa: 0, count: 1 }]).is_ok());
    }
}
