//! A handful of chains that are one device-readable buffer each: found first, looked at then.
//!
//! Place: the device halves' `drain`, for the chains that nearly all are on a busy transmitq. Finding one is a row of loads
//! that wait for one another: entry, descriptor, buffer. Found a handful at a time, with each buffer asked for, they wait
//! at the same time.

use super::chain::{Chain, Segment};
use super::pointers::prefetch_to_read;
use crate::spec::ring::UsedElem;

/// Most chains of a batch.
pub(super) const BATCH: usize = 32;

/// One of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ready {
    pub(super) head: u16,
    /// Its place, as [`Chain::idx`] has it.
    pub(super) idx: u16,
    /// Found through the hint of the arena that it will be looked at in.
    pub(super) segment: Segment,
}

impl Ready {
    const NONE: Ready =
        Ready { head: 0, idx: 0, segment: Segment { addr: 0, host: std::ptr::null_mut(), len: 0, continues: false } };

    /// The chain it is.
    #[inline(always)]
    pub(super) const fn chain(&self) -> Chain {
        Chain::of_one(self.head, self.idx, self.segment.len)
    }
}

/// The batch.
#[derive(Debug)]
pub(super) struct Batch {
    list: [Ready; BATCH],
    len: usize,
}

impl Batch {
    #[inline(always)]
    pub(super) const fn new() -> Self {
        Batch { list: [Ready::NONE; BATCH], len: 0 }
    }

    /// Adds a chain, and asks for its first bytes. There must be room.
    #[inline(always)]
    pub(super) fn push(&mut self, ready: Ready) {
        if let Some(place) = self.list.get_mut(self.len) {
            prefetch_to_read(ready.segment.host);
            *place = ready;
            self.len += 1;
        }
    }

    #[inline(always)]
    pub(super) const fn is_full(&self) -> bool {
        self.len == BATCH
    }

    #[inline(always)]
    pub(super) const fn clear(&mut self) {
        self.len = 0;
    }

    /// What was added since the last `clear`.
    #[inline(always)]
    pub(super) fn ready(&self) -> &[Ready] {
        self.list.get(..self.len).unwrap_or_default()
    }
}

/// Used elements on their way to the used ring: written together, as the driver reads that ring meanwhile and would take a
/// line that is written bit by bit away as often.
#[derive(Debug)]
pub(super) struct Shadow {
    list: [UsedElem; BATCH + 1],
    len: usize,
}

impl Shadow {
    #[inline(always)]
    pub(super) const fn new() -> Self {
        Shadow { list: [UsedElem { id: 0, len: 0 }; BATCH + 1], len: 0 }
    }

    /// Adds an element. There must be room: for a batch and one more.
    #[inline(always)]
    pub(super) fn push(&mut self, elem: UsedElem) {
        if let Some(place) = self.list.get_mut(self.len) {
            *place = elem;
            self.len += 1;
        }
    }

    /// What was added, in that order; it is empty then.
    #[inline(always)]
    pub(super) fn take(&mut self) -> &[UsedElem] {
        self.list.get(..std::mem::take(&mut self.len)).unwrap_or_default()
    }
}
