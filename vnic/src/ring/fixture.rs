//! Rings as data, for tests: a text says what stands in ring and tables, right or wrong, and what the device makes of it.
//!
//! ```text
//! split size=8 avail.idx=2 used.idx=0
//!   [0] head 3: R 0x8000+78 -> W 0x9000+10          descriptors 3, 4, …, as the notation shows them
//!   [1] head 6: indirect(2): R 0x8000+1 -> R 0x9000+1       in a table at 0x40000 + 0x1000 * slot
//!   avail 2: 7                                      one entry of the available ring
//!   desc 4: W 0x9000+10 next 9                      one descriptor; `indirect` and `next N` set the flags
//!   table 0x41000[1]: R 0x8000+1 indirect           one descriptor of an indirect table
//!
//! packed size=8
//!   [0] head 5: R 0x8000+78 -> W 0x9000+10          slots 0, 1, … with buffer id 5, available in the first lap
//!   desc 1: W 0x9000+10 id 5 next                   `indirect` and `unavailable` set the flags
//!   table 0x40000[1]: R 0x8000+1 id 0 indirect
//! ```
//! Later lines overwrite what earlier ones wrote. Memory is [0, 1 MiB), [1 MiB, 1 MiB + 64 KiB) and nothing else.

use std::sync::Arc;

use crate::memory::Gpa;
use crate::memory::testing::GuestRam;
use crate::spec::ring::{DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE, Descriptor};
use crate::spec::{Feature, Features};

use super::builder::{ChainBuilder, Follower};
use super::{
    BufferSnapshot, Chain, ChainSnapshot, ChainView, Device, DeviceRing, Disposition, DrainEnd, RingError, RingLayout,
    Segments, SingleBufferBatch, Visitor,
};

pub(super) const MIB: u64 = 1 << 20;

/// Memory with a ring in it.
pub(super) struct Fixture {
    pub(super) ram: GuestRam,
    pub(super) layout: RingLayout,
    pub(super) features: Features,
    base: u32,
    packed: bool,
}

pub(super) fn descriptor_bytes(desc: Descriptor) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&desc.addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&desc.len.to_le_bytes());
    bytes[12..14].copy_from_slice(&desc.flags.to_le_bytes());
    bytes[14..].copy_from_slice(&desc.next.to_le_bytes());
    bytes
}

impl Fixture {
    pub(super) fn split(size: u16, features: Features) -> Self {
        let ram = GuestRam::with_regions(&[(Gpa(0), MIB), (Gpa(MIB), 1 << 16)]).unwrap();
        let (layout, _) = RingLayout::split_at(0x1000, size).unwrap();
        Fixture { ram, layout, features, base: 0, packed: false }
    }

    pub(super) fn packed(size: u16, features: Features) -> Self {
        let ring = Fixture::split(1, features.with(Feature::RingPacked));
        let (layout, _) = RingLayout::packed_at(0x1000, size).unwrap();
        Fixture { layout, base: 0x8000, packed: true, ..ring }
    }

    pub(super) fn read(text: &str) -> Self {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let header: Vec<&str> = lines.next().unwrap().split(' ').collect();
        let field = |name: &str| {
            let word = header.iter().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.map_or(0, |value| value.parse().unwrap())
        };
        let features = Features::of(&[Feature::IndirectDesc]);
        let ring = match header[0] {
            "split" => {
                let mut ring = Fixture::split(field("size"), features);
                ring.base = u32::from(field("used.idx"));
                ring.set_avail_idx(field("avail.idx"));
                ring.ram.write(ring.layout.used + 2, &field("used.idx").to_le_bytes()).unwrap();
                ring
            }
            "packed" => Fixture::packed(field("size"), features),
            format => panic!("{format}"),
        };
        for line in lines {
            ring.line(line);
        }
        ring
    }

    fn line(&self, line: &str) {
        if line.starts_with('[') {
            return self.chain(&line.parse().unwrap());
        }
        let (place, what) = line.split_once(": ").unwrap();
        let (kind, at) = place.split_once(' ').unwrap();
        match kind {
            "avail" => self.set_avail(at.parse().unwrap(), what.parse().unwrap()),
            "desc" if self.packed => self.set_desc(at.parse().unwrap(), parse_packed(what)),
            "desc" => self.set_desc(at.parse().unwrap(), parse_descriptor(what)),
            "table" => {
                let (addr, index) = at.strip_suffix(']').unwrap().split_once('[').unwrap();
                let addr = u64::from_str_radix(addr.strip_prefix("0x").unwrap(), 16).unwrap();
                let desc = if self.packed { parse_packed(what) } else { parse_descriptor(what) };
                self.write_desc(addr + 16 * index.parse::<u64>().unwrap(), desc);
            }
            _ => panic!("{line}"),
        }
    }

