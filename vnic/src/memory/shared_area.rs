//! Memory that is shared with a front-end and is not the guest's: words in a file.
//!
//! Place: what outlives this process is kept there ([`backend::record`](crate::backend::record)). The front-end may write to it at any
//! moment, or shrink the file: a word is loaded once and then checked, and a lost page reads as zeroes ([`fault`](super::fault)).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;

use super::mapping::{Mapping, RegionSpec};
use super::{Gpa, MemoryError, UserAddr};

/// A file's bytes, mapped until dropped.
#[derive(Debug)]
pub struct SharedArea {
    mapping: Mapping,
    len: usize,
}

// SAFETY: the bytes are shared memory that the mapping keeps mapped; all accesses are atomic.
unsafe impl Send for SharedArea {}
// SAFETY: as above.
unsafe impl Sync for SharedArea {}

impl SharedArea {
    /// A file of `len` zeroes, to be mapped by [`open`](SharedArea::open) and handed over.
    ///
    /// # Errors
    /// The host has no such memory.
    pub fn file(len: u64) -> io::Result<OwnedFd> {
        let file = memfd_create(c"vnic-in-flight", MFdFlags::MFD_CLOEXEC)?;
        ftruncate(&file, i64::try_from(len).map_err(io::Error::other)?)?;
        Ok(file)
    }

    /// Maps `len` bytes of `file` from `offset` on.
    ///
    /// # Errors
    /// The file is shorter, or cannot be mapped; words would not be aligned.
    pub fn open(file: OwnedFd, offset: u64, len: u64) -> Result<Self, MemoryError> {
        if len == 0 {
            return Err(MemoryError::EmptyRegion { gpa: 0 });
        }
        if offset.checked_add(len).is_none() || !offset.is_multiple_of(8) {
            return Err(MemoryError::Wraps { addr: offset, len });
        }
        let spec = RegionSpec { gpa: Gpa(0), size: len, user_addr: UserAddr(0), mmap_offset: offset };
        let mapping = Mapping::new(spec, File::from(file))?;
        // `Mapping::new` made sure that this host can map as much.
        Ok(SharedArea { mapping, len: len as usize })
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Has it no byte?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Has its file shrunk under it?
    #[must_use]
    pub fn lost(&self) -> bool {
        self.mapping.lost()
    }

    /// Where a word of `size` bytes is; `None`: not wholly in the area, or not aligned.
    fn place(&self, at: usize, size: usize) -> Option<*mut u8> {
        let end = at.checked_add(size)?;
        (end <= self.len && at.is_multiple_of(size)).then(|| self.mapping.host().wrapping_add(at))
    }
}

macro_rules! words {
    ($($name:ident: $atomic:ident, $doc:literal;)*) => {
        impl SharedArea {
            $(
                #[doc = $doc]
                #[must_use]
                pub fn $name(&self, at: usize) -> Option<&$atomic> {
                    let place = self.place(at, size_of::<$atomic>())?;
                    // SAFETY: `place` checked bounds and alignment (the area begins at a multiple of 8); the bytes stay mapped
                    // for as long as `self` lives, and whoever shares them is another process.
                    Some(unsafe { $atomic::from_ptr(place.cast()) })
                }
            )*
        }
    };
}

words! {
    byte: AtomicU8, "The byte at this offset.";
    half: AtomicU16, "The two bytes at this offset.";
    word: AtomicU32, "The four bytes at this offset.";
    long: AtomicU64, "The eight bytes at this offset.";
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn words_lie_wholly_in_the_area_and_are_aligned() {
        let file = SharedArea::file(8192).unwrap();
        let area = SharedArea::open(file.try_clone().unwrap(), 8, 100).unwrap();
        area.half(98).unwrap().store(7, Relaxed);
        area.long(0).unwrap().store(9, Relaxed);
        assert!(area.byte(99).is_some() && area.byte(100).is_none());
        assert!(area.half(99).is_none() && area.word(98).is_none() && area.long(96).is_none());
        assert!(area.long(usize::MAX).is_none() && area.word(2).is_none());
        let again = SharedArea::open(file, 0, 8192).unwrap();
        assert_eq!((again.half(106).unwrap().load(Relaxed), again.long(8).unwrap().load(Relaxed)), (7, 9));
    }

    #[test]
    fn a_file_that_is_shorter_or_an_odd_offset_is_refused() {
        let file = || SharedArea::file(100).unwrap();
        assert!(SharedArea::open(file(), 0, 101).is_err());
        assert!(SharedArea::open(file(), 4, 8).is_err());
        assert!(SharedArea::open(file(), u64::MAX - 7, 16).is_err());
        assert!(SharedArea::open(file(), 0, 0).is_err());
    }
}
