//! Snapshots of good rings, of hostile ones, and the notation both ways.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::memory::testing::GuestRam;
use crate::ring::{Buffer, DriverRing, Placement, SplitDriver};
use crate::spec::Feature;

const NOTATION: &str = "\
transmitq0 split size=256 avail.idx=7 used.idx=5 in-flight=2
  [5] head 12: R 0x1f000+78 -> R 0x20000+4096 (page 17) -> R 0x21000+3144
  [6] head 14: indirect(2): R 0x1f040+78 -> W 0x31000+1448";

#[test]
fn the_notation_is_read_back_as_it_was_written() {
    let faulty = format!(
        "{NOTATION}\n  [7] head 9: R 0x1000+1 -> ! head 9: loop -> here\n  [0] head 999: ! no such head\n  ! twice\n  {}",
        "~ the ring moved while it was read: entries may be from different moments"
    );
    for text in [NOTATION, &faulty] {
        let ring: RingSnapshot = text.parse().unwrap();
        assert_eq!(ring.to_string(), text);
        let json = serde_json::to_string(&ring).unwrap();
        assert_eq!(serde_json::from_str::<RingSnapshot>(&json).unwrap(), ring);
    }
    let ring: RingSnapshot = faulty.parse().unwrap();
    assert_eq!((ring.consistent, ring.faults.len(), ring.chains.len()), (false, 1, 4));
    assert_eq!(ring.chains[0].buffers[1].file_page, Some(17));
}

#[test]
fn what_is_not_the_notation_is_refused() {
    for text in [
        "",
        "transmitq0",
        "transmitq0 round size=8 avail.idx=0 used.idx=0 in-flight=0",
        "t split size=8 avail.idx=0 used.idx=0",
        "t split size=8 avail.idx=70000 used.idx=0 in-flight=0",
        "t split size=8 avail.idx=0 used.idx=0 in-flight=0\n nonsense",
        "t split size=8 avail.idx=0 used.idx=0 in-flight=0\n [0] head 1: X 0x1+1",
        "t split size=8 avail.idx=0 used.idx=0 in-flight=0\n [0] head 1: R 0x1",
        "t split size=8 avail.idx=0 used.idx=0 in-flight=0\n [0] head 1: indirect(2): R 0x1+1",
    ] {
        assert!(text.parse::<RingSnapshot>().is_err(), "{text:?}");
    }
}

struct Ring {
    ram: GuestRam,
    layout: RingLayout,
    features: Features,
    driver: SplitDriver,
}

impl Ring {
    fn new() -> Self {
        let ram = GuestRam::new(1 << 20).unwrap();
        let features = Features::of(&[Feature::IndirectDesc, Feature::EventIdx]);
        let (layout, _) = RingLayout::split_at(0x1000, 8).unwrap();
        let driver = SplitDriver::new(layout, Arc::clone(ram.memory()), features).unwrap();
        Ring { ram, layout, features, driver }
    }

    fn add(&mut self, buffers: &[Buffer], placement: Placement) {
        self.driver.add(buffers, placement).unwrap();
        self.driver.publish();
    }

    fn desc(&self, index: u64, desc: Descriptor) {
        let rest = u64::from(desc.len) | u64::from(desc.flags) << 32 | u64::from(desc.next) << 48;
        self.ram.write(self.layout.desc + 16 * index, &desc.addr.to_le_bytes()).unwrap();
        self.ram.write(self.layout.desc + 16 * index + 8, &rest.to_le_bytes()).unwrap();
    }

    fn take(&self) -> RingSnapshot {
        take("transmitq0", &self.layout, self.ram.memory(), self.features)
    }
}

#[test]
fn chains_in_flight_are_shown_and_nothing_is_written() {
    let mut ring = Ring::new();
    ring.add(&[Buffer::readable(0x8000, 78), Buffer::readable(0x9000, 4096)], Placement::Direct);
    ring.add(&[Buffer::readable(0x8040, 78), Buffer::writable(0xa000, 1448)], Placement::Indirect(0x7000));
    let before = ring.ram.read(0, 1 << 20).unwrap();
    let seen = ring.take();
    assert_eq!(
        seen.to_string(),
        "transmitq0 split size=8 avail.idx=2 used.idx=0 in-flight=2\n  \
         [0] head 0: R 0x8000+78 -> R 0x9000+4096\n  \
         [1] head 2: indirect(2): R 0x8040+78 -> W 0xa000+1448"
    );
    assert!(seen.consistent);
    assert!(ring.ram.read(0, 1 << 20).unwrap() == before, "a snapshot writes nothing");
}

