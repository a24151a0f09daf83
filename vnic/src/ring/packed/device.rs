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

use std::sync::Arc;

use crate::memory::{Access, Memory};
use crate::ring::batch::{BATCH, Batch};
use crate::ring::builder::ChainBuilder;
use crate::ring::fast_path::{Fallback, FastPath};
use crate::ring::heads::Heads;
use crate::ring::pointers::{PackedParts, PackedPointers, Word, full_fence};
use crate::ring::walk::Rules;
use crate::ring::{Chain, DeviceRing, Disposition, DrainEnd, RingError, RingLayout, Segment, Segments, Visitor};
use crate::spec::ring::{
    DESC_F_AVAIL, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE, Descriptor, PACKED_EVENT_DESC, PACKED_EVENT_DISABLE,
    PACKED_EVENT_ENABLE, PackedEvent,
};
use crate::spec::{Feature, Features};

use super::walk::{Walked, follow};
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
            ids: Heads::new(IDS),
            fresh: true,
            quiet: false,
            deep: false,
            done: in_order.then(|| vec![0; usize::from(size)].into_boxed_slice()),
        })
    }

    /// Is the ring's memory gone? As [`Memory::lost`].
    pub(in crate::ring) fn lost(&self) -> bool {
        self.ring.lost()
    }

    #[inline]
    fn is_available(&self, at: Position) -> bool {
        at.is_available(self.ring.word(at.slot).flags)
    }

    /// Follows the chain at `next_avail`, which starts with `word`, if it is a usual one.
    #[inline(always)]
    fn fast_path(&self, into: &mut Segments, mut word: Word) -> Result<Chain, Fallback> {
        let limit = self.rules.size - self.held;
        let start = self.next_avail;
        let mut chain = FastPath::new(into);
        let mut at = start;
        let desc = |at: Position, word: Word| Descriptor {
            addr: self.ring.addr(at.slot),
            len: word.len,
            flags: word.flags,
            next: 0,
        };
        // No buffer's descriptor has other flags.
        let other = !(DESC_F_NEXT | DESC_F_WRITE | DESC_F_AVAIL | DESC_F_USED);
        let indirect = word.flags & other != 0;
        let mut slots = 1;
        if indirect && limit > 0 {
            chain.packed_table(
                &desc(at, Word { flags: word.flags & !(DESC_F_AVAIL | DESC_F_USED), ..word }),
                self.rules,
            )?;
        } else {
            chain.take(&desc(at, word), limit)?;
            while word.flags & DESC_F_NEXT != 0 {
                slots += 1;
                at = at.after(1, self.rules.size);
                word = self.ring.word(at.slot);
                if !at.is_available(word.flags) || word.flags & other != 0 {
                    return Err(Fallback);
                }
                chain.take(&desc(at, word), limit)?;
            }
        }
        chain.finish(word.id, start.slot, slots, indirect)
    }

    /// Follows the chain at `next_avail`, which starts with `word`, whatever it is.
    #[inline(never)]
    fn walk(&self, into: &mut Segments, word: Word) -> Result<Chain, RingError> {
        let start = self.next_avail;
        let mut chain = ChainBuilder::new(into, start.slot);
        let walked = follow(&mut chain, &self.ring, (start, word), self.held, self.rules);
        match walked.and_then(|walked| chain.complete().map(|()| walked)) {
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

    /// Takes at most `count` chains from `next_avail` on into `batch`, as long as each is a single device-readable buffer
    /// where `into` says at once.
    #[inline(always)]
    fn find(&mut self, parts: PackedParts, into: &Segments, count: u16, batch: &mut Batch) {
        match into.tlb() {
            None => {
                let hint = into.hint();
                self.find_by(|addr, len| hint.hit(addr, len), parts, count, batch);
            }
            Some(tlb) => {
                self.find_by(|addr, len| tlb.look(addr, len, Access::Read), parts, count, batch);
                tlb.count(batch.len() as u64);
            }
        }
    }

    /// The same, with what says where a buffer is: `address, length` to host address. One loop for either, as the question in
    /// the loop costs 3 to 5 %.
    #[inline(always)]
    fn find_by(
        &mut self,
        at_once: impl Fn(u64, u64) -> Option<*mut u8>,
        parts: PackedParts,
        count: u16,
        batch: &mut Batch,
    ) {
        let size = self.rules.size;
        let count = usize::from(count.min(size - self.held)).min(BATCH);
        let mut at = self.next_avail;
        let mut found = 0;
        while found < count {
            if self.deep && at.slot.is_multiple_of(SLOTS_PER_LINE) {
                parts.prefetch(at.after(SLOTS_AHEAD.min(size), size).slot);
            }
            let word = parts.word(at.slot);
            if word.flags != at.available() {
                break;
            }
            let addr = parts.addr(at.slot);
            let Some(host) = at_once(addr, u64::from(word.len)) else { break };
            if self.ids.take(word.id).is_err() {
                break;
            }
            let segment = Segment { addr, host, len: word.len, continues: false };
            batch.set(found, word.id, at.slot, segment);
            at = at.after(1, size);
            found += 1;
        }
        batch.set_len(found);
    }

    /// The chains at `next_avail`, of one slot each, are used.
    #[inline(always)]
    fn use_up_run(&mut self, parts: PackedParts, ids: &[u16]) {
        let size = self.rules.size;
        if self.done.is_some() && self.held > 0 {
            for id in ids {
                let slot = self.next_avail.slot;
                self.advance(1);
                self.use_up(slot, *id, 1, 0);
            }
            return;
        }
        // In order or not, their places are the next ones. A batch is no longer than the ring, so it wraps once at most.
        let mut rest = ids;
        if self.next_used == self.published
            && let Some((first, behind)) = ids.split_first()
        {
            self.first = Some(Word { len: 0, id: *first, flags: self.next_used.used() });
            self.next_used = self.next_used.after(1, size);
            rest = behind;
        }
        while !rest.is_empty() {
            let next = self.next_used;
            let (here, wrapped) = rest.split_at(rest.len().min(usize::from(size - next.slot)));
            parts.set_word_run(next.slot, here, next.used());
            self.next_used = next.after(here.len() as u16, size);
            rest = wrapped;
        }
        self.next_avail = self.next_avail.after(ids.len() as u16, size);
        if !ids.is_empty() {
            self.refused = None;
        }
    }

    /// Shows `visitor` the chain at `next_avail`, which starts with `word`, and does what it says. `Some`: the burst ends.
    #[inline(always)]
    fn next(
        &mut self,
        into: &mut Segments,
        word: Word,
        visitor: &mut impl Visitor,
    ) -> Result<Option<DrainEnd>, RingError> {
        let (head, slots, disposition) = self.visit_chain(into, word, visitor)?;
        let slot = self.next_avail.slot;
        match disposition {
            Disposition::Return => {
                self.advance(slots);
                self.use_up(slot, head, slots, 0);
            }
            Disposition::Retain => {
                self.ids.retain(head);
                self.advance(slots);
            }
            Disposition::Leave => {
                self.ids.cancel(head);
                self.refuse();
                return Ok(Some(DrainEnd::Left));
            }
        }
        Ok(None)
    }

    /// Shows `visitor` the chain at `next_avail`, which starts with `word`. Returns its id, the slots it takes, and what
    /// is to become of it.
    #[inline(never)]
    fn visit_chain(
        &mut self,
        into: &mut Segments,
        word: Word,
        visitor: &mut impl Visitor,
    ) -> Result<(u16, u16, Disposition), RingError> {
        into.clear();
        // Two paths to the end, so that a usual chain never leaves the registers.
        if let Ok(chain) = self.fast_path(into, word) {
            self.out(self.next_avail, chain.head)?;
            return Ok((chain.head, chain.slots, visitor.visit(into.view(chain))));
        }
        into.clear();
        let chain = self.walk(into, word)?;
        self.out(self.next_avail, chain.head)?;
        Ok((chain.head, chain.slots, visitor.visit(into.view(chain))))
    }

    /// The chain at `at` has buffer id `head`, which must not be out.
    #[inline(always)]
    fn out(&mut self, at: Position, head: u16) -> Result<(), RingError> {
        self.ids.take(head).map_err(|_| RingError::HeadInFlight { idx: at.slot, head })
    }

    /// The chain at `next_avail` is the device's.
    #[inline(always)]
    fn advance(&mut self, slots: u16) {
        self.next_avail = self.next_avail.after(slots, self.rules.size);
        self.held += slots;
        self.refused = None;
    }

    /// The chain at `next_avail` is left there; and what is available behind it is known too: a call for it would wake
    /// the caller for nothing.
    fn refuse(&mut self) {
        if self.refused.is_some() {
            return;
        }
        let mut end = self.next_avail;
        for _ in self.held..self.rules.size {
            if !self.is_available(end) {
                break;
            }
            end = end.after(1, self.rules.size);
        }
        self.refused = Some(end);
    }

    /// Writes the used descriptor of a chain.
    #[inline(always)]
    fn use_up(&mut self, slot: u16, head: u16, slots: u16, written: u32) {
        let size = self.rules.size;
        // VIRTIO 1.3, 2.8.4: `len` counts only where WRITE says that something was written.
        let write = if written > 0 { DESC_F_WRITE } else { 0 };
        let word = |at: Position| Word { len: written, id: head, flags: at.used() | write };
        let next = self.next_used;
        if self.done.is_none() {
            self.place(next, word(next));
            self.next_used = next.after(slots, size);
            self.held -= slots;
            return;
        }
        // Its own place is in this lap, or, before `next`, in the one that comes.
        let wrap = if slot >= next.slot { next.wrap } else { !next.wrap };
        let own = Position { slot, wrap };
        self.place(own, word(own));
        let Some(done) = &mut self.done else { return };
        if let Some(taken) = done.get_mut(usize::from(own.slot)) {
            *taken = slots;
        }
        while let Some(slots) = done.get_mut(usize::from(self.next_used.slot)).map(std::mem::take)
            && slots > 0
        {
            self.next_used = self.next_used.after(slots, size);
            self.held -= slots;
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
        let chain = match self.fast_path(into, word) {
            Ok(chain) => chain,
            Err(Fallback) => {
                into.truncate(kept);
                self.walk(into, word)?
            }
        };
        if let Err(error) = self.out(at, chain.head) {
            into.truncate(kept);
            return Err(error);
        }
        self.ids.retain(chain.head);
        self.advance(chain.slots);
        Ok(Some(chain))
    }

    #[inline]
    fn pop_buffers(&mut self, into: &mut Segments, limit: u16, chains: &mut Vec<Chain>) -> Result<(), RingError> {
        let parts = *self.ring;
        for _ in 0..limit.min(self.rules.size - self.held) {
            let at = self.next_avail;
            let word = parts.word(at.slot);
            if word.flags != at.available() | DESC_F_WRITE || self.ids.take(word.id).is_err() {
                break;
            }
            let Some(chain) = into.push_buffer(word.id, at.slot, parts.addr(at.slot), word.len) else {
                self.ids.cancel(word.id);
                break;
            };
            self.ids.retain(word.id);
            chains.push(chain);
            self.advance(1);
        }
        Ok(())
    }

    #[inline]
    fn drain<V: Visitor>(&mut self, into: &mut Segments, limit: u16, visitor: &mut V) -> Result<DrainEnd, RingError> {
        // What the loop needs stays in registers: no store of its own can change it.
        let (parts, batches) = (*self.ring, visitor.takes_batches());
        let mut left = limit;
        let mut batch = Batch::new(V::READS);
        let ended = 'burst: loop {
            if left == 0 {
                break Ok(DrainEnd::Limit);
            }
            if batches {
                self.find(parts, into, left, &mut batch);
            }
            let mut at = 0;
            while at < batch.len() {
                let ids = batch.heads_from(at);
                let (done, rest) = ids.split_at(visitor.visit_batch(batch.from(at, into)).min(ids.len()));
                self.use_up_run(parts, done);
                at += done.len();
                left -= done.len() as u16;
                let Some((id, behind)) = rest.split_first() else { break };
                // It is followed anew: given back first, and its word as it was when it was found.
                self.ids.cancel(*id);
                let word = Word { len: batch.len_at(at), id: *id, flags: self.next_avail.available() };
                let stopped = self.next(into, word, visitor);
                if stopped != Ok(None) {
                    self.ids.cancel_all(behind);
                    break 'burst stopped.map(|ended| ended.unwrap_or(DrainEnd::Left));
                }
                at += 1;
                left -= 1;
            }
            if left > 0 && !batch.is_full() {
                // The next is not a usual one, or there is none.
                let word = parts.word(self.next_avail.slot);
                if !self.next_avail.is_available(word.flags) {
                    break Ok(DrainEnd::Empty);
                }
                match self.next(into, word, visitor) {
                    Ok(None) => left -= 1,
                    stopped => break stopped.map(|ended| ended.unwrap_or(DrainEnd::Left)),
                }
            }
        };
        // Far ahead lies what the driver has written already, if there was more than a handful.
        self.deep = limit - left >= SLOTS_AHEAD;
        ended
    }

    #[inline]
    fn prefetch(&mut self, count: u16) {
        for ahead in (0..count.min(self.rules.size)).step_by(SLOTS_PER_LINE.into()) {
            self.ring.prefetch(self.next_avail.after(ahead, self.rules.size).slot);
        }
    }

    fn unpop(&mut self, chains: &[Chain]) -> Result<(), RingError> {
        if !chains.is_empty() {
            self.refuse();
        }
        for chain in chains.iter().rev() {
            let before = self.next_avail.before(chain.slots, self.rules.size);
            if before.slot != chain.idx || !self.ids.cancel_retained(chain.head) {
                return Err(RingError::NotInFlight { head: chain.head });
            }
            self.next_avail = before;
            self.held -= chain.slots;
        }
        Ok(())
    }

    #[inline]
    fn push_used(&mut self, chain: &Chain, written: u32) -> Result<(), RingError> {
        let head = chain.head;
        if written > chain.writable_len {
            return Err(RingError::WrittenTooMuch { head, written, room: chain.writable_len });
        }
        if !self.ids.release(head) {
            return Err(RingError::NotInFlight { head });
        }
        self.use_up(chain.idx, head, chain.slots, written);
        Ok(())
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let Some(word) = self.first.take() else { return false };
        let old = self.published;
        self.ring.release_word(old.slot, word);
        self.published = self.next_used;
        self.ids.next_burst();
        full_fence();
        let wanted = wants(self.ring.driver_event(), self.published, old, self.rules.size);
        std::mem::take(&mut self.fresh) || wanted
    }

    fn enable_notifications(&mut self) -> Result<bool, RingError> {
        self.quiet = false;
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
        if !self.quiet {
            self.quiet = true;
            self.ring.set_device_event(PackedEvent { off_wrap: 0, flags: PACKED_EVENT_DISABLE });
        }
    }

    fn available(&mut self) -> Result<u16, RingError> {
        Ok(u16::from(self.is_available(self.next_avail)))
    }

    fn base(&self) -> u32 {
        u32::from(self.next_avail.to_bits()) | u32::from(self.next_used.to_bits()) << 16
    }

    fn in_flight(&self) -> u16 {
        self.ids.retained()
    }

    fn size(&self) -> u16 {
        self.rules.size
    }
}
