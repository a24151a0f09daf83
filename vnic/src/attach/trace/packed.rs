//! The chains of one packed ring, as far as they can be seen by looking at it again and again.
//!
//! Operation, at each look at a ring that has changed:
//! 1. What is available behind what was seen so far is followed in a copy of the ring: its buffers, its frame's start.
//! 2. The ring is copied once more, and how far the driver has collected used chains is read. What is no more as it was
//!    followed, and is used, is as the driver made it if it was not collected; all else is missed.
//! 3. From where the device stood, its used descriptors say which chains it has used. What nobody saw become available was
//!    missed: where the device is then stands in the driver's books, and all begins anew from there.
//!
//! Limits: NICs only, whose chains come back in the order in which they came. A packed ring has no index that counts on. How many
//! chains were missed is told by the slots that they took, one each if they are indirect; and what came round the ring twice
//! between two looks is not counted at all. Within a look, where the driver is is read again and again: as long as no two of
//! those readings are further apart than it may take to go round twice ([`AT_BEST`]), they say how far it has come meanwhile, and a
//! look in which that was twice round, or is not known, is not believed ([`Laps`]).

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::devices::{Frames, Queue};
use super::super::fetched::Fetched;
use super::super::packed::{Packed, copy};
use super::chain::{DESC, Desc, Seen};
use super::sight::Sight;
use super::told::{FETCHED, Told, Wanted};
use crate::introspect::GuestPhysical;
use crate::ring::RingLayout;
use crate::ring::packed::Position;
use crate::spec::{Feature, Features};

/// No kernel's driver makes a chain available, and collects it again, in less.
const AT_BEST: Duration = Duration::from_nanos(100);

/// How far the driver has come since a look began.
#[derive(Debug)]
struct Laps {
    believed: Duration,
    size: u16,
    /// Where it was last, which was read after this.
    at: Position,
    since: Instant,
    slots: u32,
    are_known: bool,
}

impl Laps {
    /// It is there, which was read since then.
    fn meet(&mut self, at: Option<Position>, since: Instant) {
        self.are_known &= at.is_some() && self.since.elapsed() <= self.believed;
        let at = at.unwrap_or(self.at);
        self.slots = self.slots.saturating_add(distance(self.size, self.at, at).into());
        (self.at, self.since) = (at, since);
    }

    /// Was it less than twice round?
    fn are_few(&self) -> bool {
        self.are_known && self.slots < 2 * u32::from(self.size)
    }
}

/// What is watched of it.
#[derive(Debug)]
pub(super) struct PackedRing {
    layout: RingLayout,
    books: Packed,
    last_used_at: u64,
    /// Longer than this between two readings of where the driver is, and the ring may have gone round twice.
    pub(super) believed: Duration,
    /// Where the device is, and the next slot that was not followed yet.
    next_used: Position,
    next_avail: Position,
    /// Chains between these two, oldest first.
    open: VecDeque<Seen>,
    /// The ring as it stood at the end of the last look.
    before: Vec<u8>,
}

impl PackedRing {
    /// From now on; `None`: the ring is none that can be looked at so, or out of reach.
    pub(super) fn new(ram: &impl GuestPhysical, queue: &Queue, books: Packed, features: Features) -> Option<Self> {
        let known = matches!(queue.frames, Frames::Sent | Frames::Received) && !features.has(Feature::InOrder);
        let (layout, last_used_at) = (queue.layout, queue.last_used_at);
        let device = books.device(ram, &layout, books.collected(ram, &layout, last_used_at)?).filter(|_| known)?;
        Some(PackedRing {
            layout,
            books,
            last_used_at,
            believed: AT_BEST * 2 * u32::from(layout.size),
            next_used: device,
            next_avail: device,
            open: VecDeque::new(),
            before: Vec::new(),
        })
    }

