//! Positions, the notification formula, and the driver half against a device that lies.

use std::sync::Arc;

use super::*;
use crate::memory::testing::GuestRam;
use crate::ring::{Buffer, DeviceRing, DriverRing, Placement, RingError, RingLayout, Segments, Used};
use crate::spec::ring::{DESC_F_WRITE, PACKED_EVENT_ENABLE};
use crate::spec::{Feature, Features};

#[test]
fn positions_go_round_in_either_direction() {
    for size in [1, 2, 5, 32768] {
        let mut position = Position::START;
        for _ in 0..3 * u32::from(size) {
            let next = position.after(1, size);
            assert_eq!(next.before(1, size), position);
            assert_eq!(Position::from_bits(next.to_bits(), size), Some(next));
            position = next;
        }
        assert_eq!(position, Position { slot: 0, wrap: false });
        assert_eq!(position.after(size, size), Position::START);
        assert_eq!(position.before(size, size), Position::START);
    }
    assert_eq!(Position::from_bits(5, 5), None);
}

#[test]
fn a_descriptor_is_available_or_used_in_one_lap_only() {
    for wrap in [false, true] {
        let (here, other) = (Position { slot: 0, wrap }, Position { slot: 0, wrap: !wrap });
        assert!(here.is_available(here.available()) && !here.is_used(here.available()));
        assert!(here.is_used(here.used()) && !here.is_available(here.used()));
        assert!(!other.is_available(here.available()) && !other.is_used(here.used()));
        assert!(!other.is_used(here.available()) && !other.is_available(here.used()));
    }
    // A ring of zeroes has nothing in it for anyone.
    assert!(!Position::START.is_available(0) && !Position::START.is_used(0));
}

#[test]
fn the_notification_formula_means_what_it_says() {
    // The ring goes from `old` on over `step` slots; the other side wants to hear when it passes the slot it named.
    for size in [1_u16, 3, 8] {
        let all = (0..size).flat_map(|slot| [false, true].map(|wrap| Position { slot, wrap }));
        for old in all {
            for step in 1..=size {
                let new = old.after(step, size);
                for ahead in 0..2 * size {
                    // Two laps from `old`: positions name each slot of each lap once.
                    let asked = old.after(ahead.min(size), size).after(ahead.saturating_sub(size), size);
                    let event = PackedEvent { off_wrap: asked.to_bits(), flags: PACKED_EVENT_DESC };
                    assert_eq!(wants(event, new, old, size), ahead < step, "{size} {old:?} {step} {ahead}");
                }
            }
        }
    }
    let (old, new) = (Position::START, Position::START.after(1, 8));
    assert!(wants(PackedEvent { off_wrap: 0, flags: PACKED_EVENT_ENABLE }, new, old, 8));
    assert!(!wants(PackedEvent { off_wrap: 0, flags: PACKED_EVENT_DISABLE }, new, old, 8));
}

struct Ring {
    ram: GuestRam,
    layout: RingLayout,
    driver: PackedDriver,
}

fn with_two_chains() -> Ring {
    let ram = GuestRam::new(1 << 20).unwrap();
    let (layout, _) = RingLayout::packed_at(0x1000, 8).unwrap();
    let mut driver = PackedDriver::new(layout, Arc::clone(ram.memory()), Features::NONE).unwrap();
    for addr in [0x8000, 0x9000] {
        driver.add(&[Buffer::writable(addr, 10)], Placement::Direct).unwrap();
    }
    driver.publish();
    Ring { ram, layout, driver }
}

fn use_raw(ring: &Ring, slot: u64, id: u16, len: u32, flags: u16) {
    let word = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
    ring.ram.write(ring.layout.desc + 16 * slot + 8, &word.to_le_bytes()).unwrap();
}

const USED: u16 = DESC_F_AVAIL | DESC_F_USED;

