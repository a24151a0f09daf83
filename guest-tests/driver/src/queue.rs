//! A virtqueue in memory that the device can reach.
//!
//! Operation: one piece of memory holds the ring and, behind it, an indirect table and room for bytes for each entry. The ring
//! itself is [`vnic::ring`]'s driver half, which remembers outside of this memory what the device has: the device may write
//! to all of it.

use vnic::memory::Memory;
use vnic::ring::{Buffer, DriverRing, PackedDriver, Placement, RingError, RingLayout, SplitDriver, Used};
use vnic::spec::{Feature, Features};

use super::DriverError;
use crate::vfio::{Device, DmaBuffer, Registers};

/// Most descriptors of a chain in an indirect table.
const TABLE_ENTRIES: u64 = 4;
/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;

/// What a driver wants of a queue.
#[derive(Debug, Clone, Copy)]
pub struct Wish {
    /// Entries; the device may have fewer.
    pub size: u16,
    /// Bytes of memory for each entry.
    pub room: u32,
    /// Its MSI-X vector; `None`: no interrupts.
    pub vector: Option<u16>,
}

/// One queue, live until dropped.
#[derive(Debug)]
pub struct Queue<'v> {
    ring: Ring,
    memory: DmaBuffer<'v>,
    layout: RingLayout,
    index: u16,
    /// Where the indirect tables begin; `None` where they were not negotiated.
    tables: Option<u64>,
    /// Where the bytes begin.
    rooms: u64,
    room: u32,
    free_rooms: Vec<u16>,
    /// By head: the room of the chain.
    room_of: Vec<u16>,
    notify: Registers,
    place: usize,
}

/// Either format.
#[derive(Debug)]
enum Ring {
    Split(SplitDriver),
    Packed(PackedDriver),
}

impl Ring {
    #[inline]
    fn get(&mut self) -> &mut dyn DriverRing {
        match self {
            Ring::Split(ring) => ring,
            Ring::Packed(ring) => ring,
        }
    }
}

/// The largest size a queue of at most `most` entries can have: a split ring's is a power of two.
#[must_use]
pub fn usable_size(most: u16, features: Features) -> Option<u16> {
    let size = if features.has(Feature::RingPacked) { most } else { most.checked_ilog2().map_or(0, |log| 1 << log) };
    (size >= 2).then_some(size.min(32768))
}

/// One of a queue's rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    number: u16,
    /// Its address.
    pub at: u64,
    /// Its bytes.
    pub len: u32,
}

impl<'v> Queue<'v> {
    pub(super) fn new(
        device: &'v Device,
        index: u16,
        size: u16,
        features: Features,
        wish: Wish,
        (notify, place): (Registers, usize),
    ) -> Result<Self, DriverError> {
        let broken = |source| DriverError::Ring { index, source };
        let layout_at = |base| match features.has(Feature::RingPacked) {
            true => RingLayout::packed_at(base, size),
            false => RingLayout::split_at(base, size),
        };
        // Laid out from 0 first, to see how much memory it takes.
        let (_, ring_len) = layout_at(0).map_err(broken)?;
        let tables_at = ring_len.next_multiple_of(DESCRIPTOR);
        let tables_len =
            if features.has(Feature::IndirectDesc) { u64::from(size) * TABLE_ENTRIES * DESCRIPTOR } else { 0 };
        // Rooms start on a page: none shares one with the ring.
        let rooms_at = (tables_at + tables_len).next_multiple_of(4096);
        let memory = device.buffer(rooms_at + u64::from(size) * u64::from(wish.room))?;
        let (layout, _) = layout_at(memory.iova()).map_err(broken)?;
        let shared = std::sync::Arc::clone(memory.memory());
        let ring = match features.has(Feature::RingPacked) {
            true => Ring::Packed(PackedDriver::new(layout, shared, features).map_err(broken)?),
            false => Ring::Split(SplitDriver::new(layout, shared, features).map_err(broken)?),
        };
        Ok(Queue {
            ring,
            layout,
            index,
            tables: (tables_len > 0).then(|| memory.iova() + tables_at),
            rooms: memory.iova() + rooms_at,
            room: wish.room,
            free_rooms: (0..size).rev().collect(),
            room_of: vec![0; usize::from(size)],
            memory,
            notify,
            place,
        })
    }

