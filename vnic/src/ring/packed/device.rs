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
//!    which is stored last, with release: that publishes the burst. Then, behind a full fence, the driver's wish for a
//!    call is read.
//!
//! With IN_ORDER a chain is used where it was available (2.8.4 In-order use of descriptors), so its used descriptor is
//! written to its own first slot, in whatever order chains come back, and the ring goes as far as there is no gap.
//!
//! Invariants: the device holds the slots from `next_used` to `next_avail`, never more than the ring has (`held`); the
//! available descriptors of chains that were given back lie outside of what used descriptors overwrite, as they are the
//! youngest. An id is in flight once at most.

use std::sync::Arc;

use crate::memory::Memory;
use crate::ring::chain::ChainBuilder;
use crate::ring::lane::{Doubt, Lane};
use crate::ring::pointers::{PackedPointers, Word, full_fence};
use crate::ring::slots::Slots;
use crate::ring::walk::Rules;
use crate::ring::{Chain, DeviceRing, RingError, RingLayout, Segments};
use crate::spec::ring::{
    DESC_F_INDIRECT, DESC_F_NEXT, Descriptor, PACKED_EVENT_DESC, PACKED_EVENT_DISABLE, PACKED_EVENT_ENABLE, PackedEvent,
};
use crate::spec::{Feature, Features};

use super::walk::{Walked, follow};
use super::{Position, wants};

/// Buffer ids there can be: the driver chooses them freely.
const IDS: usize = 1 << 16;

/// The device half of a packed ring. See the [module](self).
#[derive(Debug)]
pub struct PackedDevice {
    ring: PackedPointers,
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
    in_flight: u16,
    /// By buffer id. Only the pages of ids that occur ever become resident.
    ids: Slots,
    fresh: bool,
    /// With IN_ORDER: by slot, how many slots the used chain there takes; 0: none.
    done: Option<Box<[u16]>>,
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
        Ok(PackedDevice {
            ring,
            rules: Rules { size, indirect: features.has(Feature::IndirectDesc) },
            event_idx: features.has(Feature::EventIdx),
            next_avail: start,
            next_used: start,
            published: start,
            first: None,
            refused: None,
            held: 0,
            in_flight: 0,
            ids: Slots::new(IDS),
            fresh: true,
            done: in_order.then(|| vec![0; usize::from(size)].into_boxed_slice()),
        })
    }

    #[inline]
    fn is_available(&self, at: Position) -> bool {
        at.is_available(self.ring.word(at.slot).flags)
    }

    /// Follows the chain at `next_avail`, which starts with `word`, if it is a usual one.
    #[inline(always)]
    fn lane(&self, into: &mut Segments, mut word: Word) -> Result<Chain, Doubt> {
        let limit = self.rules.size - self.held;
        let start = self.next_avail;
        let mut lane = Lane::new(into);
        let mut at = start;
        let desc = |at: Position, word: Word| Descriptor {
            addr: self.ring.addr(at.slot),
            len: word.len,
            flags: word.flags,
            next: 0,
        };
        let indirect = word.flags & DESC_F_INDIRECT != 0;
        let mut slots = 1;
        if indirect && limit > 0 {
            lane.packed_table(&desc(at, word), self.rules)?;
        } else {
            lane.take(&desc(at, word), limit)?;
            while word.flags & DESC_F_NEXT != 0 {
                slots += 1;
                at = at.after(1, self.rules.size);
                word = self.ring.word(at.slot);
                if !at.is_available(word.flags) || word.flags & DESC_F_INDIRECT != 0 {
                    return Err(Doubt);
                }
                lane.take(&desc(at, word), limit)?;
            }
        }
        lane.finish(word.id, start.slot, slots, indirect)
    }

    /// Follows the chain at `next_avail`, which starts with `word`, whatever it is.
    #[inline(never)]
    fn walk(&self, into: &mut Segments, word: Word) -> Result<Chain, RingError> {
        let start = self.next_avail;
        let mut chain = ChainBuilder::new(into, start.slot);
        match follow(&mut chain, &self.ring, (start, word), self.held, self.rules) {
            Ok(Walked { slots, indirect, id }) => {
                chain.set_head(id);
                Ok(chain.finish(start.slot, slots, indirect))
            }
            Err(error) => {
                chain.abandon();
                Err(error)
            }
        }
    }

    /// Writes the used descriptor for the place `at`.
    #[inline]
    fn place(&mut self, at: Position, word: Word) {
        if at == self.published {
            self.first = Some(word);
        } else {
            self.ring.set_word(at.slot, word);
        }
    }
}

