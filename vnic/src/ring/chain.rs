//! A chain of buffers as the device got it, and the arena its segments live in.

use std::sync::Arc;

use crate::memory::{Access, Found, GuestSlice, Hint, Memory, MemoryError, Miss, Tlb, next_page};
use crate::spec::ring::{DESC_F_WRITE, Descriptor};

use super::RingError;

/// One device-side chain: what `pop` found, all of it checked. The buffers themselves are in the [`Segments`] it was
/// popped into. Readable segments come first (VIRTIO 1.3, 2.7.4.2: device-readable before device-writable).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    /// Split: the index of the first descriptor. Packed: the buffer id.
    pub head: u16,
    /// Where in the ring's history it stands: split, the free-running available index; packed, the slot of its
    /// first descriptor.
    pub idx: u16,
    /// Descriptors as the driver wrote them, indirect ones counted singly.
    pub descriptors: u16,
    /// Ring slots it takes: packed rings need it to go on; 1 for an indirect chain.
    pub slots: u16,
    /// Were they in an indirect table?
    pub indirect: bool,
    /// First segment in the arena.
    pub first: u32,
    /// Segments in all.
    pub count: u32,
    /// Of them device-readable ones.
    pub readable: u32,
    /// Bytes the device may read.
    pub readable_len: u32,
    /// Bytes the device may write.
    pub writable_len: u32,
}

impl Chain {
    /// A direct chain of one device-readable descriptor.
    #[inline(always)]
    const fn of_one(head: u16, idx: u16, len: u32) -> Self {
        Chain {
            head,
            idx,
            descriptors: 1,
            slots: 1,
            indirect: false,
            first: 0,
            count: 1,
            readable: 1,
            readable_len: len,
            writable_len: 0,
        }
    }

    /// A direct chain of one device-writable descriptor, in an arena where it is the segment `first`.
    #[inline(always)]
    pub(super) const fn of_one_buffer(head: u16, idx: u16, first: u32, len: u32) -> Self {
        Chain { first, readable: 0, readable_len: 0, writable_len: len, ..Chain::of_one(head, idx, len) }
    }
}

/// A piece of a buffer that is contiguous on the host. A descriptor is one segment, or several where its buffer
/// crosses a border of memory regions.
#[derive(Debug, Clone, Copy)]
pub struct Segment {
    /// As the driver wrote it: guest-physical address, or IOVA behind an IOMMU.
    pub addr: u64,
    pub(crate) host: *mut u8,
    /// Length in bytes.
    pub len: u32,
    /// Is this the same descriptor as the segment before?
    pub continues: bool,
}

impl Segment {
    /// No bytes, nowhere.
    pub(super) const NONE: Segment = Segment { addr: 0, host: std::ptr::null_mut(), len: 0, continues: false };
}

/// Chains that are a single device-readable buffer each, in the order of the ring.
#[derive(Debug, Clone, Copy)]
pub struct SingleBufferBatch<'a> {
    heads: &'a [u16],
    places: &'a [u16],
    /// Found by an arena that outlives `'a`, and whose memory does.
    list: &'a [Segment],
    memory: &'a Arc<Memory>,
}

impl<'a> SingleBufferBatch<'a> {
    /// The chains.
    #[inline(always)]
    pub fn views(&self) -> impl Iterator<Item = ChainView<'a>> + use<'a> {
        let memory = self.memory;
        let chains = self.heads.iter().zip(self.places).zip(self.list);
        chains.map(move |((head, idx), segment)| ChainView {
            chain: Chain::of_one(*head, *idx, segment.len),
            list: std::slice::from_ref(segment),
            memory,
        })
    }
}

/// A chain with its segments.
#[derive(Debug, Clone, Copy)]
pub struct ChainView<'a> {
    /// The chain.
    pub chain: Chain,
    /// Found by an arena that outlives `'a`, and whose memory does.
    list: &'a [Segment],
    memory: &'a Arc<Memory>,
}

impl<'a> ChainView<'a> {
    /// The memory that its segments lie in.
    #[must_use]
    pub const fn memory(&self) -> &'a Arc<Memory> {
        self.memory
    }

    /// All segments, in order.
    #[must_use]
    pub const fn segments(&self) -> &'a [Segment] {
        self.list
    }

    /// The device-readable slices, in order.
    #[inline(always)]
    pub fn readable(&self) -> impl ExactSizeIterator<Item = GuestSlice<'a>> + Clone + use<'a> {
        slices(self.list.get(..self.chain.readable as usize).unwrap_or_default())
    }

    /// The device-writable slices, in order.
    pub fn writable(&self) -> impl ExactSizeIterator<Item = GuestSlice<'a>> + Clone + use<'a> {
        slices(self.list.get(self.chain.readable as usize..).unwrap_or_default())
    }
}

