//! The chains of one split ring, as far as they can be seen by looking at it again and again.
//!
//! Operation, at each look at a ring whose indices moved:
//! 1. `used.idx`, `avail.idx`, and what was made available since the last look is followed: its buffers, its frame's start.
//! 2. How far the driver has collected used chains, and which these are. What it has collected it may have overwritten
//!    while it was followed: such a chain is missed. All others are as the driver made them.
//! 3. Each used chain is an event if it was seen, and else counted as missed.
//!
//! Invariants: events and those missed together are as many as the ring's used chains. Chains that are remembered are never
//! more than twice the ring's size.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::super::devices::{Frames, Queue};
use super::super::ram::Ram;
use super::chain::Seen;
use super::sight::Sight;
use crate::backend::QueueShared;
use crate::introspect::GuestPhysical;
use crate::observe::tracer::{Event, HEAD_BYTES};
use crate::ring::RingLayout;
use crate::spec::{Feature, Features};

/// Pages that are stamped in one look, at most: while it takes stamps, it misses chains.
const STAMPED: u64 = 64;

/// What one look is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// The time.
    pub(super) at_ns: u64,
    /// Somebody follows all chains: not only those with stamps.
    pub(super) all: bool,
}

/// A split ring that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    shared: Arc<QueueShared>,
    queue: Queue,
    features: Features,
    /// Of the frames' headers, bytes.
    header: usize,
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

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let bytes = bytes.get(at..at + len).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl Watched {
    /// From now on; `None`: the ring is none that can be looked at so, or out of reach.
    pub(super) fn new(ram: &Ram, queue: &Queue, features: Features, shared: Arc<QueueShared>) -> Option<Watched> {
        let size = queue.layout.size;
        (queue.packed.is_none() && size.is_power_of_two()).then_some(())?;
        let header = crate::net::header_len(features);
        let (avail, next_used) = indices(ram, &queue.layout)?;
        let open = VecDeque::new();
        // What is in flight now counts as new where chains come back in their order, as a NIC's do; else nobody knows which it is.
        let next_avail = if queue.frames == Frames::None { avail } else { next_used };
        Some(Watched { shared, queue: queue.clone(), features, header, next_avail, next_used, open })
    }

    /// Is it still this one?
    pub(super) fn is(&self, queue: &Queue, features: Features) -> bool {
        let same = |one: &Queue| (one.layout, one.last_used_at, one.frames);
        self.queue.name == queue.name && same(&self.queue) == same(queue) && self.features == features
    }

    /// The frames that it carries.
    pub(super) fn frames(&self) -> Frames {
        self.queue.frames
    }

    /// Looks once; by `sight`, if somebody wants to know whose the bytes are. Returns whether anything has happened.
    pub(super) fn look(&mut self, ram: &Ram, wanted: Wanted, mut sight: Option<&mut Sight>) -> bool {
        let layout = self.queue.layout;
        let Some((avail, used)) = indices(ram, &layout) else { return false };
        if (avail, used) == (self.next_avail, self.next_used) {
            return false;
        }
        let mut table = vec![0; 16 * usize::from(layout.size)];
        if ram.copy(layout.desc, &mut table).is_none() {
            return false;
        }
        let Some(before) = self.rings(ram) else { return false };
        let mut new = self.follow(ram, &table, &before, avail);
        if let (Some(sight), Frames::Sent) = (&mut sight, self.queue.frames) {
            let mut pages = 0;
            sight.begin();
            // The youngest will be there longest.
            for seen in new.iter_mut().rev() {
                if pages >= STAMPED {
                    break;
                }
                pages += sight.look(seen);
            }
        }
        // Not before all of them have been read.
        let (Some(collected), Some(after)) = (short(ram, self.queue.last_used_at), self.rings(ram)) else {
            return false;
        };
        // Had an index come round by now, entries could be those of later chains.
        let Some((avail_by_now, used_by_now)) = indices(ram, &layout) else { return false };
        let is_round = |now: u16, next: u16| now.wrapping_sub(next) > layout.size;
        // `avail.idx` was read later than `used.idx`: there may be more of them than the ring holds, but not twice as many.
        let is_too_many = self.open.len() + new.len() > 2 * usize::from(layout.size);
        let used_is_round = [used, used_by_now].into_iter().any(|used| is_round(used, self.next_used));
        if is_too_many || used_is_round || is_round(avail_by_now, self.next_avail) {
            // Which they were is not known any more, nor which of them are in flight.
            self.miss(used_by_now.wrapping_sub(self.next_used));
            self.open.clear();
            (self.next_used, self.next_avail) = (used_by_now, avail_by_now);
            return true;
        }
        self.next_avail = avail;
        self.forget_collected(&mut new, &after, collected);
        self.open.append(&mut new);
        // What was used since may have been made available since, too: its turn is the next look's.
        while self.next_used != used {
            self.pass(ram, &after, wanted, sight.as_deref());
        }
        true
    }

    fn rings(&self, ram: &Ram) -> Option<Rings> {
        let RingLayout { size, avail: avail_at, used: used_at, .. } = self.queue.layout;
        let (mut avail, mut used) = (vec![0; 4 + 2 * usize::from(size)], vec![0; 4 + 8 * usize::from(size)]);
        ram.copy(used_at, &mut used)?;
        ram.copy(avail_at, &mut avail)?;
        Some(Rings { avail, used, size })
    }

    /// What was made available since the last look.
    fn follow(&self, ram: &Ram, table: &[u8], rings: &Rings, avail: u16) -> VecDeque<Seen> {
        // Where it is more than the ring holds, none of it is told.
        let count = Some(avail.wrapping_sub(self.next_avail)).filter(|count| *count <= rings.size).unwrap_or(0);
        let first = avail.wrapping_sub(count);
        let one = |n| {
            let idx = first.wrapping_add(n);
            let mut seen = Seen::follow(ram, table, idx, rings.head(idx));
            if self.queue.frames == Frames::Sent {
                seen.first = seen.peek(ram, false, self.header);
            }
            seen
        };
        (0..count).map(one).collect()
    }

    /// Forgets what the driver may have overwritten before it was seen, and what cannot be there any more.
    fn forget_collected(&mut self, new: &mut VecDeque<Seen>, rings: &Rings, collected: u16) {
        let in_order = self.in_order();
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
    fn pass(&mut self, ram: &Ram, rings: &Rings, wanted: Wanted, sight: Option<&Sight>) {
        let idx = self.next_used;
        self.next_used = idx.wrapping_add(1);
        let (head, written) = rings.used(idx);
        let of = if self.in_order() { idx } else { head };
        let place = self.open.iter().position(|seen| self.key(seen) == of);
        let Some(seen) = place
            .and_then(|place| self.open.remove(place))
            .filter(|seen| seen.is_whole && (wanted.all || !seen.stamps.is_empty()))
        else {
            self.miss(1);
            return;
        };
        if let Some(sight) = sight {
            sight.keep(&seen);
        }
        let event = self.event(ram, &seen, idx, written, wanted.at_ns);
        self.shared.counters.chains.add(1);
        self.shared.counters.bytes.add(event.frame_len.into());
        self.shared.events.record(&event);
        self.shared.samples.record(&event);
    }

    fn miss(&self, chains: u16) {
        self.shared.counters.chains.add(chains.into());
        self.shared.events.lose(chains.into());
    }

    fn event(&self, ram: &Ram, seen: &Seen, used_idx: u16, written: u32, at_ns: u64) -> Event {
        let mut event = Event {
            at_ns,
            head: seen.head,
            idx: seen.idx,
            descriptors: seen.descriptors,
            indirect: seen.indirect,
            written,
            ..Event::default()
        };
        seen.buffers.iter().for_each(|buffer| event.push(*buffer));
        event.stamps.iter_mut().zip(&seen.stamps).for_each(|(stamp, seen)| *stamp = *seen);
        let (first, bytes) = match self.queue.frames {
            Frames::Sent => (seen.first.clone(), seen.readable),
            Frames::Received => {
                let first = seen.peek(ram, true, self.header);
                // Once it is collected, others write there.
                let collected = short(ram, self.queue.last_used_at).is_none_or(|collected| {
                    let ahead = used_idx.wrapping_sub(collected);
                    ahead >= self.queue.layout.size
                });
                (if collected { Vec::new() } else { first }, written.into())
            }
            Frames::None => return event,
        };
        event.net_header_len = self.header as u8;
        event.frame_len = bytes.saturating_sub(self.header as u64).try_into().unwrap_or(u32::MAX);
        // VIRTIO 1.3, 5.1.6 Device Operation: flags, gso_type, hdr_len, gso_size.
        event.gso_size = if number(&first, 1, 1) == 0 { 0 } else { number(&first, 4, 2) as u16 };
        let known = first.get(self.header..).unwrap_or_default();
        let len = known.len().min(HEAD_BYTES).min(event.frame_len as usize);
        if let (Some(room), Some(known)) = (event.head_bytes.get_mut(..len), known.get(..len)) {
            room.copy_from_slice(known);
            event.head_len = len as u8;
        }
        event
    }

    /// By what a used chain is told: by its head, or where the device keeps to the order, by its place.
    fn key(&self, seen: &Seen) -> u16 {
        if self.in_order() { seen.idx } else { seen.head }
    }

    fn in_order(&self) -> bool {
        self.features.has(Feature::InOrder)
    }
}

fn short(ram: &Ram, at: u64) -> Option<u16> {
    let mut bytes = [0; 2];
    ram.copy(at, &mut bytes)?;
    Some(u16::from_le_bytes(bytes))
}

/// `avail.idx` and `used.idx`. `used.idx` first: it never seems to be ahead then.
fn indices(ram: &Ram, layout: &RingLayout) -> Option<(u16, u16)> {
    let used = short(ram, layout.used.checked_add(2)?)?;
    Some((short(ram, layout.avail.checked_add(2)?)?, used))
}
