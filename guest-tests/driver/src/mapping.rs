//! A mapping of a part of a file: shared and read-only, or private and writable.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::raw::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

const PAGE_SIZE: u64 = 4096;

/// The mapping; unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<c_void>,
    /// Of the mapping, from its page-aligned start.
    length: NonZeroUsize,
    /// Where the asked part starts in it.
    start: usize,
    writable: bool,
}

impl Mapping {
    /// Maps `bytes` of the file from `offset`, which need not be aligned.
    ///
    /// # Errors
    /// The kernel's refusal; an empty part cannot be mapped.
    pub fn of_file(file: &File, offset: u64, bytes: u64) -> io::Result<Mapping> {
        Mapping::new(file, offset, bytes, ProtFlags::PROT_READ, MapFlags::MAP_SHARED)
    }

    /// Maps `bytes` of the file from `offset`; what is written to the mapping stays in it, on pages of its own.
    ///
    /// # Errors
    /// The kernel's refusal; an empty part cannot be mapped.
    pub fn private_of_file(file: &File, offset: u64, bytes: u64) -> io::Result<Mapping> {
        Mapping::new(file, offset, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE)
    }

    /// Maps `bytes` of the file from `offset`, which it must be open for writing for: who pins these pages may write to them.
    ///
    /// # Errors
    /// The kernel's refusal; an empty part cannot be mapped.
    pub fn writable_of_file(file: &File, offset: u64, bytes: u64) -> io::Result<Mapping> {
        Mapping::new(file, offset, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED)
    }

    fn new(file: &File, offset: u64, bytes: u64, access: ProtFlags, sharing: MapFlags) -> io::Result<Mapping> {
        let start = offset % PAGE_SIZE;
        let length = usize::try_from(start + bytes).ok().and_then(NonZeroUsize::new);
        let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "nothing to map"))?;
        let from = i64::try_from(offset - start).map_err(io::Error::other)?;
        // SAFETY: no address is asked for, so the kernel places the mapping where nothing else is.
        let base = unsafe { mmap(None, length, access, sharing, file, from) }?;
        let start = usize::try_from(start).map_err(io::Error::other)?;
        Ok(Mapping { base, length, start, writable: access.contains(ProtFlags::PROT_WRITE) })
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

    /// Writes to every page of `length` bytes at `at` the byte that is there already, and returns the bytes of these
    /// pages; in a mapping that is not writable, 0.
    pub fn write_to_pages(&mut self, at: u64, length: u64) -> u64 {
        if !self.writable {
            return 0;
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let part = self.bytes_at(at, length);
        if part.is_empty() {
            return 0;
        }
        let base = self.base.as_ptr() as usize;
        let first = (part.as_ptr() as usize - base) / page();
        let last = (part.as_ptr() as usize + part.len() - 1 - base) / page();
        for index in first..=last {
            let place = base + index * page();
            let place = std::ptr::with_exposed_provenance_mut::<u8>(place);
            // SAFETY: index is of a page of this mapping, which is writable; &mut self has no other reference to it.
            // Volatile, or the compiler would drop a write that changes nothing.
            unsafe { place.write_volatile(place.read_volatile()) };
        }
        ((last - first + 1) * page()) as u64
    }

    /// The address of the mapping's first page.
    #[must_use]
    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Where the asked part starts in the first page, bytes.
    #[must_use]
    pub fn start(&self) -> usize {
        self.start
    }

    /// How many pages it spans.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.length.get().div_ceil(page())
    }

    /// Which of its pages are in memory, whether or not they are in the page tables.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn resident_pages(&self) -> io::Result<Vec<usize>> {
        let mut states = vec![0_u8; self.pages()];
        // SAFETY: the kernel writes one byte per page of the mapping, for which `states` has room.
        if unsafe { libc::mincore(self.base.as_ptr(), self.length.get(), states.as_mut_ptr()) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(states.iter().enumerate().filter(|(_, state)| *state & 1 == 1).map(|(index, _)| index).collect())
    }

    /// Reads a byte of one page, so that it is in the page tables.
    pub fn touch_page(&self, index: usize) {
        let at = (index * page()).saturating_sub(self.start);
        std::hint::black_box(self.bytes_at(at as u64, 1).first().copied());
    }

    /// Sees to it that every page is in the page tables: by the kernel, which reads none of its bytes, or else by reading a byte
    /// of each (before Linux 5.14).
    pub fn touch(&self) {
        // SAFETY: base and length are what mmap returned and was given; nothing in the pages changes.
        if unsafe { libc::madvise(self.base.as_ptr(), self.length.get(), libc::MADV_POPULATE_READ) } == 0 {
            return;
        }
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
