//! Pointers into a split ring.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::{Access, ContiguousAlias, Memory};
use crate::ring::RingError;
use crate::ring::layout::{self, RingLayout};
use crate::spec::ring::{AVAIL_ALIGN, DESC_ALIGN, Descriptor, USED_ALIGN, UsedElem};
use crate::spec::{Feature, Features};

use super::atomics::{AtomicU16, AtomicU32};
use super::{load_descriptor, part, prefetch_to_read, prefetch_to_write, store_descriptor};

/// Most elements of the used ring that are asked for at once.
const USED_RUN: u16 = 32;

/// The parts of a split ring, and the memory they are in.
#[derive(Debug)]
pub(in crate::ring) struct SplitPointers {
    /// As long-lived as `memory` and `aliases`: handed out for a borrow of them only.
    parts: SplitParts<'static>,
    memory: Arc<Memory>,
    aliases: Vec<ContiguousAlias>,
}

/// Host pointers to the three parts, for as long as a [`SplitPointers`] is borrowed. Copied into a local, they are what no store of a
/// loop can change.
#[derive(Debug, Clone, Copy)]
pub(in crate::ring) struct SplitParts<'r> {
    desc: *mut u8,
    avail: *mut u8,
    used: *mut u8,
    size: u16,
    event_idx: bool,
    memory: PhantomData<&'r Memory>,
}

// SAFETY: the pointers point into shared memory that `memory` keeps mapped; all accesses are atomic.
unsafe impl Send for SplitPointers {}
// SAFETY: as above.
unsafe impl Sync for SplitPointers {}

impl SplitPointers {
    pub(in crate::ring) fn new(
        layout: &RingLayout,
        memory: Arc<Memory>,
        features: Features,
    ) -> Result<Self, RingError> {
        layout::check_split_size(layout.size)?;
        let size = layout.size;
        let (desc, avail, used) = (
            (layout.desc, layout::desc_len(size), DESC_ALIGN),
            (layout.avail, layout::avail_len(size, features), AVAIL_ALIGN),
            (layout.used, layout::used_len(size, features), USED_ALIGN),
        );
        let mut aliases = Vec::new();
        let parts = SplitParts {
            desc: part(&memory, "descriptor table", desc, Access::Read, &mut aliases)?,
            avail: part(&memory, "available ring", avail, Access::Read, &mut aliases)?,
            used: part(&memory, "used ring", used, Access::Write, &mut aliases)?,
            size,
            event_idx: features.has(Feature::EventIdx),
            memory: PhantomData,
        };
        layout.check_apart(features.without(Feature::RingPacked))?;
        Ok(SplitPointers { parts, memory, aliases })
    }

    /// The pointers.
    #[inline(always)]
    pub(in crate::ring) fn parts(&self) -> SplitParts<'_> {
        self.parts
    }

    pub(in crate::ring) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Did a file shrink under pages of the ring that were mapped for it alone?
    pub(in crate::ring) fn lost(&self) -> bool {
        self.aliases.iter().any(ContiguousAlias::lost)
    }
}

impl<'r> SplitParts<'r> {
    pub(in crate::ring) fn size(self) -> u16 {
        self.size
    }

    pub(in crate::ring) fn event_idx(self) -> bool {
        self.event_idx
    }

