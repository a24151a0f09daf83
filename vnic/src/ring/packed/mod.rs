//! Packed rings: the device half and the driver half. VIRTIO 1.3, 2.8 Packed Virtqueues.

pub mod device;
pub mod driver;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
pub(super) mod walk;

pub use device::PackedDevice;
pub use driver::PackedDriver;

use crate::spec::ring::{DESC_F_AVAIL, DESC_F_USED, PACKED_EVENT_DESC, PACKED_EVENT_DISABLE, PackedEvent};

use super::split::need_event;

/// Where one side stands in a packed ring: a slot, and the wrap counter that turns over with each lap
/// (VIRTIO 1.3, 2.8.1 Driver and Device Ring Wrap Counters).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) slot: u16,
    pub(crate) wrap: bool,
}

impl Position {
    /// Where a new ring starts: 2.8.1, both counters 1.
    pub(super) const START: Position = Position { slot: 0, wrap: true };

    /// From bits 0–15 of a ring base: slot, and the wrap counter in bit 15. `None`: the ring has no such slot.
    pub(crate) fn from_bits(bits: u16, size: u16) -> Option<Self> {
        let position = Position { slot: bits & 0x7fff, wrap: bits >> 15 == 1 };
        (position.slot < size).then_some(position)
    }

    pub(crate) const fn to_bits(self) -> u16 {
        self.slot | (self.wrap as u16) << 15
    }

    /// `slots` further on, at most one lap.
    #[inline]
    pub(crate) const fn after(self, slots: u16, size: u16) -> Self {
        // Below 65536, as neither is over 32768 and `slot` is less.
        let slot = self.slot + slots;
        if slot >= size { Position { slot: slot - size, wrap: !self.wrap } } else { Position { slot, ..self } }
    }

    /// How many slots further on `end` is, at most one lap.
    pub(super) const fn slots_to(self, end: Self, size: u16) -> u16 {
        let lap = if self.wrap == end.wrap { 0 } else { size };
        // Below 65536, as in `after`.
        (end.slot + lap).saturating_sub(self.slot)
    }

    /// `slots` back, at most one lap.
    pub(super) const fn before(self, slots: u16, size: u16) -> Self {
        match self.slot.checked_sub(slots) {
            Some(slot) => Position { slot, ..self },
            None => Position { slot: self.slot + size - slots, wrap: !self.wrap },
        }
    }

    /// Do these flags make the descriptor here available?
    #[inline]
    pub(crate) const fn is_available(self, flags: u16) -> bool {
        (flags & DESC_F_AVAIL != 0) == self.wrap && (flags & DESC_F_USED != 0) != self.wrap
    }

    /// Do these flags make the descriptor here used?
    #[inline]
    pub(crate) const fn is_used(self, flags: u16) -> bool {
        (flags & DESC_F_AVAIL != 0) == self.wrap && (flags & DESC_F_USED != 0) == self.wrap
    }

    /// The flags that make the descriptor here available.
    #[inline]
    pub(super) const fn available(self) -> u16 {
        if self.wrap { DESC_F_AVAIL } else { DESC_F_USED }
    }

    /// The flags that make the descriptor here used.
    #[inline]
    pub(super) const fn used(self) -> u16 {
        if self.wrap { DESC_F_AVAIL | DESC_F_USED } else { 0 }
    }
}

/// Does the other side, having asked for `event`, want to hear that the ring went from `old` to `new`, one lap at most?
/// VIRTIO 1.3, 2.8.14 Event Suppression Structure Format. A side that writes nonsense hears once too often.
pub(super) fn wants(event: PackedEvent, new: Position, old: Position, size: u16) -> bool {
    match event.flags & 3 {
        PACKED_EVENT_DISABLE => false,
        PACKED_EVENT_DESC => {
            // All three on one line, where `new` is in the lap from 0 on.
            let lap = |earlier: bool| if earlier { size } else { 0 };
            let asked = event.off_wrap & 0x7fff;
            let asked = asked.wrapping_sub(lap((event.off_wrap >> 15 == 1) != new.wrap));
            let old = old.slot.wrapping_sub(lap(old.wrap != new.wrap));
            need_event(asked, new.slot, old)
        }
        _ => true,
    }
}
