//! The pointer layer: a ring's parts as checked host pointers, every access to them one explicit load or store.
//!
//! Place: both halves of a ring and the snapshot reach ring memory through this file only.
//!
//! Invariants:
//! - A pointer set is made only by `new`, which checks that each part is wholly guest memory, in one piece on the host
//!   and aligned there; it holds the [`Memory`] that keeps the pages mapped.
//! - Slots are masked or compared with the size before they are used as an offset.
//! - The peer may write any of it at any moment, so all loads and stores are atomics, each value loaded once. Acquire
//!   and release stand where one side hands entries to the other; everything between is relaxed, as the index orders it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use crate::memory::{Access, Found, Hint, Memory, MemoryError};
use crate::spec::ring::{AVAIL_ALIGN, DESC_ALIGN, Descriptor, USED_ALIGN, UsedElem};
use crate::spec::{Feature, Features};

use super::RingError;
use super::layout::{self, RingLayout};

/// Host pointers to the three parts of a split ring.
#[derive(Debug)]
pub(super) struct SplitPointers {
    desc: *mut u8,
    avail: *mut u8,
    used: *mut u8,
    size: u16,
    event_idx: bool,
    memory: Arc<Memory>,
}

// SAFETY: the pointers point into shared memory that `memory` keeps mapped; all accesses are atomic.
unsafe impl Send for SplitPointers {}
// SAFETY: as above.
unsafe impl Sync for SplitPointers {}

/// The host address of a ring part, checked as the module's first invariant says.
fn part(
    memory: &Memory,
    name: &'static str,
    (addr, len, align): (u64, u64, u64),
    access: Access,
) -> Result<*mut u8, RingError> {
    let unmapped = |source| RingError::RingUnmapped { part: name, source };
    let slice = memory.slice(addr, len, access).map_err(unmapped)?;
    if !addr.is_multiple_of(align) || !(slice.as_ptr() as u64).is_multiple_of(align) {
        return Err(unmapped(MemoryError::Misaligned { addr, align }));
    }
    Ok(slice.as_ptr())
}

impl SplitPointers {
    pub(super) fn new(layout: &RingLayout, memory: Arc<Memory>, features: Features) -> Result<Self, RingError> {
        layout::check_split_size(layout.size)?;
        let size = layout.size;
        let (desc, avail, used) = (
            (layout.desc, layout::desc_len(size), DESC_ALIGN),
            (layout.avail, layout::avail_len(size, features), AVAIL_ALIGN),
            (layout.used, layout::used_len(size, features), USED_ALIGN),
        );
        Ok(SplitPointers {
            desc: part(&memory, "descriptor table", desc, Access::Read)?,
            avail: part(&memory, "available ring", avail, Access::Read)?,
            used: part(&memory, "used ring", used, Access::Write)?,
            size,
            event_idx: features.has(Feature::EventIdx),
            memory,
        })
    }

    pub(super) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    pub(super) fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// # Safety
    /// `base + offset` is two aligned bytes of the ring.
    #[inline]
    unsafe fn u16_at<'a>(base: *mut u8, offset: usize) -> &'a AtomicU16 {
        // SAFETY: the caller's contract; the mapping outlives the borrow, which no method lets out.
        unsafe { AtomicU16::from_ptr(base.add(offset).cast()) }
    }

    #[inline]
    fn slot(&self, idx: u16) -> usize {
        usize::from(idx & (self.size - 1))
    }

    /// `avail.flags`.
    #[inline]
    pub(super) fn avail_flags(&self) -> &AtomicU16 {
        // SAFETY: the first field of the available ring (`new`).
        unsafe { Self::u16_at(self.avail, 0) }
    }

    /// `avail.idx`.
    #[inline]
    pub(super) fn avail_idx(&self) -> &AtomicU16 {
        // SAFETY: the second field of the available ring (`new`).
        unsafe { Self::u16_at(self.avail, 2) }
    }

    /// `avail.ring[idx % size]`.
    #[inline]
    pub(super) fn avail_entry(&self, idx: u16) -> &AtomicU16 {
        // SAFETY: `slot` is below `size`, and `new` checked 4 + 2 * size bytes.
        unsafe { Self::u16_at(self.avail, 4 + 2 * self.slot(idx)) }
    }

    /// `used_event`: where the driver wants a call. `None` without EVENT_IDX.
    #[inline]
    pub(super) fn used_event(&self) -> Option<&AtomicU16> {
        // SAFETY: with EVENT_IDX, `new` checked two bytes more behind the available ring.
        self.event_idx.then(|| unsafe { Self::u16_at(self.avail, 4 + 2 * usize::from(self.size)) })
    }

    /// `used.flags`.
    #[inline]
    pub(super) fn used_flags(&self) -> &AtomicU16 {
        // SAFETY: the first field of the used ring (`new`).
        unsafe { Self::u16_at(self.used, 0) }
    }

    /// `used.idx`.
    #[inline]
    pub(super) fn used_idx(&self) -> &AtomicU16 {
        // SAFETY: the second field of the used ring (`new`).
        unsafe { Self::u16_at(self.used, 2) }
    }

    /// `avail_event`: where the device wants a kick. `None` without EVENT_IDX.
    #[inline]
    pub(super) fn avail_event(&self) -> Option<&AtomicU16> {
        // SAFETY: with EVENT_IDX, `new` checked two bytes more behind the used ring.
        self.event_idx.then(|| unsafe { Self::u16_at(self.used, 4 + 8 * usize::from(self.size)) })
    }

    #[inline]
    fn used_entry(&self, idx: u16) -> (&AtomicU32, &AtomicU32) {
        // SAFETY: `slot` is below `size`, `new` checked 4 + 8 * size bytes and alignment to 4.
        unsafe {
            let at = self.used.add(4 + 8 * self.slot(idx)).cast::<u32>();
            (AtomicU32::from_ptr(at), AtomicU32::from_ptr(at.add(1)))
        }
    }

    /// Writes `used.ring[idx % size]`; visible to the driver once `used.idx` passes it.
    #[inline]
    pub(super) fn set_used(&self, idx: u16, elem: UsedElem) {
        let (id, len) = self.used_entry(idx);
        id.store(elem.id, Ordering::Relaxed);
        len.store(elem.len, Ordering::Relaxed);
    }

    /// Reads `used.ring[idx % size]`.
    #[inline]
    pub(super) fn used(&self, idx: u16) -> UsedElem {
        let (id, len) = self.used_entry(idx);
        UsedElem { id: id.load(Ordering::Relaxed), len: len.load(Ordering::Relaxed) }
    }

    /// Reads descriptor `index`, if there is one.
    #[inline]
    pub(super) fn desc(&self, index: u16) -> Option<Descriptor> {
        // SAFETY: `index` is below `size`; `new` checked 16 * size bytes and alignment to 16.
        (index < self.size).then(|| unsafe { load_descriptor(self.desc.add(16 * usize::from(index))) })
    }

    /// Writes descriptor `index`; `false` where there is none.
    pub(super) fn set_desc(&self, index: u16, desc: Descriptor) -> bool {
        if index >= self.size {
            return false;
        }
        // SAFETY: as in `desc`.
        unsafe { store_descriptor(self.desc.add(16 * usize::from(index)), desc) };
        true
    }
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
            Found::Whole(_) | Found::Split { .. } => None,
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

/// Orders a store of ours before the load of what the other side may have stored meanwhile: "I am going to sleep"
/// before "is there anything left", and "it is there" before "does it want to know".
#[inline]
pub(super) fn full_fence() {
    fence(Ordering::SeqCst);
}
