//! The device half of a split ring.
//!
//! Place: see [`DeviceRing`]; one thread at a time.
//!
//! Operation (VIRTIO 1.3, 2.7.6 The Virtqueue Available Ring, 2.7.8 The Virtqueue Used Ring):
//! 1. `avail.idx` is loaded with acquire, and only when all entries known of are taken. What it promises is checked
//!    against the ring's size.
//! 2. A head is taken from the entry, checked, and its chain followed (`fast_path`, else `walk`).
//! 3. Used elements are written into the used ring as chains come back; they lie behind `used.idx`, where the driver
//!    does not look.
//! 4. `used.idx` is stored with release once per burst, unless it is not as it was left; then, behind a full fence, whether
//!    the driver wants a call is read.
//!
//! With IN_ORDER the used ring has the order of the available ring (2.7.9 In-order use of descriptors), so a chain's
//! place in it is known from the start: it is filled in out of order, and `used.idx` goes as far as there is no gap.
//!
//! Invariants: a head is taken only when it is not out, and returned only when it is (`heads`), so no more is returned
//! than was taken.

mod format;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::Memory;
use crate::ring::batch::{BATCH, Batch};
use crate::ring::builder::ChainBuilder;
use crate::ring::engine::{self, Format};
use crate::ring::fast_path::{Fallback, FastPath};
use crate::ring::heads::{Heads, Refused};
use crate::ring::pointers::{SplitParts, SplitPointers, full_fence};
use crate::ring::slots::Slots;
use crate::ring::walk::{Rules, split_chain};
use crate::ring::{Chain, DeviceRing, DrainEnd, RingError, RingLayout, RingLog, Segment, Segments, Visitor};
use crate::spec::ring::{AVAIL_F_NO_INTERRUPT, DESC_F_NEXT, DESC_F_WRITE, USED_F_NO_NOTIFY, UsedElem};
use crate::spec::{Feature, Features};

use super::need_event;

/// Entries of the available ring in a cache line.
const AVAIL_PER_LINE: u16 = 32;
/// How far ahead the available ring is asked for, as far as it is known to be written.
const AVAIL_AHEAD: u16 = 128;

/// Elements of the used ring in a cache line.
const USED_PER_LINE: u16 = 8;
/// How far ahead the used ring is asked for.
const USED_AHEAD: u16 = BATCH as u16;

/// The device half of a split ring. See the [module](self).
#[derive(Debug)]
pub struct SplitDevice {
    ring: SplitPointers,
    state: State,
    pub(in crate::ring) log: Option<Box<RingLog>>,
}

/// Where the device stands.
#[derive(Debug)]
pub(in crate::ring) struct State {
    rules: Rules,
    /// The next entry to pop.
    next_avail: u16,
    /// `avail.idx` when it was last loaded.
    seen_avail: u16,
    /// Chains were given back when the ring stood at `seen_avail`.
    refused: bool,
    /// The next entry of the used ring to fill; behind it lie returned chains.
    next_used: u16,
    /// `used.idx` as the driver sees it.
    published: u16,
    /// Nothing was published yet: what the driver was told before is not known.
    fresh: bool,
    heads: Heads,
    in_order: Option<InOrder>,
    /// The driver was last told not to kick.
    quiet: bool,
}

/// Places in the used ring that are filled ahead of `next_used`.
#[derive(Debug)]
struct InOrder {
    filled: Slots,
    /// A chain's place in the used ring, less its place in the available ring.
    skew: u16,
}