impl DeviceRing for PackedDevice {
    #[inline]
    fn pop(&mut self, into: &mut Segments) -> Result<Option<Chain>, RingError> {
        let at = self.next_avail;
        let word = self.ring.word(at.slot);
        if !at.is_available(word.flags) {
            return Ok(None);
        }
        let kept = into.len();
        let chain = match self.lane(into, word) {
            Ok(chain) => chain,
            Err(Doubt) => {
                into.truncate(kept);
                self.walk(into, word)?
            }
        };
        if self.ids.set(chain.head) != Some(true) {
            into.truncate(kept);
            return Err(RingError::HeadInFlight { idx: at.slot, head: chain.head });
        }
        self.next_avail = at.after(chain.slots, self.rules.size);
        self.held += chain.slots;
        self.in_flight += 1;
        self.refused = None;
        Ok(Some(chain))
    }

    fn unpop(&mut self, chains: &[Chain]) -> Result<(), RingError> {
        if self.refused.is_none() && !chains.is_empty() {
            // What is available behind these is known too: a call for it would wake the caller for nothing.
            let mut end = self.next_avail;
            for _ in self.held..self.rules.size {
                if !self.is_available(end) {
                    break;
                }
                end = end.after(1, self.rules.size);
            }
            self.refused = Some(end);
        }
        for chain in chains.iter().rev() {
            let before = self.next_avail.before(chain.slots, self.rules.size);
            if before.slot != chain.idx || !self.ids.clear(chain.head) {
                return Err(RingError::NotInFlight { head: chain.head });
            }
            self.next_avail = before;
            self.held -= chain.slots;
            self.in_flight -= 1;
        }
        Ok(())
    }

    #[inline]
    fn push_used(&mut self, chain: &Chain, written: u32) -> Result<(), RingError> {
        let head = chain.head;
        if written > chain.writable_len {
            return Err(RingError::WrittenTooMuch { head, written, room: chain.writable_len });
        }
        if !self.ids.clear(head) {
            return Err(RingError::NotInFlight { head });
        }
        self.in_flight -= 1;
        let size = self.rules.size;
        let word = |at: Position| Word { len: written, id: head, flags: at.used() };
        let next = self.next_used;
        if self.done.is_none() {
            self.place(next, word(next));
            self.next_used = next.after(chain.slots, size);
            self.held -= chain.slots;
            return Ok(());
        }
        // Its own place is in this lap, or, before `next`, in the one that comes.
        let wrap = if chain.idx >= next.slot { next.wrap } else { !next.wrap };
        let own = Position { slot: chain.idx, wrap };
        self.place(own, word(own));
        let Some(done) = &mut self.done else { return Ok(()) };
        if let Some(slots) = done.get_mut(usize::from(own.slot)) {
            *slots = chain.slots;
        }
        while let Some(slots) = done.get_mut(usize::from(self.next_used.slot)).map(std::mem::take)
            && slots > 0
        {
            self.next_used = self.next_used.after(slots, size);
            self.held -= slots;
        }
        Ok(())
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let Some(word) = self.first.take() else { return false };
        let old = self.published;
        self.ring.release_word(old.slot, word);
        self.published = self.next_used;
        full_fence();
        let wanted = wants(self.ring.driver_event(), self.published, old, self.rules.size);
        std::mem::take(&mut self.fresh) || wanted
    }

    fn enable_notifications(&mut self) -> Result<bool, RingError> {
        let known = self.refused.unwrap_or(self.next_avail);
        let event = if self.event_idx {
            PackedEvent { off_wrap: known.to_bits(), flags: PACKED_EVENT_DESC }
        } else {
            PackedEvent { off_wrap: 0, flags: PACKED_EVENT_ENABLE }
        };
        self.ring.set_device_event(event);
        full_fence();
        Ok(self.is_available(known))
    }

    fn disable_notifications(&mut self) {
        self.ring.set_device_event(PackedEvent { off_wrap: 0, flags: PACKED_EVENT_DISABLE });
    }

    fn available(&mut self) -> Result<u16, RingError> {
        Ok(u16::from(self.is_available(self.next_avail)))
    }

    fn base(&self) -> u32 {
        u32::from(self.next_avail.to_bits()) | u32::from(self.next_used.to_bits()) << 16
    }

    fn in_flight(&self) -> u16 {
        self.in_flight
    }

    fn size(&self) -> u16 {
        self.rules.size
    }
}
