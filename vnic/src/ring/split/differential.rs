//! Ours against `virtio-queue`, which reads the same memory through a mapping of its own.
//!
//! `virtio-queue` ends a malformed chain silently, so it is an oracle of the good chains only: whatever it follows to a
//! proper end we must follow to the same end, and where it stops short we must say why.

use std::fs::File;
use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::memory::Access;
use crate::ring::fixture::{Fixture, MIB, show, warm_segments};
use crate::ring::{Buffer, Chain, DeviceRing, DriverRing, Placement, RingError, RingLayout, SplitDriver, Used};
use crate::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor};
use crate::spec::{Feature, Features};

use super::need_event;

/// Where the indirect tables are; each has room for `TABLE` descriptors.
const TABLES: u64 = 0x40000;
const TABLE: u64 = 8;

/// The fixture's memory, mapped a second time.
fn oracle_memory(fixture: &Fixture) -> GuestMemoryMmap<()> {
    let regions = fixture.ram.specs().iter().map(|spec| {
        let file = File::from(fixture.ram.fd().try_clone_to_owned().unwrap());
        (GuestAddress(spec.gpa.0), spec.size as usize, Some(FileOffset::new(file, spec.mmap_offset)))
    });
    GuestMemoryMmap::from_ranges_with_files(regions.collect::<Vec<_>>()).unwrap()
}

fn oracle_queue(layout: &RingLayout, event_idx: bool) -> Queue {
    let halves = |addr: u64| (Some(addr as u32), Some((addr >> 32) as u32));
    let mut queue = Queue::new(32768).unwrap();
    queue.set_size(layout.size);
    let (low, high) = halves(layout.desc);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(layout.avail);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(layout.used);
    queue.set_used_ring_address(low, high);
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    queue
}

/// A descriptor that may be anything but is mostly nearly right.
fn descriptor(entries: u16, in_table: bool) -> impl Strategy<Value = Descriptor> {
    let good = (0x8000_u64..0x20000, 0_u32..3000);
    let odd = (prop_oneof![Just(MIB - 10), Just(MIB + (1 << 16) - 10), any::<u64>()], 0_u32..30);
    let huge = (Just(0x8000_u64), prop_oneof![Just(0xfffff_u32), Just(0x8000_0000), any::<u32>()]);
    let plain = (
        prop_oneof![12 => good, 2 => odd, 1 => huge],
        prop_oneof![3 => Just(DESC_F_NEXT), 3 => Just(0)],
        prop_oneof![5 => Just(0), 2 => Just(DESC_F_WRITE)],
        prop_oneof![20 => 0..entries, 1 => any::<u16>()],
    );
    let plain = plain.prop_map(|((addr, len), next_flag, write, next)| Descriptor {
        addr,
        len,
        flags: next_flag | write,
        next,
    });
    let table_len = prop_oneof![12 => (1..=TABLE as u32).prop_map(|n| 16 * n), 1 => Just(0), 1 => 1_u32..200];
    let flags = prop_oneof![8 => Just(0), 1 => Just(DESC_F_NEXT), 1 => Just(DESC_F_WRITE)];
    let indirect = (0_u64..4, table_len, flags).prop_map(|(table, len, flags)| Descriptor {
        addr: TABLES + 16 * TABLE * table,
        len,
        flags: flags | DESC_F_INDIRECT,
        next: 0,
    });
    if in_table {
        prop_oneof![30 => plain, 1 => indirect].boxed()
    } else {
        prop_oneof![4 => plain, 1 => indirect].boxed()
    }
}

#[derive(Debug, Clone)]
struct RandomRing {
    size: u16,
    descriptors: Vec<Descriptor>,
    tables: Vec<Descriptor>,
    heads: Vec<u16>,
    avail_idx: u16,
}