impl SplitDevice {
    /// The device half of the ring at `layout`. It goes on at available entry `base`, and in the used ring where the
    /// driver's memory says. The two are the same where the device before gave back all it had taken, as it must before it
    /// stops. Where they are not, that device died: the front-end cannot know how far it had come (DPDK's says 0, others
    /// the available index), the used ring does. What was taken and not used is then taken again.
    ///
    /// # Errors
    /// Size or base cannot be, or a part of the ring is not guest memory.
    pub fn new(layout: RingLayout, memory: Arc<Memory>, features: Features, base: u32) -> Result<Self, RingError> {
        let pointers = SplitPointers::new(&layout, memory, features)?;
        let ring = pointers.parts();
        let base = u16::try_from(base).map_err(|_| RingError::BadBase { base })?;
        let used = ring.used_idx().load(Ordering::Relaxed);
        let unused = ring.avail_idx().load(Ordering::Acquire).wrapping_sub(used);
        // What cannot be either is an error when it comes to it.
        let next_avail = if unused <= layout.size { used } else { base };
        let in_order = features.has(Feature::InOrder);
        let state = State {
            rules: Rules { size: layout.size, indirect: features.has(Feature::IndirectDesc) },
            next_avail,
            seen_avail: next_avail,
            refused: false,
            quiet: false,
            next_used: used,
            published: used,
            fresh: true,
            heads: Heads::new(usize::from(layout.size)),
            in_order: in_order
                .then(|| InOrder { filled: Slots::new(usize::from(layout.size)), skew: used.wrapping_sub(next_avail) }),
        };
        Ok(SplitDevice { ring: pointers, state, log: None })
    }

    /// Where the next used element goes.
    pub(in crate::ring) fn used_position(&self) -> u16 {
        self.state.next_used
    }

    /// So many chains behind the used ones are in flight.
    pub(in crate::ring) fn resume(&mut self, taken: usize) -> Result<(), RingError> {
        let state = &mut self.state;
        let taken = u16::try_from(taken).ok().filter(|taken| *taken <= state.rules.size);
        let base = u32::from(state.next_used);
        state.next_avail = state.next_used.wrapping_add(taken.ok_or(RingError::BadBase { base })?);
        state.seen_avail = state.next_avail;
        Ok(())
    }

    /// Follows a chain that is in flight since before this device.
    pub(in crate::ring) fn retake(&mut self, into: &mut Segments, head: u16) -> Result<Chain, RingError> {
        let (ring, state) = (self.ring.parts(), &mut self.state);
        state.take_head(state.next_used, head)?;
        let chain = state.walk(ring, into, head)?;
        state.heads.retain(head);
        Ok(chain)
    }

    /// That chain was not taken. False: nor was it before.
    pub(in crate::ring) fn unretake(&mut self, head: u16) -> bool {
        self.state.heads.cancel_retained(head)
    }

    /// As [`Device::moved`](crate::ring::Device::moved).
    pub(in crate::ring) fn moved(&self) -> Option<RingError> {
        let (left, found) = (self.state.published, self.ring.parts().used_idx().load(Ordering::Relaxed));
        (left != found).then_some(RingError::UsedMoved { left, found })
    }

    /// Is the ring's memory gone? As [`GuestRegions::lost`](crate::memory::GuestRegions::lost).
    pub(in crate::ring) fn lost(&self) -> bool {
        self.ring.lost()
    }
}

impl engine::Device for SplitDevice {
    type Format = State;

    #[inline(always)]
    fn halves(&mut self) -> (SplitParts<'_>, &mut State) {
        (self.ring.parts(), &mut self.state)
    }
}

impl DeviceRing for SplitDevice {
    #[inline]
    fn pop(&mut self, into: &mut Segments) -> Result<Option<Chain>, RingError> {
        engine::pop(&mut self.state, self.ring.parts(), into)
    }

    #[inline]
    fn pop_buffers(&mut self, into: &mut Segments, limit: u16, chains: &mut Vec<Chain>) -> Result<(), RingError> {
        engine::pop_buffers(&mut self.state, self.ring.parts(), into, limit, chains)
    }

    #[inline]
    fn drain<V: Visitor>(&mut self, into: &mut Segments, limit: u16, visitor: &mut V) -> Result<DrainEnd, RingError> {
        engine::drain(self, into, limit, visitor)
    }

