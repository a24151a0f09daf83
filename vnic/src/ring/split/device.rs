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
//! 4. `used.idx` is stored with release once per burst; then, behind a full fence, whether the driver wants a call is read.
//!
//! With IN_ORDER the used ring has the order of the available ring (2.7.9 In-order use of descriptors), so a chain's
//! place in it is known from the start: it is filled in out of order, and `used.idx` goes as far as there is no gap.
//!
//! Invariants: a head is taken only when it is not out, and returned only when it is (`heads`), so no more is returned
//! than was taken.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::{Access, Memory};
use crate::ring::batch::{BATCH, Batch};
use crate::ring::builder::ChainBuilder;
use crate::ring::fast_path::{Fallback, FastPath};
use crate::ring::heads::{Heads, Refused};
use crate::ring::pointers::{SplitParts, SplitPointers, full_fence};
use crate::ring::slots::Slots;
use crate::ring::walk::{Rules, split_chain};
use crate::ring::{Chain, DeviceRing, Disposition, DrainEnd, RingError, RingLayout, Segment, Segments, Visitor};
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
        let ring = SplitPointers::new(&layout, memory, features)?;
        let base = u16::try_from(base).map_err(|_| RingError::BadBase { base })?;
        let used = ring.used_idx().load(Ordering::Relaxed);
        let unused = ring.avail_idx().load(Ordering::Acquire).wrapping_sub(used);
        // What cannot be either is an error when it comes to it.
        let next_avail = if unused <= layout.size { used } else { base };
        let in_order = features.has(Feature::InOrder);
        Ok(SplitDevice {
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
            ring,
        })
    }

    /// Is the ring's memory gone? As [`Memory::lost`].
    pub(in crate::ring) fn lost(&self) -> bool {
        self.ring.lost()
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
    fn fast_path(&self, into: &mut Segments, idx: u16, head: u16) -> Result<Chain, Fallback> {
        let mut chain = FastPath::new(into);
        let mut desc = self.ring.desc(head).ok_or(Fallback)?;
        // No buffer's descriptor has other flags.
        let indirect = desc.flags & !(DESC_F_NEXT | DESC_F_WRITE) != 0;
        if indirect {
            chain.split_table(&desc, self.rules)?;
        } else {
            loop {
                chain.take(&desc, self.rules.size)?;
                if desc.flags & DESC_F_NEXT == 0 {
                    break;
                }
                desc = self.ring.desc(desc.next).ok_or(Fallback)?;
                if desc.flags & !(DESC_F_NEXT | DESC_F_WRITE) != 0 {
                    return Err(Fallback);
                }
            }
        }
        chain.finish(head, idx, 1, indirect)
    }

    /// Takes the head of available entry `idx`.
    #[inline(always)]
    fn take(&mut self, idx: u16) -> Result<u16, RingError> {
        let head = self.ring.avail_entry(idx).load(Ordering::Relaxed);
        match self.heads.take(head) {
            Ok(()) => Ok(head),
            Err(Refused::Out) => Err(RingError::HeadInFlight { idx, head }),
            Err(Refused::Unknown) => Err(RingError::HeadOutOfRange { idx, head, size: self.rules.size }),
        }
    }

    /// Takes the chains of at most `count` available entries from `start` on into `batch`, as long as each is a single
    /// device-readable buffer where `into` says at once.
    #[inline(always)]
    fn find(&mut self, parts: SplitParts, into: &Segments, start: u16, count: u16, batch: &mut Batch) {
        match into.tlb() {
            None => {
                let hint = into.hint();
                self.find_by(|addr, len| hint.hit(addr, len), parts, start, count, batch);
            }
            Some(tlb) => {
                self.find_by(|addr, len| tlb.look(addr, len, Access::Read), parts, start, count, batch);
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
        parts: SplitParts,
        start: u16,
        count: u16,
        batch: &mut Batch,
    ) {
        if self.seen_avail.wrapping_sub(start) > AVAIL_AHEAD {
            parts.prefetch_avail(start.wrapping_add(AVAIL_AHEAD));
        }
        let count = usize::from(count).min(BATCH);
        let mut found = 0;
        while found < count {
            // Below BATCH.
            let idx = start.wrapping_add(found as u16);
            let head = parts.avail_entry(idx).load(Ordering::Relaxed);
            let Some(desc) = parts.desc(head).filter(|desc| desc.flags == 0) else { break };
            let Some(host) = at_once(desc.addr, u64::from(desc.len)) else { break };
            if self.heads.take(head).is_err() {
                break;
            }
            let segment = Segment { addr: desc.addr, host, len: desc.len, continues: false };
            batch.set(found, head, idx, segment);
            found += 1;
        }
        batch.set_len(found);
    }

    /// Writes the used elements of chains that stand one behind the other from available entry `idx` on.
    #[inline(always)]
    fn use_up_run(&mut self, parts: SplitParts, idx: u16, heads: &[u16]) {
        if self.in_order.as_ref().is_some_and(|order| idx.wrapping_add(order.skew) != self.next_used) {
            for (at, head) in (0_u16..).zip(heads) {
                self.use_up(idx.wrapping_add(at), *head, 0);
            }
            return;
        }
        // In order or not, their places are the next ones: no younger chain was taken yet.
        parts.set_used_run(self.next_used, heads);
        self.next_used = self.next_used.wrapping_add(heads.len() as u16);
    }

    /// Does with the chain of available entry `idx` what the visitor said. Returns whether to go on with the next.
    #[inline(always)]
    fn dispose(&mut self, idx: u16, head: u16, disposition: Disposition) -> bool {
        match disposition {
            Disposition::Return => self.use_up(idx, head, 0),
            Disposition::Retain => self.heads.retain(head),
            Disposition::Leave => self.heads.cancel(head),
        }
        disposition != Disposition::Leave
    }

    /// Shows `visitor` the chain at `head`, which was taken.
    #[inline(never)]
    fn visit_chain(
        &mut self,
        into: &mut Segments,
        idx: u16,
        head: u16,
        visitor: &mut impl Visitor,
    ) -> Result<Disposition, RingError> {
        into.clear();
        // Two paths to the end, so that a usual chain never leaves the registers.
        if let Ok(chain) = self.fast_path(into, idx, head) {
            return Ok(visitor.visit(into.view(chain)));
        }
        into.clear();
        let chain = self.walk(into, idx, head)?;
        Ok(visitor.visit(into.view(chain)))
    }

    /// Writes the used element of a chain.
    #[inline(always)]
    fn use_up(&mut self, idx: u16, head: u16, written: u32) {
        let elem = UsedElem { id: u32::from(head), len: written };
        match &mut self.in_order {
            None => {
                self.ring.set_used(self.next_used, elem);
                self.next_used = self.next_used.wrapping_add(1);
            }
            Some(InOrder { filled, skew }) => {
                let mask = self.rules.size - 1;
                let place = idx.wrapping_add(*skew);
                self.ring.set_used(place, elem);
                filled.set(place & mask);
                while filled.clear(self.next_used & mask) {
                    self.next_used = self.next_used.wrapping_add(1);
                }
            }
        }
    }

    /// Follows the chain at `head`, which was taken, whatever it is. A bad one is not out.
    #[inline(never)]
    fn walk(&mut self, into: &mut Segments, idx: u16, head: u16) -> Result<Chain, RingError> {
        let mut chain = ChainBuilder::new(into, head);
        let walked = split_chain(&mut chain, head, self.rules, |index| self.ring.desc(index));
        match walked.and_then(|indirect| chain.complete().map(|()| indirect)) {
            Ok(indirect) => Ok(chain.finish(idx, 1, indirect)),
            Err(error) => {
                chain.abandon();
                self.heads.cancel(head);
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
        let head = self.take(idx)?;
        let kept = into.len();
        let chain = match self.fast_path(into, idx, head) {
            Ok(chain) => chain,
            Err(Fallback) => {
                into.truncate(kept);
                self.walk(into, idx, head)?
            }
        };
        self.heads.retain(head);
        self.next_avail = idx.wrapping_add(1);
        self.refused = false;
        Ok(Some(chain))
    }

    #[inline]
    fn pop_buffers(&mut self, into: &mut Segments, limit: u16, chains: &mut Vec<Chain>) -> Result<(), RingError> {
        let known = self.seen_avail.wrapping_sub(self.next_avail);
        let waiting = if known < limit { self.refresh()? } else { known };
        let parts = *self.ring;
        let start = self.next_avail;
        for ahead in 0..waiting.min(limit) {
            let idx = start.wrapping_add(ahead);
            let head = parts.avail_entry(idx).load(Ordering::Relaxed);
            let Some(desc) = parts.desc(head).filter(|desc| desc.flags == DESC_F_WRITE) else { break };
            if self.heads.take(head).is_err() {
                break;
            }
            let Some(chain) = into.push_buffer(head, idx, desc.addr, desc.len) else {
                self.heads.cancel(head);
                break;
            };
            self.heads.retain(head);
            chains.push(chain);
            self.next_avail = idx.wrapping_add(1);
            self.refused = false;
        }
        Ok(())
    }

    #[inline]
    fn drain<V: Visitor>(&mut self, into: &mut Segments, limit: u16, visitor: &mut V) -> Result<DrainEnd, RingError> {
        let waiting = self.refresh()?;
        let end = self.next_avail.wrapping_add(waiting.min(limit));
        for at in (0..AVAIL_AHEAD.min(waiting)).step_by(AVAIL_PER_LINE.into()) {
            self.ring.prefetch_avail(self.next_avail.wrapping_add(at));
        }
        // What the loop needs stays in registers: no store of its own can change it.
        let (parts, batches) = (*self.ring, visitor.takes_batches());
        let mut idx = self.next_avail;
        let mut batch = Batch::new(V::READS);
        parts.prefetch_used_run(self.next_used, waiting.min(limit).min(USED_AHEAD));
        let ended = 'burst: loop {
            let left = end.wrapping_sub(idx);
            if left == 0 {
                break Ok(if waiting > limit { DrainEnd::Limit } else { DrainEnd::Empty });
            }
            if batches {
                self.find(parts, into, idx, left, &mut batch);
                if left > USED_AHEAD && batch.is_full() {
                    parts.prefetch_used_run(self.next_used.wrapping_add(USED_AHEAD), left - USED_AHEAD);
                }
            }
            let mut at = 0;
            while at < batch.len() {
                let heads = batch.heads_from(at);
                let (done, rest) = heads.split_at(visitor.visit_batch(batch.from(at, into)).min(heads.len()));
                self.use_up_run(parts, idx, done);
                at += done.len();
                idx = idx.wrapping_add(done.len() as u16);
                let Some((head, behind)) = rest.split_first() else { break };
                match self.visit_chain(into, idx, *head, visitor) {
                    Ok(disposition) if self.dispose(idx, *head, disposition) => {}
                    stopped => {
                        self.heads.cancel_all(behind);
                        break 'burst stopped.map(|_| DrainEnd::Left);
                    }
                }
                at += 1;
                idx = idx.wrapping_add(1);
            }
            if idx != end && !batch.is_full() {
                // The next is not a usual one.
                if left > USED_AHEAD && self.next_used.is_multiple_of(USED_PER_LINE) {
                    parts.prefetch_used_run(self.next_used.wrapping_add(USED_AHEAD), 1);
                }
                match self.take(idx).and_then(|head| Ok((head, self.visit_chain(into, idx, head, visitor)?))) {
                    Ok((head, disposition)) if self.dispose(idx, head, disposition) => idx = idx.wrapping_add(1),
                    stopped => break stopped.map(|_| DrainEnd::Left),
                }
            }
        };
        if idx != self.next_avail || ended == Ok(DrainEnd::Left) {
            self.refused = ended == Ok(DrainEnd::Left);
        }
        self.next_avail = idx;
        ended
    }

    #[inline]
    fn prefetch(&mut self, count: u16) {
        for ahead in 0..count.min(self.rules.size) {
            // What stands there may be old, or anything: it is a hint.
            let head = self.ring.avail_entry(self.next_avail.wrapping_add(ahead)).load(Ordering::Relaxed);
            self.ring.prefetch_desc(head);
        }
    }

    fn unpop(&mut self, chains: &[Chain]) -> Result<(), RingError> {
        for chain in chains.iter().rev() {
            if chain.idx != self.next_avail.wrapping_sub(1) || !self.heads.cancel_retained(chain.head) {
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
        if !self.heads.release(head) {
            return Err(RingError::NotInFlight { head });
        }
        self.use_up(chain.idx, head, written);
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
        self.heads.next_burst();
        // The driver stores whether it wants a call, then loads `used.idx`; we do both the other way round (2.7.7, 2.7.10).
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
        self.quiet = false;
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
        // A store for nothing would take the driver's copy of `used.idx` away.
        if !self.ring.event_idx() && !self.quiet {
            self.quiet = true;
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
        self.heads.retained()
    }

    fn size(&self) -> u16 {
        self.rules.size
    }
}
