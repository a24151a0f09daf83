//! The notification formula, the driver half against a device that lies, and a ring that two devices use.

use std::sync::Arc;

use super::*;
use crate::memory::testing::GuestRam;
use crate::ring::{Buffer, Device, DeviceRing, DriverRing, Placement, RingError, RingLayout, Segments, Used};
use crate::spec::Features;

#[test]
fn the_notification_formula_is_right_across_wraps() {
    // VIRTIO 1.3, 2.7.10: exactly when the index passes the event.
    assert!(need_event(5, 6, 5));
    assert!(!need_event(6, 6, 5));
    assert!(!need_event(4, 6, 5));
    assert!(need_event(65535, 0, 65535));
    assert!(need_event(65534, 3, 65530));
    assert!(!need_event(65529, 3, 65530));
    assert!(!need_event(3, 3, 65530));
}

struct Ring {
    ram: GuestRam,
    layout: RingLayout,
    driver: SplitDriver,
}

impl Ring {
    fn new() -> Self {
        let ram = GuestRam::new(1 << 20).unwrap();
        let (layout, _) = RingLayout::split_at(0x1000, 8).unwrap();
        let driver = SplitDriver::new(layout, Arc::clone(ram.memory()), Features::NONE).unwrap();
        Ring { ram, layout, driver }
    }

    fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.driver.add(buffers, Placement::Direct).unwrap();
        self.driver.publish();
        head
    }
}

fn with_two_chains() -> Ring {
    let mut ring = Ring::new();
    ring.add(&[Buffer::writable(0x8000, 10)]);
    ring.add(&[Buffer::writable(0x9000, 10)]);
    ring
}

fn use_raw(ring: &Ring, slot: u64, id: u32, len: u32, idx: u16) {
    ring.ram.write(ring.layout.used + 4 + 8 * slot, &id.to_le_bytes()).unwrap();
    ring.ram.write(ring.layout.used + 8 + 8 * slot, &len.to_le_bytes()).unwrap();
    ring.ram.write(ring.layout.used + 2, &idx.to_le_bytes()).unwrap();
}

#[test]
fn a_used_index_beyond_what_is_out_is_rejected() {
    let mut ring = with_two_chains();
    use_raw(&ring, 0, 0, 0, 3);
    assert_eq!(ring.driver.pop_used(), Err(RingError::UsedJump { from: 0, to: 3, out: 2 }));
}

#[test]
fn an_id_that_is_not_out_is_rejected() {
    for id in [2, 7, 8, 65536, u32::MAX] {
        let mut ring = with_two_chains();
        use_raw(&ring, 0, id, 0, 1);
        assert_eq!(ring.driver.pop_used(), Err(RingError::UsedUnknown { idx: 0, id }));
    }
}

#[test]
fn an_id_returned_twice_is_rejected() {
    let mut ring = with_two_chains();
    use_raw(&ring, 0, 1, 0, 1);
    assert_eq!(ring.driver.pop_used(), Ok(Some(Used { head: 1, written: 0 })));
    use_raw(&ring, 1, 1, 0, 2);
    assert_eq!(ring.driver.pop_used(), Err(RingError::UsedUnknown { idx: 1, id: 1 }));
}

#[test]
fn more_bytes_than_the_buffers_hold_are_rejected() {
    let mut ring = with_two_chains();
    use_raw(&ring, 0, 0, 11, 1);
    assert_eq!(ring.driver.pop_used(), Err(RingError::WrittenTooMuch { head: 0, written: 11, room: 10 }));
}

#[test]
fn a_chain_that_was_never_published_is_rejected() {
    let mut ring = with_two_chains();
    let head = ring.driver.add(&[Buffer::writable(0xa000, 10)], Placement::Direct).unwrap();
    use_raw(&ring, 0, u32::from(head), 0, 1);
    assert_eq!(ring.driver.pop_used(), Err(RingError::UsedUnknown { idx: 0, id: u32::from(head) }));
}

#[test]
fn a_scribbled_descriptor_table_does_not_reach_the_free_list() {
    let mut ring = with_two_chains();
    ring.ram.write(ring.layout.desc, &[0xff; 16 * 8]).unwrap();
    use_raw(&ring, 0, 0, 0, 1);
    ring.driver.pop_used().unwrap().unwrap();
    let heads: Vec<u16> = (0..7).map(|_| ring.add(&[Buffer::readable(0x8000, 1)])).collect();
    let mut sorted = heads.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [0, 2, 3, 4, 5, 6, 7], "every descriptor but the one still out, once");
}

#[test]
fn what_another_device_published_is_not_taken_back() {
    // QEMU drops what is to be sent as soon as it has lost the session, while this device goes on.
    let mut ring = with_two_chains();
    let device = || Device::new(ring.layout, Arc::clone(ring.ram.memory()), Features::NONE, 0).unwrap();
    let mut segments = Segments::new(Arc::clone(ring.ram.memory()), 8);
    let (mut late, mut other) = (device(), device());
    let chain = late.pop(&mut segments).unwrap().unwrap();
    for _ in 0..2 {
        let chain = other.pop(&mut segments).unwrap().unwrap();
        other.push_used(&chain, 0).unwrap();
    }
    assert_eq!(other.publish(), Ok(true));
    late.push_used(&chain, 0).unwrap();
    assert_eq!(late.publish(), Err(RingError::UsedMoved { left: 0, found: 2 }));

    for head in [0, 1] {
        assert_eq!(ring.driver.pop_used(), Ok(Some(Used { head, written: 0 })));
    }
    assert_eq!(ring.driver.pop_used(), Ok(None));
}
