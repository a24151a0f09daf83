//! The driver half of a packed ring.
//!
//! Place: see [`DriverRing`]. The peer of the device half in its tests, and the ring of drivers in user space.
//!
//! Operation (VIRTIO 1.3, 2.8.21 Supplying Buffers to The Device, 2.8.22 Receiving Used Buffers From The Device):
//! 1. A chain takes as many slots, one behind the other, as it has descriptors; an indirect one takes one. Each
//!    descriptor's flags say that it is available in this lap.
//! 2. The device looks at one slot only, the next. So the first word of a burst is stored last, with release.
//! 3. Behind a full fence, whether the device wants a kick is read.
//! 4. A used descriptor stands where the driver looks next; it frees as many slots as its chain took.
//!
//! Invariants: ids, lengths and room of all chains are kept in private memory (`out`); nothing is ever read back from
//! the ring but the used word at `next_used`. So whatever a device writes, a chain comes back at most once.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::memory::Memory;
use crate::ring::driver::{check_chain, entry, writable_len};
use crate::ring::pointers::{PackedPointers, Word, full_fence};
use crate::ring::{Buffer, DriverRing, Placement, RingError, RingLayout, Used};
use crate::spec::ring::{
    DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, PACKED_EVENT_DESC, PACKED_EVENT_DISABLE, PACKED_EVENT_ENABLE,
    PackedEvent,
};
use crate::spec::{Feature, Features};

use super::{Position, wants};

/// The driver half of a packed ring. See the [module](self).
#[derive(Debug)]
pub struct PackedDriver {
    ring: PackedPointers,
    indirect: bool,
    event_idx: bool,
    next_avail: Position,
    /// Where the device looks for the next available descriptor.
    published: Position,
    /// The word for that place, once there is one.
    first: Option<Word>,
    next_used: Position,
    free: u16,
    free_ids: Vec<u16>,
    /// By buffer id: the chains the device has.
    out: Box<[Option<Out>]>,
    out_count: u16,
    /// Bursts published so far.
    bursts: u64,
    in_order: Option<InOrder>,
}

/// A chain the device has.
#[derive(Debug, Clone, Copy)]
struct Out {
    slots: u16,
    room: u32,
    burst: u64,
}

/// With IN_ORDER one used descriptor may stand for all chains up to its own.
#[derive(Debug)]
struct InOrder {
    ids: VecDeque<u16>,
    batch: Option<Word>,
}

impl PackedDriver {
    /// Makes an empty ring at `layout`.
    ///
    /// # Errors
    /// The size cannot be, or a part of the ring is not guest memory.
    pub fn new(layout: RingLayout, memory: Arc<Memory>, features: Features) -> Result<Self, RingError> {
        let pointers = PackedPointers::new(&layout, memory)?;
        let ring = pointers.parts();
        let size = layout.size;
        for slot in 0..size {
            ring.set_addr(slot, 0);
            ring.set_word(slot, Word { len: 0, id: 0, flags: 0 });
        }
        ring.set_driver_event(PackedEvent::default());
        ring.set_device_event(PackedEvent::default());
        let in_order = features.has(Feature::InOrder);
        Ok(PackedDriver {
            ring: pointers,
            indirect: features.has(Feature::IndirectDesc),
            event_idx: features.has(Feature::EventIdx),
            next_avail: Position::START,
            published: Position::START,
            first: None,
            next_used: Position::START,
            free: size,
            free_ids: (0..size).rev().collect(),
            out: vec![None; usize::from(size)].into_boxed_slice(),
            out_count: 0,
            bursts: 0,
            in_order: in_order.then(|| InOrder { ids: VecDeque::with_capacity(usize::from(size)), batch: None }),
        })
    }

    /// Stores one descriptor, or keeps its word for `publish`.
    fn put(&mut self, addr: u64, word: Word) {
        let at = self.next_avail;
        self.ring.parts().set_addr(at.slot, addr);
        let word = Word { flags: word.flags | at.available(), ..word };
        if at == self.published && self.first.is_none() {
            self.first = Some(word);
        } else {
            self.ring.parts().set_word(at.slot, word);
        }
        self.next_avail = at.after(1, self.ring.parts().size());
    }

    fn put_table(&self, buffers: &[Buffer], table: u64) -> Result<(), RingError> {
        for (at, buffer) in (0..).zip(buffers) {
            let flags = if buffer.writable { DESC_F_WRITE } else { 0 };
            let rest = u64::from(buffer.len) | u64::from(flags) << 48;
            let bytes = entry(buffer.addr, rest);
            let head = self.next_avail.slot;
            let unmapped = |source| RingError::IndirectUnmapped { head, index: at, source };
            self.ring.memory().write(table.saturating_add(16 * u64::from(at)), &bytes).map_err(unmapped)?;
        }
        Ok(())
    }