#[test]
fn a_fault_reads_as_the_device_would_say_it() {
    let mut ring = Ring::new();
    ring.add(&[Buffer::readable(0x8000, 78)], Placement::Direct);
    ring.desc(0, Descriptor { addr: 0x8000, len: 78, flags: 1, next: 9 });
    assert_eq!(
        ring.take().to_string().lines().nth(1),
        Some("  [0] head 0: R 0x8000+78 -> ! head 0: descriptor 0 has next 9 in a table of 8")
    );
    ring.desc(0, Descriptor { addr: 0x8000, len: 0, flags: 4, next: 0 });
    assert_eq!(
        ring.take().to_string().lines().nth(1),
        Some("  [0] head 0: indirect(0): ! head 0: descriptor 0 has an empty indirect table")
    );
}

#[test]
fn indices_too_far_apart_are_a_fault() {
    let ring = Ring::new();
    ring.ram.write(ring.layout.avail + 2, &300_u16.to_le_bytes()).unwrap();
    let seen = ring.take();
    assert_eq!(seen.faults, ["avail.idx is 300 ahead of used.idx in a ring of 8"]);
    assert!(seen.chains.is_empty());
}

#[test]
fn heads_out_of_range_and_twice_are_faults() {
    let mut ring = Ring::new();
    for _ in 0..3 {
        ring.add(&[Buffer::readable(0x8000, 1)], Placement::Direct);
    }
    for (slot, head) in [(0, 999_u16), (1, 2)] {
        ring.ram.write(ring.layout.avail + 4 + 2 * slot, &head.to_le_bytes()).unwrap();
    }
    let seen = ring.take();
    assert_eq!(seen.chains[0].to_string(), "[0] head 999: ! head 999 in a table of 8");
    assert_eq!(seen.faults, ["head 2 is available twice"]);
}

#[test]
fn a_ring_that_is_not_there_is_a_fault() {
    let ring = Ring::new();
    let layout = RingLayout { used: 0xdead_0000, ..ring.layout };
    let seen = take("transmitq0", &layout, ring.ram.memory(), ring.features);
    assert_eq!(seen.faults.len(), 1, "{seen}");
    let seen = take("transmitq0", &RingLayout::default(), ring.ram.memory(), ring.features);
    assert_eq!(seen.faults, ["a split ring cannot have 0 entries"]);
}

#[test]
fn a_hostile_ring_costs_no_more_than_the_bound() {
    // Every head refers to the same table of 1024 descriptors: 32768 * 1024 buffers if all were followed.
    let ram = GuestRam::new(4 << 20).unwrap();
    let features = Features::of(&[Feature::IndirectDesc]);
    let (layout, end) = RingLayout::split_at(0, 32768).unwrap();
    let table = end.next_multiple_of(16);
    let buffers: Vec<Buffer> = (0..1024).map(|_| Buffer::readable(table, 1)).collect();
    let mut driver = SplitDriver::new(layout, Arc::clone(ram.memory()), features).unwrap();
    for _ in 0..32768 {
        driver.add(&buffers, Placement::Indirect(table)).unwrap();
    }
    driver.publish();
    let seen = take("transmitq0", &layout, ram.memory(), features);
    assert_eq!(seen.chains.len(), MAX_BUFFERS / 1024);
    assert_eq!(seen.faults, ["more than 262144 buffers in flight: 256 of 32768 chains shown"]);
}

mod packed {
    //! The same of packed rings.

    use super::*;
    use crate::ring::fixture::Fixture;
    use crate::ring::{Device, DeviceRing, PackedDriver, Segments};

    const FEATURES: Features = Features::of(&[Feature::IndirectDesc, Feature::RingPacked]);

