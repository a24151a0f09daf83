//! A packed ring's books, as its driver keeps them: they say how far the device is, which nobody can tell from the ring alone.

use super::layout::Ring;
use crate::introspect::GuestPhysical;
use crate::ring::RingLayout;
use crate::ring::packed::Position;

/// Where the books are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packed {
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
    pub(super) fn new(states: u64, ring: &Ring, (next, wrap): (u64, u64), used_wrap: Option<u64>) -> Self {
        Packed { states, size: ring.state_size, slots: ring.state_slots, next, wrap, used_wrap }
    }

    /// For a driver that is none of a kernel's: each state is the number of slots.
    #[cfg(test)]
    pub(super) fn at(states: u64, next: u64, wrap: u64) -> Self {
        Packed { states, size: 2, slots: 0, next, wrap, used_wrap: None }
    }

    /// What is read to know where the driver is: addresses and bytes.
    pub(super) fn places(&self) -> [(u64, usize); 2] {
        [(self.next, 2), (self.wrap, 1)]
    }

    /// Where the driver is.
    pub(super) fn driver(&self, memory: &impl GuestPhysical, layout: &RingLayout) -> Option<Position> {
        let (mut slot, mut wrap) = ([0; 2], [0; 1]);
        memory.copy(self.next, &mut slot)?;
        memory.copy(self.wrap, &mut wrap)?;
        let [wrap] = wrap;
        Some(Position { slot: u16::from_le_bytes(slot), wrap: wrap != 0 }).filter(|at| at.slot < layout.size)
    }

    /// How far the driver has collected: a slot and, in bit 15, the wrap counter.
    pub(super) fn collected(&self, memory: &impl GuestPhysical, last_used_at: u64) -> Option<u16> {
        let (mut slot, mut wrap) = ([0; 2], [0; 1]);
        memory.copy(last_used_at, &mut slot)?;
        let slot = u16::from_le_bytes(slot);
        let Some(at) = self.used_wrap else { return Some(slot) };
        memory.copy(at, &mut wrap)?;
        let [wrap] = wrap;
        Some(slot & 0x7fff | u16::from(wrap & 1) << 15)
    }

    /// How many slots the chain of this id takes, or took when it was last in the ring.
    pub(super) fn slots(&self, memory: &impl GuestPhysical, id: u16, layout: &RingLayout) -> Option<u16> {
        let mut slots = [0; 2];
        let state = self.states.checked_add(u64::from(id).checked_mul(self.size)?)?;
        memory.copy(state.checked_add(self.slots)?, &mut slots)?;
        Some(u16::from_le_bytes(slots)).filter(|slots| (1..=layout.size).contains(slots))
    }

    /// How far the device is: behind the used chains that the driver has not collected yet. `last_used` is what the driver's
    /// books say: a slot and, in bit 15, the wrap counter.
    pub(super) fn device(&self, memory: &impl GuestPhysical, layout: &RingLayout, last_used: u16) -> Option<Position> {
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
