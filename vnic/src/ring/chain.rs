//! A chain of buffers as the device got it, and the arena its segments live in.

use std::sync::Arc;

use crate::memory::{GuestSlice, Memory};

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

/// A reusable arena of segments, tied to the memory its pointers point into: they live as long as it does.
#[derive(Debug)]
pub struct Segments {
    memory: Arc<Memory>,
    list: Vec<Segment>,
}

impl Segments {
    /// An empty arena for chains over `memory`, with room for `capacity` segments before it has to grow.
    #[must_use]
    pub fn new(memory: Arc<Memory>, capacity: usize) -> Self {
        Segments { memory, list: Vec::with_capacity(capacity) }
    }

    /// Forgets all chains; keeps the room.
    pub fn clear(&mut self) {
        self.list.clear();
    }

    /// The device-readable slices of `chain`, in order. `chain` must have been popped into this arena since the last
    /// `clear`; of any other, nothing.
    pub fn readable(&self, chain: &Chain) -> impl ExactSizeIterator<Item = GuestSlice<'_>> + Clone {
        self.range(chain.first, chain.readable)
    }

    /// The device-writable slices of `chain`, in order.
    pub fn writable(&self, chain: &Chain) -> impl ExactSizeIterator<Item = GuestSlice<'_>> + Clone {
        self.range(chain.first + chain.readable, chain.count - chain.readable)
    }

    /// All segments of `chain`, in order.
    #[must_use]
    pub fn of(&self, chain: &Chain) -> &[Segment] {
        let first = chain.first as usize;
        self.list.get(first..first + chain.count as usize).unwrap_or_default()
    }
}