#[test]
fn an_id_that_is_not_out_is_rejected() {
    for id in [2, 7, 8, 65535] {
        let mut ring = with_two_chains();
        use_raw(&ring, 0, id, 0, USED);
        assert_eq!(ring.driver.pop_used(), Err(RingError::UsedUnknown { idx: 0, id: u32::from(id) }));
    }
}

#[test]
fn an_id_returned_twice_is_rejected() {
    let mut ring = with_two_chains();
    use_raw(&ring, 0, 1, 0, USED);
    use_raw(&ring, 1, 1, 0, USED);
    assert_eq!(ring.driver.pop_used(), Ok(Some(Used { head: 1, written: 0 })));
    assert_eq!(ring.driver.pop_used(), Err(RingError::UsedUnknown { idx: 1, id: 1 }));
}

#[test]
fn more_bytes_than_the_buffers_hold_are_rejected() {
    let mut ring = with_two_chains();
    use_raw(&ring, 0, 0, 11, USED);
    assert_eq!(ring.driver.pop_used(), Err(RingError::WrittenTooMuch { head: 0, written: 11, room: 10 }));
}

#[test]
fn a_length_means_nothing_where_nothing_was_to_be_written() {
    let mut ring = with_two_chains();
    let head = ring.driver.add(&[Buffer::readable(0x8000, 10)], Placement::Direct).unwrap();
    ring.driver.publish();
    for id in [0, 1] {
        use_raw(&ring, u64::from(id), id, 0, USED);
        assert_eq!(ring.driver.pop_used(), Ok(Some(Used { head: id, written: 0 })));
    }
    use_raw(&ring, 2, head, 11, USED);
    assert_eq!(ring.driver.pop_used(), Ok(Some(Used { head, written: 0 })));
}

#[test]
fn a_chain_that_was_never_published_is_rejected() {
    let mut ring = with_two_chains();
    let id = ring.driver.add(&[Buffer::writable(0xa000, 10)], Placement::Direct).unwrap();
    use_raw(&ring, 0, id, 0, USED);
    assert_eq!(ring.driver.pop_used(), Err(RingError::UsedUnknown { idx: 0, id: u32::from(id) }));
}

#[test]
fn a_used_flag_of_another_lap_is_no_used_descriptor() {
    let mut ring = with_two_chains();
    use_raw(&ring, 0, 0, 0, 0);
    assert_eq!(ring.driver.pop_used(), Ok(None));
}

#[test]
fn used_descriptors_when_nothing_is_out_are_not_looked_at() {
    let mut ring = with_two_chains();
    for slot in 0..8 {
        use_raw(&ring, slot, slot as u16, 0, USED);
    }
    assert!(ring.driver.pop_used().unwrap().is_some());
    assert!(ring.driver.pop_used().unwrap().is_some());
    assert_eq!(ring.driver.pop_used(), Ok(None));
    assert_eq!(ring.driver.free(), 8);
}

/// VIRTIO 1.3, 2.8.4 and 2.8.5: without WRITE in it, a used descriptor's length is reserved.
#[test]
fn a_used_descriptor_says_whether_anything_was_written() {
    for in_order in [Features::NONE, Features::of(&[Feature::InOrder])] {
        let Ring { ram, layout, mut driver } = with_two_chains();
        let features = in_order.with(Feature::RingPacked);
        let mut device = PackedDevice::new(layout, Arc::clone(ram.memory()), features, 0x8000).unwrap();
        let mut segments = Segments::new(Arc::clone(ram.memory()), 8);
        for written in [7, 0] {
            let chain = device.pop(&mut segments).unwrap().unwrap();
            device.push_used(&chain, written).unwrap();
            device.publish().unwrap();
        }
        let flags = [0, 1].map(|slot: u64| {
            let bytes = ram.read(layout.desc + 16 * slot + 14, 2).unwrap();
            u16::from_le_bytes([bytes[0], bytes[1]])
        });
        assert_eq!(flags, [USED | DESC_F_WRITE, USED], "{in_order:?}");
        assert_eq!([7, 0].map(|_| driver.pop_used().unwrap().unwrap().written), [7, 0]);
    }
}
