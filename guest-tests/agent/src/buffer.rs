//! A page-aligned buffer of the program's own, as direct I/O needs it.

use std::io;
use std::num::NonZeroUsize;
use std::os::raw::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// The buffer; given back when dropped.
#[derive(Debug)]
pub struct PageBuffer {
    base: NonNull<c_void>,
    length: NonZeroUsize,
}

impl PageBuffer {
    /// `length` bytes of zeros.
    ///
    /// # Errors
    /// The kernel's refusal, a length of 0 included.
    pub fn new(length: usize) -> io::Result<PageBuffer> {
        let length = NonZeroUsize::new(length).ok_or(io::ErrorKind::InvalidInput)?;
        let (access, flags) = (ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_PRIVATE);
        // SAFETY: no address is asked for, so the kernel places the mapping where nothing else is.
        let base = unsafe { mmap_anonymous(None, length, access, flags) }?;
        Ok(PageBuffer { base, length })
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: base..base+length is mapped readable until drop, and belongs to this buffer alone.
        unsafe { std::slice::from_raw_parts(self.base.cast().as_ptr(), self.length.get()) }
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, mapped writable; &mut self makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base.cast().as_ptr(), self.length.get()) }
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        // SAFETY: base and length are what mmap returned and was given; slices of it borrow self and are gone.
        let unmapped = unsafe { munmap(self.base, self.length.get()) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