    /// Looks once. Returns whether anything has happened.
    pub(super) fn look<M: GuestPhysical>(
        &mut self,
        ram: &M,
        told: &Told,
        wanted: Wanted,
        mut sight: Option<&mut Sight<M>>,
    ) -> bool {
        let start = Instant::now();
        let mut fetched = Fetched::new(ram);
        fetched.fetch(self.books.places().chain([self.place()]));
        let driver = self.books.driver(&fetched, &self.layout);
        let Some((driver, ring)) = driver.zip(copy(&fetched, &self.layout)) else { return false };
        if ring == self.before {
            return false;
        }
        let (believed, size) = (self.believed, self.layout.size);
        let mut laps = Laps { believed, size, at: driver, since: start, slots: 0, are_known: true };
        // What is not as it was left is none of the chains that are remembered.
        let mut lost = !self.before.is_empty() && !self.open_stand(&ring);
        let (mut new, next_avail, met_driver) = self.follow(&mut fetched, &ring, driver);
        lost |= !met_driver;
        new.iter_mut().for_each(|seen| seen.available_ns = wanted.at_ns);
        self.meet_driver(ram, &mut laps, &[]);
        told.look_into(&mut new, &mut fetched, sight.as_deref_mut());
        self.meet_driver(ram, &mut laps, &[]);
        // Not before all of them have been read.
        let fetched = self.meet_driver(ram, &mut laps, &[self.place(), (self.last_used_at, 2)]);
        let collected = self.books.collected(&fetched, &self.layout, self.last_used_at);
        let Some((after, collected)) = copy(&fetched, &self.layout).zip(collected) else { return false };
        let Some(collected) = Position::from_bits(collected, self.layout.size) else { return false };
        let in_time = laps.are_few();
        let mut at = self.next_avail;
        for seen in &mut new {
            seen.is_whole = in_time && self.is_whole(seen, at, (&ring, &after), collected);
            at = at.after(seen.slots, self.layout.size);
        }
        self.next_avail = next_avail;
        self.open.append(&mut new);
        while !lost && let Some(desc) = self.used(&after) {
            let Some(seen) = self.open.pop_front_if(|seen| seen.head == desc.next) else {
                lost = true;
                break;
            };
            let behind = self.next_used.after(seen.slots, self.layout.size);
            self.next_used = behind;
            let is_collected =
                || self.collected(ram).is_none_or(|by_now| self.distance(behind, by_now) <= self.layout.size);
            told.pass(ram, &seen, desc.len, (wanted, sight.as_deref_mut()), is_collected);
        }
        self.before = after;
        if lost {
            self.begin_anew(ram, told);
        }
        true
    }

