//! What a hostile driver can put into a split ring: one test per hole that others had.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::ftruncate;

use crate::memory::{Memory, MemoryError};
use crate::ring::fixture::{Fixture, MIB, check, show, warm_segments};
use crate::ring::{Chain, DeviceRing, RingError, RingLayout, Segments, SplitDevice};
use crate::spec::ring::{DESC_F_NEXT, Descriptor};
use crate::spec::{Feature, Features};

const END: u64 = MIB + (1 << 16);

#[test]
fn a_good_ring_reads_as_it_is_written() {
    let chains = "[0] head 3: R 0x8000+78 -> W 0x9000+10\n[1] head 6: indirect(2): R 0x8000+1 -> R 0x9000+1";
    check(&format!("split size=8 avail.idx=2\n{chains}"), Ok(chains));
}

#[test]
fn direct_descriptors_may_end_in_an_indirect_table() {
    // VIRTIO 1.3, 2.7.5.3.2: the device must handle it.
    check(
        "split size=8 avail.idx=1
           [0] head 3: R 0x8000+78 -> R 0x8100+1
           desc 4: R 0x40000+32 indirect
           table 0x40000[0]: R 0x9000+5 next 1
           table 0x40000[1]: W 0xa000+6",
        Ok("[0] head 3: indirect(3): R 0x8000+78 -> R 0x9000+5 -> W 0xa000+6"),
    );
}

#[test]
fn the_write_flag_of_an_indirect_descriptor_is_ignored() {
    // VIRTIO 1.3, 2.7.5.3.2: "the device MUST ignore the write-only flag".
    check(
        "split size=8 avail.idx=1
           [0] head 3: indirect(1): R 0x8000+1
           desc 3: W 0x40000+16 indirect",
        Ok("[0] head 3: indirect(1): R 0x8000+1"),
    );
}

#[test]
fn a_buffer_whose_end_is_not_mapped_is_rejected() {
    // CVE-2018-1059: DPDK translated the start and trusted the length.
    for (addr, len) in [(END - 1, 2_u32), (MIB - 1, (1 << 16) + 2), (0x8000, u32::MAX - 1), (END, 1), (u64::MAX, 1)] {
        let source = if addr == u64::MAX {
            MemoryError::Wraps { addr, len: 1 }
        } else {
            MemoryError::Unmapped { addr, len: u64::from(len) }
        };
        check(
            &format!("split size=8 avail.idx=1\n [0] head 3: R 0x8000+1 -> R {addr:#x}+{len}"),
            Err(RingError::Unmapped { head: 3, index: 4, source }),
        );
    }
}

#[test]
fn a_ring_whose_end_is_not_mapped_is_rejected() {
    // CVE-2018-1059, the rings themselves.
    let fixture = Fixture::split(256, Features::NONE);
    let open = |layout| SplitDevice::new(layout, Arc::clone(fixture.ram.memory()), Features::NONE, 0).map(|_| ());
    let good = fixture.layout;
    assert_eq!(open(good), Ok(()));
    for (layout, part) in [
        (RingLayout { desc: END - 16, ..good }, "descriptor table"),
        (RingLayout { avail: END - 2, ..good }, "available ring"),
        (RingLayout { used: END - 8, ..good }, "used ring"),
        (RingLayout { desc: u64::MAX - 15, ..good }, "descriptor table"),
        (RingLayout { avail: MIB - 4, ..good }, "available ring"),
        (RingLayout { desc: good.desc + 8, ..good }, "descriptor table"),
        (RingLayout { avail: good.avail + 1, ..good }, "available ring"),
        (RingLayout { used: good.used + 2, ..good }, "used ring"),
    ] {
        let error = open(layout).unwrap_err();
        assert!(matches!(error, RingError::RingUnmapped { part: p, .. } if p == part), "{layout:?}: {error}");
    }
}

