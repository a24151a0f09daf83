//! A handful of chains that are one device-readable buffer each: found first, looked at then.
//!
//! Place: the device halves' `drain`, for the chains that nearly all are on a busy transmitq. Finding one is a row of loads
//! that wait for one another: entry, descriptor, buffer. Found a handful at a time, with each buffer asked for, they wait
//! at the same time; and what is looked at and used together needs no word in memory from one chain to the next.

use super::arena::Segments;
use super::chain::{Segment, SingleBufferBatch};
use super::pointers::prefetch_to_read;

/// Most chains of a batch.
pub(super) const BATCH: usize = 32;

/// The batch.
#[derive(Debug)]
pub(super) struct Batch {
    heads: [u16; BATCH],
    /// Their places, as [`Chain::idx`](super::Chain::idx) has them.
    places: [u16; BATCH],
    segments: [Segment; BATCH],
    len: usize,
    /// The buffers are read beyond their first cache line.
    reads: bool,
}

impl Batch {
    #[inline(always)]
    pub(super) const fn new(reads: bool) -> Self {
        Batch { heads: [0; BATCH], places: [0; BATCH], segments: [Segment::NONE; BATCH], len: 0, reads }
    }

    /// Puts a chain at place `at`, and asks for its first bytes. The segment was found through the hint of the arena that
    /// it will be looked at in.
    #[inline(always)]
    pub(super) fn set(&mut self, at: usize, head: u16, idx: u16, segment: Segment) {
        let Batch { heads, places, segments, reads, .. } = self;
        if let (Some(to_head), Some(place), Some(to)) = (heads.get_mut(at), places.get_mut(at), segments.get_mut(at)) {
            prefetch_to_read(segment.host);
            if *reads {
                prefetch_to_read(segment.host.wrapping_add(64));
            }
            (*to_head, *place, *to) = (head, idx, segment);
        }
    }

    /// The chains at the first `len` places are the batch.
    #[inline(always)]
    pub(super) const fn set_len(&mut self, len: usize) {
        self.len = len;
    }

    #[inline(always)]
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    #[inline(always)]
    pub(super) const fn is_full(&self) -> bool {
        self.len == BATCH
    }

    /// The heads from place `at` on.
    #[inline(always)]
    pub(super) fn heads_from(&self, at: usize) -> &[u16] {
        self.heads.get(at..self.len).unwrap_or_default()
    }

    /// Bytes of the buffer at place `at`.
    #[inline(always)]
    pub(super) fn len_at(&self, at: usize) -> u32 {
        self.segments.get(at).map_or(0, |segment| segment.len)
    }

    /// The chains from place `at` on, to be looked at.
    #[inline(always)]
    pub(super) fn from<'s>(&'s self, at: usize, arena: &'s Segments) -> SingleBufferBatch<'s> {
        let Batch { heads, places, segments, len, .. } = self;
        let (heads, places) = (heads.get(at..*len).unwrap_or_default(), places.get(at..*len).unwrap_or_default());
        arena.single_buffers(heads, places, segments.get(at..*len).unwrap_or_default())
    }
}