    /// Reads where the driver is, and these behind it.
    fn meet_driver<'r, M: GuestPhysical>(&self, ram: &'r M, laps: &mut Laps, also: &[(u64, usize)]) -> Fetched<'r, M> {
        let (start, mut fetched) = (Instant::now(), Fetched::new(ram));
        fetched.fetch(self.books.places().chain(also.iter().copied()));
        laps.meet(self.books.driver(&fetched, &self.layout), start);
        fetched
    }

    fn place(&self) -> (u64, usize) {
        (self.layout.desc, DESC * usize::from(self.layout.size))
    }

    fn collected(&self, ram: &impl GuestPhysical) -> Option<Position> {
        Position::from_bits(self.books.collected(ram, &self.layout, self.last_used_at)?, self.layout.size)
    }

    fn distance(&self, from: Position, to: Position) -> u16 {
        distance(self.layout.size, from, to)
    }

    /// What became available since the last look, where that ends, and whether it came by where the driver was.
    fn follow<M: GuestPhysical>(
        &self,
        fetched: &mut Fetched<'_, M>,
        ring: &[u8],
        driver: Position,
    ) -> (VecDeque<Seen>, Position, bool) {
        let size = self.layout.size;
        let (mut new, mut at) = (VecDeque::new(), self.next_avail);
        let mut held: u16 = self.open.iter().map(|seen| seen.slots).sum();
        let mut met = at == driver;
        // Most chains are one slot each.
        let ahead = (0..size).map(|slots| at.after(slots, size));
        let here = |at: &Position| Desc::read_packed(ring, at.slot).filter(|desc| at.is_available(desc.flags));
        fetched.fetch(ahead.map_while(|at| here(&at)).take(FETCHED).filter_map(|desc| Seen::table(Some(desc))));
        while held < size && here(&at).is_some() {
            let seen = Seen::follow_packed(fetched, ring, at, size);
            held = held.saturating_add(seen.slots);
            at = at.after(seen.slots, size);
            met |= at == driver;
            new.push_back(seen);
        }
        // What is used already, without having been seen, is found to be by its descriptor.
        let unseen = Desc::read_packed(ring, at.slot).is_some_and(|desc| at.is_used(desc.flags));
        (new, at, met || unseen)
    }

    /// Do the chains that the device has still stand as they did?
    fn open_stand(&self, ring: &[u8]) -> bool {
        let mut at = self.next_used;
        self.open.iter().all(|seen| {
            let same = desc(ring, at.slot) == desc(&self.before, at.slot);
            let used = Desc::read_packed(ring, at.slot).is_some_and(|desc| at.is_used(desc.flags));
            at = at.after(seen.slots, self.layout.size);
            same || used
        })
    }

    /// Was a chain at this place, followed in one copy, the device's until the other was made?
    fn is_whole(&self, seen: &Seen, at: Position, (ring, after): (&[u8], &[u8]), collected: Position) -> bool {
        if desc(ring, at.slot) == desc(after, at.slot) {
            return true;
        }
        // If it is used, what is collected lies before it. The driver frees an indirect table before it counts on.
        let used = Desc::read_packed(after, at.slot).is_some_and(|desc| at.is_used(desc.flags));
        let behind = self.distance(collected, at);
        used && behind < self.layout.size && !(seen.indirect && behind == 0)
    }

    /// The used descriptor where the device was.
    fn used(&self, ring: &[u8]) -> Option<Desc> {
        Desc::read_packed(ring, self.next_used.slot).filter(|desc| self.next_used.is_used(desc.flags))
    }

    /// From where the device is by the driver's books, which hold as long as the driver collects nothing meanwhile.
    fn begin_anew(&mut self, ram: &impl GuestPhysical, told: &Told) {
        let before = self.books.collected(ram, &self.layout, self.last_used_at);
        let device = before.and_then(|collected| self.books.device(ram, &self.layout, collected));
        self.open.clear();
        self.before.clear();
        let Some(device) = device.filter(|_| self.books.collected(ram, &self.layout, self.last_used_at) == before)
        else {
            return;
        };
        told.miss(self.distance(self.next_used, device));
        (self.next_used, self.next_avail) = (device, device);
    }
}

/// Slots from one to the other in a ring of this size, up to twice round.
fn distance(size: u16, from: Position, to: Position) -> u16 {
    let lap = |at: Position| u32::from(at.slot) + if at.wrap { 0 } else { u32::from(size) };
    let round = 2 * u32::from(size);
    ((lap(to) + round - lap(from)) % round) as u16
}

fn desc(ring: &[u8], slot: u16) -> &[u8] {
    let at = DESC * usize::from(slot);
    ring.get(at..at + DESC).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_went_twice_round_or_was_long_unseen_is_not_believed_to_have_gone_once() {
        let at = |slot| Position { slot: slot % 8, wrap: slot / 8 % 2 == 0 };
        let long = Duration::from_secs(3600);
        let laps = |believed, stops: &[Option<u16>]| {
            let mut laps = Laps { believed, size: 8, at: at(3), since: Instant::now(), slots: 0, are_known: true };
            stops.iter().for_each(|slot| laps.meet(slot.map(at), Instant::now()));
            laps.are_few()
        };
        assert!(laps(long, &[]) && laps(long, &[Some(3), Some(10), Some(18)]));
        // 3, and 16 slots further 3 again.
        assert!(!laps(long, &[Some(11), Some(19)]));
        assert!(!laps(long, &[Some(5), None, Some(5)]));
        assert!(!laps(Duration::ZERO, &[Some(3)]));
    }
}
