//! How far driver and device are in a packed ring, which has no indices.
//!
//! Operation: a kernel's driver keeps books, which say so. Without them it is read off the ring: the driver has written each slot in
//! its present lap up to where it is, and the device is behind the last slot that says "used".
//!
//! Limits, without books: a chain of several slots leaves all but its first as they were when it is used. What follows a used slot
//! is taken for the rest of that chain if it ends with the same id; a driver that gives an id anew at once makes that wrong by a chain.

use super::layout::Ring;
use super::trace::chain::{DESC, Desc};
use crate::introspect::GuestPhysical;
use crate::ring::packed::Position;
use crate::ring::{RingLayout, check_packed_size};
use crate::spec::ring::{DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT};

/// Where it is to be had from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packed {
    /// The driver's books.
    Books(Books),
    /// The ring alone.
    Ring,
}

/// Where the books are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Books {
    /// The chains' states, by buffer id: guest-physical, one behind the other.
    states: u64,
    /// Bytes of each, and where in it the chain's slots are counted.
    size: u64,
    slots: u64,
    /// Where it stands which slot the driver fills next, and its wrap counter; guest-physical.
    next: u64,
    wrap: u64,
    /// Where the wrap counter stands that belongs to how far it has collected, if not in that number itself.
    used_wrap: Option<u64>,
}

impl Packed {
    /// What is read to know where the driver is, beside the ring: addresses and bytes.
    pub(super) fn places(&self) -> impl Iterator<Item = (u64, usize)> {
        let books = if let Packed::Books(books) = self { Some(books.places()) } else { None };
        books.into_iter().flatten()
    }

    /// Where the driver is; `None`, as below, where no packed ring has this size.
    pub(super) fn driver(&self, memory: &impl GuestPhysical, layout: &RingLayout) -> Option<Position> {
        check_packed_size(layout.size).ok()?;
        match self {
            Packed::Books(books) => books.driver(memory, layout),
            Packed::Ring => driver_in(&copy(memory, layout)?, layout.size),
        }
    }

    /// How far the driver has collected, at most: a slot and, in bit 15, the wrap counter.
    pub(super) fn collected(&self, memory: &impl GuestPhysical, layout: &RingLayout, last_used_at: u64) -> Option<u16> {
        check_packed_size(layout.size).ok()?;
        match self {
            Packed::Books(books) => books.collected(memory, last_used_at),
            Packed::Ring => device_in(&copy(memory, layout)?, layout.size).map(Position::to_bits),
        }
    }

    /// How far the device is: behind the used chains that the driver has not collected yet. `last_used` is what the driver's
    /// books say: a slot and, in bit 15, the wrap counter.
    pub(crate) fn device(&self, memory: &impl GuestPhysical, layout: &RingLayout, last_used: u16) -> Option<Position> {
        check_packed_size(layout.size).ok()?;
        match self {
            Packed::Books(books) => books.device(memory, layout, last_used),
            Packed::Ring => device_in(&copy(memory, layout)?, layout.size),
        }
    }
}

impl Books {
    pub(super) fn new(states: u64, ring: &Ring, (next, wrap): (u64, u64), used_wrap: Option<u64>) -> Self {
        Books { states, size: ring.state_size, slots: ring.state_slots, next, wrap, used_wrap }
    }

    /// For a driver that is none of a kernel's: each state is the number of slots.
    #[cfg(test)]
    pub(super) fn at(states: u64, next: u64, wrap: u64) -> Self {
        Books { states, size: 2, slots: 0, next, wrap, used_wrap: None }
    }

    fn places(&self) -> [(u64, usize); 2] {
        [(self.next, 2), (self.wrap, 1)]
    }

    fn driver(&self, memory: &impl GuestPhysical, layout: &RingLayout) -> Option<Position> {
        let (mut slot, mut wrap) = ([0; 2], [0; 1]);
        memory.copy(self.next, &mut slot)?;
        memory.copy(self.wrap, &mut wrap)?;
        let [wrap] = wrap;
        Some(Position { slot: u16::from_le_bytes(slot), wrap: wrap != 0 }).filter(|at| at.slot < layout.size)
    }

