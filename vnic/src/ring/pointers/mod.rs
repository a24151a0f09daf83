//! The pointer layer: a ring's parts as checked host pointers, every access to them one explicit load or store.
//!
//! Place: both halves of a ring and the snapshot reach ring memory through this file only.
//!
//! Invariants:
//! - A pointer set is made only by `new`, which checks that each part is wholly guest memory, in one piece on the host
//!   and aligned there; it holds the [`Memory`], and the [`ContiguousAlias`]es, that keep the pages mapped.
//! - Slots are masked or compared with the size before they are used as an offset.
//! - The peer may write any of it at any moment, so all loads and stores are atomics, each value loaded once. Acquire
//!   and release stand where one side hands entries to the other; everything between is relaxed, as the index orders it.

mod packed;
mod split;
#[cfg(any(test, fuzzing))]
pub(super) mod watched;

/// The atomics that are overlaid on ring memory.
mod atomics {
    #[cfg(any(test, fuzzing))]
    pub(super) use super::watched::{AtomicU16, AtomicU32, AtomicU64, fence};
    #[cfg(not(any(test, fuzzing)))]
    pub(super) use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, fence};
}

use std::marker::PhantomData;
use std::sync::atomic::Ordering;

use crate::memory::{Access, ContiguousAlias, Found, Hint, Memory, MemoryError};
use crate::spec::ring::Descriptor;

use super::RingError;
use atomics::{AtomicU64, fence};
pub(super) use packed::{PackedParts, PackedPointers, Word};
pub(super) use split::{SplitParts, SplitPointers};

/// The host address of a ring part, checked as the module's first invariant says.
fn part(
    memory: &Memory,
    name: &'static str,
    (addr, len, align): (u64, u64, u64),
    access: Access,
    aliases: &mut Vec<ContiguousAlias>,
) -> Result<*mut u8, RingError> {
    let unmapped = |source| RingError::RingUnmapped { part: name, source };
    let (host, alias) = memory.contiguous(addr, len, access).map_err(unmapped)?;
    if !addr.is_multiple_of(align) || !(host as u64).is_multiple_of(align) {
        return Err(unmapped(MemoryError::Misaligned { addr, align }));
    }
    aliases.extend(alias);
    Ok(host)
}

/// Asks the CPU for the cache line at `at`, to be written: the other side has had it. Only a hint, to whatever address;
/// it can fail without harm.
#[inline(always)]
fn prefetch_to_write(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch neither faults nor changes any state the program sees.
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// As [`prefetch_to_write`], to be read.
#[inline(always)]
pub(super) fn prefetch_to_read(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: as above.
    unsafe {
        std::arch::asm!("prefetcht0 [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}

/// # Safety
/// `at` is 16 mapped bytes, aligned to 8.
#[inline]
unsafe fn load_descriptor(at: *mut u8) -> Descriptor {
    // SAFETY: the caller's contract.
    let (addr, rest) = unsafe {
        let words = at.cast::<u64>();
        (AtomicU64::from_ptr(words).load(Ordering::Relaxed), AtomicU64::from_ptr(words.add(1)).load(Ordering::Relaxed))
    };
    descriptor(addr, rest)
}

/// # Safety
/// As [`load_descriptor`].
unsafe fn store_descriptor(at: *mut u8, desc: Descriptor) {
    let rest = u64::from(desc.len) | u64::from(desc.flags) << 32 | u64::from(desc.next) << 48;
    // SAFETY: the caller's contract.
    unsafe {
        let words = at.cast::<u64>();
        AtomicU64::from_ptr(words).store(desc.addr, Ordering::Relaxed);
        AtomicU64::from_ptr(words.add(1)).store(rest, Ordering::Relaxed);
    }
}

#[inline]
const fn descriptor(addr: u64, rest: u64) -> Descriptor {
    Descriptor { addr, len: rest as u32, flags: (rest >> 32) as u16, next: (rest >> 48) as u16 }
}

/// An indirect table of `len` descriptors: by pointer where it is one aligned piece of host memory, else through
/// [`Memory::read`], one descriptor at a time.
#[derive(Debug)]
pub(super) struct IndirectTable<'m> {
    memory: &'m Memory,
    addr: u64,
    host: Option<*mut u8>,
    len: u32,
}

impl<'m> IndirectTable<'m> {
    /// The table of `len` descriptors at `addr`.
    #[inline]
    pub(super) fn new(memory: &'m Memory, addr: u64, len: u32, mut hint: Hint) -> Result<Self, MemoryError> {
        let host = match memory.find(addr, 16 * u64::from(len), Access::Read, &mut hint)? {
            Found::Whole(host) if (host as usize).is_multiple_of(8) => Some(host),
            Found::Whole(_) | Found::Split { .. } | Found::Scattered => None,
        };
        Ok(IndirectTable { memory, addr, host, len })
    }

    /// Descriptors in it.
    #[inline]
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Reads descriptor `index`; `None` where there is none.
    #[inline]
    pub(super) fn desc(&self, index: u16) -> Option<Descriptor> {
        if u32::from(index) >= self.len {
            return None;
        }
        let offset = 16 * usize::from(index);
        if let Some(host) = self.host {
            // SAFETY: `index` is below `len`, and `new` checked 16 * len bytes and alignment to 8.
            return Some(unsafe { load_descriptor(host.add(offset)) });
        }
        let mut bytes = [0; 16];
        self.memory.read(self.addr + offset as u64, &mut bytes).ok()?;
        let word = |half: [u8; 8]| u64::from_le_bytes(half);
        let (low, high) = bytes.split_at(8);
        Some(descriptor(word(low.try_into().ok()?), word(high.try_into().ok()?)))
    }
}

/// An indirect table in one aligned piece of the region where the last look-up ended: the usual case.
pub(super) struct HostTable<'m> {
    host: *mut u8,
    len: u32,
    memory: PhantomData<&'m Memory>,
}

impl HostTable<'_> {
    /// The table of `len` descriptors at `host`, if it is aligned.
    ///
    /// # Safety
    /// `host` is where the table is in memory that lives as long as it, 16 bytes for each descriptor.
    #[inline(always)]
    pub(super) unsafe fn new(host: *mut u8, len: u32) -> Option<Self> {
        (host as usize).is_multiple_of(8).then_some(HostTable { host, len, memory: PhantomData })
    }

    /// Descriptors in it.
    #[inline(always)]
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Reads descriptor `index`; `None` where there is none.
    #[inline(always)]
    pub(super) fn desc(&self, index: u16) -> Option<Descriptor> {
        if u32::from(index) >= self.len {
            return None;
        }
        // SAFETY: `index` is below `len`, and `new` checked 16 * len bytes, their alignment and their life.
        Some(unsafe { load_descriptor(self.host.add(16 * usize::from(index))) })
    }
}

impl IndirectTable<'_> {
    /// Reads packed descriptor `index`, in the form of a split one without `next`; `None` where there is none.
    #[inline]
    pub(super) fn packed_desc(&self, index: u16) -> Option<Descriptor> {
        // Buffer id and flags stand where a split descriptor has flags and next.
        self.desc(index).map(|d| Descriptor { flags: d.next, next: 0, ..d })
    }
}

/// Orders a store of ours before the load of what the other side may have stored meanwhile: "I am going to sleep"
/// before "is there anything left", and "it is there" before "does it want to know".
#[inline]
pub(super) fn full_fence() {
    fence(Ordering::SeqCst);
}
