//! The event tracer: a fixed ring of chain events per queue; what has no room in it is counted instead.
//!
//! Place: the worker that owns a queue writes; any number of readers follow, each at its own pace. A reader never
//! makes the writer wait, and always learns how many events it missed.
//!
//! Operation:
//! 1. The ring is full when it holds nothing that the foremost reader has read. Then the writer counts the event and goes
//!    on: a count costs next to nothing, an event more than many a frame. Every event says how many were lost before it.
//! 2. The writer announces the slot it is about to overwrite (`begun`), fills it, then publishes it (`done`).
//! 3. A reader copies a published slot, then looks at `begun` again: had the writer come round to the slot meanwhile, as it
//!    may before any but the foremost reader, the copy may be torn and is counted as lost instead.
//!
//! Invariants: one writer per ring. Slots hold plain words, so a torn copy is wrong but never undefined behaviour.
//!
//! Limits: an event has room for [`MAX_BUFFERS`] descriptors and [`HEAD_BYTES`] bytes of the frame; it says how many
//! descriptors there were in all.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::spec::net::NetHeader;

/// Descriptors that fit into an event: a 64 KiB TSO frame of page-sized buffers has 17 or 18.
pub const MAX_BUFFERS: usize = 24;
/// Bytes of the frame's start that an event carries: Ethernet, IPv6 and TCP with options fit.
pub const HEAD_BYTES: usize = 96;
/// Events in a ring from which somebody wants all of them.
const SLOTS: usize = 2048;
/// Events in the rings from which samples are taken: in each at most and at least, and in all of a device's together.
const SAMPLES: (usize, usize, usize) = (512, 64, 8192);

const HEAD_WORDS: usize = HEAD_BYTES / 8;
const FIXED_WORDS: usize = 9;
/// The word that says how many events were lost before this one.
const LOST_WORD: usize = 4;
const BUFFER_WORDS: usize = 4;
const SLOT_WORDS: usize = FIXED_WORDS + HEAD_WORDS + BUFFER_WORDS * MAX_BUFFERS;

/// One descriptor of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventBuffer {
    /// As the driver wrote it.
    pub addr: u64,
    /// Where its first byte is, guest-physical.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// Device-writable?
    pub writable: bool,
}

/// Of a virtio-net header what an event does not have otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventHeader {
    /// `flags`.
    pub flags: u8,
    /// `gso_type`.
    pub gso_type: u8,
    /// `hdr_len`.
    pub hdr_len: u16,
    /// `csum_start`.
    pub csum_start: u16,
    /// `csum_offset`.
    pub csum_offset: u16,
}

impl EventHeader {
    /// Of this header.
    #[must_use]
    pub fn of(header: &NetHeader) -> Self {
        let NetHeader { flags, gso_type, hdr_len, csum_start, csum_offset, .. } = *header;
        EventHeader { flags, gso_type, hdr_len, csum_start, csum_offset }
    }

    fn to_word(self) -> u64 {
        let [start, offset] = [self.csum_start, self.csum_offset].map(u64::from);
        u64::from(self.flags)
            | u64::from(self.gso_type) << 8
            | u64::from(self.hdr_len) << 16
            | start << 32
            | offset << 48
    }

    fn from_word(word: u64) -> Self {
        EventHeader {
            flags: word as u8,
            gso_type: (word >> 8) as u8,
            hdr_len: (word >> 16) as u16,
            csum_start: (word >> 32) as u16,
            csum_offset: (word >> 48) as u16,
        }
    }
}