fn random_ring() -> impl Strategy<Value = RandomRing> {
    (0_u32..5).prop_map(|log| 1_u16 << log).prop_flat_map(|size| {
        let entries = usize::from(size);
        (
            Just(size),
            prop::collection::vec(descriptor(size, false), entries),
            prop::collection::vec(descriptor(TABLE as u16, true), 4 * TABLE as usize),
            prop::collection::vec(prop_oneof![20 => 0..size, 1 => any::<u16>()], entries),
            prop_oneof![20 => 0..=size, 1 => any::<u16>()],
        )
            .prop_map(|(size, descriptors, tables, heads, avail_idx)| RandomRing {
                size,
                descriptors,
                tables,
                heads,
                avail_idx,
            })
    })
}

impl RandomRing {
    fn write(&self) -> Fixture {
        let fixture = Fixture::split(self.size, Features::of(&[Feature::IndirectDesc]));
        for (index, desc) in (0..).zip(&self.descriptors) {
            fixture.set_desc(index, *desc);
        }
        for (at, desc) in (0..).zip(&self.tables) {
            fixture.ram.write(TABLES + 16 * at, &crate::ring::fixture::descriptor_bytes(*desc)).unwrap();
        }
        for (slot, head) in (0..).zip(&self.heads) {
            fixture.set_avail(slot, *head);
        }
        fixture.set_avail_idx(self.avail_idx);
        fixture
    }
}

