//! A chain of buffers as the device got it.

use std::sync::Arc;

use crate::memory::transfer::Transfer;
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

    /// Copies readable bytes behind the first `skip` into `out`, each loaded once. Returns how many there were.
    pub fn read_readable(&self, skip: u64, out: &mut [u8]) -> usize {
        let mut count = 0;
        for slice in behind(self.readable(), skip) {
            let Some(room) = out.get_mut(count..).filter(|room| !room.is_empty()) else { break };
            count += slice.read_once(room);
        }
        count
    }

    /// Copies `bytes` into the writable part behind its first `skip` bytes, as far as they fit.
    pub fn write_writable(&self, skip: u64, bytes: &[u8]) {
        let mut rest = bytes;
        for slice in behind(self.writable(), skip) {
            rest = rest.get(slice.copy_from(rest)..).unwrap_or_default();
        }
    }

    /// Describes the readable part behind its first `skip` bytes. The status is the last writable byte.
    pub fn gather_readable(&self, skip: usize, into: &mut Transfer) {
        // SAFETY: the segments of a view lie in its memory.
        unsafe { into.set(self.memory, behind(self.readable(), skip as u64), self.last_writable()) }
    }

    /// Describes the writable part but for its last byte, which is the status.
    pub fn gather_writable(&self, into: &mut Transfer) {
        let mut left = self.chain.writable_len.saturating_sub(1) as usize;
        let data = self.writable().map(move |slice| {
            let first = slice.first(left);
            left -= first.len();
            first
        });
        // SAFETY: as above.
        unsafe { into.set(self.memory, data, self.last_writable()) }
    }

    /// Describes nothing but the status.
    pub fn gather_status(&self, into: &mut Transfer) {
        // SAFETY: as above.
        unsafe { into.set(self.memory, std::iter::empty(), self.last_writable()) }
    }

    /// The last writable byte, if there is any.
    fn last_writable(&self) -> Option<GuestSlice<'a>> {
        let last = self.writable().filter(|slice| !slice.is_empty()).last()?;
        Some(last.advanced(last.len() - 1))
    }
}

/// The slices without their first `skip` bytes.
fn behind<'a>(slices: impl Iterator<Item = GuestSlice<'a>>, mut skip: u64) -> impl Iterator<Item = GuestSlice<'a>> {
    slices.map(move |slice| {
        let rest = slice.advanced(usize::try_from(skip).unwrap_or(usize::MAX));
        skip -= (slice.len() - rest.len()) as u64;
        rest
    })
}

/// Segments of a view or of a batch, which alone may be given.
#[inline(always)]
fn slices<'a>(segments: &'a [Segment]) -> impl ExactSizeIterator<Item = GuestSlice<'a>> + Clone + use<'a> {
    // SAFETY: an arena found them, and its memory stays mapped for 'a.
    segments.iter().map(|segment| unsafe { GuestSlice::new(segment.addr, segment.host, segment.len as usize) })
}
