//! The guest: its memory, and what it writes there.

use std::cell::RefCell;
use std::collections::VecDeque;

use arbitrary::Arbitrary;
use vnic::memory::Gpa;
use vnic::memory::testing::GuestRam;
use vnic::ring::RingLayout;

/// Split or packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// VIRTIO 1.3, 2.7.
    Split,
    /// VIRTIO 1.3, 2.8.
    Packed,
}

/// Where the rings are; buffers and tables are anywhere.
pub(super) const RING: u64 = 0x1000;
pub(super) const FIRST: u64 = 0x6000;
/// A second region right behind the first, a third behind a hole.
pub(super) const REGIONS: [(Gpa, u64); 3] = [(Gpa(0), FIRST), (Gpa(FIRST), 0x1000), (Gpa(THIRD), 0x1000)];
pub(super) const THIRD: u64 = 0x2_0000;
/// Buffers and tables are here more often than elsewhere.
pub(super) const BUFFERS: u64 = 0x4000;
pub(super) const TABLES: u64 = 0x5000;

/// An address, likely a good one.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) enum Place {
    Buffer(u8),
    Table(u8),
    NearEnd(u8, u8),
    Raw(u64),
}

impl Place {
    pub(super) fn addr(self) -> u64 {
        match self {
            Place::Buffer(at) => BUFFERS + 16 * u64::from(at),
            Place::Table(at) => TABLES + 16 * u64::from(at),
            Place::NearEnd(which, back) => {
                [FIRST, FIRST + 0x1000, THIRD, THIRD + 0x1000][usize::from(which % 4)] - u64::from(back)
            }
            Place::Raw(addr) => addr,
        }
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) enum Length {
    Small(u8),
    Descriptors(u8),
    Raw(u32),
}

impl Length {
    pub(super) fn bytes(self) -> u32 {
        match self {
            Length::Small(len) => u32::from(len),
            Length::Descriptors(count) => 16 * u32::from(count),
            Length::Raw(len) => len,
        }
    }
}

/// What the guest writes.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) enum Write {
    /// A descriptor of the ring. Packed: `next` is the buffer id.
    Desc { slot: u8, place: Place, len: Length, flags: u16, next: u8 },
    /// A descriptor with plausible flags: linked to the one behind it or not.
    Plain { slot: u8, place: Place, len: Length, more: bool, writable: bool, lap: bool },
    /// Chains of one buffer each, in so many slots from there on; their ids repeat, or do not.
    Fill { from: u8, count: u8, ids: u8, lap: bool },
    /// One that refers to a table.
    Indirect { slot: u8, place: Place, count: u8, lap: bool },
    /// A descriptor of a table.
    Table { at: u8, place: Place, len: Length, flags: u8, next: u8 },
    /// Split: an entry of the available ring.
    Entry { slot: u8, head: u8 },
    /// Split: that many entries more.
    More(u8),
    /// Split: `avail.idx`.
    Idx(u16),
    /// What the driver wants to be called for.
    Event(u32),
    /// Anything anywhere in the first pages.
    Bytes(u16, u32),
}

/// Guest memory, and what the guest itself has written into it.
pub(super) struct Guest {
    pub(super) ram: GuestRam,
    /// What memory must hold but for what the device may write.
    pub(super) shadow: Vec<u8>,
    pub(super) format: Format,
    pub(super) layout: RingLayout,
    /// Split: where the driver stands.
    pub(super) avail_idx: u16,
    pub(super) ambushes: VecDeque<(u8, Write)>,
}

thread_local! {
    pub(super) static RAM: RefCell<Option<GuestRam>> = const { RefCell::new(None) };
}

pub(super) const LEN: u64 = FIRST + 0x1000;

impl Guest {
    pub(super) fn write_bytes(&mut self, addr: u64, bytes: &[u8]) {
        if self.ram.write(addr, bytes).is_ok()
            && let Some(shadow) = self.shadow.get_mut(addr as usize..addr as usize + bytes.len())
        {
            shadow.copy_from_slice(bytes);
        }
    }

    pub(super) fn desc(&mut self, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let (third, fourth) = if self.format == Format::Packed { (next, flags) } else { (flags, next) };
        let rest = u64::from(len) | u64::from(third) << 32 | u64::from(fourth) << 48;
        self.write_bytes(at, &[addr.to_le_bytes(), rest.to_le_bytes()].concat());
    }

    pub(super) fn slot(&self, slot: u8) -> u16 {
        u16::from(slot) % self.layout.size
    }

