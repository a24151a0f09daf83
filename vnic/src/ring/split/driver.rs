//! The driver half of a split ring.
//!
//! Place: see [`DriverRing`]. The peer of the device half in its tests, and the ring of drivers in user space.
//!
//! Operation (VIRTIO 1.3, 2.7.13 Supplying Buffers to The Device, 2.7.14 Receiving Used Buffers From The Device):
//! 1. Descriptors are taken from a free list, linked, and written to the table, or to an indirect table with one
//!    descriptor referring to it.
//! 2. The head goes into the available ring; `avail.idx` is stored with release once per burst.
//! 3. Behind a full fence, whether the device wants a kick is read.
//! 4. Used elements are read behind an acquire load of `used.idx`.
//!
//! Invariants: the free list, the length of each chain and the room in it are kept in private memory (`next`, `out`);
//! nothing is ever read back from the descriptor table or the available ring. So whatever a device writes, a chain
//! comes back at most once and no descriptor is handed out twice.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::Memory;
use crate::ring::driver::{check_chain, entry, writable_len};
use crate::ring::pointers::{SplitPointers, full_fence};
use crate::ring::{Buffer, DriverRing, Placement, RingError, RingLayout, Used};
use crate::spec::ring::{
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor, MAX_QUEUE_SIZE, USED_F_NO_NOTIFY,
    UsedElem,
};
use crate::spec::{Feature, Features};

use super::need_event;

/// The driver half of a split ring. See the [module](self).
#[derive(Debug)]
pub struct SplitDriver {
    ring: SplitPointers,
    indirect: bool,
    /// The next free descriptor behind each free one, and the next of its chain behind each one in a chain.
    next: Box<[u16]>,
    first_free: u16,
    free: u16,
    /// By head: the chains the device has.
    out: Box<[Option<Out>]>,
    out_count: u16,
    next_avail: u16,
    published: u16,
    next_used: u16,
    in_order: Option<InOrder>,
}

/// A chain the device has.
#[derive(Debug, Clone, Copy)]
struct Out {
    /// Its place in the available ring.
    idx: u16,
    descriptors: u16,
    room: u32,
}

/// With IN_ORDER one used element may stand for all chains up to its own.
#[derive(Debug)]
struct InOrder {
    heads: VecDeque<u16>,
    batch: Option<UsedElem>,
}

impl SplitDriver {
    /// Makes an empty ring at `layout`.
    ///
    /// # Errors
    /// The size cannot be, or a part of the ring is not guest memory.
    pub fn new(layout: RingLayout, memory: Arc<Memory>, features: Features) -> Result<Self, RingError> {
        let pointers = SplitPointers::new(&layout, memory, features)?;
        let ring = pointers.parts();
        let size = layout.size;
        for index in 0..size {
            ring.set_desc(index, Descriptor::default());
            ring.avail_entry(index).store(0, Ordering::Relaxed);
            ring.set_used(index, UsedElem::default());
        }
        for field in [ring.avail_flags(), ring.avail_idx(), ring.used_flags(), ring.used_idx()] {
            field.store(0, Ordering::Relaxed);
        }
        for event in [ring.used_event(), ring.avail_event()].into_iter().flatten() {
            event.store(0, Ordering::Relaxed);
        }
        let in_order = features.has(Feature::InOrder);
        Ok(SplitDriver {
            ring: pointers,
            indirect: features.has(Feature::IndirectDesc),
            next: (1..=size).collect(),
            first_free: 0,
            free: size,
            out: vec![None; usize::from(size)].into_boxed_slice(),
            out_count: 0,
            next_avail: 0,
            published: 0,
            next_used: 0,
            in_order: in_order.then(|| InOrder { heads: VecDeque::with_capacity(usize::from(size)), batch: None }),
        })
    }

    /// Takes a descriptor off the free list. There is one: `add` has counted.
    fn take_free(&mut self) -> u16 {
        let index = self.first_free;
        self.first_free = self.next[usize::from(index)];
        self.free -= 1;
        index
    }

    fn put_chain(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.first_free;
        for (at, buffer) in buffers.iter().enumerate() {
            let index = self.take_free();
            let more = at + 1 < buffers.len();
            // What follows in the free list is what the next round takes.
            let next = if more { self.first_free } else { 0 };
            self.ring.parts().set_desc(index, descriptor(buffer, more, next));
        }
        head
    }

    fn put_indirect(&mut self, buffers: &[Buffer], table: u64) -> Result<u16, RingError> {
        for (at, buffer) in buffers.iter().enumerate() {
            let more = at + 1 < buffers.len();
            let next = if more { at as u16 + 1 } else { 0 };
            let d = descriptor(buffer, more, next);
            let rest = u64::from(d.len) | u64::from(d.flags) << 32 | u64::from(d.next) << 48;
            let bytes = entry(d.addr, rest);
            let unmapped = |source| RingError::IndirectUnmapped { head: self.first_free, index: at as u16, source };
            let place = table.saturating_add(16 * at as u64);
            self.ring.memory().write(place, &bytes).map_err(unmapped)?;
        }
        let head = self.take_free();
        let len = 16 * buffers.len() as u32;
        self.ring.parts().set_desc(head, Descriptor { addr: table, len, flags: DESC_F_INDIRECT, next: 0 });
        Ok(head)
    }

