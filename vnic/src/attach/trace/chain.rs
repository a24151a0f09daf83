//! A chain in copies of a ring: its buffers, and of a frame that is sent its first bytes.

use super::super::ram::Ram;
use crate::introspect::{GuestPhysical, Label};
use crate::observe::tracer::{EventBuffer, HEAD_BYTES, MAX_BUFFERS};
use crate::ring::MIN_CHAIN_LIMIT;
use crate::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};

/// Bytes of a descriptor.
const DESC: usize = 16;

/// A chain that the driver has made available.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Seen {
    /// Is it certain that all of it was still the driver's when it was followed?
    pub(super) is_whole: bool,
    /// Free-running index.
    pub(super) idx: u16,
    /// Head descriptor.
    pub(super) head: u16,
    /// Descriptors in all.
    pub(super) descriptors: u16,
    /// Indirect table?
    pub(super) indirect: bool,
    /// Bytes that the device may read.
    pub(super) readable: u64,
    /// The first descriptors.
    pub(super) buffers: Vec<EventBuffer>,
    /// What the pages of these were, and whose, of those in files; empty: nobody looked.
    pub(super) stamps: Vec<u64>,
    pub(super) labels: Vec<Option<Label>>,
    /// Of a frame that is sent: its header, and its first bytes.
    pub(super) first: Vec<u8>,
}

impl Seen {
    /// The chain that begins at `head` in this copy of the descriptor table. What cannot be followed ends it.
    pub(super) fn follow(ram: &Ram, table: &[u8], idx: u16, head: u16) -> Seen {
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
            seen.descriptors += 1;
            let writable = desc.flags & DESC_F_WRITE != 0;
            seen.readable += if writable { 0 } else { u64::from(desc.len) };
            if seen.buffers.len() < MAX_BUFFERS {
                seen.buffers.push(EventBuffer { addr: desc.addr, gpa: desc.addr, len: desc.len, writable });
            }
            if desc.flags & DESC_F_NEXT == 0 {
                break;
            }
            at = desc.next;
        }
        seen
    }

    /// The first bytes of what the device reads, or has written, as many as a header of this length and the frame's start
    /// take; fewer where they are out of reach.
    pub(super) fn peek(&self, ram: &Ram, writable: bool, header: usize) -> Vec<u8> {
        let mut bytes = vec![0; header + HEAD_BYTES];
        let mut filled = 0;
        for buffer in self.buffers.iter().filter(|buffer| buffer.writable == writable) {
            let rest = bytes.get_mut(filled..).unwrap_or_default();
            let len = rest.len().min(buffer.len as usize);
            let Some(part) = rest.get_mut(..len).filter(|part| !part.is_empty()) else { break };
            if ram.copy(buffer.gpa, part).is_none() {
                break;
            }
            filled += len;
        }
        bytes.truncate(filled);
        bytes
    }
}

struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Desc {
    /// VIRTIO 1.3, 2.7.5 The Virtqueue Descriptor Table.
    fn read(table: &[u8], index: u16) -> Option<Desc> {
        let (desc, _) = table.get(DESC * usize::from(index)..)?.split_first_chunk::<DESC>()?;
        let number = u128::from_le_bytes(*desc);
        Some(Desc {
            addr: number as u64,
            len: (number >> 64) as u32,
            flags: (number >> 96) as u16,
            next: (number >> 112) as u16,
        })
    }
}
