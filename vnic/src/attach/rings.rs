//! Snapshots of rings in another process's memory: of copies, by the same code that looks at a device's own.
//!
//! Operation: what a snapshot reads (a ring's three parts, the indirect tables that its descriptors refer to) is copied to
//! the same addresses of a [memory of its own](Shadow), which has nothing else. Where the indices moved meanwhile, it is
//! copied anew, a few times.

use std::io;
use std::sync::Arc;

use super::devices::Queue;
use super::ram::Ram;
use crate::introspect::GuestPhysical;
use crate::memory::testing::GuestRam;
use crate::memory::{Gpa, Memory};
use crate::ring::snapshot::{self, EventSuppression, RingSnapshot};
use crate::ring::{MAX_INDIRECT_ENTRIES, RingLayout};
use crate::spec::ring::DESC_F_INDIRECT;
use crate::spec::{Feature, Features};

/// Times that a ring is copied until it holds still.
const ATTEMPTS: usize = 4;
/// Bytes of indirect tables that are copied, at most; what is beyond them reads as zeroes.
const MAX_TABLES: usize = 16 << 20;
/// Bytes of pages that are kept for the next copy, at most.
const MAX_KEPT: u64 = 16 << 20;

/// What was seen of a ring.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) ring: RingSnapshot,
    pub(super) event_suppression: Option<EventSuppression>,
}

/// Memory for the copies, for one look at a time.
#[derive(Debug)]
pub(super) struct Shadow {
    ram: GuestRam,
    /// What was copied since it was made or emptied: address, bytes.
    copied: Vec<(u64, u64)>,
    /// Bytes that were copied since all of its pages were given back.
    kept: u64,
}

impl Shadow {
    /// # Errors
    /// The host has no such memory.
    pub(super) fn of(ram: &Ram) -> io::Result<Shadow> {
        let regions: Vec<(Gpa, u64)> = ram.regions().map(|region| (Gpa(region.gpa), region.size)).collect();
        Ok(Shadow { ram: GuestRam::with_regions(&regions)?, copied: Vec::new(), kept: 0 })
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Option<()> {
        self.ram.write(at, bytes).ok()?;
        self.copied.push((at, bytes.len() as u64));
        self.kept += bytes.len() as u64;
        Some(())
    }

    /// Has nothing but zeroes in it again. A few bytes are sooner overwritten than their pages given back and had again.
    fn empty(&mut self) -> io::Result<()> {
        if self.kept > MAX_KEPT {
            (self.copied, self.kept) = (Vec::new(), 0);
            return self.ram.clear();
        }
        for (at, len) in self.copied.drain(..) {
            self.ram.write(at, &vec![0; len as usize]).map_err(io::Error::other)?;
        }
        Ok(())
    }
}

/// Looks at a queue's ring. `position` says of a packed ring how far the device is.
pub(super) fn look(
    ram: &Ram,
    shadow: &mut Shadow,
    queue: &Queue,
    features: Features,
    position: u32,
) -> io::Result<Look> {
    let mut consistent = false;
    for _ in 0..ATTEMPTS {
        shadow.empty()?;
        let before = indices(ram, &queue.layout, features);
        copy_ring(ram, shadow, &queue.layout, features);
        consistent = indices(ram, &queue.layout, features) == before;
        if consistent {
            break;
        }
    }
    let memory: &Arc<Memory> = shadow.ram.memory();
    let layout = &queue.layout;
    let mut ring = if features.has(Feature::RingPacked) {
        snapshot::take_packed(&queue.name, layout, memory, features, || position)
    } else {
        snapshot::take(&queue.name, layout, memory, features)
    };
    ring.consistent &= consistent;
    Ok(Look { ring, event_suppression: EventSuppression::read(layout, memory, features) })
}

/// `avail.idx` and `used.idx`, as they stand now: (`idx`, `idx`). Of a packed ring, which has none, always the same.
pub(super) fn indices(ram: &Ram, layout: &RingLayout, features: Features) -> Option<(u16, u16)> {
    if features.has(Feature::RingPacked) {
        return None;
    }
    let idx = |part: u64| {
        let mut bytes = [0; 2];
        ram.copy(part.checked_add(2)?, &mut bytes)?;
        Some(u16::from_le_bytes(bytes))
    };
    // `used.idx` first: it never seems to be ahead then.
    let used = idx(layout.used)?;
    Some((idx(layout.avail)?, used))
}

/// Copies what a snapshot reads. What is no memory is left out: the snapshot says so itself.
fn copy_ring(ram: &Ram, shadow: &mut Shadow, layout: &RingLayout, features: Features) {
    let mut copy = |at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        ram.copy(at, &mut bytes)?;
        shadow.write(at, &bytes)?;
        Some(bytes)
    };
    let [(desc, desc_len, _), (avail, avail_len, _), (used, used_len, _)] = layout.parts(features);
    // The indices last: what they point at is there by then.
    let table = copy(desc, desc_len).unwrap_or_default();
    copy(used, used_len);
    copy(avail, avail_len);
    let mut left = MAX_TABLES;
    for entry in table.chunks_exact(16) {
        let field = |at: usize, len: usize| {
            let bytes = entry.get(at..at + len).unwrap_or_default();
            bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        let (addr, len) = (field(0, 8), field(8, 4));
        // The flags of a split ring's descriptor and of a packed one's are in different places.
        let flags = if features.has(Feature::RingPacked) { field(14, 2) } else { field(12, 2) };
        if flags & u64::from(DESC_F_INDIRECT) != 0
            && is_table(len)
            && let Some(rest) = left.checked_sub(len as usize)
        {
            left = rest;
            copy(addr, len);
        }
    }
}

/// Could an indirect table have so many bytes? One of another length nobody reads: it is an error by its length alone.
fn is_table(bytes: u64) -> bool {
    bytes.is_multiple_of(16) && bytes / 16 <= u64::from(MAX_INDIRECT_ENTRIES)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_copy_finds_nothing_of_the_copies_before_it_and_their_pages_are_not_kept_without_end() {
        let ram = Ram::of_file(File::open("/dev/null").unwrap(), 2 * MAX_KEPT);
        let mut shadow = Shadow::of(&ram).unwrap();
        let zeroes = |shadow: &Shadow, at: u64, len: u64| {
            shadow.ram.read(at, len as usize).unwrap().iter().all(|byte| *byte == 0)
        };
        shadow.write(0x1ffe, &[1; 16]).unwrap();
        assert_eq!(shadow.write(2 * MAX_KEPT - 1, &[1; 2]), None);
        shadow.empty().unwrap();
        assert!(zeroes(&shadow, 0, 0x4000));
        shadow.write(0, &vec![1; MAX_KEPT as usize]).unwrap();
        shadow.empty().unwrap();
        assert!(zeroes(&shadow, 0, 2 * MAX_KEPT));
        assert_eq!((shadow.copied.len(), shadow.kept), (0, 0));
    }
}
