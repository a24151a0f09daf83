//! The third witness: how often the bytes of a held chunk stand in the guest's memory.
//!
//! Place: called for the control socket while a transmitq is held. Reads guest memory, nothing else.
//!
//! Operation:
//! 1. The frames in the held ring are read, and the stamps that stand whole in one of them are noted: what the device
//!    has been given and has not sent.
//! 2. All resident guest memory is searched for stamps; each place where a noted one stands is one instance.
//!
//! One instance is the page cache's; each CPU copy that still exists adds one. A copy that was overwritten since does
//! not show, so the program must not go on while its chunk is held.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use memchr::memmem::Finder;
use serde::{Deserialize, Serialize};

use crate::memory::{Access, Memory};
use crate::record::stamp::{MAGIC, STAMP_BYTES, Stamp};
use crate::ring::snapshot::RingSnapshot;

/// Most held bytes to look for: more than a transmitq of 64 KiB frames would need to tell.
const MAX_HELD: usize = 16 << 20;
/// Places of the first held stamp that the report names.
const MAX_PLACES: usize = 16;

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScanReport {
    /// Stamps that stand whole in a held frame.
    pub held_stamps: u64,
    /// How many of them stand how often in memory.
    pub instances: BTreeMap<u64, u64>,
    /// Where the first of them stands, guest-physical.
    pub places: Vec<u64>,
    /// Resident bytes that were searched.
    pub scanned_bytes: u64,
    /// How long it took, seconds.
    pub seconds: f64,
}

impl ScanReport {
    /// The instances, where all held stamps agree on them.
    #[must_use]
    pub fn agreed(&self) -> Option<u64> {
        let mut counts = self.instances.keys();
        match (counts.next(), counts.next()) {
            (Some(count), None) => Some(*count),
            _ => None,
        }
    }
}

/// Counts the instances of what is held in `ring`.
///
/// # Errors
/// The host does not let its own memory be looked through.
pub fn scan(ring: &RingSnapshot, memory: &Arc<Memory>) -> io::Result<ScanReport> {
    let started = Instant::now();
    let finder = Finder::new(&MAGIC);
    let held = held_stamps(ring, memory, &finder);
    let first = held.first().copied();
    let mut counts: HashMap<Stamp, u64> = held.into_iter().map(|stamp| (stamp, 0)).collect();
    let mut places = Vec::new();
    let scanned_bytes = memory.survey(STAMP_BYTES - 1, |addr, window| {
        for_each_stamp(window, &finder, |at, stamp| {
            if let Some(count) = counts.get_mut(&stamp) {
                *count += 1;
                if Some(stamp) == first && places.len() < MAX_PLACES {
                    places.push(addr + at as u64);
                }
            }
        });
    })?;
    let mut instances = BTreeMap::new();
    for count in counts.values() {
        *instances.entry(*count).or_default() += 1;
    }
    Ok(ScanReport {
        held_stamps: counts.len() as u64,
        instances,
        places,
        scanned_bytes,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The stamps that stand whole in one frame of the ring. A frame's bytes may lie in several buffers.
fn held_stamps(ring: &RingSnapshot, memory: &Arc<Memory>, finder: &Finder<'_>) -> Vec<Stamp> {
    let mut stamps = Vec::new();
    let mut left = MAX_HELD;
    let mut frame = Vec::new();
    for chain in &ring.chains {
        frame.clear();
        for buffer in chain.buffers.iter().filter(|buffer| !buffer.writable) {
            let len = (buffer.len as usize).min(left);
            left -= len;
            let start = frame.len();
            frame.resize(start + len, 0);
            let Some(room) = frame.get_mut(start..) else { continue };
            // A snapshot is of memory that may have changed since; what cannot be read is not held.
            if memory.pieces(buffer.addr, len as u64, Access::Read).is_err() || memory.read(buffer.addr, room).is_err()
            {
                frame.truncate(start);
            }
        }
        for_each_stamp(&frame, finder, |_, stamp| stamps.push(stamp));
    }
    stamps
}

fn for_each_stamp(bytes: &[u8], finder: &Finder<'_>, mut found: impl FnMut(usize, Stamp)) {
    for at in finder.find_iter(bytes) {
        let whole = bytes.get(at..).and_then(|rest| rest.first_chunk::<STAMP_BYTES>());
        if let Some(stamp) = whole.and_then(Stamp::read) {
            found(at, stamp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::GuestRam;
    use crate::record::stamp::fill;
    use crate::ring::snapshot::{BufferSnapshot, ChainSnapshot};

    const FILE: u64 = 42;

    fn ring(buffers: &[(u64, u32)]) -> RingSnapshot {
        let text = "transmitq0 split size=256 avail.idx=1 used.idx=0 in-flight=1";
        let mut ring: RingSnapshot = text.parse().unwrap();
        let buffer =
            |(addr, len): &(u64, u32)| BufferSnapshot { writable: false, addr: *addr, len: *len, file_page: None };
        ring.chains = vec![ChainSnapshot {
            slot: 0,
            head: 0,
            indirect: false,
            buffers: buffers.iter().map(buffer).collect(),
            fault: None,
        }];
        ring
    }

    fn stamps(offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        fill(FILE, offset, &mut bytes);
        bytes
    }

    #[test]
    fn the_page_itself_is_one_instance() {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.write(0x10_0000, &stamps(0, 8192)).unwrap();
        let report = scan(&ring(&[(0x1000, 66), (0x10_0000, 8192)]), ram.memory()).unwrap();
        assert_eq!((report.held_stamps, report.agreed()), (128, Some(1)));
        assert_eq!(report.places, [0x10_0000]);
    }

    #[test]
    fn a_copy_at_any_alignment_and_across_page_borders_is_another_instance() {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.write(0x10_0000, &stamps(0, 8192)).unwrap();
        ram.write(0x20_0e35, &stamps(0, 8192)).unwrap();
        let report = scan(&ring(&[(0x20_0e35, 8192)]), ram.memory()).unwrap();
        assert_eq!((report.held_stamps, report.agreed()), (128, Some(2)));
        assert_eq!(report.places, [0x10_0000, 0x20_0e35]);
    }

    #[test]
    fn a_stamp_over_two_buffers_of_a_frame_is_held_and_one_over_two_frames_is_not() {
        let ram = GuestRam::new(4 << 20).unwrap();
        let bytes = stamps(0, 256);
        ram.write(0x10_0000, &bytes[..100]).unwrap();
        ram.write(0x11_0000, &bytes[100..200]).unwrap();
        let report = scan(&ring(&[(0x10_0000, 100), (0x11_0000, 100)]), ram.memory()).unwrap();
        assert_eq!(report.held_stamps, 3);
        // The one over the two buffers stands nowhere in one piece.
        assert_eq!(report.instances, BTreeMap::from([(0, 1), (1, 2)]));
        assert_eq!(report.agreed(), None);
    }

    #[test]
    fn another_files_stamps_do_not_count() {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.write(0x10_0000, &stamps(0, 64)).unwrap();
        let mut other = vec![0; 64];
        fill(FILE + 1, 0, &mut other);
        ram.write(0x20_0000, &other).unwrap();
        assert_eq!(scan(&ring(&[(0x10_0000, 64)]), ram.memory()).unwrap().agreed(), Some(1));
    }

    #[test]
    fn a_hostile_ring_costs_no_more_than_the_bound() {
        let ram = GuestRam::new(4 << 20).unwrap();
        let all = vec![(0, u32::MAX); 100];
        assert_eq!(scan(&ring(&all), ram.memory()).unwrap().held_stamps, 0);
    }
}
