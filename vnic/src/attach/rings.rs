//! Snapshots of rings in another process's memory: of copies, by the same code that looks at a device's own.
//!
//! Operation: what a snapshot reads (a ring's three parts, the indirect tables that its descriptors refer to) is copied to
//! the same addresses of a [memory of its own](shadow), which has nothing else. Where the indices moved meanwhile, it is
//! copied anew, a few times.

use std::io;
use std::sync::Arc;

use super::devices::Queue;
use super::ram::Ram;
use crate::introspect::GuestPhysical;
use crate::memory::testing::GuestRam;
use crate::memory::{Gpa, Memory};
use crate::ring::snapshot::{self, EventSuppression, RingSnapshot};
use crate::ring::{RingLayout, check_table_len};
use crate::spec::ring::DESC_F_INDIRECT;
use crate::spec::{Feature, Features};

/// Times that a ring is copied until it holds still.
const ATTEMPTS: usize = 4;
/// Bytes of indirect tables that are copied, at most; what is beyond them reads as zeroes.
const MAX_TABLES: usize = 16 << 20;

/// What was seen of a ring.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) ring: RingSnapshot,
    pub(super) event_suppression: Option<EventSuppression>,
}

/// Memory for the copies, for one look at a time.
pub(super) fn shadow(ram: &Ram) -> io::Result<GuestRam> {
    let regions: Vec<(Gpa, u64)> = ram.regions().map(|region| (Gpa(region.gpa), region.size)).collect();
    GuestRam::with_regions(&regions)
}

/// Looks at a queue's ring. `position` says of a packed ring how far the device is.
pub(super) fn look(ram: &Ram, shadow: &GuestRam, queue: &Queue, features: Features, position: u32) -> io::Result<Look> {
    let mut consistent = false;
    for _ in 0..ATTEMPTS {
        shadow.clear()?;
        let before = indices(ram, &queue.layout, features);
        copy_ring(ram, shadow, &queue.layout, features);
        consistent = indices(ram, &queue.layout, features) == before;
        if consistent {
            break;
        }
    }
    let memory: &Arc<Memory> = shadow.memory();
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
fn copy_ring(ram: &Ram, shadow: &GuestRam, layout: &RingLayout, features: Features) {
    let copy = |at: u64, len: u64| {
        let mut bytes = vec![0; len as usize];
        ram.copy(at, &mut bytes)?;
        shadow.write(at, &bytes).ok()?;
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
        // A table of a length that none has nobody reads: it is an error by that alone.
        if flags & u64::from(DESC_F_INDIRECT) != 0
            && check_table_len(0, 0, len as u32).is_ok()
            && let Some(rest) = left.checked_sub(len as usize)
        {
            left = rest;
            copy(addr, len);
        }
    }
}