    #[test]
    fn chains_in_flight_are_shown_and_leftovers_are_not() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let (layout, _) = RingLayout::packed_at(0x1000, 5).unwrap();
        let mut driver = PackedDriver::new(layout, Arc::clone(ram.memory()), FEATURES).unwrap();
        let mut device = Device::new(layout, Arc::clone(ram.memory()), FEATURES, 0x8000).unwrap();
        let mut segments = Segments::new(Arc::clone(ram.memory()), 8);
        let mut add = |buffers: &[Buffer], placement| {
            driver.add(buffers, placement).unwrap();
            driver.publish();
        };
        add(
            &[Buffer::readable(0x8000, 78), Buffer::readable(0x9000, 1), Buffer::readable(0x9001, 1)],
            Placement::Direct,
        );
        let chain = device.pop(&mut segments).unwrap().unwrap();
        device.push_used(&chain, 0).unwrap();
        device.publish().unwrap();
        // Slots 1 and 2 still hold the used chain's descriptors.
        add(&[Buffer::readable(0x8040, 78), Buffer::writable(0xa000, 1448)], Placement::Indirect(0x7000));
        add(&[Buffer::readable(0x8000, 2)], Placement::Direct);
        let before = ram.read(0, 1 << 20).unwrap();
        let seen = take_packed("receiveq0", &layout, ram.memory(), FEATURES, || device.base());
        assert_eq!(
            seen.to_string(),
            "receiveq0 packed size=5 avail.idx=0 used.idx=3 in-flight=2\n  \
             [3] head 1: indirect(2): R 0x8040+78 -> W 0xa000+1448\n  \
             [4] head 2: R 0x8000+2"
        );
        assert!(seen.consistent);
        assert!(ram.read(0, 1 << 20).unwrap() == before, "a snapshot writes nothing");
        assert_eq!(seen.to_string().parse::<RingSnapshot>().unwrap(), seen);
    }

    #[test]
    fn a_fault_reads_as_the_device_would_say_it_and_ends_the_list() {
        let ring = Fixture::read(
            "packed size=8
               [0] head 5: R 0x8000+78 -> R 0x9000+1
               desc 1: R 0x9000+1 id 5 unavailable
               [2] head 6: R 0x8000+1",
        );
        let seen = take_packed("t", &ring.layout, ring.ram.memory(), ring.features, || 0x8000_8000);
        let lines: Vec<String> = seen.chains.iter().map(ToString::to_string).collect();
        assert_eq!(lines, ["[0] head 5: R 0x8000+78 -> ! chain at slot 0: descriptor 1 has flags 0x0: not available"]);
    }

    #[test]
    fn a_position_that_cannot_be_and_none_at_all_are_faults() {
        let ring = Fixture::packed(8, FEATURES);
        let seen = take_packed("t", &ring.layout, ring.ram.memory(), FEATURES, || 0x8008_8000);
        assert_eq!(seen.faults, ["the device cannot stand at 0x80088000 in a ring of 8"]);
        assert_eq!(take("t", &ring.layout, ring.ram.memory(), FEATURES).faults.len(), 1);
    }

    proptest! {
        #[test]
        fn any_content_is_an_answer(
            bytes in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(0x80), any::<u8>()], 8 * 16),
            base in 0_u32..8,
        ) {
            let ring = Fixture::packed(8, FEATURES);
            ring.ram.write(ring.layout.desc, &bytes).unwrap();
            let seen = take_packed("t", &ring.layout, ring.ram.memory(), FEATURES, || (base | 0x8000) << 16);
            prop_assert!(seen.consistent);
            prop_assert_eq!(seen.to_string().parse::<RingSnapshot>().unwrap(), seen);
        }
    }
}

proptest! {
    #[test]
    fn any_content_is_an_answer(
        bytes in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(4), any::<u8>()], 8 * 16 + 8 * 10 + 16),
        avail_idx in 0_u16..12,
    ) {
        let ring = Ring::new();
        ring.ram.write(ring.layout.desc, &bytes).unwrap();
        ring.ram.write(ring.layout.avail + 2, &avail_idx.to_le_bytes()).unwrap();
        let seen = ring.take();
        prop_assert!(seen.consistent);
        prop_assert_eq!(seen.to_string().parse::<RingSnapshot>().unwrap(), seen);
    }
}

#[test]
fn when_each_side_wants_to_be_notified_is_read_from_either_ring() {
    use crate::ring::{DeviceRing, PackedDevice, PackedDriver, Segments, SplitDevice};

    for features in [&[Feature::EventIdx][..], &[]] {
        let by_index = !features.is_empty();
        let features = Features::of(features);
        let ram = GuestRam::new(1 << 20).unwrap();
        let memory = ram.memory();
        let (layout, _) = RingLayout::split_at(0x1000, 8).unwrap();
        let mut driver = SplitDriver::new(layout, Arc::clone(memory), features).unwrap();
        let mut device = SplitDevice::new(layout, Arc::clone(memory), features, 0).unwrap();
        let seen = || EventSuppression::read(&layout, memory, features).unwrap();
        driver.disable_notifications();
        driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).unwrap();
        driver.publish();
        let mut segments = Segments::new(Arc::clone(memory), 16);
        device.pop(&mut segments).unwrap().unwrap();
        device.enable_notifications().unwrap();
        let kick = if by_index { NotifyWhen::Past(1) } else { NotifyWhen::Always };
        assert_eq!(seen().kick, kick);
        if !by_index {
            assert_eq!(seen().call, NotifyWhen::Never);
            device.disable_notifications();
            assert_eq!(seen().kick, NotifyWhen::Never);
        }
        driver.enable_notifications();
        assert_eq!(seen().call, if by_index { NotifyWhen::Past(0) } else { NotifyWhen::Always });

        let features = features.with(Feature::RingPacked);
        let (layout, _) = RingLayout::packed_at(0x10000, 8).unwrap();
        let mut driver = PackedDriver::new(layout, Arc::clone(memory), features).unwrap();
        let mut device = PackedDevice::new(layout, Arc::clone(memory), features, 1 << 15 | 1 << 31).unwrap();
        let seen = || EventSuppression::read(&layout, memory, features).unwrap();
        driver.disable_notifications();
        assert_eq!(seen().call, NotifyWhen::Never);
        driver.enable_notifications();
        device.enable_notifications().unwrap();
        let first = if by_index { NotifyWhen::Past(0) } else { NotifyWhen::Always };
        assert_eq!(seen(), EventSuppression { kick: first, call: first });
    }
}
