//! The chains of one split ring, as far as they can be seen by looking at it again and again.
//!
//! Operation, at each look at a ring whose indices moved:
//! 1. `used.idx`, `avail.idx`, and what was made available since the last look is followed: its buffers, its frame's start, what
//!    its pages are. Each in one call for all chains ([`Fetched`]): the driver frees a chain's table when it collects it, and what
//!    was not read by then is missed.
//! 2. How far the driver has collected used chains, and which these are. What it has collected it may have overwritten
//!    while it was followed: such a chain is missed. All others are as the driver made them.
//! 3. Each used chain is an event if it was seen, and else counted as missed.
//!
//! Invariants: events and those missed together are as many as the ring's used chains. Chains that are remembered are never
//! more than twice the ring's size.

use std::collections::{HashMap, VecDeque};

use super::super::devices::{Frames, Queue};
use super::super::fetched::Fetched;
use super::chain::{DESC, Desc, Seen};
use super::sight::Sight;
use super::told::{FETCHED, Told, Wanted, number, short};
use crate::introspect::GuestPhysical;
use crate::ring::{RingLayout, check_split_size};

/// What is watched of it.
#[derive(Debug)]
pub(super) struct SplitRing {
    layout: RingLayout,
    last_used_at: u64,
    /// The next entry of the available ring, and of the used ring, that was not looked at yet.
    next_avail: u16,
    next_used: u16,
    /// Chains that are available, oldest first.
    open: VecDeque<Seen>,
}

/// What is known of one head since the last look.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    /// Times it was used.
    used: usize,
    /// Of them, those that the driver has collected; and with the one that it may be about to: its table is freed first.
    collected: usize,
    freed: usize,
    /// Times it was made available, those before the last look included.
    seen: usize,
    /// Of them, so many have had their turn.
    before: usize,
}

/// The ring's variable parts at one moment.
struct Rings {
    avail: Vec<u8>,
    used: Vec<u8>,
    size: u16,
}

impl Rings {
    /// The head in the available ring at this index.
    fn head(&self, idx: u16) -> u16 {
        number(&self.avail, 4 + 2 * self.slot(idx), 2) as u16
    }

    /// The head in the used ring at this index, and the bytes written.
    fn used(&self, idx: u16) -> (u16, u32) {
        let at = 4 + 8 * self.slot(idx);
        (number(&self.used, at, 4) as u16, number(&self.used, at + 4, 4) as u32)
    }

    fn slot(&self, idx: u16) -> usize {
        usize::from(idx & (self.size - 1))
    }
}

impl SplitRing {
    /// From now on; `None`: the ring is none that can be looked at so, or out of reach.
    pub(super) fn new(ram: &impl GuestPhysical, queue: &Queue) -> Option<Self> {
        let (layout, last_used_at) = (queue.layout, queue.last_used_at);
        check_split_size(layout.size).ok()?;
        let (avail, next_used) = indices(ram, &layout)?;
        // What is in flight now counts as new where chains come back in their order, as a NIC's do; else nobody knows which it is.
        let in_order = matches!(queue.frames, Frames::Sent | Frames::Received);
        let next_avail = if in_order { next_used } else { avail };
        Some(SplitRing { layout, last_used_at, next_avail, next_used, open: VecDeque::new() })
    }

    /// Looks once. Returns whether anything has happened.
    pub(super) fn look<M: GuestPhysical>(
        &mut self,
        ram: &M,
        told: &Told,
        wanted: Wanted,
        mut sight: Option<&mut Sight<M>>,
    ) -> bool {
        let layout = self.layout;
        let Some((avail, used)) = indices(ram, &layout) else { return false };
        if (avail, used) == (self.next_avail, self.next_used) {
            return false;
        }
        let mut fetched = Fetched::new(ram);
        fetched.fetch([(layout.desc, DESC * usize::from(layout.size))].into_iter().chain(self.parts()));
        let mut table = vec![0; DESC * usize::from(layout.size)];
        if fetched.copy(layout.desc, &mut table).is_none() {
            return false;
        }
        let Some(before) = self.rings(&fetched) else { return false };
        let mut new = self.follow(&mut fetched, &table, &before, avail);
        new.iter_mut().for_each(|seen| seen.available_ns = wanted.at_ns);
        told.look_into(&mut new, &mut fetched, sight.as_deref_mut());
        // Not before all of them have been read. The indices last: had one come round by now, entries could be those of later chains.
        let mut fetched = Fetched::new(ram);
        fetched.fetch([(self.last_used_at, 2)].into_iter().chain(self.parts()));
        let (collected, after) = (short(&fetched, self.last_used_at), self.rings(&fetched));
        let Some(((avail_by_now, used_by_now), (collected, after))) = indices(ram, &layout).zip(collected.zip(after))
        else {
            return false;
        };
        let is_round = |now: u16, next: u16| now.wrapping_sub(next) > layout.size;
        // `avail.idx` was read later than `used.idx`: there may be more of them than the ring holds, but not twice as many.
        let is_too_many = self.open.len() + new.len() > 2 * usize::from(layout.size);
        let used_is_round = [used, used_by_now].into_iter().any(|used| is_round(used, self.next_used));
        if is_too_many || used_is_round || is_round(avail_by_now, self.next_avail) {
            // Which they were is not known any more, nor which of them are in flight.
            told.miss(used_by_now.wrapping_sub(self.next_used));
            self.open.clear();
            (self.next_used, self.next_avail) = (used_by_now, avail_by_now);
            return true;
        }
        self.next_avail = avail;
        self.forget_collected(&mut new, &after, collected, told.in_order());
        self.open.append(&mut new);
        // What was used since may have been made available since, too: its turn is the next look's.
        while self.next_used != used {
            self.pass(ram, &after, told, (wanted, sight.as_deref_mut()));
        }
        true
    }

