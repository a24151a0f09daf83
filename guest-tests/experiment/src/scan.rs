//! The third witness: how often the bytes of a held chunk stand in the guest's memory.
//!
//! Place: called for the control socket while a transmitq is held. Reads guest memory, nothing else.
//!
//! Operation:
//! 1. The frames in the held ring are read, and the stamps that stand whole in one of them are noted: what the device
//!    has been given and has not sent.
//! 2. All resident guest memory is searched for stamps; each place where a noted one stands is one instance.
//! 3. The ring is read again: TCP sends again what nobody acknowledges, and the copies this takes are not the method's.
//!    A stamp that stands in two frames by now is left out.
//!
//! One instance is the page cache's; each CPU copy that still exists adds one. A copy that was overwritten since does
//! not show, so the program must not go on while its chunk is held.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use memchr::memmem::Finder;
use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use vnic::memory::{Access, Memory};
use vnic::ring::snapshot::RingSnapshot;

use crate::stamp::{MAGIC, STAMP_BYTES, Stamp};

/// Most held bytes to look for: more than a transmitq of 64 KiB frames would need to tell.
const MAX_HELD: usize = 16 << 20;
/// One of so many stamps may be cut in two: more than pages have borders.
const FEW: u64 = 20;
/// Places of the first held stamp that the report names.
const MAX_PLACES: usize = 16;

/// What a scan found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScanReport {
    /// Stamps that stand whole in exactly one held frame.
    pub held_stamps: u64,
    /// Stamps that stand in several: TCP sent them again, which made copies that are not the method's. Not counted.
    #[serde(default)]
    pub sent_again: u64,
    /// How many of them stand how often in memory.
    #[serde(deserialize_with = "counts")]
    pub instances: BTreeMap<u64, u64>,
    /// Where the first of them stands, guest-physical.
    pub places: Vec<u64>,
    /// Resident bytes that were searched.
    pub scanned_bytes: u64,
    /// How long it took, seconds.
    pub seconds: f64,
}

/// JSON's keys are strings, and inside a tagged enum serde does not make numbers of them.
fn counts<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<u64, u64>, D::Error> {
    let read: BTreeMap<String, u64> = Deserialize::deserialize(from)?;
    read.into_iter().map(|(count, stamps)| Ok((count.parse().map_err(D::Error::custom)?, stamps))).collect()
}

impl ScanReport {
    /// The instances, where the held stamps agree on them: all but a few, which stand less often because in one of the
    /// copies they lie across two pages that are not neighbours in memory.
    #[must_use]
    pub fn agreed(&self) -> Option<u64> {
        let (count, stamps) = self.instances.last_key_value()?;
        (stamps.saturating_mul(FEW) >= self.held_stamps.saturating_mul(FEW - 1)).then_some(*count)
    }
}

