//! A chain of buffers as the device got it.

use std::sync::Arc;

use crate::memory::{GuestSlice, Memory};

/// One device-side chain: what `pop` found, all of it checked. The buffers themselves are in the [`Segments`](super::Segments) it was
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
    pub(super) const fn of_one(head: u16, idx: u16, len: u32) -> Self {
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
    pub(super) heads: &'a [u16],
    pub(super) places: &'a [u16],
    /// Found by an arena that outlives `'a`, and whose memory does.
    pub(super) list: &'a [Segment],
    pub(super) memory: &'a Arc<Memory>,
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
    pub(super) list: &'a [Segment],
    pub(super) memory: &'a Arc<Memory>,
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