/// Segments of a view or of a batch, which alone may be given.
#[inline(always)]
fn slices<'a>(segments: &'a [Segment]) -> impl ExactSizeIterator<Item = GuestSlice<'a>> + Clone + use<'a> {
    // SAFETY: an arena found them, and its memory stays mapped for 'a.
    segments.iter().map(|segment| unsafe { GuestSlice::new(segment.addr, segment.host, segment.len as usize) })
}

/// A reusable arena of segments, tied to the memory its pointers point into: they live as long as it does.
///
/// Invariant: the arena translates every address itself, through the memory it holds, so each segment is `len` mapped
/// bytes for as long as the arena lives, whatever ring the chain came from.
#[derive(Debug)]
pub struct Segments {
    memory: Arc<Memory>,
    list: Vec<Segment>,
    /// Without an IOMMU.
    hint: Hint,
    /// With one.
    tlb: Option<Tlb>,
}

// SAFETY: the segments' pointers point into shared memory that `memory` keeps mapped; nobody borrows its bytes.
unsafe impl Send for Segments {}

impl Segments {
    /// An empty arena for chains over `memory`, with room for `capacity` segments before it has to grow.
    #[must_use]
    pub fn new(memory: Arc<Memory>, capacity: usize) -> Self {
        let tlb = memory.iotlb().map(|iotlb| Tlb::new(Arc::clone(iotlb)));
        Segments { memory, list: Vec::with_capacity(capacity), hint: Hint::default(), tlb }
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

/// What is known of a chain while it is being followed: the checks that each descriptor must pass, whoever follows it.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) head: u16,
    pub(super) descriptors: u16,
    /// Sums of lengths; `take` keeps their sum below 2^32.
    readable_len: u64,
    writable_len: u64,
    writing: bool,
}

impl Tally {
    #[inline(always)]
    pub(super) fn new(head: u16) -> Self {
        Tally { head, descriptors: 0, readable_len: 0, writable_len: 0, writing: false }
    }

    /// Counts descriptor `index`, which is not an indirect one, and says what the device may do with its buffer.
    #[inline(always)]
    pub(super) fn take(&mut self, index: u16, desc: &Descriptor) -> Result<Access, RingError> {
        let head = self.head;
        let writable = desc.flags & DESC_F_WRITE != 0;
        if self.writing && !writable {
            // VIRTIO 1.3, 2.7.4.2 Driver Requirements: Message Framing.
            return Err(RingError::ReadableAfterWritable { head, index });
        }
        let len = u64::from(desc.len);
        // VIRTIO 1.3, 2.7.5.1: no chain longer than 2^32 bytes in total. One byte less, as `written` is 32 bits.
        if self.readable_len + self.writable_len + len > u64::from(u32::MAX) {
            return Err(RingError::TotalTooLarge { head, index, max: u32::MAX });
        }
        self.descriptors += 1;
        self.writing = writable;
        if writable {
            self.writable_len += len;
            Ok(Access::Write)
        } else {
            self.readable_len += len;
            Ok(Access::Read)
        }
    }
}

/// Whoever follows a chain: takes its descriptors one by one.
pub(super) trait Follower<'m> {
    /// Takes the buffer of descriptor `index`, which is not an indirect one. The walk bounds how many come.
    fn buffer(&mut self, index: u16, desc: &Descriptor) -> Result<(), RingError>;

    /// Descriptors so far.
    fn descriptors(&self) -> u16;

    /// The memory the chain's addresses are in, and where in it a table at `addr` is likely to be found.
    fn memory(&mut self, addr: u64) -> (&'m Memory, Hint);
}

/// A chain while the device follows it.
#[derive(Debug)]
pub(super) struct ChainBuilder<'s> {
    memory: &'s Memory,
    list: &'s mut Vec<Segment>,
    hint: &'s mut Hint,
    tlb: Option<&'s mut Tlb>,
    /// The first buffer whose translation is missing.
    incomplete: Option<RingError>,
    tally: Tally,
    first: usize,
    readable: usize,
}

impl<'s> ChainBuilder<'s> {
    #[inline]
    pub(super) fn new(into: &'s mut Segments, head: u16) -> Self {
        let Segments { memory, list, hint, tlb } = into;
        let first = list.len();
        let mut tlb = tlb.as_mut();
        if let Some(tlb) = &mut tlb {
            tlb.forget_misses();
        }
        ChainBuilder { memory, list, hint, tlb, incomplete: None, tally: Tally::new(head), first, readable: 0 }
    }

