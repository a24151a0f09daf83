//! A range of guest memory in one piece of host memory.

use std::marker::PhantomData;

/// Bytes of guest memory that are mapped, checked and contiguous on the host, for as long as `'m` keeps the mapping
/// alive. The guest may change them at any moment: they are only ever copied, never borrowed as `&[u8]`.
#[derive(Debug, Clone, Copy)]
pub struct GuestSlice<'m> {
    addr: u64,
    host: *mut u8,
    len: usize,
    memory: PhantomData<&'m ()>,
}

impl<'m> GuestSlice<'m> {
    /// # Safety
    /// `host..host + len` must be mapped readable and writable for all of `'m`.
    pub(crate) const unsafe fn new(addr: u64, host: *mut u8, len: usize) -> Self {
        GuestSlice { addr, host, len, memory: PhantomData }
    }

    /// The address as the driver wrote it (guest-physical, or IOVA behind an IOMMU), of the slice's first byte.
    #[must_use]
    pub const fn addr(&self) -> u64 {
        self.addr
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Is it zero bytes long?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the bytes are on the host, for a syscall's iovec.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.host
    }

    /// The slice without its first `skip` bytes (at most all of them).
    #[must_use]
    pub fn advanced(&self, skip: usize) -> Self {
        let skip = skip.min(self.len);
        // The sum stays inside or one past the end of the slice.
        GuestSlice {
            addr: self.addr + skip as u64,
            host: self.host.wrapping_add(skip),
            len: self.len - skip,
            memory: PhantomData,
        }
    }

    /// The slice's first `len` bytes (at most all of them).
    #[must_use]
    pub fn first(&self, len: usize) -> Self {
        GuestSlice { len: len.min(self.len), ..*self }
    }

    /// The first twelve bytes, each read once, in two loads; `None`: there are fewer.
    #[inline(always)]
    #[must_use]
    pub fn first_12(&self) -> Option<[u8; 12]> {
        /// Bytes in memory: aligned anywhere.
        #[repr(C, packed)]
        struct Twelve(u64, u32);
        if self.len < size_of::<Twelve>() {
            return None;
        }
        // SAFETY: as in `copy_to`. Volatile: what is checked later is this copy, never the memory again.
        let Twelve(low, high) = unsafe { self.host.cast::<Twelve>().read_volatile() };
        let ([a, b, c, d, e, f, g, h], [i, j, k, l]) = (low.to_ne_bytes(), high.to_ne_bytes());
        Some([a, b, c, d, e, f, g, h, i, j, k, l])
    }

    /// Copies as many bytes as fit into `out`, each loaded once, for who checks them: what is checked is this copy, and no
    /// compiler may go back to the memory that the guest has changed meanwhile. Returns how many.
    pub fn read_once(&self, out: &mut [u8]) -> usize {
        /// Eight bytes in memory: aligned anywhere.
        #[repr(C, packed)]
        struct Eight([u8; 8]);
        let count = self.len.min(out.len());
        let (eights, rest) = out.get_mut(..count).unwrap_or_default().as_chunks_mut();
        let behind = 8 * eights.len();
        // SAFETY: the chunks and the rest are `count` bytes together, which `new`'s contract makes readable.
        unsafe {
            for (at, eight) in eights.iter_mut().enumerate() {
                *eight = self.host.add(8 * at).cast::<Eight>().read_volatile().0;
            }
            for (at, byte) in rest.iter_mut().enumerate() {
                *byte = self.host.add(behind + at).read_volatile();
            }
        }
        count
    }

    /// The slice's first bytes will be written soon: asks the CPU for their cache lines, which the guest has had.
    #[inline(always)]
    pub fn prefetch_write(&self) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        // SAFETY: a prefetch neither faults nor changes any state the program sees, wherever it points.
        unsafe {
            std::arch::asm!("prefetchw [{0}]", "prefetchw [{0} + 64]", in(reg) self.host,
                options(nostack, preserves_flags, readonly));
        }
    }

    /// The slice will be read soon: asks the CPU for its first cache lines. The rest it foresees by itself.
    #[inline(always)]
    pub fn prefetch_read(&self) {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        for line in (0..self.len.min(512)).step_by(64) {
            // SAFETY: as in `prefetch_write`.
            unsafe {
                std::arch::asm!("prefetcht0 [{}]", in(reg) self.host.wrapping_add(line),
                    options(nostack, preserves_flags, readonly));
            }
        }
    }

    /// Copies as many bytes as fit into `out`, from the slice's start. Returns how many.
    #[inline(always)]
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        let count = self.len.min(out.len());
        // SAFETY: `new`'s contract makes `count` bytes readable; `out` is host memory that no mapping of the guest
        // overlaps. The guest may write meanwhile: the bytes are then some mix of old and new, as with any DMA.
        unsafe { copy(self.host, out.as_mut_ptr(), count) };
        count
    }

    /// Copies as many of `bytes` as fit into the slice, from its start. Returns how many.
    #[inline(always)]
    pub fn copy_from(&self, bytes: &[u8]) -> usize {
        let count = self.len.min(bytes.len());
        // SAFETY: as in `copy_to`, for writing.
        unsafe { copy(bytes.as_ptr(), self.host, count) };
        count
    }

    /// Copies as many bytes as fit from the start of this slice to the start of `to`. Returns how many. Where the two
    /// overlap, as a driver may have it, `to` gets some mix of old and new.
    #[inline(always)]
    pub fn copy_to_slice(&self, to: &GuestSlice<'_>) -> usize {
        let count = self.len.min(to.len);
        // SAFETY: `new`'s contract makes `count` bytes readable here and writable there; `copy` allows any overlap.
        unsafe { copy(self.host, to.host, count) };
        count
    }
}

/// The longest copy that is done in place, bytes: as long as most small frames. A call costs more than that.
const SHORT: usize = 128;

/// Copies `count` bytes. The ranges may overlap.
///
/// # Safety
/// `from` is `count` readable bytes, `to` as many writable ones.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, count: usize) {
    // SAFETY: the caller's contract, and the bounds of each arm.
    unsafe {
        match count {
            16..=32 => copy_ends::<16>(from, to, count),
            33..=64 => copy_ends::<32>(from, to, count),
            65..=SHORT => copy_ends::<64>(from, to, count),
            _ => std::ptr::copy(from, to, count),
        }
    }
}

/// Copies the first `N` bytes and the last `N` of `count`, which are all of them; those in the middle perhaps twice.
///
/// # Safety
/// As [`copy`], and `count` is from `N` to `2 * N`.
#[inline(always)]
unsafe fn copy_ends<const N: usize>(from: *const u8, to: *mut u8, count: usize) {
    let last = count - N;
    // SAFETY: `last + N` is `count`. Both are loaded before either is stored.
    unsafe {
        let start = from.cast::<[u8; N]>().read_unaligned();
        let end = from.add(last).cast::<[u8; N]>().read_unaligned();
        to.cast::<[u8; N]>().write_unaligned(start);
        to.add(last).cast::<[u8; N]>().write_unaligned(end);
    }
}
