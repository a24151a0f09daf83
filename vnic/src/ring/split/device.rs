//! The device half of a split ring.
//!
//! Place: see [`DeviceRing`]; one thread at a time.
//!
//! Operation (VIRTIO 1.3, 2.7.6 The Virtqueue Available Ring, 2.7.8 The Virtqueue Used Ring):
//! 1. `avail.idx` is loaded with acquire, and only when all entries known of are taken. What it promises is checked
//!    against the ring's size.
//! 2. A head is taken from the entry, checked, and its chain followed (`lane`, else `walk`).
//! 3. Used elements are written into the used ring as chains come back; they lie behind `used.idx`, where the driver
//!    does not look.
//! 4. `used.idx` is stored with release once per burst; then, behind a full fence, the driver's wish for a call is read.
//!
//! With IN_ORDER the used ring has the order of the available ring (2.7.9 In-order use of descriptors), so a chain's
//! place in it is known from the start: it is filled in out of order, and `used.idx` goes as far as there is no gap.
//!
//! Invariants: `in_flight` has a head's bit set from its pop to its return; a head is popped only when its bit is clear
//! and returned only when it is set, so no more is returned than was popped.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::Memory;
use crate::ring::chain::ChainBuilder;
use crate::ring::lane::{Doubt, Lane};
use crate::ring::pointers::{SplitPointers, full_fence};
use crate::ring::slots::Slots;
use crate::ring::walk::{Rules, split_chain};
use crate::ring::{Chain, DeviceRing, RingError, RingLayout, Segments};
use crate::spec::ring::{AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, USED_F_NO_NOTIFY, UsedElem};
use crate::spec::{Feature, Features};

use super::need_event;

/// The device half of a split ring. See the [module](self).
#[derive(Debug)]
pub struct SplitDevice {
    ring: SplitPointers,
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
    in_flight: Slots,
    /// Chains returned, counted on from where the ring started.
    returned: u16,
    in_order: Option<InOrder>,
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
    /// driver's memory says.
    ///
    /// # Errors
    /// Size or base cannot be, or a part of the ring is not guest memory.
    pub fn new(layout: RingLayout, memory: Arc<Memory>, features: Features, base: u32) -> Result<Self, RingError> {
        let ring = SplitPointers::new(&layout, memory, features)?;
        let next_avail = u16::try_from(base).map_err(|_| RingError::BadBase { base })?;
        let used = ring.used_idx().load(Ordering::Relaxed);
        let in_order = features.has(Feature::InOrder);
        Ok(SplitDevice {
            rules: Rules { size: layout.size, indirect: features.has(Feature::IndirectDesc) },
            next_avail,
            seen_avail: next_avail,
            refused: false,
            next_used: used,
            published: used,
            fresh: true,
            in_flight: Slots::new(usize::from(layout.size)),
            returned: next_avail,
            in_order: in_order
                .then(|| InOrder { filled: Slots::new(usize::from(layout.size)), skew: used.wrapping_sub(next_avail) }),
            ring,
        })
    }

    /// Loads `avail.idx`. Returns how many entries are waiting.
    #[inline]
    fn refresh(&mut self) -> Result<u16, RingError> {
        // Acquire: the entries and descriptors that it promises are loaded after it.
        let to = self.ring.avail_idx().load(Ordering::Acquire);
        let waiting = to.wrapping_sub(self.next_avail);
        if waiting > self.rules.size {
            return Err(RingError::AvailJump { from: self.next_avail, to, size: self.rules.size });
        }
        if to != self.seen_avail {
            self.seen_avail = to;
            self.refused = false;
        }
        Ok(waiting)
    }
}

impl SplitDevice {
    /// Follows the chain at `head` if it is a usual one.
    #[inline(always)]
    fn lane(&self, into: &mut Segments, head: u16) -> Result<Chain, Doubt> {
        let mut lane = Lane::new(into);
        let mut desc = self.ring.desc(head).ok_or(Doubt)?;
        let indirect = desc.flags & DESC_F_INDIRECT != 0;
        if indirect {
            lane.split_table(&desc, self.rules)?;
        } else {
            loop {
                lane.take(&desc, self.rules.size)?;
                if desc.flags & DESC_F_NEXT == 0 {
                    break;
                }
                desc = self.ring.desc(desc.next).ok_or(Doubt)?;
                if desc.flags & DESC_F_INDIRECT != 0 {
                    return Err(Doubt);
                }
            }
        }
        lane.finish(head, self.next_avail, 1, indirect)
    }

