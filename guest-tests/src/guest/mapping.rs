//! A shared, read-only mapping of a part of a file.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::raw::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use vnic::record::wire::PAGE_SIZE;

/// The mapping; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<c_void>,
    /// Of the mapping, from its page-aligned start.
    length: NonZeroUsize,
    /// Where the asked part starts in it.
    start: usize,
}

impl Mapping {
    /// Maps `bytes` of the file from `offset`, which need not be aligned.
    ///
    /// # Errors
    /// The kernel's refusal; an empty part cannot be mapped.
    pub fn of_file(file: &File, offset: u64, bytes: u64) -> io::Result<Mapping> {
        let start = offset % PAGE_SIZE;
        let length = usize::try_from(start + bytes).ok().and_then(NonZeroUsize::new);
        let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "nothing to map"))?;
        let from = i64::try_from(offset - start).map_err(io::Error::other)?;
        // SAFETY: no address is asked for, so the kernel places the mapping where nothing else is.
        let base = unsafe { mmap(None, length, ProtFlags::PROT_READ, MapFlags::MAP_SHARED, file, from) }?;
        Ok(Mapping { base, length, start: usize::try_from(start).map_err(io::Error::other)? })
    }

    /// `length` bytes at `at` of the asked part, cut at its end. They are the page cache itself: they change when the
    /// file does, and touching them past the end of a truncated file raises SIGBUS. Handing them to a system call is
    /// safe in either case.
    #[must_use]
    pub fn bytes_at(&self, at: u64, length: usize) -> &[u8] {
        let available = self.length.get() - self.start;
        let at = usize::try_from(at).unwrap_or(usize::MAX).min(available);
        let length = length.min(available - at);
        // SAFETY: start + at + length ≤ self.length, all of it mapped until drop; the slice borrows self.
        unsafe { std::slice::from_raw_parts(self.base.cast::<u8>().as_ptr().add(self.start + at), length) }
    }

    /// The address of the mapping's first page.
    #[must_use]
    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Reads a byte of every page, so that each is in the page tables.
    pub fn touch(&self) {
        let bytes = self.bytes_at(0, usize::MAX);
        // The first page's byte may lie before `start`; the part's own first byte is in the same page.
        let to_border = page() - self.start % page();
        for at in std::iter::once(0).chain((to_border..bytes.len()).step_by(page())) {
            // Copied and not only borrowed: it is the read that brings the page in.
            std::hint::black_box(bytes.get(at).copied());
        }
    }
}

/// The page size as the width of an index.
fn page() -> usize {
    PAGE_SIZE as usize
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are what mmap returned and was given; slices of it borrow self and are gone.
        let unmapped = unsafe { munmap(self.base, self.length.get()) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