/// Counts the instances of what is held in `ring`. `look` reads the ring again.
///
/// # Errors
/// The host does not let its own memory be looked through.
pub fn scan(
    ring: &RingSnapshot,
    look: impl FnOnce() -> Option<RingSnapshot>,
    memory: &Arc<Memory>,
) -> io::Result<ScanReport> {
    let started = Instant::now();
    let finder = Finder::new(&MAGIC);
    let (held, first) = held_stamps(ring, memory, &finder);
    let mut counts: HashMap<Stamp, u64> = held.keys().map(|stamp| (*stamp, 0)).collect();
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
    let (now, _) = look().map(|ring| held_stamps(&ring, memory, &finder)).unwrap_or_default();
    counts.retain(|stamp, _| [&held, &now].iter().all(|frames| frames.get(stamp).is_none_or(|count| *count == 1)));
    let sent_again = (held.len() - counts.len()) as u64;
    let mut instances = BTreeMap::new();
    for count in counts.values() {
        *instances.entry(*count).or_default() += 1;
    }
    Ok(ScanReport {
        held_stamps: counts.len() as u64,
        sent_again,
        instances,
        places,
        scanned_bytes,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The stamps that stand whole in a frame of the ring, with the number of frames, and the first of them. A frame's bytes
/// may lie in several buffers.
fn held_stamps(ring: &RingSnapshot, memory: &Arc<Memory>, finder: &Finder<'_>) -> (HashMap<Stamp, u64>, Option<Stamp>) {
    let mut frames: HashMap<Stamp, u64> = HashMap::new();
    let mut first = None;
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
        for_each_stamp(&frame, finder, |_, stamp| {
            *frames.entry(stamp).or_default() += 1;
            first.get_or_insert(stamp);
        });
    }
    (frames, first)
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
    use crate::control::Reply;
    use crate::stamp::fill;
    use vnic::memory::testing::GuestRam;
    use vnic::memory::{Gpa, Iotlb, IotlbEntry, Iova};
    use vnic::ring::snapshot::{BufferSnapshot, ChainSnapshot};

    const FILE: u64 = 42;

    fn ring(buffers: &[(u64, u32)]) -> RingSnapshot {
        let text = "transmitq0 split size=256 avail.idx=1 used.idx=0 in-flight=1";
        let mut ring: RingSnapshot = text.parse().unwrap();
        let buffer = |(addr, len): &(u64, u32)| BufferSnapshot::at(*addr, *len);
        ring.chains = vec![ChainSnapshot {
            slot: 0,
            head: 0,
            indirect: false,
            buffers: buffers.iter().map(buffer).collect(),
            fault: None,
        }];
        ring
    }

    /// A scan of a ring that stays as it is.
    fn looked(ring: &RingSnapshot, ram: &GuestRam) -> io::Result<ScanReport> {
        scan(ring, || Some(ring.clone()), ram.memory())
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
        let report = looked(&ring(&[(0x1000, 66), (0x10_0000, 8192)]), &ram).unwrap();
        assert_eq!((report.held_stamps, report.agreed()), (128, Some(1)));
        assert_eq!(report.places, [0x10_0000]);
    }

    #[test]
    fn behind_an_iommu_the_instances_are_counted_in_all_of_memory() {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.write(0x10_0000, &stamps(0, 4096)).unwrap();
        ram.write(0x20_0000, &stamps(0, 4096)).unwrap();
        let iotlb = Iotlb::for_observers();
        let iova = 0xffff_f000;
        iotlb.update(&IotlbEntry { iova: Iova(iova), size: 4096, gpa: Gpa(0x10_0000), read: true, write: false });
        let behind = Arc::new(ram.memory().behind(Arc::new(iotlb)));
        let ring = ring(&[(iova, 4096)]);
        let report = scan(&ring, || Some(ring.clone()), &behind).unwrap();
        assert_eq!((report.held_stamps, report.agreed()), (64, Some(2)));
        assert_eq!(report.places, [0x10_0000, 0x20_0000]);
    }

    #[test]
    fn a_copy_at_any_alignment_and_across_page_borders_is_another_instance() {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.write(0x10_0000, &stamps(0, 8192)).unwrap();
        ram.write(0x20_0e35, &stamps(0, 8192)).unwrap();
        let report = looked(&ring(&[(0x20_0e35, 8192)]), &ram).unwrap();
        assert_eq!((report.held_stamps, report.agreed()), (128, Some(2)));
        assert_eq!(report.places, [0x10_0000, 0x20_0e35]);
    }

    #[test]
    fn a_stamp_over_two_buffers_of_a_frame_is_held_and_one_over_two_frames_is_not() {
        let ram = GuestRam::new(4 << 20).unwrap();
        let bytes = stamps(0, 256);
        ram.write(0x10_0000, &bytes[..100]).unwrap();
        ram.write(0x11_0000, &bytes[100..200]).unwrap();
        let report = looked(&ring(&[(0x10_0000, 100), (0x11_0000, 100)]), &ram).unwrap();
        assert_eq!(report.held_stamps, 3);
        // The one over the two buffers stands nowhere in one piece.
        assert_eq!(report.instances, BTreeMap::from([(0, 1), (1, 2)]));
        assert_eq!(report.agreed(), None);
    }

    #[test]
    fn what_stands_in_two_frames_was_sent_again_and_is_left_out() {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.write(0x10_0000, &stamps(0, 4096)).unwrap();
        ram.write(0x20_0000, &stamps(0, 640)).unwrap();
        let mut ring = ring(&[(0x10_0000, 4096)]);
        let mut again = ring.chains[0].clone();
        again.buffers[0] = BufferSnapshot::at(0x20_0000, 640);
        ring.chains.push(again);
        let report = looked(&ring, &ram).unwrap();
        assert_eq!((report.held_stamps, report.sent_again, report.agreed()), (54, 10, Some(1)));
    }

    #[test]
    fn what_is_sent_again_during_the_scan_is_left_out_too() {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.write(0x10_0000, &stamps(0, 4096)).unwrap();
        ram.write(0x20_0000, &stamps(0, 640)).unwrap();
        let before = ring(&[(0x10_0000, 4096)]);
        let mut after = before.clone();
        after.chains.extend(ring(&[(0x20_0000, 640)]).chains);
        let report = scan(&before, || Some(after), ram.memory()).unwrap();
        assert_eq!((report.held_stamps, report.sent_again, report.agreed()), (54, 10, Some(1)));
        let gone = scan(&before, || None, ram.memory()).unwrap();
        assert_eq!((gone.sent_again, gone.agreed()), (0, None), "nothing says that it was sent again");
    }

    #[test]
    fn a_copy_that_a_page_border_cuts_costs_one_stamp_and_not_the_count() {
        let ram = GuestRam::new(4 << 20).unwrap();
        let bytes = stamps(0, 4096);
        ram.write(0x10_0000, &bytes).unwrap();
        // A copy in two pieces that are not neighbours, cut within a stamp.
        ram.write(0x20_0000, &bytes[..1000]).unwrap();
        ram.write(0x30_0000, &bytes[1000..]).unwrap();
        let report = looked(&ring(&[(0x10_0000, 4096)]), &ram).unwrap();
        assert_eq!(report.instances, BTreeMap::from([(1, 1), (2, 63)]));
        assert_eq!(report.agreed(), Some(2));
    }

    #[test]
    fn stamps_of_which_many_differ_do_not_agree() {
        let report = |instances: &[(u64, u64)]| ScanReport {
            held_stamps: instances.iter().map(|(_, stamps)| stamps).sum(),
            sent_again: 0,
            instances: instances.iter().copied().collect(),
            places: Vec::new(),
            scanned_bytes: 0,
            seconds: 0.0,
        };
        assert_eq!(report(&[(1, 5), (2, 95)]).agreed(), Some(2));
        assert_eq!(report(&[(1, 6), (2, 94)]).agreed(), None);
        assert_eq!(report(&[(1, 99), (2, 1)]).agreed(), None, "one that stands more often is no cut");
        assert_eq!(report(&[]).agreed(), None);
    }

    #[test]
    fn a_report_goes_through_the_control_socket() {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.write(0x10_0000, &stamps(0, 4096)).unwrap();
        let reply = Reply::Scan(looked(&ring(&[(0x10_0000, 4096)]), &ram).unwrap());
        let line = serde_json::to_string(&reply).unwrap();
        assert!(line.contains(r#""instances":{"1":64}"#), "{line}");
        assert_eq!(serde_json::from_str::<Reply>(&line).unwrap(), reply);
        assert!(serde_json::from_str::<Reply>(&line.replace("\"1\"", "\"one\"")).is_err());
    }

    #[test]
    fn another_files_stamps_do_not_count() {
        let ram = GuestRam::new(4 << 20).unwrap();
        ram.write(0x10_0000, &stamps(0, 64)).unwrap();
        let mut other = vec![0; 64];
        fill(FILE + 1, 0, &mut other);
        ram.write(0x20_0000, &other).unwrap();
        assert_eq!(looked(&ring(&[(0x10_0000, 64)]), &ram).unwrap().agreed(), Some(1));
    }

    #[test]
    fn a_hostile_ring_costs_no_more_than_the_bound() {
        let ram = GuestRam::new(4 << 20).unwrap();
        let all = vec![(0, u32::MAX); 100];
        assert_eq!(looked(&ring(&all), &ram).unwrap().held_stamps, 0);
    }
}
