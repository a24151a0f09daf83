//! The arena that the segments of chains live in.

use std::sync::Arc;

use crate::memory::{Access, Hint, Memory, Miss, Tlb};

use super::chain::{Chain, ChainView, Segment, SingleBufferBatch};

/// Segments an arena holds at most. Without buffers of no bytes, a frame needs fewer than 65,610 of them, and the chain that it
/// ends in has at most 32,768 buffers (VIRTIO 1.3, 2.7.5.3.1: no chain is longer than the ring): no honest driver comes near.
pub const MAX_SEGMENTS: usize = 1 << 17;

/// What a driver does against the text and the device bears, counted: refusing it would break real drivers, or gain nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Oddities {
    /// Chains longer than the ring, by an indirect table. VIRTIO 1.3, 2.7.5.3.1 forbids them; Linux makes them on small rings.
    pub long_chains: u64,
    /// Descriptors with flags that nobody has given a meaning.
    pub unknown_flags: u64,
}

/// A reusable arena of segments, tied to the memory its pointers point into: they live as long as it does.
///
/// Invariant: the arena translates every address itself, through the memory it holds, so each segment is `len` mapped
/// bytes for as long as the arena lives, whatever ring the chain came from.
#[derive(Debug)]
pub struct Segments {
    pub(super) memory: Arc<Memory>,
    pub(super) list: Vec<Segment>,
    /// Without an IOMMU.
    pub(super) hint: Hint,
    /// With one.
    pub(super) tlb: Option<Tlb>,
    pub(super) oddities: Oddities,
}

// SAFETY: the segments' pointers point into shared memory that `memory` keeps mapped; nobody borrows its bytes.
unsafe impl Send for Segments {}

impl Segments {
    /// An empty arena for chains over `memory`, with room for `capacity` segments before it has to grow.
    #[must_use]
    pub fn new(memory: Arc<Memory>, capacity: usize) -> Self {
        let tlb = memory.iotlb().map(|iotlb| Tlb::new(Arc::clone(iotlb)));
        let list = Vec::with_capacity(capacity);
        Segments { memory, list, hint: Hint::default(), tlb, oddities: Oddities::default() }
    }

    /// Forgets all chains; keeps the room.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// `chain`, which must have been popped into this arena since the last `clear`; any other has no segments.
    #[inline(always)]
    #[must_use]
    pub fn view(&self, chain: Chain) -> ChainView<'_> {
        let first = chain.first as usize;
        let list = self.list.get(first..first.saturating_add(chain.count as usize)).unwrap_or_default();
        ChainView { chain, list, memory: &self.memory }
    }

    /// Chains of a single segment each, found through this arena's hint.
    #[inline(always)]
    pub(super) fn single_buffers<'s>(
        &'s self,
        heads: &'s [u16],
        places: &'s [u16],
        list: &'s [Segment],
    ) -> SingleBufferBatch<'s> {
        SingleBufferBatch { heads, places, list, memory: &self.memory }
    }

    /// Forgets the chains popped since the arena held `len` segments.
    pub fn truncate(&mut self, len: usize) {
        self.list.truncate(len);
    }

    /// Segments in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Is there no segment in it?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The memory that its segments point into.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Where the last look-up found its region; behind an IOMMU nothing is found there.
    #[inline]
    pub(super) fn hint(&self) -> Hint {
        self.hint
    }

    /// Behind an IOMMU: the translations this arena has used.
    #[inline(always)]
    pub(super) fn tlb(&self) -> Option<&Tlb> {
        self.tlb.as_ref()
    }

    /// Behind an IOMMU: the host address of a range whose translation this arena has used before.
    #[inline(always)]
    pub(super) fn translated(&self, addr: u64, len: u64, access: Access) -> Option<*mut u8> {
        self.tlb.as_ref()?.hit(addr, len, access)
    }

    /// What was odd about chains since this was last asked.
    pub fn take_oddities(&mut self) -> Oddities {
        std::mem::take(&mut self.oddities)
    }

    /// Behind an IOMMU: the translations that the last chain could not be followed without.
    #[must_use]
    pub fn missing(&self) -> &[Miss] {
        self.tlb.as_ref().map(Tlb::missing).unwrap_or_default()
    }

    /// Behind an IOMMU: look-ups that found a translation since this was last asked.
    pub fn take_hits(&self) -> u64 {
        self.tlb.as_ref().map_or(0, Tlb::take_hits)
    }

    /// Forgets all chains, and the translations of the addresses from `first` to `last`, both included.
    pub fn forget(&mut self, first: u64, last: u64) {
        self.clear();
        if let Some(tlb) = &mut self.tlb {
            tlb.forget(first, last);
        }
    }

    /// Appends the buffer of a chain that is one device-writable descriptor, if it is where the arena says at once and
    /// that takes no allocation. Returns the chain.
    #[inline(always)]
    pub(super) fn push_buffer(&mut self, head: u16, idx: u16, addr: u64, len: u32) -> Option<Chain> {
        let found = self.hint.hit(addr, u64::from(len));
        let host = found.or_else(|| self.translated(addr, u64::from(len), Access::Write))?;
        let first = self.list.len() as u32;
        if !self.push_if_room(Segment { addr, host, len, continues: false }) {
            return None;
        }
        Some(Chain::of_one_buffer(head, idx, first, len))
    }

    /// Appends a segment found through this arena's own hint, if that takes no allocation.
    #[inline(always)]
    pub(super) fn push_if_room(&mut self, segment: Segment) -> bool {
        let room = self.list.len() < self.list.capacity();
        if room {
            self.list.push(segment);
        }
        room
    }
}