    fn collected(&self, memory: &impl GuestPhysical, last_used_at: u64) -> Option<u16> {
        let (mut slot, mut wrap) = ([0; 2], [0; 1]);
        memory.copy(last_used_at, &mut slot)?;
        let slot = u16::from_le_bytes(slot);
        let Some(at) = self.used_wrap else { return Some(slot) };
        memory.copy(at, &mut wrap)?;
        let [wrap] = wrap;
        Some(slot & 0x7fff | u16::from(wrap & 1) << 15)
    }

    /// How many slots the chain of this id takes, or took when it was last in the ring.
    fn slots(&self, memory: &impl GuestPhysical, id: u16, layout: &RingLayout) -> Option<u16> {
        let mut slots = [0; 2];
        let state = self.states.checked_add(u64::from(id).checked_mul(self.size)?)?;
        memory.copy(state.checked_add(self.slots)?, &mut slots)?;
        Some(u16::from_le_bytes(slots)).filter(|slots| (1..=layout.size).contains(slots))
    }

    fn device(&self, memory: &impl GuestPhysical, layout: &RingLayout, last_used: u16) -> Option<Position> {
        let mut at = Position::from_bits(last_used, layout.size)?;
        for _ in 0..layout.size {
            let Some((id, flags)) = word(memory, layout, at.slot) else { break };
            let Some(slots) = at.is_used(flags).then(|| self.slots(memory, id, layout)).flatten() else { break };
            at = at.after(slots, layout.size);
        }
        Some(at)
    }
}

/// A descriptor's buffer id and flags, the last four bytes of it: VIRTIO 1.3, 2.8.13.
fn word(memory: &impl GuestPhysical, layout: &RingLayout, slot: u16) -> Option<(u16, u16)> {
    let mut bytes = [0; 4];
    memory.copy(layout.desc.checked_add(16 * u64::from(slot) + 12)?, &mut bytes)?;
    let [id, id_high, flags, flags_high] = bytes.map(u16::from);
    Some((id | id_high << 8, flags | flags_high << 8))
}

/// The ring as it stands.
pub(super) fn copy(memory: &impl GuestPhysical, layout: &RingLayout) -> Option<Vec<u8>> {
    let mut ring = vec![0; DESC * usize::from(layout.size)];
    memory.copy(layout.desc, &mut ring)?;
    Some(ring)
}

/// Where the driver is: the slots before it say in their flags that they were written in its present lap, the others that they were not.
/// `None`: they say neither.
fn driver_in(ring: &[u8], size: u16) -> Option<Position> {
    let written = |slot: u16| Desc::read_packed(ring, slot).map(|desc| desc.flags & DESC_F_AVAIL != 0);
    let lap = written(0)?;
    let slot = (0..size).find(|slot| written(*slot) != Some(lap));
    let rest = (slot.unwrap_or(size)..size).all(|slot| written(slot) == Some(!lap));
    let at = slot.map_or(Position { slot: 0, wrap: !lap }, |slot| Position { slot, wrap: lap });
    rest.then_some(at)
}

/// Where the device is. `None`: it cannot be read off this ring.
fn device_in(ring: &[u8], size: u16) -> Option<Position> {
    let driver = driver_in(ring, size)?;
    let back = |slots: u16| match driver.slot.checked_sub(slots) {
        Some(slot) => Position { slot, wrap: driver.wrap },
        None => Position { slot: driver.slot + size - slots, wrap: !driver.wrap },
    };
    let is_available = |at: Position| Desc::read_packed(ring, at.slot).is_some_and(|desc| at.is_available(desc.flags));
    // As many slots before the driver as look available: all of them, or up to a used one.
    let run = (1..=size).take_while(|slots| is_available(back(*slots))).count() as u16;
    let (first, used) = (back(run), (run < size).then(|| back(run + 1)));
    let Some(used) = used.and_then(|used| Desc::read_packed(ring, used.slot)) else { return Some(first) };
    // The rest of the used chain, if it is: of one of several slots, and to its last.
    let chain = (0..run).map_while(|slots| Desc::read_packed(ring, first.after(slots, size).slot));
    let mut len = 0;
    for desc in chain {
        len += 1;
        if desc.flags & DESC_F_INDIRECT != 0 {
            break;
        }
        if desc.flags & DESC_F_NEXT == 0 {
            return Some(if desc.next == used.next { first.after(len, size) } else { first });
        }
    }
    Some(first)
}