/// A chain as it went through a queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When the device was done with it, nanoseconds since the tracer's epoch.
    pub at_ns: u64,
    /// When the device first saw it in the ring, by the same clock.
    pub available_ns: u64,
    /// When the device took it out of the ring, by the same clock; 0: it was done with it in the same moment, or nobody knows.
    pub taken_ns: u64,
    /// Since when it has waited for `vnic release`, by the same clock; 0: nobody held it.
    pub held_ns: u64,
    /// Head descriptor or buffer id.
    pub head: u16,
    /// Free-running index.
    pub idx: u16,
    /// Descriptors in all.
    pub descriptors: u16,
    /// Indirect table?
    pub indirect: bool,
    /// Bytes written by the device.
    pub written: u32,
    /// The frame's length, bytes.
    pub frame_len: u32,
    /// The frame's GSO segment size, bytes; 0 without.
    pub gso_size: u16,
    /// The rest of its virtio-net header, where there is one.
    pub net_header: Option<EventHeader>,
    /// The frame's first bytes.
    pub head_bytes: [u8; HEAD_BYTES],
    /// How many of them there are.
    pub head_len: u8,
    /// The first descriptors.
    pub buffers: [EventBuffer; MAX_BUFFERS],
    /// What their pages were ([`Stamper`](crate::introspect::Stamper)); 0: nobody looked.
    pub stamps: [u64; MAX_BUFFERS],
    /// How many of them there are.
    pub buffer_count: u8,
    /// How long the virtio-net header in front of the frame is, bytes; 0: not known.
    pub net_header_len: u8,
}

impl Default for Event {
    fn default() -> Self {
        Event {
            at_ns: 0,
            available_ns: 0,
            taken_ns: 0,
            held_ns: 0,
            head: 0,
            idx: 0,
            descriptors: 0,
            indirect: false,
            written: 0,
            frame_len: 0,
            gso_size: 0,
            net_header: None,
            head_bytes: [0; HEAD_BYTES],
            head_len: 0,
            buffers: [EventBuffer::default(); MAX_BUFFERS],
            stamps: [0; MAX_BUFFERS],
            buffer_count: 0,
            net_header_len: 0,
        }
    }
}

impl Event {
    /// Adds a descriptor while there is room.
    pub fn push(&mut self, buffer: EventBuffer) {
        if let Some(slot) = self.buffers.get_mut(usize::from(self.buffer_count)) {
            *slot = buffer;
            self.buffer_count += 1;
        }
    }

    /// The frame's first bytes, as many as there are.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        self.head_bytes.get(..usize::from(self.head_len)).unwrap_or_default()
    }

    /// Bytes in front of a sent frame, in the buffers that the device has read: the virtio-net header (VIRTIO 1.3, 5.1.6). It is
    /// what they have more than the frame.
    #[must_use]
    pub fn front_len(&self) -> u64 {
        let readable = self.buffers().iter().filter(|buffer| !buffer.writable);
        let all: u64 = readable.map(|buffer| u64::from(buffer.len)).sum();
        match usize::from(self.descriptors) > self.buffers().len() {
            // Those that the event has no room for count, too: whoever made it has said.
            true => self.net_header_len.into(),
            false => all.saturating_sub(self.frame_len.into()),
        }
    }

    /// The descriptors the event has room for.
    #[must_use]
    pub fn buffers(&self) -> &[EventBuffer] {
        self.buffers.get(..usize::from(self.buffer_count)).unwrap_or_default()
    }
}

/// The events of one queue. Takes no memory until room is made for them; what is recorded before that is dropped.
#[derive(Debug)]
pub struct EventRing {
    slots: usize,
    words: OnceLock<Box<[AtomicU64]>>,
    begun: AtomicU64,
    done: AtomicU64,
    /// Events that had no room, ever.
    lost: AtomicU64,
    /// Up to where the foremost reader has made room: see [`Reader::make_room`].
    read: AtomicU64,
}

impl Default for EventRing {
    fn default() -> Self {
        EventRing::of(SLOTS)
    }
}

impl EventRing {
    fn of(slots: usize) -> Self {
        let zero = || AtomicU64::new(0);
        EventRing { slots, words: OnceLock::new(), begun: zero(), done: zero(), lost: zero(), read: zero() }
    }

