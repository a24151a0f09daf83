//! A chain in copies of a ring: its buffers, and of a frame that is sent its first bytes.

use crate::introspect::{GuestPhysical, MAX_PAGES, Place};
use crate::observe::tracer::{EventBuffer, HEAD_BYTES, MAX_BUFFERS};
use crate::ring::MIN_CHAIN_LIMIT;
use crate::ring::packed::Position;
use crate::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};

/// Bytes of a descriptor.
pub(in crate::attach) const DESC: usize = 16;

/// A chain that the driver has made available.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Seen {
    /// When it was first seen.
    pub(super) available_ns: u64,
    /// Is it certain that all of it was still the driver's when it was followed?
    pub(super) is_whole: bool,
    /// Free-running index.
    pub(super) idx: u16,
    /// Head descriptor.
    pub(super) head: u16,
    /// Descriptors in all.
    pub(super) descriptors: u16,
    /// Slots of a packed ring that it takes.
    pub(super) slots: u16,
    /// Indirect table?
    pub(super) indirect: bool,
    /// Bytes that the device may read.
    pub(super) readable: u64,
    /// Bytes that it may write.
    pub(super) writable: u64,
    /// The first descriptors.
    pub(super) buffers: Vec<EventBuffer>,
    /// What the pages of these were, and where in a file; empty: nobody looked.
    pub(super) stamps: Vec<(u64, Option<Place>)>,
    /// Of a frame that is sent: its header, and its first bytes.
    pub(super) first: Vec<u8>,
}

impl Seen {
    /// The chain that begins at `head` in this copy of the descriptor table. What cannot be followed ends it.
    pub(super) fn follow(ram: &impl GuestPhysical, table: &[u8], idx: u16, head: u16) -> Seen {
        let mut seen = Seen { idx, head, ..Seen::default() };
        let mut indirect;
        let (mut table, mut at, mut left) = (table, head, MIN_CHAIN_LIMIT);
        // A ring of more slots than chains are usually long has chains as long as it.
        left = left.max((table.len() / DESC) as u16);
        while let Some(desc) = Desc::read(table, at).filter(|_| left > 0) {
            left -= 1;
            if desc.flags & DESC_F_INDIRECT != 0 {
                let len = (desc.len as usize).min(DESC * usize::from(left));
                indirect = vec![0; len / DESC * DESC];
                if seen.indirect || ram.copy(desc.addr, &mut indirect).is_none() {
                    break;
                }
                seen.indirect = true;
                (table, at) = (&indirect, 0);
                continue;
            }
            seen.push(&desc);
            if desc.flags & DESC_F_NEXT == 0 {
                break;
            }
            at = desc.next;
        }
        seen
    }

    /// The chain that begins at `at` in this copy of a packed ring of `size` slots. What cannot be followed ends it.
    pub(super) fn follow_packed(ram: &impl GuestPhysical, ring: &[u8], at: Position, size: u16) -> Seen {
        let mut seen = Seen { idx: at.slot, ..Seen::default() };
        let mut here = at;
        while let Some(desc) = Desc::read_packed(ring, here.slot).filter(|_| seen.slots < size) {
            seen.slots += 1;
            seen.head = desc.next;
            if desc.flags & DESC_F_INDIRECT != 0 {
                seen.indirect = true;
                let mut table = vec![0; (desc.len as usize / DESC).min(usize::from(MIN_CHAIN_LIMIT.max(size))) * DESC];
                if ram.copy(desc.addr, &mut table).is_some() {
                    let entries = (0..).map_while(|index| Desc::read_packed(&table, index));
                    entries.for_each(|desc| seen.push(&desc));
                }
                break;
            }
            seen.push(&desc);
            if desc.flags & DESC_F_NEXT == 0 {
                break;
            }
            here = here.after(1, size);
        }
        seen
    }

    /// Pages that its buffers are in, about.
    pub(super) fn pages(&self) -> u64 {
        self.buffers.iter().map(|buffer| u64::from(buffer.len >> 12).min(MAX_PAGES) + 1).sum()
    }

    fn push(&mut self, desc: &Desc) {
        self.descriptors += 1;
        let writable = desc.flags & DESC_F_WRITE != 0;
        *if writable { &mut self.writable } else { &mut self.readable } += u64::from(desc.len);
        if self.buffers.len() < MAX_BUFFERS {
            self.buffers.push(EventBuffer { addr: desc.addr, gpa: desc.addr, len: desc.len, writable });
        }
    }

    /// The first bytes of what the device reads, or has written, as many as a header of this length and the frame's start
    /// take; fewer where they are out of reach.
    pub(super) fn peek(&self, ram: &impl GuestPhysical, writable: bool, header: usize) -> Vec<u8> {
        let mut bytes = vec![0; header + HEAD_BYTES];
        let mut filled = 0;
        for (gpa, len) in self.start(writable, header) {
            let part = bytes.get_mut(filled..filled + len).unwrap_or_default();
            if ram.copy(gpa, part).is_none() {
                break;
            }
            filled += len;
        }
        bytes.truncate(filled);
        bytes
    }

    /// The last byte that the device may write, if it is known where that is.
    pub(super) fn last_written(&self, ram: &impl GuestPhysical) -> Option<u8> {
        let last =
            self.buffers.last().filter(|last| last.writable && self.buffers.len() == usize::from(self.descriptors))?;
        let mut byte = [0];
        ram.copy(last.gpa.checked_add(u64::from(last.len).checked_sub(1)?)?, &mut byte)?;
        Some(byte[0])
    }

    /// Where these bytes are: addresses and how many.
    pub(super) fn start(&self, writable: bool, header: usize) -> impl Iterator<Item = (u64, usize)> {
        let mut left = header + HEAD_BYTES;
        self.buffers.iter().filter(move |buffer| buffer.writable == writable).map_while(move |buffer| {
            let len = left.min(buffer.len as usize);
            left -= len;
            (len > 0).then_some((buffer.gpa, len))
        })
    }

    /// Where the table is that the chain at this place of a copy of a ring leads to, if it is in one, and how many bytes are fetched
    /// of it: as much as an event has room for. More is read when it comes to it.
    pub(super) fn table(desc: Option<Desc>) -> Option<(u64, usize)> {
        let desc = desc.filter(|desc| desc.flags & DESC_F_INDIRECT != 0)?;
        Some((desc.addr, (desc.len as usize).min(DESC * (MAX_BUFFERS + 2))))
    }
}

pub(in crate::attach) struct Desc {
    addr: u64,
    /// Of a used descriptor of a packed ring, the bytes written.
    pub(super) len: u32,
    pub(in crate::attach) flags: u16,
    /// In a packed ring, the buffer's id.
    pub(in crate::attach) next: u16,
}

impl Desc {
    /// VIRTIO 1.3, 2.7.5 The Virtqueue Descriptor Table.
    pub(super) fn read(table: &[u8], index: u16) -> Option<Desc> {
        let (desc, _) = table.get(DESC * usize::from(index)..)?.split_first_chunk::<DESC>()?;
        let number = u128::from_le_bytes(*desc);
        Some(Desc {
            addr: number as u64,
            len: (number >> 64) as u32,
            flags: (number >> 96) as u16,
            next: (number >> 112) as u16,
        })
    }

    /// VIRTIO 1.3, 2.8.13: the last two are the other way round.
    pub(in crate::attach) fn read_packed(ring: &[u8], slot: u16) -> Option<Desc> {
        let Desc { addr, len, flags, next } = Desc::read(ring, slot)?;
        Some(Desc { addr, len, flags: next, next: flags })
    }
}