    /// Where the ring is.
    #[must_use]
    pub fn layout(&self) -> RingLayout {
        self.layout
    }

    /// The queue's memory, by the device's addresses.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        self.memory.memory()
    }

    /// The next free room, if `descriptors` more fit into the ring. It stays free until [`Queue::add`].
    #[must_use]
    pub fn next_room(&mut self, descriptors: u16) -> Option<Room> {
        let needed = if self.tables.is_some() { 1 } else { descriptors };
        let number = *self.free_rooms.last()?;
        (self.ring.get().free() >= needed).then(|| self.room(number))
    }

    fn room(&self, number: u16) -> Room {
        Room { number, at: self.rooms + u64::from(number) * u64::from(self.room), len: self.room }
    }

    /// Adds a chain, which has `room` until it comes back. The device sees it at the next [`Queue::publish`].
    ///
    /// # Errors
    /// There is no room in the ring, or the chain is not one that may be offered.
    pub fn add(&mut self, room: Room, buffers: &[Buffer]) -> Result<(), DriverError> {
        let placement = match self.tables {
            Some(tables) if buffers.len() > 1 && buffers.len() as u64 <= TABLE_ENTRIES => {
                Placement::Indirect(tables + u64::from(room.number) * TABLE_ENTRIES * DESCRIPTOR)
            }
            _ => Placement::Direct,
        };
        let head = self.ring.get().add(buffers, placement).map_err(|source| self.broken(source))?;
        if let Some(room_of) = self.room_of.get_mut(usize::from(head)) {
            *room_of = room.number;
        }
        self.free_rooms.pop();
        Ok(())
    }

    /// Lets the device see all added chains, and kicks it if it wants that: a store to its register, and no system call.
    pub fn publish(&mut self) {
        if self.ring.get().publish() {
            // VIRTIO 1.3, 4.1.5.2 Available Buffer Notifications: without NOTIFICATION_DATA, the queue's number.
            self.notify.write16(self.place, self.index);
        }
    }

    /// Takes the next chain that came back: its room, and how many bytes the device wrote. The room is free again.
    ///
    /// # Errors
    /// The device broke the rules.
    pub fn pop_used(&mut self) -> Result<Option<(Room, u32)>, DriverError> {
        let used = self.ring.get().pop_used().map_err(|source| self.broken(source))?;
        let Some(Used { head, written }) = used else { return Ok(None) };
        // The ring knows its heads: they are below its size.
        let number = self.room_of.get(usize::from(head)).copied().unwrap_or_default();
        self.free_rooms.push(number);
        Ok(Some((self.room(number), written)))
    }

    /// Chains that the device has.
    #[must_use]
    pub fn out(&mut self) -> u16 {
        self.ring.get().out()
    }

    /// Asks for an interrupt when something comes back. Returns whether something did meanwhile.
    pub fn enable_interrupts(&mut self) -> bool {
        self.ring.get().enable_notifications()
    }

    /// Asks for none.
    pub fn disable_interrupts(&mut self) {
        self.ring.get().disable_notifications();
    }

    fn broken(&self, source: RingError) -> DriverError {
        DriverError::Ring { index: self.index, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_ring_is_a_power_of_two_and_a_packed_one_as_large_as_it_may() {
        let packed = Features::of(&[Feature::RingPacked]);
        for (most, split, all) in [
            (0, None, None),
            (1, None, None),
            (2, Some(2), Some(2)),
            (255, Some(128), Some(255)),
            (256, Some(256), Some(256)),
        ] {
            assert_eq!(usable_size(most, Features::NONE), split, "{most}");
            assert_eq!(usable_size(most, packed), all, "{most}");
        }
        assert_eq!(usable_size(u16::MAX, packed), Some(32768));
    }
}