    /// A ring for samples, one of so many that a device has.
    #[must_use]
    pub fn for_samples(rings: usize) -> Self {
        let (most, least, all) = SAMPLES;
        EventRing::of((all / rings.max(1)).clamp(least, most))
    }

    /// Events that it holds.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Is there room for an event? One slot is kept away from the readers: see [`Reader::read`]. Only the owning worker can
    /// rely on it.
    #[inline]
    #[must_use]
    pub fn has_room(&self) -> bool {
        let unread = self.done.load(Ordering::Relaxed).saturating_sub(self.read.load(Ordering::Acquire));
        unread + 1 < self.slots as u64
    }

    /// Counts events that had no room, or whose chains nobody looked at because none would have had. Only the owning worker
    /// may call it.
    #[inline]
    pub fn lose(&self, events: u64) {
        self.lost.store(self.lost.load(Ordering::Relaxed) + events, Ordering::Release);
    }

    /// Writes an event, or counts it if there is no room. Only the owning worker may call it.
    pub fn record(&self, event: &Event) {
        if !self.is_ready() {
            return;
        }
        if !self.has_room() {
            self.lose(1);
            return;
        }
        let number = self.done.load(Ordering::Relaxed);
        self.begun.store(number + 1, Ordering::Relaxed);
        // A reader that sees any word written below also sees `begun`.
        fence(Ordering::Release);
        let mut slot = self.slot(number).iter();
        let mut put = |word: u64| {
            if let Some(cell) = slot.next() {
                cell.store(word, Ordering::Relaxed);
            }
        };
        put(event.at_ns);
        put(u64::from(event.head)
            | u64::from(event.idx) << 16
            | u64::from(event.descriptors) << 32
            | u64::from(event.gso_size) << 48);
        put(u64::from(event.written) | u64::from(event.frame_len) << 32);
        put(u64::from(event.head_len)
            | u64::from(event.buffer_count) << 8
            | u64::from(event.indirect) << 16
            | u64::from(event.net_header.is_some()) << 17
            | u64::from(event.net_header_len) << 24);
        put(self.lost.load(Ordering::Relaxed));
        put(event.net_header.map_or(0, EventHeader::to_word));
        put(event.available_ns);
        put(event.taken_ns);
        put(event.held_ns);
        for bytes in event.head_bytes.as_chunks::<8>().0 {
            put(u64::from_le_bytes(*bytes));
        }
        for (buffer, stamp) in event.buffers().iter().zip(event.stamps) {
            put(buffer.addr);
            put(buffer.gpa);
            put(u64::from(buffer.len) | u64::from(buffer.writable) << 32);
            put(stamp);
        }
        self.done.store(number + 1, Ordering::Release);
    }

    /// Makes room for events: 1.8 MB, or a quarter of it for samples.
    pub fn make_room(&self) {
        self.words.get_or_init(|| (0..self.slots * SLOT_WORDS).map(|_| AtomicU64::new(0)).collect());
    }

    /// Has room been made?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.words.get().is_some()
    }

    /// A reader that starts with the next event to be recorded; the first comes when room has been made.
    #[must_use]
    pub fn reader(&self) -> Reader<'_> {
        let next = self.done.load(Ordering::Acquire);
        self.read.fetch_max(next, Ordering::AcqRel);
        Reader { ring: self, next, told: next, lost: self.lost.load(Ordering::Acquire), behind_gap: None }
    }

    fn slot(&self, number: u64) -> &[AtomicU64] {
        let start = (number % self.slots as u64) as usize * SLOT_WORDS;
        self.words.get().and_then(|words| words.get(start..start + SLOT_WORDS)).unwrap_or_default()
    }
}

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// The next event.
    Event(Box<Event>),
    /// This many events had no room, or were overwritten before they could be read.
    Lost(u64),
}