    /// Follows the chain at `head` whatever it is. A bad one is not in flight.
    #[inline(never)]
    fn walk(&mut self, into: &mut Segments, head: u16) -> Result<Chain, RingError> {
        let mut chain = ChainBuilder::new(into, head);
        match split_chain(&mut chain, head, self.rules, |index| self.ring.desc(index)) {
            Ok(indirect) => Ok(chain.finish(self.next_avail, 1, indirect)),
            Err(error) => {
                chain.abandon();
                self.in_flight.clear(head);
                Err(error)
            }
        }
    }
}

impl DeviceRing for SplitDevice {
    #[inline]
    fn pop(&mut self, into: &mut Segments) -> Result<Option<Chain>, RingError> {
        let idx = self.next_avail;
        if idx == self.seen_avail && self.refresh()? == 0 {
            return Ok(None);
        }
        let head = self.ring.avail_entry(idx).load(Ordering::Relaxed);
        match self.in_flight.set(head) {
            Some(true) => {}
            Some(false) => return Err(RingError::HeadInFlight { idx, head }),
            None => return Err(RingError::HeadOutOfRange { idx, head, size: self.rules.size }),
        }
        let kept = into.len();
        let chain = match self.lane(into, head) {
            Ok(chain) => chain,
            Err(Doubt) => {
                into.truncate(kept);
                self.walk(into, head)?
            }
        };
        self.next_avail = idx.wrapping_add(1);
        self.refused = false;
        Ok(Some(chain))
    }

    fn unpop(&mut self, chains: &[Chain]) -> Result<(), RingError> {
        for chain in chains.iter().rev() {
            if chain.idx != self.next_avail.wrapping_sub(1) || !self.in_flight.clear(chain.head) {
                return Err(RingError::NotInFlight { head: chain.head });
            }
            self.next_avail = chain.idx;
            self.refused = true;
        }
        Ok(())
    }

    #[inline]
    fn push_used(&mut self, chain: &Chain, written: u32) -> Result<(), RingError> {
        let head = chain.head;
        if written > chain.writable_len {
            return Err(RingError::WrittenTooMuch { head, written, room: chain.writable_len });
        }
        if !self.in_flight.clear(head) {
            return Err(RingError::NotInFlight { head });
        }
        self.returned = self.returned.wrapping_add(1);
        let elem = UsedElem { id: u32::from(head), len: written };
        match &mut self.in_order {
            None => {
                self.ring.set_used(self.next_used, elem);
                self.next_used = self.next_used.wrapping_add(1);
            }
            Some(InOrder { filled, skew }) => {
                let mask = self.rules.size - 1;
                let place = chain.idx.wrapping_add(*skew);
                self.ring.set_used(place, elem);
                filled.set(place & mask);
                while filled.clear(self.next_used & mask) {
                    self.next_used = self.next_used.wrapping_add(1);
                }
            }
        }
        Ok(())
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        // Release: the used elements, and the bytes in the buffers, are stored before it.
        self.ring.used_idx().store(new, Ordering::Release);
        self.published = new;
        // The driver stores its wish and then loads `used.idx`; we do both the other way round (2.7.7, 2.7.10).
        full_fence();
        let wanted = match self.ring.used_event() {
            Some(event) => need_event(event.load(Ordering::Relaxed), new, old),
            None => self.ring.avail_flags().load(Ordering::Relaxed) & AVAIL_F_NO_INTERRUPT == 0,
        };
        std::mem::take(&mut self.fresh) || wanted
    }

    fn enable_notifications(&mut self) -> Result<bool, RingError> {
        // What was refused is known; only what comes behind it is news.
        let known = if self.refused { self.seen_avail } else { self.next_avail };
        match self.ring.avail_event() {
            Some(event) => event.store(known, Ordering::Relaxed),
            None => self.ring.used_flags().store(0, Ordering::Relaxed),
        }
        full_fence();
        self.refresh()?;
        Ok(self.seen_avail != known)
    }

    fn disable_notifications(&mut self) {
        // With EVENT_IDX there is nothing to say: no kick comes until `avail.idx` passes `avail_event`, once.
        if !self.ring.event_idx() {
            self.ring.used_flags().store(USED_F_NO_NOTIFY, Ordering::Relaxed);
        }
    }

    fn available(&mut self) -> Result<u16, RingError> {
        self.refresh()
    }

    fn base(&self) -> u32 {
        u32::from(self.next_avail)
    }

    fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.returned)
    }

    fn size(&self) -> u16 {
        self.rules.size
    }
}