/// Address, length, writable.
type Buffers = Vec<(u64, u32, bool)>;

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn we_agree_on_every_good_chain_and_name_what_virtio_queue_cuts_short(ring in random_ring()) {
        let fixture = ring.write();
        let memory = oracle_memory(&fixture);
        let mut oracle = oracle_queue(&fixture.layout, false);
        let (mut device, mut segments) = (fixture.device(), warm_segments(&fixture.ram));
        // A second device that has no fast path, as its arena never knows a region.
        let mut walker = fixture.device();

        let Ok(mut oracle_chains) = oracle.iter(&memory) else {
            let jumped = matches!(device.pop(&mut segments), Err(RingError::AvailJump { .. }));
            prop_assert!(jumped);
            return Ok(());
        };
        loop {
            let ours = device.pop(&mut segments);
            let mut cold = fixture.segments();
            let walked = walker.pop(&mut cold);
            match (&ours, &walked) {
                (Ok(Some(fast)), Ok(Some(walk))) => {
                    prop_assert_eq!(show(fast, &segments, ring.size), show(walk, &cold, ring.size));
                    prop_assert_eq!(Chain { first: 0, ..*fast }, *walk);
                }
                _ => prop_assert_eq!(&ours, &walked),
            }
            let Some(theirs) = oracle_chains.next() else {
                prop_assert_eq!(ours, Ok(None));
                break;
            };
            let head = theirs.head_index();
            let descriptors: Vec<_> = theirs.collect();
            let cut_short = descriptors.last().is_none_or(|last| last.has_next());
            let their_buffers: Buffers =
                descriptors.iter().map(|d| (d.addr().0, d.len(), d.is_write_only())).collect();
            match ours {
                Ok(None) => prop_assert!(false, "head {head} was missed"),
                Ok(Some(chain)) => {
                    prop_assert!(!cut_short, "a cut-off chain was taken for whole: {chain:?}");
                    let mut our_buffers = Buffers::new();
                    for (at, segment) in segments.view(chain).segments().iter().enumerate() {
                        match our_buffers.last_mut() {
                            Some(last) if segment.continues => last.1 += segment.len,
                            _ => our_buffers.push((segment.addr, segment.len, at as u32 >= chain.readable)),
                        }
                    }
                    prop_assert_eq!(chain.head, head);
                    prop_assert_eq!(usize::from(chain.descriptors), their_buffers.len());
                    prop_assert_eq!(our_buffers, their_buffers);
                }
                Err(error) => {
                    // What virtio-queue does not look at, checked on what it says; everything else it cut short.
                    let right = match error {
                        RingError::ReadableAfterWritable { .. } => their_buffers.windows(2).any(|w| w[0].2 && !w[1].2),
                        RingError::Unmapped { .. } => their_buffers.iter().any(|&(addr, len, _)| {
                            fixture.ram.memory().pieces(addr, u64::from(len), Access::Read).is_err()
                        }),
                        RingError::IndirectWithNext { .. } =>
                            ring.descriptors.iter().any(|d| d.flags & 5 == DESC_F_INDIRECT | DESC_F_NEXT),
                        RingError::HeadInFlight { head, .. } =>
                            ring.heads.iter().filter(|other| **other == head).count() > 1,
                        _ => cut_short,
                    };
                    prop_assert!(right, "{error}, but virtio-queue sees {their_buffers:?}");
                    // The ring has stopped; a device would not go on.
                    break;
                }
            }
        }
    }

    #[test]
    fn buffers_taken_together_are_what_pop_finds_one_by_one(
        ring in random_ring(),
        limits in prop::collection::vec(1_u16..6, 1..20),
    ) {
        let fixture = ring.write();
        let (mut one, mut ours) = (fixture.device(), warm_segments(&fixture.ram));
        let (mut many, mut theirs) = (fixture.device(), warm_segments(&fixture.ram));
        for limit in limits.into_iter().cycle() {
            let mut chains = Vec::new();
            let together = many.pop_buffers(&mut theirs, limit, &mut chains);
            for chain in &chains {
                prop_assert_eq!(one.pop(&mut ours), Ok(Some(*chain)));
                prop_assert_eq!(show(chain, &ours, ring.size), show(chain, &theirs, ring.size));
            }
            let (next, expected) = (together.and_then(|()| many.pop(&mut theirs)), one.pop(&mut ours));
            prop_assert_eq!(&next, &expected);
            if !matches!(next, Ok(Some(_))) {
                break;
            }
        }
        prop_assert_eq!((one.base(), one.in_flight()), (many.base(), many.in_flight()));
    }

    #[test]
    fn our_driver_drives_virtio_queue(
        steps in prop::collection::vec((1_usize..5, any::<bool>(), 0_u32..100, any::<bool>()), 1..200),
        event_idx: bool,
    ) {
        let features = Features::of(&[Feature::IndirectDesc]);
        let features = if event_idx { features.with(Feature::EventIdx) } else { features };
        let fixture = Fixture::split(8, features);
        let memory = oracle_memory(&fixture);
        let mut oracle = oracle_queue(&fixture.layout, event_idx);
        let mut driver = SplitDriver::new(fixture.layout, Arc::clone(fixture.ram.memory()), features).unwrap();
        for (count, indirect, written, sleep) in steps {
            let buffers: Vec<Buffer> = (0..count as u64).map(|n| Buffer::writable(0x8000 + 0x100 * n, 100)).collect();
            let placement = if indirect { Placement::Indirect(TABLES) } else { Placement::Direct };
            if sleep {
                prop_assert!(!oracle.enable_notification(&memory).unwrap());
            }
            let head = driver.add(&buffers, placement).unwrap();
            let kick = driver.publish();
            prop_assert!(kick || !sleep, "virtio-queue asked for a kick");
            let chain = oracle.pop_descriptor_chain(&memory).unwrap();
            prop_assert_eq!(chain.head_index(), head);
            let theirs: Buffers = chain.map(|d| (d.addr().0, d.len(), d.is_write_only())).collect();
            prop_assert_eq!(theirs, buffers.iter().map(|b| (b.addr, b.len, b.writable)).collect::<Vec<_>>());
            oracle.add_used(&memory, head, written).unwrap();
            prop_assert_eq!(driver.pop_used(), Ok(Some(Used { head, written })));
            prop_assert_eq!(driver.pop_used(), Ok(None));
        }
        prop_assert_eq!(driver.free(), 8);
    }

    #[test]
    fn the_notification_formula_is_the_meaning_of_its_words(event: u16, old: u16, step in 0_u16..32768) {
        // The index takes each value from old + 1 to new; the other side wants to hear when it passes the event.
        let new = old.wrapping_add(step);
        let passes = (1..=step).any(|n| old.wrapping_add(n) == event.wrapping_add(1));
        prop_assert_eq!(need_event(event, new, old), passes);
    }
}