    pub(super) fn write(&mut self, what: Write) {
        let (format, layout) = (self.format, self.layout);
        let lap = move |lap: bool| match (format, lap) {
            (Format::Split, _) => 0,
            (Format::Packed, true) => 1 << 7,
            (Format::Packed, false) => 1 << 15,
        };
        match what {
            Write::Desc { slot, place, len, flags, next } => {
                let at = layout.desc + 16 * u64::from(self.slot(slot));
                self.desc(at, place.addr(), len.bytes(), flags, next.into());
            }
            Write::Plain { slot, place, len, more, writable, lap: turn } => {
                let slot = self.slot(slot);
                let flags = u16::from(more) | u16::from(writable) << 1 | lap(turn);
                self.desc(
                    layout.desc + 16 * u64::from(slot),
                    place.addr(),
                    len.bytes(),
                    flags,
                    (slot + 1) % layout.size,
                );
            }
            Write::Fill { from, count, ids, lap: turn } => {
                let from = self.slot(from);
                for at in (0..u16::from(count % 8)).map(|at| (from + at) % layout.size) {
                    let id = if self.format == Format::Packed { at % (u16::from(ids) + 1) } else { 0 };
                    self.desc(layout.desc + 16 * u64::from(at), BUFFERS, 60, lap(turn), id);
                    self.write(Write::Entry { slot: at as u8, head: (at % (u16::from(ids) + 1)) as u8 });
                }
                self.write(Write::More(count % 8));
            }
            Write::Indirect { slot, place, count, lap: turn } => {
                let slot = self.slot(slot);
                let at = layout.desc + 16 * u64::from(slot);
                self.desc(at, place.addr(), 16 * u32::from(count), 4 | lap(turn), slot);
            }
            Write::Table { at, place, len, flags, next } => {
                let flags = u16::from(flags & 7);
                self.desc(TABLES + 16 * u64::from(at), place.addr(), len.bytes(), flags, next.into());
            }
            Write::Entry { slot, head } => {
                let at = layout.avail + 4 + 2 * u64::from(self.slot(slot));
                if self.format == Format::Split {
                    self.write_bytes(at, &u16::from(head).to_le_bytes());
                }
            }
            Write::More(count) => {
                if self.format == Format::Split {
                    self.avail_idx = self.avail_idx.wrapping_add(u16::from(count) % (layout.size + 1));
                    self.write_bytes(layout.avail + 2, &self.avail_idx.to_le_bytes());
                }
            }
            Write::Idx(idx) => {
                if self.format == Format::Split {
                    self.avail_idx = idx;
                    self.write_bytes(layout.avail + 2, &idx.to_le_bytes());
                }
            }
            Write::Event(bits) => match self.format {
                Format::Packed => self.write_bytes(layout.avail, &bits.to_le_bytes()),
                Format::Split => {
                    self.write_bytes(layout.avail, &(bits as u16).to_le_bytes());
                    self.write_bytes(layout.avail + 4 + 2 * u64::from(layout.size), &(bits >> 16).to_le_bytes()[..2]);
                }
            },
            Write::Bytes(at, bits) => {
                // The device's own part excepted: what it must not write there could not be told from this.
                let at = u64::from(at);
                if !self.device_writes(at) && !self.device_writes(at + 3) {
                    self.write_bytes(at, &bits.to_le_bytes());
                }
            }
        }
    }

    pub(super) fn device_writes(&self, addr: u64) -> bool {
        device_writes(self.format, &self.layout, addr)
    }

    pub(super) fn check_memory(self) -> GuestRam {
        let memory = self.ram.read(0, LEN as usize).expect("it is guest memory");
        // Most of it is as it was: a byte at a time would take half of a run's time.
        const PIECE: usize = 256;
        for (at, (is, was)) in (0..).step_by(PIECE).zip(memory.chunks(PIECE).zip(self.shadow.chunks(PIECE))) {
            if is != was {
                for (at, _) in (at..).zip(is.iter().zip(was)).filter(|(_, (is, was))| is != was) {
                    assert!(device_writes(self.format, &self.layout, at), "the device wrote at {at:#x}");
                }
            }
        }
        self.ram
    }
}

/// Is this address in the part of the ring that the device writes?
pub(super) fn device_writes(format: Format, layout: &RingLayout, addr: u64) -> bool {
    let within = |from: u64, len: u64| (from..from + len).contains(&addr);
    match format {
        Format::Split => within(layout.used, 4 + 8 * u64::from(layout.size) + 2),
        Format::Packed => {
            let rings = within(layout.desc, 16 * u64::from(layout.size));
            (rings && (addr - layout.desc) % 16 >= 8) || within(layout.used, 4)
        }
    }
}
