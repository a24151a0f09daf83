//! The record of a packed ring: `QueueRegionPacked`.
//!
//! A used descriptor may be written over any available one, so the descriptors of a chain are kept here as well. Entries that are not in
//! use are a list, of which a copy is kept in this process: what the front-end writes there moves nothing.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{Ordering, compiler_fence};

use super::{Part, RecordError, Resumed, VERSION};
use crate::ring::{Chain, Device, Taken};
use crate::spec::ring::PackedDescriptor;

/// Bytes of the head, and of each descriptor's state.
pub(super) const LAYOUT: (usize, usize) = (32, 32);

const VERSION_AT: usize = 8;
const COUNT_AT: usize = 10;
const FREE_AT: usize = 12;
const OLD_FREE_AT: usize = 14;
const USED_AT: usize = 16;
const OLD_USED_AT: usize = 18;
const WRAP_AT: usize = 20;
const OLD_WRAP_AT: usize = 21;

/// In an entry, of a head only but for the last five.
const IN_FLIGHT: usize = 0;
const NEXT: usize = 2;
const LAST: usize = 4;
const COUNT: usize = 6;
const COUNTER: usize = 8;
const ID: usize = 16;
const FLAGS: usize = 18;
const LEN: usize = 20;
const ADDR: usize = 24;

/// As many buffer ids as there can be.
const IDS: usize = 1 << 16;

/// No entry.
const NONE: u16 = u16::MAX;

/// The wrap counter in a position.
const WRAP: u16 = 1 << 15;

/// See the [module](self).
#[derive(Debug)]
pub struct PackedRecord {
    part: Part,
    size: u16,
    counter: u64,
    /// By entry, the one behind it in its list.
    next: Box<[u16]>,
    free: u16,
    /// By buffer id, the entry of the chain's head, plus one; 0: none. Of most ids the memory is never touched.
    entries: Box<[u16]>,
    /// Where the next used descriptor goes, as it is published.
    used: u16,
    /// Chains that were used and are not published yet: entry, slots.
    batch: Vec<(u16, u16)>,
}

impl PackedRecord {
    pub(super) fn new(part: Part, size: u16) -> Self {
        PackedRecord {
            next: vec![NONE; usize::from(part.room)].into(),
            part,
            size,
            counter: 0,
            free: 0,
            entries: vec![0; IDS].into(),
            used: WRAP,
            batch: Vec::with_capacity(usize::from(size)),
        }
    }

    fn set_entry(&mut self, id: u16, entry: u16) {
        if let Some(place) = self.entries.get_mut(usize::from(id)) {
            *place = entry.wrapping_add(1);
        }
    }

    /// The entry of the chain with this id, which has none then.
    fn take_entry(&mut self, id: u16) -> u16 {
        self.entries.get_mut(usize::from(id)).map_or(0, std::mem::take).wrapping_sub(1)
    }

    fn load(&self, at: usize) -> u16 {
        self.part.area.half(self.part.start + at).map_or(0, |half| half.load(Relaxed))
    }

