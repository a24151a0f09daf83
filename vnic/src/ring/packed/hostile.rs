//! What a hostile driver can put into a packed ring: one test per hole that others had.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::ftruncate;
use proptest::prelude::*;

use crate::memory::MemoryError;
use crate::ring::fixture::{Fixture, MIB, check, show, warm_segments};
use crate::ring::{Chain, DeviceRing, PackedDevice, RingError, RingLayout, Segments};
use crate::spec::ring::{DESC_F_AVAIL, DESC_F_NEXT, DESC_F_USED, Descriptor};
use crate::spec::{Feature, Features};

const END: u64 = MIB + (1 << 16);

/// A packed descriptor in the fields of a split one: flags and `next` change places.
fn packed(addr: u64, len: u32, id: u16, flags: u16) -> Descriptor {
    Descriptor { addr, len, flags: id, next: flags }
}

#[test]
fn a_good_ring_reads_as_it_is_written() {
    let chains = "[0] head 5: R 0x8000+78 -> W 0x9000+10\n[2] head 6: indirect(2): R 0x8000+1 -> R 0x9000+1";
    check(&format!("packed size=8\n{chains}"), Ok(chains));
    check(&format!("packed size=3\n{chains}"), Ok(chains));
}

#[test]
fn the_id_is_the_last_descriptors() {
    // VIRTIO 1.3, 2.8.6: "Buffer ID is included only in the last descriptor in the list".
    check(
        "packed size=8
           [0] head 5: R 0x8000+78 -> W 0x9000+10
           desc 0: R 0x8000+78 id 77 next",
        Ok("[0] head 5: R 0x8000+78 -> W 0x9000+10"),
    );
}

#[test]
fn a_buffer_whose_end_is_not_mapped_is_rejected() {
    // CVE-2018-1059.
    let (addr, len) = (END - 1, 2);
    check(
        &format!("packed size=8\n [0] head 5: R 0x8000+1 -> R {addr:#x}+{len}"),
        Err(RingError::Unmapped { head: 0, index: 1, source: MemoryError::Unmapped { addr, len } }),
    );
}

#[test]
fn a_ring_whose_end_is_not_mapped_is_rejected() {
    // CVE-2018-1059, the rings themselves.
    let fixture = Fixture::packed(256, Features::NONE);
    let open = |layout| PackedDevice::new(layout, Arc::clone(fixture.ram.memory()), Features::NONE, 0).map(|_| ());
    let good = fixture.layout;
    assert_eq!(open(good), Ok(()));
    for (layout, part) in [
        (RingLayout { desc: END - 16, ..good }, "descriptor ring"),
        (RingLayout { avail: END, ..good }, "driver event suppression"),
        (RingLayout { used: END - 2, ..good }, "device event suppression"),
        (RingLayout { used: MIB - 2, ..good }, "device event suppression"),
        (RingLayout { desc: good.desc + 8, ..good }, "descriptor ring"),
        (RingLayout { avail: good.avail + 2, ..good }, "driver event suppression"),
    ] {
        let error = open(layout).unwrap_err();
        assert!(matches!(error, RingError::RingUnmapped { part: p, .. } if p == part), "{layout:?}: {error}");
    }
}

#[test]
fn a_size_or_a_base_that_cannot_be_is_rejected() {
    let fixture = Fixture::packed(5, Features::NONE);
    let open =
        |layout, base| PackedDevice::new(layout, Arc::clone(fixture.ram.memory()), Features::NONE, base).map(|_| ());
    for size in [0, 32769, 65535] {
        let layout = RingLayout { size, ..fixture.layout };
        assert_eq!(open(layout, 0x8000), Err(RingError::BadSize { format: "packed", size }));
    }
    assert_eq!(open(fixture.layout, 4), Ok(()));
    for base in [5, 0x8005, 0x7fff] {
        assert_eq!(open(fixture.layout, base), Err(RingError::BadBase { base }));
    }
}

