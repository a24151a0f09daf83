//! A BAR as memory: each register one load or store, none of them a system call.

use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::os::raw::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// A whole BAR, mapped until dropped.
pub struct Bar {
    base: NonNull<c_void>,
    size: NonZeroUsize,
}

// SAFETY: the mapping is the device's registers; nobody borrows them, each access is one volatile load or store.
unsafe impl Send for Bar {}
// SAFETY: as above.
unsafe impl Sync for Bar {}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bar").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Bar {
    /// Maps `size` bytes of a device's file from `offset`.
    pub(super) fn map(file: impl AsFd, offset: u64, size: u64) -> std::io::Result<Bar> {
        let size = usize::try_from(size).ok().and_then(NonZeroUsize::new).ok_or(std::io::ErrorKind::InvalidInput)?;
        let offset = i64::try_from(offset).map_err(std::io::Error::other)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: no address is asked for, so the kernel places the mapping where nothing else is.
        let base = unsafe { mmap(None, size, access, MapFlags::MAP_SHARED, file, offset) }?;
        Ok(Bar { base, size })
    }

    /// `len` bytes of registers at `offset`; `None` if the BAR does not have them.
    #[must_use]
    pub fn registers(self: &Arc<Self>, offset: u32, len: u32) -> Option<Registers> {
        let (start, len) = (offset as usize, len as usize);
        let inside = start.checked_add(len)? <= self.size.get();
        inside.then(|| Registers { bar: Arc::clone(self), start, len })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: base and size are what mmap returned and was given; `Registers` hold the BAR and are gone.
        let unmapped = unsafe { munmap(self.base, self.size.get()) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

/// A part of a BAR. VIRTIO 1.3, 4.1.3.1: a field is accessed by its own width, one of 64 bits as two of 32.
///
/// Offsets are this program's own, taken from the layouts of the specification, except where a device says one
/// (`queue_notify_off`): that is checked where it is read. An access outside is a mistake of ours, and panics.
#[derive(Debug, Clone)]
pub struct Registers {
    bar: Arc<Bar>,
    start: usize,
    len: usize,
}

impl Registers {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        let place = self.start + offset;
        assert!(offset + size_of::<T>() <= self.len && place.is_multiple_of(size_of::<T>()), "no register at {offset}");
        self.bar.base.as_ptr().wrapping_byte_add(place).cast()
    }

    /// Reads 8 bits.
    #[must_use]
    pub fn read8(&self, offset: usize) -> u8 {
        // SAFETY: `at` checked bounds and alignment; the BAR is mapped as long as `self.bar` lives.
        unsafe { self.at::<u8>(offset).read_volatile() }
    }

    /// Reads 16 bits.
    #[must_use]
    pub fn read16(&self, offset: usize) -> u16 {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u16>(offset).read_volatile() }
    }

    /// Reads 32 bits.
    #[must_use]
    pub fn read32(&self, offset: usize) -> u32 {
        // SAFETY: as in `read8`.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    /// Writes 8 bits.
    pub fn write8(&self, offset: usize, value: u8) {
        // SAFETY: as in `read8`; registers are no Rust object that a store could invalidate.
        unsafe { self.at::<u8>(offset).write_volatile(value) }
    }

    /// Writes 16 bits.
    pub fn write16(&self, offset: usize, value: u16) {
        // SAFETY: as in `write8`.
        unsafe { self.at::<u16>(offset).write_volatile(value) }
    }

    /// Writes 32 bits.
    pub fn write32(&self, offset: usize, value: u32) {
        // SAFETY: as in `write8`.
        unsafe { self.at::<u32>(offset).write_volatile(value) }
    }

    /// Writes 64 bits: the low half, then the high one.
    pub fn write64(&self, offset: usize, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }
}
