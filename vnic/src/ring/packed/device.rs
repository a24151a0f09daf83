//! The device half of a packed ring.
//!
//! Place: see [`DeviceRing`]; one thread at a time.
//!
//! Operation (VIRTIO 1.3, 2.8.6 Next Flag: Descriptor Chaining, 2.8.22 Receiving Used Buffers From The Device):
//! 1. A descriptor is available when its flags say so for this lap. Length, id and flags are loaded in one piece, with
//!    acquire, the address after them.
//! 2. A chain is the descriptors that follow one another while NEXT is set; its buffer id stands in the last. Each must
//!    be available itself.
//! 3. A used descriptor is written over the slots in the order of use, whatever chain stood there; it takes as many
//!    slots as its chain did.
//! 4. The driver looks at one slot only, the next. So the words of a burst are stored as they come but for the first,
//!    which is stored last, with release: that publishes the burst. Then, behind a full fence, whether the driver wants a
//!    call is read.
//!
//! With IN_ORDER a chain is used where it was available (2.8.4 In-order use of descriptors), so its used descriptor is
//! written to its own first slot, in whatever order chains come back, and the ring goes as far as there is no gap.
//!
//! Invariants: the device holds the slots from `next_used` to `next_avail`, never more than the ring has (`held`); the
//! available descriptors of chains that were given back lie outside of what used descriptors overwrite, as they are the
//! youngest. An id is in flight once at most.

mod format;

use std::sync::Arc;

use crate::memory::Memory;
use crate::ring::batch::{BATCH, Batch};
use crate::ring::builder::ChainBuilder;
use crate::ring::engine::{self, Format};
use crate::ring::fast_path::{Fallback, FastPath};
use crate::ring::heads::Heads;
use crate::ring::pointers::{PackedParts, PackedPointers, Word, full_fence};
use crate::ring::walk::Rules;
use crate::ring::{Chain, DeviceRing, DrainEnd, RingError, RingLayout, RingLog, Segment, Segments, Taken, Visitor};
use crate::spec::ring::{
    DESC_F_AVAIL, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE, Descriptor, PACKED_EVENT_DESC, PACKED_EVENT_DISABLE,
    PACKED_EVENT_ENABLE, PackedDescriptor, PackedEvent,
};
use crate::spec::{Feature, Features};

use super::walk::{Walked, follow, follow_taken};
use super::{Position, wants};

/// Descriptors in a cache line.
const SLOTS_PER_LINE: u16 = 4;
/// How far ahead the ring is asked for: the driver has written it, and getting a line takes as long as some chains.
const SLOTS_AHEAD: u16 = 32;

/// Buffer ids there can be: the driver chooses them freely.
const IDS: usize = 1 << 16;

/// The device half of a packed ring. See the [module](self).
#[derive(Debug)]
pub struct PackedDevice {
    ring: PackedPointers,
    state: State,
    pub(in crate::ring) log: Option<Box<RingLog>>,
}

/// Where the device stands.
#[derive(Debug)]
pub(in crate::ring) struct State {
    rules: Rules,
    event_idx: bool,
    next_avail: Position,
    /// Where the next used descriptor goes.
    next_used: Position,
    /// Where the driver looks for the next used descriptor.
    published: Position,
    /// The word for that place, once there is one.
    first: Option<Word>,
    /// Chains were given back; what was available then ends here.
    refused: Option<Position>,
    /// Slots from `next_used` to `next_avail`.
    held: u16,
    /// By buffer id. Only the pages of ids that occur ever become resident.
    ids: Heads,
    fresh: bool,
    /// With IN_ORDER: by slot, how many slots the used chain there takes; 0: none.
    done: Option<Box<[u16]>>,
    /// The driver was last told not to kick.
    quiet: bool,
    /// The last burst was a long one.
    deep: bool,
}