    /// # Safety
    /// `base + offset` is two aligned bytes of the ring.
    #[inline]
    unsafe fn u16_at(base: *mut u8, offset: usize) -> &'r AtomicU16 {
        // SAFETY: the caller's contract; the mapping outlives 'r.
        unsafe { AtomicU16::from_ptr(base.add(offset).cast()) }
    }

    #[inline]
    fn slot(self, idx: u16) -> usize {
        usize::from(idx & (self.size - 1))
    }

    /// `avail.flags`.
    #[inline]
    pub(in crate::ring) fn avail_flags(self) -> &'r AtomicU16 {
        // SAFETY: the first field of the available ring (`new`).
        unsafe { Self::u16_at(self.avail, 0) }
    }

    /// `avail.idx`.
    #[inline]
    pub(in crate::ring) fn avail_idx(self) -> &'r AtomicU16 {
        // SAFETY: the second field of the available ring (`new`).
        unsafe { Self::u16_at(self.avail, 2) }
    }

    /// `avail.ring[idx % size]`.
    #[inline]
    pub(in crate::ring) fn avail_entry(self, idx: u16) -> &'r AtomicU16 {
        // SAFETY: `slot` is below `size`, and `new` checked 4 + 2 * size bytes.
        unsafe { Self::u16_at(self.avail, 4 + 2 * self.slot(idx)) }
    }

    /// `used_event`: where the driver wants a call. `None` without EVENT_IDX.
    #[inline]
    pub(in crate::ring) fn used_event(self) -> Option<&'r AtomicU16> {
        // SAFETY: with EVENT_IDX, `new` checked two bytes more behind the available ring.
        self.event_idx.then(|| unsafe { Self::u16_at(self.avail, 4 + 2 * usize::from(self.size)) })
    }

    /// `used.flags`.
    #[inline]
    pub(in crate::ring) fn used_flags(self) -> &'r AtomicU16 {
        // SAFETY: the first field of the used ring (`new`).
        unsafe { Self::u16_at(self.used, 0) }
    }

    /// `used.idx`.
    #[inline]
    pub(in crate::ring) fn used_idx(self) -> &'r AtomicU16 {
        // SAFETY: the second field of the used ring (`new`).
        unsafe { Self::u16_at(self.used, 2) }
    }

    /// `avail_event`: where the device wants a kick. `None` without EVENT_IDX.
    #[inline]
    pub(in crate::ring) fn avail_event(self) -> Option<&'r AtomicU16> {
        // SAFETY: with EVENT_IDX, `new` checked two bytes more behind the used ring.
        self.event_idx.then(|| unsafe { Self::u16_at(self.used, 4 + 8 * usize::from(self.size)) })
    }

    #[inline]
    fn used_entry(self, idx: u16) -> (&'r AtomicU32, &'r AtomicU32) {
        // SAFETY: `slot` is below `size`, `new` checked 4 + 8 * size bytes and alignment to 4.
        unsafe {
            let at = self.used.add(4 + 8 * self.slot(idx)).cast::<u32>();
            (AtomicU32::from_ptr(at), AtomicU32::from_ptr(at.add(1)))
        }
    }

    /// The line of `avail.ring[idx % size]` will be read soon.
    #[inline(always)]
    pub(in crate::ring) fn prefetch_avail(self, idx: u16) {
        prefetch_to_read(self.avail.wrapping_add(4 + 2 * self.slot(idx)));
    }

    /// The line of descriptor `index`, if there is one, will be read soon.
    #[inline(always)]
    pub(in crate::ring) fn prefetch_desc(self, index: u16) {
        prefetch_to_read(self.desc.wrapping_add(16 * usize::from(index)));
    }

    /// The lines of `count` elements of the used ring from `idx` on will be written soon; of the first 32 of them.
    #[inline(always)]
    pub(in crate::ring) fn prefetch_used_run(self, idx: u16, count: u16) {
        for at in (0..count.min(USED_RUN)).step_by(8) {
            prefetch_to_write(self.used.wrapping_add(4 + 8 * self.slot(idx.wrapping_add(at))));
        }
    }

    /// Writes elements of the used ring from `idx` on for these heads, nothing written into their chains; no more than the
    /// ring has. Visible to the driver once `used.idx` passes them. All at once, as the driver reads that ring meanwhile and
    /// would take a line that is written bit by bit away as often.
    #[inline(always)]
    pub(in crate::ring) fn set_used_run(self, idx: u16, heads: &[u16]) {
        #[cfg(test)]
        if super::watched::is_modelled() {
            let elem = |head: &u16| UsedElem { id: u32::from(*head), len: 0 };
            return (0..).zip(heads).for_each(|(at, head)| self.set_used(idx.wrapping_add(at), elem(head)));
        }
        let slot = self.slot(idx);
        let (here, wrapped) = heads.split_at(heads.len().min(usize::from(self.size) - slot));
        for (slot, part) in [(slot, here), (0, wrapped)] {
            let first = self.used.wrapping_add(4 + 8 * slot).cast::<[u32; 2]>();
            for (at, head) in part.iter().take(usize::from(self.size)).enumerate() {
                // SAFETY: `slot + at` is below `size`, and `new` checked 4 + 8 * size bytes and alignment to 4. The driver does
                // not look there before the release store of `used.idx`.
                unsafe { first.add(at).write([u32::from(*head), 0]) };
            }
        }
    }

    /// Writes `used.ring[idx % size]`; visible to the driver once `used.idx` passes it.
    #[inline]
    pub(in crate::ring) fn set_used(self, idx: u16, elem: UsedElem) {
        let (id, len) = self.used_entry(idx);
        id.store(elem.id, Ordering::Relaxed);
        len.store(elem.len, Ordering::Relaxed);
    }

    /// Reads `used.ring[idx % size]`.
    #[inline]
    pub(in crate::ring) fn used(self, idx: u16) -> UsedElem {
        let (id, len) = self.used_entry(idx);
        UsedElem { id: id.load(Ordering::Relaxed), len: len.load(Ordering::Relaxed) }
    }

    /// Reads descriptor `index`, if there is one.
    #[inline]
    pub(in crate::ring) fn desc(self, index: u16) -> Option<Descriptor> {
        // SAFETY: `index` is below `size`; `new` checked 16 * size bytes and alignment to 16.
        (index < self.size).then(|| unsafe { load_descriptor(self.desc.add(16 * usize::from(index))) })
    }

    /// Writes descriptor `index`; `false` where there is none.
    pub(in crate::ring) fn set_desc(self, index: u16, desc: Descriptor) -> bool {
        if index >= self.size {
            return false;
        }
        // SAFETY: as in `desc`.
        unsafe { store_descriptor(self.desc.add(16 * usize::from(index)), desc) };
        true
    }
}