    fn chain(&self, chain: &ChainSnapshot) {
        if self.packed { self.packed_chain(chain) } else { self.split_chain(chain) }
    }

    fn packed_chain(&self, chain: &ChainSnapshot) {
        let table = 0x40000 + 0x1000 * u64::from(chain.slot);
        let count = chain.buffers.len() as u16;
        for (at, buffer) in (0..).zip(&chain.buffers) {
            let write = if buffer.writable { DESC_F_WRITE } else { 0 };
            let desc = Descriptor { addr: buffer.addr, len: buffer.len, flags: write, next: chain.head };
            if chain.indirect {
                self.write_desc(table + 16 * u64::from(at), packed_form(desc));
            } else {
                let slot = chain.slot + at;
                let next = if at + 1 < count { DESC_F_NEXT } else { 0 };
                let lap = if slot < self.layout.size { DESC_F_AVAIL } else { DESC_F_USED };
                let desc = Descriptor { flags: write | next | lap, ..desc };
                self.set_desc(slot % self.layout.size, packed_form(desc));
            }
        }
        if chain.indirect {
            let flags = DESC_F_INDIRECT | DESC_F_AVAIL;
            let desc = Descriptor { addr: table, len: 16 * u32::from(count), flags, next: chain.head };
            self.set_desc(chain.slot, packed_form(desc));
        }
    }

    fn split_chain(&self, chain: &ChainSnapshot) {
        self.set_avail(chain.slot, chain.head);
        let count = chain.buffers.len() as u16;
        let (table, first) = if chain.indirect {
            let table = 0x40000 + 0x1000 * u64::from(chain.slot);
            self.set_desc(
                chain.head,
                Descriptor { addr: table, len: 16 * u32::from(count), flags: DESC_F_INDIRECT, next: 0 },
            );
            (table, 0)
        } else {
            (self.layout.desc, chain.head)
        };
        for (at, buffer) in chain.buffers.iter().enumerate() {
            let index = first + at as u16;
            let more = at + 1 < usize::from(count);
            let flags = if buffer.writable { DESC_F_WRITE } else { 0 } | if more { DESC_F_NEXT } else { 0 };
            let next = if more { index + 1 } else { 0 };
            let desc = Descriptor { addr: buffer.addr, len: buffer.len, flags, next };
            self.write_desc(table + 16 * u64::from(index), desc);
        }
    }

    fn write_desc(&self, addr: u64, desc: Descriptor) {
        self.ram.write(addr, &descriptor_bytes(desc)).unwrap();
    }

    pub(super) fn set_desc(&self, index: u16, desc: Descriptor) {
        self.write_desc(self.layout.desc + 16 * u64::from(index), desc);
    }

    pub(super) fn set_avail(&self, slot: u16, head: u16) {
        self.ram.write(self.layout.avail + 4 + 2 * u64::from(slot), &head.to_le_bytes()).unwrap();
    }

    pub(super) fn set_avail_idx(&self, idx: u16) {
        self.ram.write(self.layout.avail + 2, &idx.to_le_bytes()).unwrap();
    }

    pub(super) fn device(&self) -> Device {
        Device::new(self.layout, Arc::clone(self.ram.memory()), self.features, self.base).unwrap()
    }

    pub(super) fn segments(&self) -> Segments {
        Segments::new(Arc::clone(self.ram.memory()), 16)
    }
}

/// An arena whose last look-up ended in the first region: chains go through the fast path from the first on.
pub(super) fn warm_segments(ram: &GuestRam) -> Segments {
    let mut segments = Segments::new(Arc::clone(ram.memory()), 2048);
    let desc = Descriptor { addr: 0x8000, len: 1, flags: 0, next: 0 };
    ChainBuilder::new(&mut segments, 0).buffer(0, &desc).unwrap();
    segments.clear();
    segments
}

/// `R 0x1000+64 next 5`.
fn parse_descriptor(text: &str) -> Descriptor {
    let mut words = text.split(' ');
    let buffer = format!("{} {}", words.next().unwrap(), words.next().unwrap());
    let buffer: BufferSnapshot = buffer.parse().unwrap();
    let mut flags = if buffer.writable { DESC_F_WRITE } else { 0 };
    let mut next = 0;
    while let Some(word) = words.next() {
        match word {
            "indirect" => flags |= DESC_F_INDIRECT,
            "next" => {
                flags |= DESC_F_NEXT;
                next = words.next().unwrap().parse().unwrap();
            }
            _ => panic!("{text}"),
        }
    }
    Descriptor { addr: buffer.addr, len: buffer.len, flags, next }
}