impl PackedDevice {
    /// The device half of the ring at `layout`, going on from `base`, of which only the available half (bits 0–15)
    /// counts: a ring is stopped with nothing in flight, and some front-ends leave the other half empty.
    ///
    /// # Errors
    /// Size or base cannot be, or a part of the ring is not guest memory.
    pub fn new(layout: RingLayout, memory: Arc<Memory>, features: Features, base: u32) -> Result<Self, RingError> {
        let ring = PackedPointers::new(&layout, memory)?;
        let size = layout.size;
        let start = Position::from_bits(base as u16, size).ok_or(RingError::BadBase { base })?;
        let in_order = features.has(Feature::InOrder);
        let state = State {
            rules: Rules { size, indirect: features.has(Feature::IndirectDesc) },
            event_idx: features.has(Feature::EventIdx),
            next_avail: start,
            next_used: start,
            published: start,
            first: None,
            refused: None,
            held: 0,
            ids: Heads::new(IDS),
            fresh: true,
            quiet: false,
            deep: false,
            done: in_order.then(|| vec![0; usize::from(size)].into_boxed_slice()),
        };
        Ok(PackedDevice { ring, state, log: None })
    }

    /// Where the next used descriptor goes.
    pub(in crate::ring) fn used_position(&self) -> u16 {
        self.state.next_used.to_bits()
    }

    /// Chains that are available in a ring that has been used before.
    pub(in crate::ring) fn left_behind(&self) -> u16 {
        let (ring, size) = (self.ring.parts(), self.state.rules.size);
        if self.state.next_used == Position::START {
            return 0;
        }
        let slots = (0..size).map(|at| self.state.next_avail.after(at, size)).map(|at| (at, ring.word(at.slot)));
        let available = slots.take_while(|(at, word)| at.is_available(word.flags));
        // No more than the ring has slots.
        available.filter(|(_, word)| word.flags & DESC_F_NEXT == 0).count() as u16
    }

    /// Does a used descriptor stand there?
    pub(in crate::ring) fn is_used_at(&self, position: u16) -> bool {
        let position = Position::from_bits(position, self.state.rules.size);
        position.is_some_and(|at| at.is_used(self.ring.parts().word(at.slot).flags))
    }

    /// The descriptor `at` slots behind `slot`.
    pub(in crate::ring) fn descriptor(&self, slot: u16, at: u16) -> PackedDescriptor {
        let ring = self.ring.parts();
        let slot = Position { slot, wrap: false }.after(at, self.state.rules.size).slot;
        let Word { len, id, flags } = ring.word(slot);
        PackedDescriptor { addr: ring.addr(slot), len, id, flags }
    }

    /// The device before this one held `slots` slots from here on when it died. What it may have written over them was never published:
    /// the driver, when it comes there, must not take it for an answer.
    pub(in crate::ring) fn resume(&mut self, used: u16, slots: usize) -> Result<(), RingError> {
        let (ring, state) = (self.ring.parts(), &mut self.state);
        let size = state.rules.size;
        let refused = RingError::BadBase { base: used.into() };
        let slots = u16::try_from(slots).ok().filter(|slots| *slots <= size).ok_or(refused.clone())?;
        let used = Position::from_bits(used, size).ok_or(refused)?;
        for at in (0..slots).map(|at| used.after(at, size)) {
            if at.is_used(ring.word(at.slot).flags) {
                ring.set_word(at.slot, Word { len: 0, id: 0, flags: at.available() });
            }
        }
        if let Some(log) = &self.log {
            log.slots(used.slot, slots, size);
        }
        (state.next_used, state.published) = (used, used);
        state.next_avail = used.after(slots, size);
        state.held = slots;
        Ok(())
    }

    /// Follows a chain that is in flight since before this device.
    pub(in crate::ring) fn retake(&mut self, into: &mut Segments, taken: &Taken) -> Result<Chain, RingError> {
        let (state, head) = (&mut self.state, taken.head);
        let mut chain = ChainBuilder::new(into, head);
        let followed = follow_taken(&mut chain, taken, state.rules);
        match followed.and_then(|indirect| chain.complete().map(|()| indirect)) {
            Ok(indirect) if state.ids.take(head).is_ok() => {
                state.ids.retain(head);
                // No more than the ring has.
                Ok(chain.finish(state.next_used.slot, taken.descriptors.len() as u16, indirect))
            }
            Ok(_) => {
                chain.abandon();
                Err(RingError::HeadInFlight { idx: state.next_used.slot, head })
            }
            Err(error) => {
                chain.abandon();
                Err(error)
            }
        }
    }

