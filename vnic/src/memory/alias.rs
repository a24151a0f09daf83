//! A ring part whose pages lie apart, mapped once more in a row.
//!
//! Place: made when a ring starts behind an IOMMU, held by the ring's pointers. A driver allocates its rings in a row of
//! IOVAs; the pages behind them may be anywhere.
//!
//! Invariants: the row is the same pages of the same files as the pieces it was made of, in their order, mapped for as
//! long as it lives; a file that shrinks under it is contained as under any mapping ([`super::fault`]).
//!
//! Limits: pieces must meet at pages' borders, of files with pages of the usual size.

use std::os::fd::AsRawFd;

use super::fault::Guard;
use super::mapping::{Mapping, base_page_size};
use super::regions::Piece;

/// The pages, in a row.
#[derive(Debug)]
pub(crate) struct ContiguousAlias {
    /// Must stop answering for the pages before they are unmapped: see [`Drop`].
    guard: Option<Guard>,
    start: *mut u8,
    len: usize,
    skip: usize,
}

// SAFETY: the pages are shared bytes that nobody borrows; the pointer is only handed out as a raw one.
unsafe impl Send for ContiguousAlias {}
// SAFETY: as above.
unsafe impl Sync for ContiguousAlias {}

impl ContiguousAlias {
    /// Maps `pieces` in a row, each with the mapping it is in. `None`: that cannot be done.
    pub(super) fn new(pieces: &[(Piece, &Mapping)]) -> Option<Self> {
        let page = base_page_size();
        let (first, _) = pieces.first()?;
        let skip = first.host as u64 % page;
        let total = pieces.iter().try_fold(skip, |sum, (piece, _)| sum.checked_add(piece.len))?;
        let len = usize::try_from(total.checked_next_multiple_of(page)?).ok()?;
        // SAFETY: an anonymous mapping at an address of the kernel's choice; it replaces nothing.
        let row = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0)
        };
        if row == libc::MAP_FAILED {
            return None;
        }
        let mut alias = ContiguousAlias { guard: None, start: row.cast(), len, skip: skip as usize };
        let mut at = 0_u64;
        for (number, (piece, mapping)) in pieces.iter().enumerate() {
            let before = if number == 0 { skip } else { 0 };
            let bytes = (before + piece.len).checked_next_multiple_of(page)?;
            // A piece begins where the one before ended: at a page's border, but for the first.
            let meets = at.is_multiple_of(page) && (piece.host as u64 - before).is_multiple_of(page);
            let (file, offset) = mapping.file_at(piece.host.wrapping_sub(before as usize))?;
            if !meets || mapping.page() != page || !offset.is_multiple_of(page) || at + bytes > len as u64 {
                return None;
            }
            // SAFETY: `at + bytes` is at most `len`, so this replaces pages of the row alone, which nobody uses yet.
            let mapped = unsafe {
                libc::mmap(
                    alias.start.add(at as usize).cast(),
                    bytes as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    file.as_raw_fd(),
                    libc::off_t::try_from(offset).ok()?,
                )
            };
            if mapped == libc::MAP_FAILED {
                return None;
            }
            at += before + piece.len;
        }
        alias.guard = Some(Guard::new(alias.start as usize, len, page as usize).ok()?);
        Some(alias)
    }

    /// The first piece's first byte.
    pub(crate) fn host(&self) -> *mut u8 {
        self.start.wrapping_add(self.skip)
    }

    /// Did a file shrink under it?
    pub(crate) fn lost(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::lost)
    }
}

impl Drop for ContiguousAlias {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: `new` mapped exactly this; the ring that used it is gone.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}