    fn store(&self, at: usize, value: u16) {
        if let Some(half) = self.part.area.half(self.part.start + at) {
            half.store(value, Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
    }

    fn load_byte(&self, at: usize) -> u8 {
        self.part.area.byte(self.part.start + at).map_or(0, |byte| byte.load(Relaxed))
    }

    fn store_byte(&self, at: usize, value: u8) {
        if let Some(byte) = self.part.area.byte(self.part.start + at) {
            byte.store(value, Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
    }

    /// Where a field of an entry is.
    const fn field(entry: u16, field: usize) -> usize {
        LAYOUT.0 + LAYOUT.1 * entry as usize + field
    }

    /// A position of these two fields.
    fn position(&self, slot_at: usize, wrap_at: usize) -> u16 {
        self.load(slot_at) & !WRAP | if self.load_byte(wrap_at) == 0 { 0 } else { WRAP }
    }

    /// Says where the next used descriptor goes, and where it went before what is being published: with one store, so that no slot ever
    /// stands beside another's wrap counter.
    fn store_positions(&self, now: u16, old: u16) {
        let slot = |position: u16| u64::from(position & !WRAP);
        let wrap = |position: u16| u64::from(position >> 15);
        let word = slot(now) | slot(old) << 16 | wrap(now) << 32 | wrap(old) << 40;
        if let Some(long) = self.part.area.long(self.part.start + USED_AT) {
            long.store(word, Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
    }

    fn next_of(&self, entry: u16) -> u16 {
        self.next.get(usize::from(entry)).copied().unwrap_or(NONE)
    }

    fn set_next(&mut self, entry: u16, next: u16) {
        if let Some(place) = self.next.get_mut(usize::from(entry)) {
            *place = next;
            self.store(Self::field(entry, NEXT), next);
        }
    }

    pub(super) fn recover(&mut self, ring: &Device) -> Result<Resumed, RecordError> {
        self.batch.clear();
        self.entries = vec![0; IDS].into();
        match self.load(VERSION_AT) {
            0 => {
                self.begin(ring.used_position());
                return Ok(Resumed::default());
            }
            VERSION => {}
            version => return Err(RecordError::Version(version)),
        }
        let old = self.position(OLD_USED_AT, OLD_WRAP_AT);
        let now = self.position(USED_AT, WRAP_AT);
        self.used = old;
        if old != now && ring.is_used_at(old) {
            self.store(OLD_FREE_AT, self.load(FREE_AT));
            self.used = now;
        }
        self.store(FREE_AT, self.load(OLD_FREE_AT));
        self.store_positions(self.used, self.used);
        if self.used & !WRAP >= self.size {
            return Err(RecordError::Broken { what: "used_idx", value: (self.used & !WRAP).into() });
        }
        self.copy_lists()?;
        let taken = self.in_flight()?;
        Ok(Resumed { used: Some(self.used), taken })
    }

    /// A new record, of a ring that stands here.
    fn begin(&mut self, used: u16) {
        self.store(COUNT_AT, self.part.room);
        for entry in 0..self.part.room {
            self.set_next(entry, entry + 1);
        }
        self.free = 0;
        self.store(FREE_AT, 0);
        self.store(OLD_FREE_AT, 0);
        self.used = used;
        self.store_positions(used, used);
        self.store(VERSION_AT, VERSION);
    }

    /// Copies the lists, and crosses off what is in that of the free ones.
    fn copy_lists(&mut self) -> Result<(), RecordError> {
        for entry in 0..self.part.room {
            let next = self.load(Self::field(entry, NEXT));
            if let Some(place) = self.next.get_mut(usize::from(entry)) {
                *place = next;
            }
        }
        self.free = self.load(FREE_AT);
        let mut entry = self.free;
        for _ in 0..self.part.room {
            if entry >= self.part.room {
                return Ok(());
            }
            self.store_byte(Self::field(entry, IN_FLIGHT), 0);
            entry = self.next_of(entry);
        }
        // The last one leads behind the others, or there are too many.
        if entry >= self.part.room {
            Ok(())
        } else {
            Err(RecordError::Broken { what: "free entry", value: entry.into() })
        }
    }

    /// What was taken and never used, in the order in which it was taken.
    fn in_flight(&mut self) -> Result<Vec<Taken>, RecordError> {
        let mut found = Vec::new();
        let mut total = 0;
        for head in 0..self.part.room {
            if self.load_byte(Self::field(head, IN_FLIGHT)) != 1 {
                continue;
            }
            let count = self.load(Self::field(head, COUNT));
            total += u32::from(count);
            if count == 0 || total > u32::from(self.size) {
                return Err(RecordError::Broken { what: "descriptors of a chain", value: count.into() });
            }
            let (mut descriptors, mut entry) = (Vec::new(), head);
            for _ in 0..count {
                if entry >= self.part.room {
                    return Err(RecordError::Broken { what: "entry", value: entry.into() });
                }
                descriptors.push(self.descriptor(entry));
                entry = self.next_of(entry);
            }
            // The buffer id stands in the last.
            let id = descriptors.last().map_or(0, |last| last.id);
            self.set_entry(id, head);
            let counter = self.part.area.long(self.part.start + Self::field(head, COUNTER));
            found.push((counter.map_or(0, |counter| counter.load(Relaxed)), Taken { head: id, descriptors }));
        }
        found.sort_by_key(|(counter, _)| *counter);
        self.counter = found.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        Ok(found.into_iter().map(|(_, taken)| taken).collect())
    }

    fn descriptor(&self, entry: u16) -> PackedDescriptor {
        let at = |field| self.part.start + Self::field(entry, field);
        PackedDescriptor {
            addr: self.part.area.long(at(ADDR)).map_or(0, |long| long.load(Relaxed)),
            len: self.part.area.word(at(LEN)).map_or(0, |word| word.load(Relaxed)),
            id: self.load(Self::field(entry, ID)),
            flags: self.load(Self::field(entry, FLAGS)),
        }
    }

    pub(super) fn take(&mut self, chain: &Chain, ring: &Device) -> Result<(), RecordError> {
        let head = self.free;
        if head >= self.part.room {
            return Err(RecordError::Broken { what: "free entry", value: head.into() });
        }
        self.store(Self::field(head, COUNT), 0);
        if let Some(counter) = self.part.area.long(self.part.start + Self::field(head, COUNTER)) {
            counter.store(self.counter, Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
        self.counter = self.counter.wrapping_add(1);
        self.store_byte(Self::field(head, IN_FLIGHT), 1);
        let mut entry = head;
        for (number, descriptor) in (1..).zip(ring.descriptors_of(chain)) {
            if entry >= self.part.room {
                return Err(RecordError::Broken { what: "free entry", value: entry.into() });
            }
            let at = |field| self.part.start + Self::field(entry, field);
            if let (Some(addr), Some(len)) = (self.part.area.long(at(ADDR)), self.part.area.word(at(LEN))) {
                addr.store(descriptor.addr, Relaxed);
                len.store(descriptor.len, Relaxed);
            }
            // The driver may have written another id since: the chain's is the one it was taken by.
            self.store(Self::field(entry, ID), chain.head);
            self.store(Self::field(entry, FLAGS), descriptor.flags);
            self.store(Self::field(head, COUNT), number);
            self.store(Self::field(head, LAST), entry);
            entry = self.next_of(entry);
            self.store(FREE_AT, entry);
        }
        self.free = entry;
        // Until here it was not taken, whoever asks.
        self.store(OLD_FREE_AT, entry);
        self.set_entry(chain.head, head);
        Ok(())
    }

    pub(super) fn untake(&mut self, chain: &Chain) {
        let entry = self.take_entry(chain.head);
        if entry == NONE {
            return;
        }
        let last = self.last_of(entry, chain.slots);
        self.set_next(last, self.free);
        self.free = entry;
        self.store(FREE_AT, entry);
        // From here on it was not taken, whoever asks.
        self.store(OLD_FREE_AT, entry);
        self.store_byte(Self::field(entry, IN_FLIGHT), 0);
    }

    pub(super) fn use_up(&mut self, chain: &Chain) {
        let entry = self.take_entry(chain.head);
        self.batch.push((entry, chain.slots));
    }

    pub(super) fn publishing(&mut self) {
        let (batch, old) = (std::mem::take(&mut self.batch), self.used);
        for &(head, slots) in &batch {
            if head != NONE {
                let last = self.last_of(head, slots);
                self.set_next(last, self.free);
                self.free = head;
                self.store(FREE_AT, head);
            }
            let slot = (self.used & !WRAP) + slots;
            self.used = match slot.checked_sub(self.size) {
                Some(wrapped) => wrapped | !self.used & WRAP,
                None => slot | self.used & WRAP,
            };
        }
        self.store_positions(self.used, old);
        self.batch = batch;
    }

    /// The last entry of a chain.
    fn last_of(&self, head: u16, slots: u16) -> u16 {
        (1..slots).fold(head, |entry, _| self.next_of(entry))
    }

    pub(super) fn published(&mut self) {
        compiler_fence(Ordering::SeqCst);
        for &(head, _) in self.batch.iter().filter(|(head, _)| *head != NONE) {
            self.store_byte(Self::field(head, IN_FLIGHT), 0);
        }
        self.store(OLD_FREE_AT, self.free);
        self.store_positions(self.used, self.used);
        self.batch.clear();
    }
}