    /// The used element for the chain that comes back next, and that chain's head.
    fn next_elem(&mut self) -> Result<(u16, u32), RingError> {
        let elem = match &self.in_order {
            Some(InOrder { batch: Some(elem), .. }) => *elem,
            _ => self.ring.parts().used(self.next_used),
        };
        let unknown = RingError::UsedUnknown { idx: self.next_used, id: elem.id };
        let id = u16::try_from(elem.id).map_err(|_| unknown.clone())?;
        let Some(Some(Out { idx, room, .. })) = self.out.get(usize::from(id)).copied() else { return Err(unknown) };
        if !(1..=MAX_QUEUE_SIZE).contains(&self.published.wrapping_sub(idx)) {
            // Added but not published: the device cannot know of it.
            return Err(unknown);
        }
        if elem.len > room {
            return Err(RingError::WrittenTooMuch { head: id, written: elem.len, room });
        }
        let Some(InOrder { heads, batch }) = &mut self.in_order else { return Ok((id, elem.len)) };
        let head = heads.pop_front().ok_or(unknown)?;
        if head == id {
            *batch = None;
            return Ok((id, elem.len));
        }
        // Used without an element of its own: all of it (VIRTIO 1.3, 2.7.9 In-order use of descriptors).
        *batch = Some(elem);
        let room = self.out.get(usize::from(head)).copied().flatten().map_or(0, |out| out.room);
        Ok((head, room))
    }
}

fn descriptor(buffer: &Buffer, more: bool, next: u16) -> Descriptor {
    let flags = if buffer.writable { DESC_F_WRITE } else { 0 } | if more { DESC_F_NEXT } else { 0 };
    Descriptor { addr: buffer.addr, len: buffer.len, flags, next }
}

impl DriverRing for SplitDriver {
    fn add(&mut self, buffers: &[Buffer], placement: Placement) -> Result<u16, RingError> {
        check_chain(buffers)?;
        let needed = if placement == Placement::Direct { buffers.len() } else { 1 };
        if needed > usize::from(self.free) {
            return Err(RingError::Full { needed, free: usize::from(self.free) });
        }
        let head = match placement {
            Placement::Direct => self.put_chain(buffers),
            Placement::Indirect(_) if !self.indirect => {
                return Err(RingError::IndirectNotNegotiated { head: self.first_free, index: self.first_free });
            }
            // VIRTIO 1.3, 2.7.5.3.1: no chain longer than the ring, wherever its descriptors are.
            Placement::Indirect(_) if buffers.len() > usize::from(self.ring.parts().size()) => {
                return Err(RingError::ChainTooLong {
                    head: self.first_free,
                    max: u32::from(self.ring.parts().size()),
                });
            }
            Placement::Indirect(table) => self.put_indirect(buffers, table)?,
        };
        self.out[usize::from(head)] =
            Some(Out { idx: self.next_avail, descriptors: needed as u16, room: writable_len(buffers) });
        self.out_count += 1;
        if let Some(InOrder { heads, .. }) = &mut self.in_order {
            heads.push_back(head);
        }
        self.ring.parts().avail_entry(self.next_avail).store(head, Ordering::Relaxed);
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(head)
    }

    fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return false;
        }
        // Release: the descriptors and the entries are stored before it.
        self.ring.parts().avail_idx().store(new, Ordering::Release);
        self.published = new;
        full_fence();
        match self.ring.parts().avail_event() {
            Some(event) => need_event(event.load(Ordering::Relaxed), new, old),
            None => self.ring.parts().used_flags().load(Ordering::Relaxed) & USED_F_NO_NOTIFY == 0,
        }
    }

    fn pop_used(&mut self) -> Result<Option<Used>, RingError> {
        // Acquire: the elements, and the bytes in the buffers, are loaded after it.
        let to = self.ring.parts().used_idx().load(Ordering::Acquire);
        let waiting = to.wrapping_sub(self.next_used);
        if waiting == 0 {
            return Ok(None);
        }
        if waiting > self.out_count {
            return Err(RingError::UsedJump { from: self.next_used, to, out: self.out_count });
        }
        let (head, written) = self.next_elem()?;
        let slot = usize::from(head);
        if let Some(Out { descriptors, .. }) = self.out[slot].take() {
            let mut last = head;
            for _ in 1..descriptors {
                last = self.next[usize::from(last)];
            }
            self.next[usize::from(last)] = self.first_free;
            self.first_free = head;
            self.free += descriptors;
            self.out_count -= 1;
        }
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(Used { head, written }))
    }

    fn enable_notifications(&mut self) -> bool {
        match self.ring.parts().used_event() {
            Some(event) => event.store(self.next_used, Ordering::Relaxed),
            None => self.ring.parts().avail_flags().store(0, Ordering::Relaxed),
        }
        full_fence();
        self.ring.parts().used_idx().load(Ordering::Acquire) != self.next_used
    }

    fn disable_notifications(&mut self) {
        // With EVENT_IDX there is nothing to say: no call comes until `used.idx` passes `used_event`, once.
        if !self.ring.parts().event_idx() {
            self.ring.parts().avail_flags().store(AVAIL_F_NO_INTERRUPT, Ordering::Relaxed);
        }
    }

    fn free(&self) -> u16 {
        self.free
    }

    fn out(&self) -> u16 {
        self.out_count
    }
}