/// A descriptor whose `next` stands for the buffer id, in the order of a packed one.
fn packed_form(desc: Descriptor) -> Descriptor {
    Descriptor { flags: desc.next, next: desc.flags, ..desc }
}

/// `R 0x1000+64 id 5 next`.
fn parse_packed(text: &str) -> Descriptor {
    let (buffer, rest) = text.split_once(" id ").unwrap();
    let buffer: BufferSnapshot = buffer.parse().unwrap();
    let mut words = rest.split(' ');
    let id = words.next().unwrap().parse().unwrap();
    let mut flags = DESC_F_AVAIL | if buffer.writable { DESC_F_WRITE } else { 0 };
    for word in words {
        flags = match word {
            "indirect" => flags | DESC_F_INDIRECT,
            "next" => flags | DESC_F_NEXT,
            "unavailable" => flags & !DESC_F_AVAIL,
            _ => panic!("{text}"),
        };
    }
    packed_form(Descriptor { addr: buffer.addr, len: buffer.len, flags, next: id })
}

/// A popped chain in the notation.
pub(super) fn show(chain: &Chain, segments: &Segments, size: u16) -> String {
    show_view(segments.view(*chain), size)
}

fn show_view(view: ChainView<'_>, size: u16) -> String {
    let chain = &view.chain;
    let mut buffers: Vec<BufferSnapshot> = Vec::new();
    for (at, segment) in view.segments().iter().enumerate() {
        match buffers.last_mut() {
            Some(last) if segment.continues => last.len += segment.len,
            _ => {
                let writable = at as u32 >= chain.readable;
                buffers.push(BufferSnapshot { writable, ..BufferSnapshot::at(segment.addr, segment.len) });
            }
        }
    }
    let slot = chain.idx % size;
    ChainSnapshot { slot, head: chain.head, indirect: chain.indirect, buffers, fault: None }.to_string()
}

/// Pops all chains of `ring`: these, in the notation, and then the end or this error; by the walk alone, through the fast
/// path, and drained in one burst.
pub(super) fn check(ring: &str, expect: Result<&str, RingError>) {
    for warm in [false, true] {
        let fixture = Fixture::read(ring);
        let mut segments = if warm { warm_segments(&fixture.ram) } else { fixture.segments() };
        let mut device = fixture.device();
        let mut chains = Vec::new();
        let outcome = loop {
            let kept = segments.len();
            match device.pop(&mut segments) {
                Ok(Some(chain)) => chains.push(show(&chain, &segments, fixture.layout.size)),
                Ok(None) => break Ok(chains.join("\n")),
                Err(error) => {
                    assert_eq!(segments.len(), kept, "nothing of a bad chain stays in the arena");
                    assert_eq!(device.pop(&mut segments), Err(error.clone()), "the ring has not moved");
                    break Err(error);
                }
            }
        };
        assert_eq!(outcome, expect.clone().map(str::to_owned), "{ring}");
        // Batches last: what stood in a batch goes back, over the chains of a packed ring.
        for batches in [false, true] {
            let mut device = fixture.device();
            let mut keeper = Keeper { seen: Vec::new(), batches, in_batch: 0, size: fixture.layout.size };
            let ended = device.drain(&mut segments, u16::MAX, &mut keeper);
            assert_eq!(usize::from(device.in_flight()), keeper.seen.len() - keeper.in_batch);
            if let Err(error) = &ended {
                let again = device.drain(&mut segments, u16::MAX, &mut keeper);
                assert_eq!(again, Err(error.clone()), "the ring has not moved");
            }
            let drained = ended.map(|ended| {
                assert_eq!(ended, DrainEnd::Empty);
                keeper.seen.join("\n")
            });
            assert_eq!(drained, expect.clone().map(str::to_owned), "{ring}, drained");
        }
    }
}

/// Writes down the chains of a burst, and keeps them; what stood in a batch goes back.
struct Keeper {
    seen: Vec<String>,
    /// Takes batches, where they are offered.
    batches: bool,
    /// How many times it was.
    in_batch: usize,
    size: u16,
}

impl Visitor for Keeper {
    const READS: bool = false;

    fn takes_batches(&self) -> bool {
        self.batches
    }

    fn visit_batch(&mut self, batch: SingleBufferBatch<'_>) -> usize {
        let before = self.seen.len();
        self.seen.extend(batch.views().map(|view| show_view(view, self.size)));
        self.in_batch += self.seen.len() - before;
        self.seen.len() - before
    }

    fn visit(&mut self, chain: ChainView<'_>) -> Disposition {
        self.seen.push(show_view(chain, self.size));
        Disposition::Retain
    }
}