#[test]
fn the_event_fields_must_be_mapped_only_with_event_idx() {
    let fixture = Fixture::split(8, Features::NONE);
    let open = |layout, features| SplitDevice::new(layout, Arc::clone(fixture.ram.memory()), features, 0).map(|_| ());
    let layout = RingLayout { used: END - (4 + 8 * 8), ..fixture.layout };
    assert_eq!(open(layout, Features::NONE), Ok(()));
    assert!(open(layout, Features::of(&[Feature::EventIdx])).is_err());
}

#[test]
fn a_ring_that_was_never_set_up_is_rejected() {
    let fixture = Fixture::split(8, Features::NONE);
    for size in [0, 3, 32769, 65535] {
        let layout = RingLayout { size, ..fixture.layout };
        assert_eq!(
            SplitDevice::new(layout, Arc::clone(fixture.ram.memory()), Features::NONE, 0).map(|_| ()),
            Err(RingError::BadSize { format: "split", size })
        );
    }
    let nowhere = SplitDevice::new(fixture.layout, Arc::new(Memory::empty()), Features::NONE, 0);
    assert!(matches!(nowhere, Err(RingError::RingUnmapped { .. })));
}

#[test]
fn a_base_past_65535_is_not_cut_off() {
    // CVE-2020-10723's kind: a 32-bit number truncated before it was checked.
    let fixture = Fixture::split(8, Features::NONE);
    let open =
        |base| SplitDevice::new(fixture.layout, Arc::clone(fixture.ram.memory()), Features::NONE, base).map(|_| ());
    assert_eq!(open(65535), Ok(()));
    assert_eq!(open(65536), Err(RingError::BadBase { base: 65536 }));
}

#[test]
fn a_descriptor_changed_after_it_was_checked_changes_nothing() {
    // CVE-2020-14374 and its kin.
    let fixture = Fixture::read("split size=8 avail.idx=1\n [0] head 3: R 0x8000+78");
    let mut device = fixture.device();
    let mut segments = fixture.segments();
    let chain = device.pop(&mut segments).unwrap().unwrap();
    fixture.set_desc(3, Descriptor { addr: u64::MAX, len: u32::MAX, flags: DESC_F_NEXT, next: 3 });
    assert_eq!(show(&chain, &segments, 8), "[0] head 3: R 0x8000+78");
    assert_eq!(device.push_used(&chain, 0), Ok(()));
}