/// One follower of an [`EventRing`].
#[derive(Debug)]
pub struct Reader<'r> {
    ring: &'r EventRing,
    next: u64,
    /// Up to where the writer has room from it.
    told: u64,
    /// How many of those that had no room it has told of.
    lost: u64,
    /// What comes behind the gap it has just told of.
    behind_gap: Option<Box<Event>>,
}

impl Reader<'_> {
    /// The next event, or how many were lost, or `None` when the reader is up to date.
    pub fn read(&mut self) -> Option<Read> {
        if let Some(event) = self.behind_gap.take() {
            return Some(Read::Event(event));
        }
        let done = self.ring.done.load(Ordering::Acquire);
        if self.next == done {
            self.make_room();
            let lost = self.ring.lost.load(Ordering::Acquire);
            // With an event meanwhile, that one knows better how many came before it.
            let still = self.ring.done.load(Ordering::Acquire) == done;
            return self.gap(if still { lost } else { self.lost }).map(Read::Lost);
        }
        // The slot of event `done - slots` may be under the writer's pen already: keep one slot away.
        let oldest = done.saturating_sub(self.ring.slots as u64 - 1);
        if self.next < oldest {
            let lost = oldest - self.next;
            self.next = oldest;
            return Some(Read::Lost(lost));
        }
        let words: Vec<u64> = self.ring.slot(self.next).iter().map(|cell| cell.load(Ordering::Relaxed)).collect();
        fence(Ordering::Acquire);
        let begun = self.ring.begun.load(Ordering::Relaxed);
        self.next += 1;
        if self.next - self.told >= self.ring.slots as u64 / 4 {
            self.make_room();
        }
        if begun >= self.next + self.ring.slots as u64 {
            return Some(Read::Lost(1));
        }
        let event = Box::new(decode(&words));
        match self.gap(words.get(LOST_WORD).copied().unwrap_or_default()) {
            Some(lost) => {
                self.behind_gap = Some(event);
                Some(Read::Lost(lost))
            }
            None => Some(Read::Event(event)),
        }
    }

    /// The writer may overwrite what was read. Many at a time: for a single event with room, it would look at each chain of a
    /// whole burst.
    fn make_room(&mut self) {
        if self.told != self.next {
            self.told = self.next;
            self.ring.read.fetch_max(self.next, Ordering::AcqRel);
        }
    }

    /// How many had no room since it last told, if so many had none ever.
    fn gap(&mut self, ever: u64) -> Option<u64> {
        let lost = ever.saturating_sub(self.lost);
        self.lost += lost;
        (lost > 0).then_some(lost)
    }
}

fn decode(words: &[u64]) -> Event {
    let word = |at: usize| words.get(at).copied().unwrap_or_default();
    let mut event = Event {
        at_ns: word(0),
        available_ns: word(6),
        taken_ns: word(7),
        held_ns: word(8),
        head: word(1) as u16,
        idx: (word(1) >> 16) as u16,
        descriptors: (word(1) >> 32) as u16,
        gso_size: (word(1) >> 48) as u16,
        written: word(2) as u32,
        frame_len: (word(2) >> 32) as u32,
        head_len: word(3) as u8,
        indirect: word(3) >> 16 & 1 == 1,
        net_header: (word(3) >> 17 & 1 == 1).then(|| EventHeader::from_word(word(5))),
        net_header_len: (word(3) >> 24) as u8,
        ..Event::default()
    };
    for (at, bytes) in event.head_bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *bytes = word(FIXED_WORDS + at).to_le_bytes();
    }
    let count = (word(3) >> 8) as u8;
    for at in 0..usize::from(count).min(MAX_BUFFERS) {
        let first = FIXED_WORDS + HEAD_WORDS + BUFFER_WORDS * at;
        let (addr, gpa, rest) = (word(first), word(first + 1), word(first + 2));
        event.push(EventBuffer { addr, gpa, len: rest as u32, writable: rest >> 32 & 1 == 1 });
        event.stamps[at] = word(first + 3);
    }
    event
}

#[cfg(test)]
mod tests;