    #[inline(always)]
    fn push_used(&mut self, chain: &Chain, written: u32) -> Result<(), RingError> {
        engine::push_used(&mut self.state, self.ring.parts(), chain, written)
    }

    #[inline]
    fn prefetch(&mut self, count: u16) {
        let (ring, state) = (self.ring.parts(), &mut self.state);
        for ahead in 0..count.min(state.rules.size) {
            // What stands there may be old, or anything: it is a hint.
            let head = ring.avail_entry(state.next_avail.wrapping_add(ahead)).load(Ordering::Relaxed);
            ring.prefetch_desc(head);
        }
    }

    fn unpop(&mut self, chains: &[Chain]) -> Result<(), RingError> {
        for chain in chains.iter().rev() {
            if chain.idx != self.state.next_avail.wrapping_sub(1) || !self.state.heads.cancel_retained(chain.head) {
                return Err(RingError::NotInFlight { head: chain.head });
            }
            self.state.next_avail = chain.idx;
            self.state.refused = true;
        }
        Ok(())
    }

    #[inline]
    fn publish(&mut self) -> Result<bool, RingError> {
        let (ring, state) = (self.ring.parts(), &mut self.state);
        let (old, new) = (state.published, state.next_used);
        if old == new {
            return Ok(false);
        }
        // Release: the used elements, and the bytes in the buffers, are stored before it. A front-end that lost the
        // session and goes on by itself must not be put back: the driver would be given the same chains twice.
        let moved = |found| RingError::UsedMoved { left: old, found };
        ring.used_idx().compare_exchange(old, new, Ordering::Release, Ordering::Relaxed).map_err(moved)?;
        state.published = new;
        state.heads.next_burst();
        if let Some(log) = &self.log {
            log.elements(old & (state.rules.size - 1), new.wrapping_sub(old), state.rules.size);
        }
        // The driver stores whether it wants a call, then loads `used.idx`; we do both the other way round (2.7.7, 2.7.10).
        full_fence();
        let wanted = match ring.used_event() {
            Some(event) => need_event(event.load(Ordering::Relaxed), new, old),
            None => ring.avail_flags().load(Ordering::Relaxed) & AVAIL_F_NO_INTERRUPT == 0,
        };
        Ok(std::mem::take(&mut state.fresh) || wanted)
    }

    fn enable_notifications(&mut self) -> Result<bool, RingError> {
        let (ring, state) = (self.ring.parts(), &mut self.state);
        // What was refused is known; only what comes behind it is news.
        let known = if state.refused { state.seen_avail } else { state.next_avail };
        state.quiet = false;
        match ring.avail_event() {
            Some(event) => event.store(known, Ordering::Relaxed),
            None => ring.used_flags().store(0, Ordering::Relaxed),
        }
        if let Some(log) = &self.log {
            log.notifications(state.rules.size, ring.event_idx());
        }
        full_fence();
        state.refresh(ring)?;
        Ok(state.seen_avail != known)
    }

    fn disable_notifications(&mut self) {
        let (ring, state) = (self.ring.parts(), &mut self.state);
        // With EVENT_IDX there is nothing to say: no kick comes until `avail.idx` passes `avail_event`, once.
        // A store for nothing would take the driver's copy of `used.idx` away.
        if !ring.event_idx() && !state.quiet {
            state.quiet = true;
            ring.used_flags().store(USED_F_NO_NOTIFY, Ordering::Relaxed);
            if let Some(log) = &self.log {
                log.notifications(state.rules.size, false);
            }
        }
    }

    fn available(&mut self) -> Result<u16, RingError> {
        let (ring, state) = (self.ring.parts(), &mut self.state);
        state.refresh(ring)
    }

    fn base(&self) -> u32 {
        u32::from(self.state.next_avail)
    }

    fn in_flight(&self) -> u16 {
        self.state.heads.retained()
    }

    fn size(&self) -> u16 {
        self.state.rules.size
    }
}