#[test]
fn a_descriptor_that_changes_all_the_time_is_either_good_or_an_error() {
    // CVE-2020-14374 and its kin, for real: another thread flips length and address while the device reads.
    let fixture = Fixture::read("split size=8 avail.idx=1\n [0] head 3: R 0x8000+78");
    let mut device = fixture.device();
    let mut segments = fixture.segments();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                fixture.set_desc(3, Descriptor { addr: END - 1, len: 2, flags: DESC_F_NEXT, next: 3 });
                fixture.set_desc(3, Descriptor { addr: 0x8000, len: 78, flags: 0, next: 0 });
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
fn a_length_of_zero_with_a_bad_address_is_an_empty_buffer() {
    // CVE-2020-10725: DPDK followed the address. No byte is asked for, so none is touched.
    let chain = "[0] head 3: R 0xdead00000000+0 -> R 0x8000+10 -> W 0xffffffffffffffff+0";
    check(&format!("split size=8 avail.idx=1\n{chain}"), Ok(chain));
    let fixture = Fixture::read(&format!("split size=8 avail.idx=1\n{chain}"));
    let mut segments = fixture.segments();
    let chain = fixture.device().pop(&mut segments).unwrap().unwrap();
    let mut bytes = [0; 16];
    assert_eq!(segments.view(chain).readable().map(|slice| slice.copy_to(&mut bytes)).collect::<Vec<_>>(), [0, 10]);
    assert_eq!((chain.descriptors, chain.readable_len, chain.writable_len), (3, 10, 0));
}

#[test]
fn more_requests_than_the_ring_holds_are_rejected() {
    // CVE-2016-5403: QEMU allocated for each. All heads are out; the driver offers one of them once more.
    let fixture = Fixture::split(4, Features::NONE);
    for slot in 0..4 {
        fixture.set_desc(slot, Descriptor { addr: 0x8000, len: 1, flags: 0, next: 0 });
        fixture.set_avail(slot, slot);
    }
    fixture.set_avail_idx(4);
    let (mut device, mut segments) = (fixture.device(), fixture.segments());
    for _ in 0..4 {
        device.pop(&mut segments).unwrap().unwrap();
    }
    fixture.set_avail_idx(5);
    assert_eq!(device.pop(&mut segments), Err(RingError::HeadInFlight { idx: 4, head: 0 }));
    assert_eq!(device.in_flight(), 4);
}

#[test]
fn a_total_over_32_bits_is_rejected() {
    // CVE-2018-17963: lengths summed into an int. Each buffer lies in memory, the sum overflows.
    let ram = crate::memory::testing::GuestRam::new(1 << 33).unwrap();
    let (layout, end) = RingLayout::split_at(0, 8).unwrap();
    let desc = |len, next| Descriptor { addr: end, len, flags: DESC_F_NEXT, next };
    let write = |index: u64, desc| ram.write(16 * index, &crate::ring::fixture::descriptor_bytes(desc)).unwrap();
    write(0, desc(u32::MAX, 1));
    write(1, Descriptor { flags: 0, ..desc(1, 0) });
    ram.write(layout.avail + 2, &1_u16.to_le_bytes()).unwrap();
    for mut segments in [Segments::new(Arc::clone(ram.memory()), 8), warm_segments(&ram)] {
        let mut device = SplitDevice::new(layout, Arc::clone(ram.memory()), Features::NONE, 0).unwrap();
        assert_eq!(device.pop(&mut segments), Err(RingError::TotalTooLarge { head: 0, index: 1, max: u32::MAX }));
    }
    // One byte less is allowed, above 2^31 as it is.
    write(1, Descriptor { flags: 0, ..desc(0, 0) });
    for mut segments in [Segments::new(Arc::clone(ram.memory()), 8), warm_segments(&ram)] {
        let mut device = SplitDevice::new(layout, Arc::clone(ram.memory()), Features::NONE, 0).unwrap();
        assert_eq!(device.pop(&mut segments).unwrap().unwrap().readable_len, u32::MAX);
    }
}

#[test]
fn an_indirect_descriptor_with_next_is_rejected() {
    check(
        "split size=8 avail.idx=1
           [0] head 3: indirect(1): R 0x8000+1
           desc 3: R 0x40000+16 indirect next 4",
        Err(RingError::IndirectWithNext { head: 3, index: 3 }),
    );
}

#[test]
fn a_nested_indirect_table_is_rejected() {
    check(
        "split size=8 avail.idx=1
           [0] head 3: indirect(2): R 0x8000+1 -> R 0x8000+1
           table 0x40000[1]: R 0x41000+16 indirect",
        Err(RingError::IndirectNested { head: 3, index: 1 }),
    );
}

#[test]
fn an_empty_indirect_table_is_rejected() {
    check(
        "split size=8 avail.idx=1\n [0] head 3: R 0x8000+1\n desc 3: R 0x40000+0 indirect",
        Err(RingError::IndirectEmpty { head: 3, index: 3 }),
    );
}

#[test]
fn a_misaligned_indirect_table_is_rejected() {
    for len in [1, 15, 17, 40] {
        check(
            &format!("split size=8 avail.idx=1\n [0] head 3: R 0x8000+1\n desc 3: R 0x40000+{len} indirect"),
            Err(RingError::IndirectMisaligned { head: 3, index: 3, len }),
        );
    }
}

#[test]
fn an_indirect_table_longer_than_indices_reach_is_rejected() {
    // CVE-2026-16457.
    for len in [16 * 65536, u32::MAX - 15] {
        check(
            &format!("split size=8 avail.idx=1\n [0] head 3: R 0x8000+1\n desc 3: R 0x0+{len} indirect"),
            Err(RingError::IndirectTooLong { head: 3, index: 3, len, max: 16 * 65535 }),
        );
    }
}

#[test]
fn an_indirect_chain_longer_than_any_driver_makes_is_rejected() {
    // CVE-2026-16457, within the table's length: 1025 descriptors on a ring of 8.
    let fixture = Fixture::read("split size=8 avail.idx=1\n [0] head 3: R 0x8000+1\n desc 3: R 0x40000+16400 indirect");
    let table = |last: u64| {
        for at in 0..=last {
            let flags = if at < last { DESC_F_NEXT } else { 0 };
            let desc = Descriptor { addr: 0x8000, len: 1, flags, next: at as u16 + 1 };
            fixture.ram.write(0x40000 + 16 * at, &crate::ring::fixture::descriptor_bytes(desc)).unwrap();
        }
    };
    for mut segments in [fixture.segments(), warm_segments(&fixture.ram)] {
        table(1024);
        assert_eq!(fixture.device().pop(&mut segments), Err(RingError::ChainTooLong { head: 3, max: 1024 }));
        table(1023);
        assert_eq!(fixture.device().pop(&mut segments).unwrap().unwrap().descriptors, 1024);
    }
}

#[test]
fn an_indirect_table_that_is_not_memory_is_rejected() {
    // CVE-2018-1059 once more: the table starts in memory and ends outside.
    let addr = END - 16;
    check(
        &format!("split size=8 avail.idx=1\n [0] head 3: R 0x8000+1\n desc 3: R {addr:#x}+32 indirect"),
        Err(RingError::IndirectUnmapped { head: 3, index: 3, source: MemoryError::Unmapped { addr, len: 32 } }),
    );
}

#[test]
fn an_indirect_table_that_was_not_negotiated_is_rejected() {
    let mut fixture = Fixture::read("split size=8 avail.idx=1\n [0] head 3: indirect(1): R 0x8000+1");
    fixture.features = Features::NONE;
    let popped = fixture.device().pop(&mut fixture.segments());
    assert_eq!(popped, Err(RingError::IndirectNotNegotiated { head: 3, index: 3 }));
}

#[test]
fn an_available_index_that_jumps_by_more_than_the_ring_is_rejected() {
    check("split size=8 avail.idx=9", Err(RingError::AvailJump { from: 0, to: 9, size: 8 }));
    check("split size=8 avail.idx=4 used.idx=5", Err(RingError::AvailJump { from: 5, to: 4, size: 8 }));
    let fixture = Fixture::read("split size=8 avail.idx=9");
    let jump = RingError::AvailJump { from: 0, to: 9, size: 8 };
    assert_eq!(fixture.device().available(), Err(jump.clone()));
    assert_eq!(fixture.device().enable_notifications(), Err(jump));
}

#[test]
fn the_same_head_twice_in_flight_is_rejected() {
    // CVE-2026-45782: use after free in an asynchronous back-end.
    check(
        "split size=8 avail.idx=2\n [0] head 3: R 0x8000+1\n avail 1: 3",
        Err(RingError::HeadInFlight { idx: 1, head: 3 }),
    );
}

#[test]
fn a_head_outside_the_table_is_rejected() {
    for head in [8, 4096, 65535] {
        check(
            &format!("split size=8 avail.idx=1\n avail 0: {head}"),
            Err(RingError::HeadOutOfRange { idx: 0, head, size: 8 }),
        );
    }
}

#[test]
fn a_next_outside_the_table_is_rejected() {
    check(
        "split size=8 avail.idx=1\n [0] head 3: R 0x8000+1\n desc 3: R 0x8000+1 next 8",
        Err(RingError::DescIndexOutOfRange { head: 3, index: 3, next: 8, size: 8 }),
    );
    check(
        "split size=8 avail.idx=1
           [0] head 3: indirect(2): R 0x8000+1 -> R 0x8000+1
           table 0x40000[1]: R 0x8000+1 next 2",
        Err(RingError::DescIndexOutOfRange { head: 3, index: 1, next: 2, size: 2 }),
    );
    // In the middle of a table, with descriptors behind it.
    check(
        "split size=8 avail.idx=1
           [0] head 3: indirect(3): R 0x8000+1 -> R 0x8000+1 -> R 0x8000+1
           table 0x40000[0]: R 0x8000+1 next 65535",
        Err(RingError::DescIndexOutOfRange { head: 3, index: 0, next: 65535, size: 3 }),
    );
}

#[test]
fn a_loop_is_rejected() {
    for (ring, index) in
        [("desc 3: R 0x8000+1 next 3", 3), ("desc 3: R 0x8000+1 next 4\n desc 4: R 0x8000+1 next 3", 3)]
    {
        check(
            &format!("split size=8 avail.idx=1\n [0] head 3: R 0x8000+1\n {ring}"),
            Err(RingError::Loop { head: 3, index, size: 8 }),
        );
    }
    check(
        "split size=8 avail.idx=1
           [0] head 3: indirect(2): R 0x8000+1 -> R 0x8000+1
           table 0x40000[1]: R 0x8000+1 next 0",
        Err(RingError::Loop { head: 3, index: 0, size: 2 }),
    );
}

#[test]
fn a_readable_buffer_behind_a_writable_one_is_rejected() {
    check(
        "split size=8 avail.idx=1\n [0] head 3: R 0x8000+1 -> W 0x8000+1 -> R 0x8000+1",
        Err(RingError::ReadableAfterWritable { head: 3, index: 5 }),
    );
}

#[test]
fn good_chains_before_a_bad_one_are_served() {
    let fixture = Fixture::read("split size=8 avail.idx=2\n [0] head 3: R 0x8000+1\n avail 1: 99");
    let (mut device, mut segments) = (fixture.device(), fixture.segments());
    let chain = device.pop(&mut segments).unwrap().unwrap();
    assert!(device.pop(&mut segments).is_err());
    assert_eq!(device.push_used(&chain, 0), Ok(()));
    assert!(device.publish().unwrap());
}

#[test]
fn a_producer_that_never_stops_gives_one_chain_at_a_time() {
    // CVE-2019-3900: the caller must get its turn after every chain.
    let fixture = Fixture::split(2, Features::NONE);
    fixture.set_desc(0, Descriptor { addr: 0x8000, len: 1, flags: 0, next: 0 });
    let (mut device, mut segments) = (fixture.device(), fixture.segments());
    for turn in 1..=100_000_u32 {
        fixture.set_avail_idx(turn as u16);
        segments.clear();
        let chain = device.pop(&mut segments).unwrap().unwrap();
        device.push_used(&chain, 0).unwrap();
        device.publish().unwrap();
        assert!(device.available().unwrap() <= 2);
    }
}

#[test]
fn memory_that_is_replaced_stays_mapped_for_chains_in_flight() {
    // CVE-2021-3748's kind: buffers used after they were unmapped.
    let fixture = Fixture::read("split size=8 avail.idx=1\n [0] head 3: R 0x8000+5 -> W 0x9000+5");
    fixture.ram.write(0x8000, b"hello").unwrap();
    let (mut device, mut segments) = (fixture.device(), fixture.segments());
    let chain = device.pop(&mut segments).unwrap().unwrap();
    drop(fixture);
    let mut bytes = [0; 5];
    segments.view(chain).readable().for_each(|slice| assert_eq!(slice.copy_to(&mut bytes), 5));
    segments.view(chain).writable().for_each(|slice| assert_eq!(slice.copy_from(b"world"), 5));
    assert_eq!(&bytes, b"hello");
    device.push_used(&chain, 5).unwrap();
    device.publish().unwrap();
}

#[test]
fn a_ring_whose_memory_file_is_truncated_is_no_crash() {
    // DPDK's process dies of SIGBUS.
    let fixture = Fixture::read("split size=8 avail.idx=2\n [0] head 3: R 0x8000+5\n [1] head 4: W 0x9000+5");
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
fn every_error_has_a_name_of_its_own() {
    let mut names = RingError::NAMES.to_vec();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), RingError::NAMES.len());
    assert_eq!(RingError::Loop { head: 0, index: 0, size: 8 }.name(), "loop");
    assert_eq!(RingError::EmptyChain.name(), "empty_chain");
}