    /// Where the variable parts are, the used ring first.
    fn parts(&self) -> [(u64, usize); 2] {
        let RingLayout { size, avail, used, .. } = self.layout;
        [(used, 4 + 8 * usize::from(size)), (avail, 4 + 2 * usize::from(size))]
    }

    fn rings(&self, ram: &impl GuestPhysical) -> Option<Rings> {
        let RingLayout { size, avail: avail_at, used: used_at, .. } = self.layout;
        let (mut avail, mut used) = (vec![0; 4 + 2 * usize::from(size)], vec![0; 4 + 8 * usize::from(size)]);
        ram.copy(used_at, &mut used)?;
        ram.copy(avail_at, &mut avail)?;
        Some(Rings { avail, used, size })
    }

    /// What was made available since the last look.
    fn follow<M: GuestPhysical>(
        &self,
        fetched: &mut Fetched<'_, M>,
        table: &[u8],
        rings: &Rings,
        avail: u16,
    ) -> VecDeque<Seen> {
        // Where it is more than the ring holds, none of it is told.
        let count = Some(avail.wrapping_sub(self.next_avail)).filter(|count| *count <= rings.size).unwrap_or(0);
        let first = avail.wrapping_sub(count);
        let indices = (0..count).map(|n| first.wrapping_add(n));
        let tables =
            indices.clone().rev().take(FETCHED).filter_map(|idx| Seen::table(Desc::read(table, rings.head(idx))));
        fetched.fetch(tables);
        indices.map(|idx| Seen::follow(fetched, table, idx, rings.head(idx))).collect()
    }

    /// Forgets what the driver may have overwritten before it was seen, and what cannot be there any more.
    fn forget_collected(&mut self, new: &mut VecDeque<Seen>, rings: &Rings, collected: u16, in_order: bool) {
        let key = |seen: &Seen| if in_order { seen.idx } else { seen.head };
        let mut heads: HashMap<u16, Count> = HashMap::new();
        let used = number(&rings.used, 2, 2) as u16;
        let behind = Some(collected.wrapping_sub(self.next_used)).filter(|behind| *behind <= rings.size);
        for n in 0..used.wrapping_sub(self.next_used) {
            let idx = self.next_used.wrapping_add(n);
            let head = heads.entry(if in_order { idx } else { rings.used(idx).0 }).or_default();
            head.used += 1;
            head.collected += usize::from(behind.is_some_and(|behind| n < behind));
            head.freed += usize::from(behind.is_some_and(|behind| n <= behind));
        }
        for seen in self.open.iter().chain(&*new) {
            heads.entry(key(seen)).or_default().seen += 1;
        }
        // A head is available again once it was used: of those of one head, only the last is not.
        let mut is_possible = |seen: &Seen| {
            let head = heads.entry(key(seen)).or_default();
            let impossible = head.seen > head.used + 1;
            head.seen -= usize::from(impossible);
            !impossible
        };
        self.open.retain(&mut is_possible);
        new.retain(&mut is_possible);
        for seen in &self.open {
            heads.entry(key(seen)).or_default().before += 1;
        }
        for seen in new {
            let head = heads.entry(key(seen)).or_default();
            head.before += 1;
            seen.is_whole = head.before > if seen.indirect { head.freed } else { head.collected };
        }
    }

    /// The next used chain.
    fn pass<M: GuestPhysical>(&mut self, ram: &M, rings: &Rings, told: &Told, by: (Wanted, Option<&mut Sight<M>>)) {
        let idx = self.next_used;
        self.next_used = idx.wrapping_add(1);
        let (head, written) = rings.used(idx);
        // By what a used chain is told: by its head, or where the device keeps to the order, by its place.
        let is_it = |seen: &Seen| if told.in_order() { seen.idx == idx } else { seen.head == head };
        let Some(seen) = self.open.iter().position(is_it).and_then(|place| self.open.remove(place)) else {
            told.miss(1);
            return;
        };
        let (at, size) = (self.last_used_at, self.layout.size);
        let is_collected = || short(ram, at).is_none_or(|collected| idx.wrapping_sub(collected) >= size);
        told.pass(ram, &seen, written, by, is_collected);
    }
}

/// `avail.idx` and `used.idx`. `used.idx` first: it never seems to be ahead then.
fn indices(ram: &impl GuestPhysical, layout: &RingLayout) -> Option<(u16, u16)> {
    let (used, avail) = (layout.used.checked_add(2)?, layout.avail.checked_add(2)?);
    let mut fetched = Fetched::new(ram);
    fetched.fetch([(used, 2), (avail, 2)]);
    Some((short(&fetched, avail)?, short(&fetched, used)?))
}