    /// The id of the chain that comes back next, its slots, and the bytes written.
    fn next_chain(&mut self, word: Word) -> Result<(u16, Out, u32), RingError> {
        let unknown = RingError::UsedUnknown { idx: self.next_used.slot, id: u32::from(word.id) };
        // One that was added but not published the device cannot know of.
        let out = self.out.get(usize::from(word.id)).copied().flatten().filter(|out| out.burst < self.bursts);
        let Some(out) = out else { return Err(unknown) };
        // Where nothing was to be written the length means nothing (VIRTIO 1.3, 2.8.5): DPDK's device leaves what it read. The flag that
        // tells the two apart is no help: QEMU's device never sets it.
        let written = if out.room == 0 { 0 } else { word.len };
        if written > out.room {
            return Err(RingError::WrittenTooMuch { head: word.id, written, room: out.room });
        }
        let Some(InOrder { ids, batch }) = &mut self.in_order else { return Ok((word.id, out, written)) };
        let id = ids.pop_front().ok_or_else(|| unknown.clone())?;
        if id == word.id {
            *batch = None;
            return Ok((id, out, written));
        }
        // Used without a descriptor of its own: all of it (VIRTIO 1.3, 2.8.4 In-order use of descriptors).
        *batch = Some(word);
        let out = self.out.get(usize::from(id)).copied().flatten().ok_or(unknown)?;
        Ok((id, out, out.room))
    }

    fn used_word(&self) -> Option<Word> {
        if let Some(InOrder { batch: Some(word), .. }) = &self.in_order {
            return Some(*word);
        }
        let word = self.ring.parts().word(self.next_used.slot);
        (self.out_count > 0 && self.next_used.is_used(word.flags)).then_some(word)
    }
}

impl DriverRing for PackedDriver {
    fn add(&mut self, buffers: &[Buffer], placement: Placement) -> Result<u16, RingError> {
        check_chain(buffers)?;
        let needed = if placement == Placement::Direct { buffers.len() } else { 1 };
        let full = RingError::Full { needed, free: usize::from(self.free) };
        if needed > usize::from(self.free) {
            return Err(full);
        }
        let head = self.next_avail.slot;
        if let Placement::Indirect(table) = placement {
            if !self.indirect {
                return Err(RingError::IndirectNotNegotiated { head, index: head });
            }
            if buffers.len() > usize::from(self.ring.parts().size()) {
                return Err(RingError::ChainTooLong { head, max: u32::from(self.ring.parts().size()) });
            }
            self.put_table(buffers, table)?;
        }
        // There are as many ids as slots.
        let id = self.free_ids.pop().ok_or(full)?;
        match placement {
            Placement::Direct => {
                for (at, buffer) in buffers.iter().enumerate() {
                    let next = if at + 1 < buffers.len() { DESC_F_NEXT } else { 0 };
                    let flags = if buffer.writable { DESC_F_WRITE } else { 0 } | next;
                    self.put(buffer.addr, Word { len: buffer.len, id, flags });
                }
            }
            Placement::Indirect(table) => {
                self.put(table, Word { len: 16 * buffers.len() as u32, id, flags: DESC_F_INDIRECT });
            }
        }
        let slots = needed as u16;
        self.out[usize::from(id)] = Some(Out { slots, room: writable_len(buffers), burst: self.bursts });
        self.out_count += 1;
        self.free -= slots;
        if let Some(InOrder { ids, .. }) = &mut self.in_order {
            ids.push_back(id);
        }
        Ok(id)
    }

    fn publish(&mut self) -> bool {
        let Some(word) = self.first.take() else { return false };
        let old = self.published;
        self.ring.parts().release_word(old.slot, word);
        self.published = self.next_avail;
        self.bursts += 1;
        full_fence();
        wants(self.ring.parts().device_event(), self.published, old, self.ring.parts().size())
    }

    fn pop_used(&mut self) -> Result<Option<Used>, RingError> {
        let Some(word) = self.used_word() else { return Ok(None) };
        let (id, Out { slots, .. }, written) = self.next_chain(word)?;
        if let Some(out) = self.out.get_mut(usize::from(id)) {
            *out = None;
        }
        self.out_count -= 1;
        self.free += slots;
        self.free_ids.push(id);
        self.next_used = self.next_used.after(slots, self.ring.parts().size());
        Ok(Some(Used { head: id, written }))
    }

    fn enable_notifications(&mut self) -> bool {
        let event = if self.event_idx {
            PackedEvent { off_wrap: self.next_used.to_bits(), flags: PACKED_EVENT_DESC }
        } else {
            PackedEvent { off_wrap: 0, flags: PACKED_EVENT_ENABLE }
        };
        self.ring.parts().set_driver_event(event);
        full_fence();
        self.used_word().is_some()
    }

    fn disable_notifications(&mut self) {
        self.ring.parts().set_driver_event(PackedEvent { off_wrap: 0, flags: PACKED_EVENT_DISABLE });
    }

    fn free(&self) -> u16 {
        self.free
    }

    fn out(&self) -> u16 {
        self.out_count
    }
}