    /// That chain was not taken. False: nor was it before.
    pub(in crate::ring) fn unretake(&mut self, head: u16) -> bool {
        self.state.ids.cancel_retained(head)
    }

    /// Is the ring's memory gone? As [`GuestRegions::lost`](crate::memory::GuestRegions::lost).
    pub(in crate::ring) fn lost(&self) -> bool {
        self.ring.lost()
    }
}

impl engine::Device for PackedDevice {
    type Format = State;

    #[inline(always)]
    fn halves(&mut self) -> (PackedParts<'_>, &mut State) {
        (self.ring.parts(), &mut self.state)
    }
}

impl DeviceRing for PackedDevice {
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
        for ahead in (0..count.min(state.rules.size)).step_by(SLOTS_PER_LINE.into()) {
            ring.prefetch(state.next_avail.after(ahead, state.rules.size).slot);
        }
    }

    fn unpop(&mut self, chains: &[Chain]) -> Result<(), RingError> {
        let (ring, state) = (self.ring.parts(), &mut self.state);
        if !chains.is_empty() {
            state.refuse(ring);
        }
        for chain in chains.iter().rev() {
            let before = state.next_avail.before(chain.slots, state.rules.size);
            if before.slot != chain.idx || !state.ids.cancel_retained(chain.head) {
                return Err(RingError::NotInFlight { head: chain.head });
            }
            state.next_avail = before;
            state.held -= chain.slots;
        }
        Ok(())
    }

    #[inline]
    fn publish(&mut self) -> Result<bool, RingError> {
        let (ring, state) = (self.ring.parts(), &mut self.state);
        let Some(word) = state.first.take() else { return Ok(false) };
        let old = state.published;
        ring.release_word(old.slot, word);
        state.published = state.next_used;
        state.ids.next_burst();
        if let Some(log) = &self.log {
            log.slots(old.slot, old.slots_to(state.published, state.rules.size), state.rules.size);
        }
        full_fence();
        let wanted = wants(ring.driver_event(), state.published, old, state.rules.size);
        Ok(std::mem::take(&mut state.fresh) || wanted)
    }

    fn enable_notifications(&mut self) -> Result<bool, RingError> {
        let (ring, state) = (self.ring.parts(), &mut self.state);
        state.quiet = false;
        let known = state.refused.unwrap_or(state.next_avail);
        let event = if state.event_idx {
            PackedEvent { off_wrap: known.to_bits(), flags: PACKED_EVENT_DESC }
        } else {
            PackedEvent { off_wrap: 0, flags: PACKED_EVENT_ENABLE }
        };
        ring.set_device_event(event);
        self.log.iter().for_each(|log| log.used(0, 4));
        full_fence();
        Ok(State::is_available(ring, known))
    }

    fn disable_notifications(&mut self) {
        let (ring, state) = (self.ring.parts(), &mut self.state);
        if !state.quiet {
            state.quiet = true;
            ring.set_device_event(PackedEvent { off_wrap: 0, flags: PACKED_EVENT_DISABLE });
            self.log.iter().for_each(|log| log.used(0, 4));
        }
    }

    fn available(&mut self) -> Result<u16, RingError> {
        let (ring, state) = (self.ring.parts(), &mut self.state);
        Ok(u16::from(State::is_available(ring, state.next_avail)))
    }

    fn base(&self) -> u32 {
        u32::from(self.state.next_avail.to_bits()) | u32::from(self.state.next_used.to_bits()) << 16
    }

    fn in_flight(&self) -> u16 {
        self.state.ids.retained()
    }

    fn size(&self) -> u16 {
        self.state.rules.size
    }
}