#[test]
fn a_descriptor_that_changes_all_the_time_is_either_good_or_an_error() {
    // CVE-2020-14374 and its kin: another thread flips all of it while the device reads.
    let fixture = Fixture::read("packed size=8\n [0] head 5: R 0x8000+78");
    let mut device = fixture.device();
    let mut segments = fixture.segments();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fixture.set_desc(0, packed(END - 1, 2, 9, DESC_F_AVAIL | DESC_F_NEXT));
                fixture.set_desc(0, packed(0x8000, 78, 5, DESC_F_AVAIL));
                fixture.set_desc(0, packed(0x8000, 78, 5, DESC_F_USED));
            }
        });
        for _ in 0..100_000 {
            segments.clear();
            if let Ok(Some(chain)) = device.pop(&mut segments) {
                for slice in segments.view(chain).readable() {
                    assert!(slice.addr() + slice.len() as u64 <= END);
                    slice.copy_to(&mut [0; 80]);
                }
                device.unpop(&[chain]).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_descriptor_changed_after_it_was_checked_changes_nothing() {
    // CVE-2020-14374 and its kin.
    let fixture = Fixture::read("packed size=8\n [0] head 5: R 0x8000+78 -> R 0x9000+1");
    let (mut device, mut segments) = (fixture.device(), fixture.segments());
    let chain = device.pop(&mut segments).unwrap().unwrap();
    for slot in 0..2 {
        fixture.set_desc(slot, packed(u64::MAX, u32::MAX, 99, DESC_F_AVAIL | DESC_F_NEXT));
    }
    assert_eq!(show(&chain, &segments, 8), "[0] head 5: R 0x8000+78 -> R 0x9000+1");
    assert_eq!(device.push_used(&chain, 0), Ok(()));
}

#[test]
fn a_length_of_zero_with_a_bad_address_is_an_empty_buffer() {
    // CVE-2020-10725.
    let chain = "[0] head 5: R 0xdead00000000+0 -> R 0x8000+10";
    check(&format!("packed size=8\n{chain}"), Ok(chain));
}

#[test]
fn more_requests_than_the_ring_holds_are_rejected() {
    // CVE-2016-5403. The device holds all four slots; the driver makes one of them available in the next lap.
    let fixture = Fixture::packed(4, Features::NONE);
    for slot in 0..4 {
        fixture.set_desc(slot, packed(0x8000, 1, slot, DESC_F_AVAIL));
    }
    let (mut device, mut segments) = (fixture.device(), fixture.segments());
    for _ in 0..4 {
        device.pop(&mut segments).unwrap().unwrap();
    }
    assert_eq!(device.pop(&mut segments), Ok(None), "what was taken is not there again");
    fixture.set_desc(0, packed(0x8000, 1, 9, DESC_F_USED));
    assert_eq!(device.pop(&mut segments), Err(RingError::RingOverrun { head: 0, held: 5, size: 4 }));
    assert_eq!(device.in_flight(), 4);
}

#[test]
fn a_chain_longer_than_the_ring_is_rejected() {
    // The wrap counters lie: the driver makes a chain of all slots that goes on in the next lap.
    let fixture = Fixture::packed(4, Features::NONE);
    for slot in 0..4 {
        fixture.set_desc(slot, packed(0x8000, 1, 0, DESC_F_AVAIL | DESC_F_NEXT));
    }
    let popped = fixture.device().pop(&mut fixture.segments());
    assert_eq!(popped, Err(RingError::DescNotAvailable { head: 0, index: 0, flags: DESC_F_AVAIL | DESC_F_NEXT }));
    // The same, begun in the middle.
    let mut device = fixture.device();
    let mut segments = fixture.segments();
    fixture.set_desc(0, packed(0x8000, 1, 0, DESC_F_AVAIL));
    device.pop(&mut segments).unwrap().unwrap();
    fixture.set_desc(0, packed(0x8000, 1, 0, DESC_F_USED | DESC_F_NEXT));
    let popped = device.pop(&mut segments);
    assert_eq!(popped, Err(RingError::RingOverrun { head: 1, held: 5, size: 4 }));
}

#[test]
fn a_chain_that_goes_on_where_nothing_is_available_is_rejected() {
    check(
        "packed size=8
           [0] head 5: R 0x8000+78 -> R 0x9000+1
           desc 1: R 0x9000+1 id 5 unavailable",
        Err(RingError::DescNotAvailable { head: 0, index: 1, flags: 0 }),
    );
}

#[test]
fn an_indirect_descriptor_with_next_is_rejected() {
    check(
        "packed size=8
           [0] head 5: indirect(1): R 0x8000+1
           desc 0: R 0x40000+16 id 5 indirect next",
        Err(RingError::IndirectWithNext { head: 0, index: 0 }),
    );
}

#[test]
fn a_nested_indirect_table_is_rejected() {
    check(
        "packed size=8
           [0] head 5: indirect(2): R 0x8000+1 -> R 0x8000+1
           table 0x40000[1]: R 0x41000+16 id 0 indirect",
        Err(RingError::IndirectNested { head: 0, index: 1 }),
    );
}

#[test]
fn indirect_tables_of_impossible_length_are_rejected() {
    // CVE-2026-16457 and its kin.
    let check = |len, error| check(&format!("packed size=8\n desc 0: R 0x40000+{len} id 5 indirect"), Err(error));
    check(0, RingError::IndirectEmpty { head: 0, index: 0 });
    check(17, RingError::IndirectMisaligned { head: 0, index: 0, len: 17 });
    check(16 * 65536, RingError::IndirectTooLong { head: 0, index: 0, len: 16 * 65536, max: 16 * 65535 });
    check(16 * 1025, RingError::ChainTooLong { head: 0, max: 1024 });
}

#[test]
fn an_indirect_table_that_is_not_memory_is_rejected() {
    let addr = END - 16;
    check(
        &format!("packed size=8\n desc 0: R {addr:#x}+32 id 5 indirect"),
        Err(RingError::IndirectUnmapped { head: 0, index: 0, source: MemoryError::Unmapped { addr, len: 32 } }),
    );
}

#[test]
fn an_indirect_table_that_was_not_negotiated_is_rejected() {
    let mut fixture = Fixture::read("packed size=8\n [0] head 5: indirect(1): R 0x8000+1");
    fixture.features = Features::of(&[Feature::RingPacked]);
    let popped = fixture.device().pop(&mut fixture.segments());
    assert_eq!(popped, Err(RingError::IndirectNotNegotiated { head: 0, index: 0 }));
}

#[test]
fn the_same_id_twice_in_flight_is_rejected() {
    // CVE-2026-45782.
    check(
        "packed size=8\n [0] head 5: R 0x8000+1\n [1] head 5: R 0x8000+1",
        Err(RingError::HeadInFlight { idx: 1, head: 5 }),
    );
}

#[test]
fn any_id_is_the_drivers_choice() {
    let chains = "[0] head 65535: R 0x8000+1\n[1] head 4096: R 0x8000+1";
    check(&format!("packed size=4\n{chains}"), Ok(chains));
}

#[test]
fn a_readable_buffer_behind_a_writable_one_is_rejected() {
    check(
        "packed size=8\n [0] head 5: R 0x8000+1 -> W 0x8000+1 -> R 0x8000+1",
        Err(RingError::ReadableAfterWritable { head: 0, index: 2 }),
    );
    check(
        "packed size=8\n [0] head 5: indirect(2): W 0x8000+1 -> R 0x8000+1",
        Err(RingError::ReadableAfterWritable { head: 0, index: 1 }),
    );
}

#[test]
fn a_total_over_32_bits_is_rejected() {
    // CVE-2018-17963.
    let ram = crate::memory::testing::GuestRam::new(1 << 33).unwrap();
    let (layout, end) = RingLayout::packed_at(0, 8).unwrap();
    let write = |slot: u64, desc| ram.write(16 * slot, &crate::ring::fixture::descriptor_bytes(desc)).unwrap();
    write(0, packed(end, u32::MAX, 0, DESC_F_AVAIL | DESC_F_NEXT));
    write(1, packed(end, 1, 0, DESC_F_AVAIL));
    for mut segments in [Segments::new(Arc::clone(ram.memory()), 8), warm_segments(&ram)] {
        let mut device = PackedDevice::new(layout, Arc::clone(ram.memory()), Features::NONE, 0x8000).unwrap();
        assert_eq!(device.pop(&mut segments), Err(RingError::TotalTooLarge { head: 0, index: 1, max: u32::MAX }));
    }
}

#[test]
fn event_suppression_that_makes_no_sense_is_a_call_too_many() {
    let fixture =
        Fixture::read("packed size=8\n [0] head 5: R 0x8000+1\n [1] head 6: R 0x8000+1\n [2] head 7: R 0x8000+1");
    let (mut device, mut segments) = (fixture.device(), fixture.segments());
    for flags in [3_u16, 0xfffc] {
        fixture.ram.write(fixture.layout.avail, &[0xffff_u16.to_le_bytes(), flags.to_le_bytes()].concat()).unwrap();
        let chain = device.pop(&mut segments).unwrap().unwrap();
        device.push_used(&chain, 0).unwrap();
        assert!(device.publish().unwrap(), "{flags:#x}");
    }
    // A slot that does not exist is passed by nobody; that is the driver's own loss.
    fixture.ram.write(fixture.layout.avail, &[0xffff_u16.to_le_bytes(), 2_u16.to_le_bytes()].concat()).unwrap();
    let chain = device.pop(&mut segments).unwrap().unwrap();
    device.push_used(&chain, 0).unwrap();
    assert!(!device.publish().unwrap());
}

#[test]
fn a_ring_whose_memory_file_is_truncated_is_no_crash() {
    let fixture = Fixture::read("packed size=8\n [0] head 5: R 0x8000+5\n [1] head 6: W 0x9000+5");
    let (mut device, mut segments) = (fixture.device(), fixture.segments());
    let chain = device.pop(&mut segments).unwrap().unwrap();
    ftruncate(fixture.ram.fd(), 0).unwrap();
    for slice in segments.view(chain).readable() {
        slice.copy_to(&mut [0; 5]);
    }
    let _zeroes: Result<Option<Chain>, RingError> = device.pop(&mut segments);
    device.push_used(&chain, 0).unwrap();
    device.publish().unwrap();
    assert!(fixture.ram.memory().lost());
}

#[test]
fn good_chains_before_a_bad_one_are_served() {
    let fixture = Fixture::read("packed size=8\n [0] head 5: R 0x8000+1\n desc 1: R 0x8000+0 id 6 indirect");
    let (mut device, mut segments) = (fixture.device(), fixture.segments());
    let chain = device.pop(&mut segments).unwrap().unwrap();
    assert!(device.pop(&mut segments).is_err());
    assert_eq!(device.push_used(&chain, 0), Ok(()));
    assert!(device.publish().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn fast_lane_and_walk_agree_on_random_rings(
        ring in prop::collection::vec(
            (
                prop_oneof![12 => 0x8000_u64..0x9000, 1 => Just(MIB - 10), 1 => any::<u64>()],
                prop_oneof![12 => 0_u32..300, 4 => (0_u32..6).prop_map(|n| 16 * n), 1 => any::<u32>()],
                0_u16..6,
                // Mostly available; NEXT, WRITE and INDIRECT now and then.
                prop_oneof![8 => Just(DESC_F_AVAIL), 1 => Just(DESC_F_USED), 1 => any::<u16>()],
                prop_oneof![4 => Just(0_u16), 4 => Just(DESC_F_NEXT), 1 => Just(2), 1 => Just(4), 1 => 0_u16..8],
            ),
            1..9,
        ),
    ) {
        let fixture = Fixture::packed(ring.len() as u16, Features::of(&[Feature::IndirectDesc]));
        for (slot, (addr, len, id, flags, more)) in (0..).zip(ring) {
            fixture.set_desc(slot, packed(addr, len, id, flags | more));
        }
        // What stands at 0x8000, should a table be there: good descriptors, and one that is nested.
        for at in 0..250 {
            let flags = if at == 200 { 4 } else { 0 };
            let desc = packed(0x8000, 16, 0, flags);
            fixture.ram.write(0x8000 + 16 * at, &crate::ring::fixture::descriptor_bytes(desc)).unwrap();
        }
        let (mut fast_device, mut segments) = (fixture.device(), warm_segments(&fixture.ram));
        let mut walked = fixture.device();
        loop {
            let mut cold = fixture.segments();
            let (fast, walk) = (fast_device.pop(&mut segments), walked.pop(&mut cold));
            match (fast, walk) {
                (Ok(Some(fast)), Ok(Some(walk))) => {
                    prop_assert_eq!(show(&fast, &segments, 8), show(&walk, &cold, 8));
                    prop_assert_eq!(Chain { first: 0, ..fast }, walk);
                }
                (fast, walk) => {
                    prop_assert_eq!(fast, walk);
                    break;
                }
            }
        }
    }
}