    /// Appends the segments of one buffer. A buffer of no bytes is one empty segment, whatever its address.
    #[inline(always)]
    fn push(&mut self, addr: u64, len: u32, access: Access) -> Result<(), MemoryError> {
        if self.tlb.is_some() && len > 0 {
            return self.push_translated(addr, len, access);
        }
        match self.memory.find(addr, u64::from(len), access, self.hint)? {
            Found::Whole(host) => self.list.push(Segment { addr, host, len, continues: false }),
            Found::Split { .. } | Found::Scattered => self.push_pieces(addr, len, access)?,
        }
        Ok(())
    }

    #[cold]
    fn push_pieces(&mut self, addr: u64, len: u32, access: Access) -> Result<(), MemoryError> {
        let mut continues = false;
        for piece in self.memory.pieces(addr, u64::from(len), access)? {
            // A piece is no longer than the buffer, whose length is a u32.
            let len = piece.len() as u32;
            self.list.push(Segment { addr: piece.addr(), host: piece.as_ptr(), len, continues });
            continues = true;
        }
        Ok(())
    }

    /// Behind an IOMMU: what neighbours on the host is one segment, whatever translations it came from. A miss does not
    /// end the look: all misses of a chain are found in one walk.
    #[inline(never)]
    fn push_translated(&mut self, addr: u64, len: u32, access: Access) -> Result<(), MemoryError> {
        let Some(tlb) = &mut self.tlb else { return Ok(()) };
        let end = addr.checked_add(u64::from(len)).ok_or(MemoryError::Wraps { addr, len: u64::from(len) })?;
        let (mut at, mut missing) = (addr, None);
        while at < end && !tlb.is_full() {
            match tlb.piece(self.memory, at, end - at, access) {
                Ok(piece) => {
                    // A piece is no longer than the buffer, whose length is a u32.
                    let continues = at != addr;
                    match self.list.last_mut() {
                        Some(last) if continues && last.host.wrapping_add(last.len as usize) == piece.host => {
                            last.len += piece.len as u32;
                        }
                        _ => self.list.push(Segment { addr: at, host: piece.host, len: piece.len as u32, continues }),
                    }
                    at += piece.len;
                }
                Err(error @ MemoryError::Untranslated { .. }) => {
                    missing.get_or_insert(error);
                    at = next_page(at);
                }
                Err(error) => return Err(error),
            }
        }
        missing.map_or(Ok(()), Err)
    }

    /// Is every buffer translated?
    ///
    /// # Errors
    /// The first that is not.
    #[inline]
    pub(super) fn complete(&mut self) -> Result<(), RingError> {
        self.incomplete.take().map_or(Ok(()), Err)
    }

    /// Packed rings: the buffer id, which stands in a chain's last descriptor.
    #[inline(always)]
    pub(super) fn set_head(&mut self, id: u16) {
        self.tally.head = id;
    }

    /// The chain is complete.
    #[inline]
    pub(super) fn finish(self, idx: u16, slots: u16, indirect: bool) -> Chain {
        Chain {
            head: self.tally.head,
            idx,
            descriptors: self.tally.descriptors,
            slots,
            indirect,
            // The arena holds at most a burst of chains of at most 32768 descriptors each.
            first: self.first as u32,
            count: (self.list.len() - self.first) as u32,
            readable: self.readable as u32,
            // `take` kept both below 2^32.
            readable_len: self.tally.readable_len as u32,
            writable_len: self.tally.writable_len as u32,
        }
    }

    /// The chain is malformed: nothing of it stays in the arena.
    #[cold]
    pub(super) fn abandon(self) {
        self.list.truncate(self.first);
    }
}

impl<'s> Follower<'s> for ChainBuilder<'s> {
    #[inline(always)]
    fn buffer(&mut self, index: u16, desc: &Descriptor) -> Result<(), RingError> {
        let access = self.tally.take(index, desc)?;
        let head = self.tally.head;
        match self.push(desc.addr, desc.len, access) {
            Ok(()) => {}
            Err(source @ MemoryError::Untranslated { .. }) => {
                self.incomplete.get_or_insert(RingError::Unmapped { head, index, source });
            }
            Err(source) => return Err(RingError::of_buffer(head, index, source)),
        }
        if access == Access::Read {
            self.readable = self.list.len() - self.first;
        }
        Ok(())
    }

    #[inline]
    fn descriptors(&self) -> u16 {
        self.tally.descriptors
    }

    #[inline]
    fn memory(&mut self, addr: u64) -> (&'s Memory, Hint) {
        let hint = match &mut self.tlb {
            Some(tlb) => tlb.hint(self.memory, addr),
            None => *self.hint,
        };
        (self.memory, hint)
    }
}
