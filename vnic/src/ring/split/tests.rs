//! Driver half against device half.

use std::sync::Arc;

use super::*;
use crate::memory::Gpa;
use crate::memory::testing::GuestRam;
use crate::ring::{Buffer, Chain, DeviceRing, DriverRing, Placement, RingError, RingLayout, Segments, Used};
use crate::spec::{Feature, Features};

const INDIRECT: Features = Features::of(&[Feature::IndirectDesc]);
const EVENT_IDX: Features = Features::of(&[Feature::EventIdx]);
const IN_ORDER: Features = Features::of(&[Feature::InOrder]);

/// Both ends of one ring. The ring is in the first MiB; from 1 MiB to 1 MiB + 64 KiB lies a second region.
struct Pair {
    ram: GuestRam,
    layout: RingLayout,
    driver: SplitDriver,
    device: SplitDevice,
    segments: Segments,
}

impl Pair {
    fn new(size: u16, features: Features) -> Self {
        let ram = GuestRam::with_regions(&[(Gpa(0), 1 << 20), (Gpa(1 << 20), 1 << 16)]).unwrap();
        let (layout, _) = RingLayout::split_at(0x1000, size).unwrap();
        let memory = Arc::clone(ram.memory());
        let driver = SplitDriver::new(layout, Arc::clone(&memory), features).unwrap();
        let device = SplitDevice::new(layout, Arc::clone(&memory), features, 0).unwrap();
        Pair { ram, layout, driver, device, segments: Segments::new(memory, 64) }
    }

    fn add(&mut self, buffers: &[Buffer]) -> u16 {
        let head = self.driver.add(buffers, Placement::Direct).unwrap();
        self.driver.publish();
        head
    }

    fn pop(&mut self) -> Option<Chain> {
        self.device.pop(&mut self.segments).unwrap()
    }

    /// Pops one chain, returns it, and takes it back.
    fn round_trip(&mut self, written: u32) -> Used {
        let chain = self.pop().unwrap();
        self.segments.clear();
        self.device.push_used(&chain, written).unwrap();
        self.device.publish();
        self.driver.pop_used().unwrap().unwrap()
    }

    /// Address, length of the readable, then of the writable segments.
    fn buffers(&self, chain: &Chain) -> Vec<(u64, usize, char)> {
        let readable = self.segments.readable(chain).map(|s| (s.addr(), s.len(), 'R'));
        readable.chain(self.segments.writable(chain).map(|s| (s.addr(), s.len(), 'W'))).collect()
    }
}

#[test]
fn a_direct_chain_arrives_as_it_was_sent() {
    let mut pair = Pair::new(8, Features::NONE);
    let head = pair.add(&[Buffer::readable(0x8000, 78), Buffer::readable(0x9000, 4096), Buffer::writable(0xb000, 10)]);
    let chain = pair.pop().unwrap();
    assert_eq!(pair.buffers(&chain), [(0x8000, 78, 'R'), (0x9000, 4096, 'R'), (0xb000, 10, 'W')]);
    assert_eq!((chain.head, chain.idx, chain.descriptors, chain.indirect), (head, 0, 3, false));
    assert_eq!((chain.readable_len, chain.writable_len), (78 + 4096, 10));
    assert_eq!(pair.pop(), None);
    pair.device.push_used(&chain, 7).unwrap();
    assert_eq!(pair.driver.pop_used(), Ok(None), "not before it is published");
    pair.device.publish();
    assert_eq!(pair.driver.pop_used(), Ok(Some(Used { head, written: 7 })));
    assert_eq!((pair.driver.free(), pair.device.in_flight()), (8, 0));
}

#[test]
fn an_indirect_chain_takes_one_descriptor_of_the_ring() {
    let mut pair = Pair::new(4, INDIRECT);
    let buffers = [Buffer::readable(0x8000, 78), Buffer::readable(0x9000, 1448), Buffer::writable(0xa000, 4)];
    pair.driver.add(&buffers, Placement::Indirect(0x7000)).unwrap();
    assert_eq!(pair.driver.free(), 3);
    pair.driver.publish();
    let chain = pair.pop().unwrap();
    assert_eq!(pair.buffers(&chain), [(0x8000, 78, 'R'), (0x9000, 1448, 'R'), (0xa000, 4, 'W')]);
    assert!(chain.indirect);
    assert_eq!((chain.descriptors, chain.slots), (3, 1));
}

#[test]
fn an_indirect_table_may_cross_regions_and_stand_unaligned() {
    for table in [(1 << 20) - 24, (1 << 20) - 16, 0x7001] {
        let mut pair = Pair::new(4, INDIRECT);
        let buffers = [Buffer::readable(0x8000, 1), Buffer::readable(0x9000, 2), Buffer::readable(0xa000, 3)];
        pair.driver.add(&buffers, Placement::Indirect(table)).unwrap();
        pair.driver.publish();
        let chain = pair.pop().unwrap();
        assert_eq!(pair.buffers(&chain), [(0x8000, 1, 'R'), (0x9000, 2, 'R'), (0xa000, 3, 'R')], "table at {table:#x}");
    }
}

#[test]
fn a_buffer_across_regions_is_two_segments_of_one_descriptor() {
    let mut pair = Pair::new(4, Features::NONE);
    pair.add(&[Buffer::readable((1 << 20) - 100, 300)]);
    let chain = pair.pop().unwrap();
    assert_eq!(pair.buffers(&chain), [((1 << 20) - 100, 100, 'R'), (1 << 20, 200, 'R')]);
    assert_eq!((chain.descriptors, chain.count), (1, 2));
    let continues: Vec<bool> = pair.segments.of(&chain).iter().map(|s| s.continues).collect();
    assert_eq!(continues, [false, true]);
}

#[test]
fn a_ring_goes_on_past_65535() {
    for features in [Features::NONE, EVENT_IDX, IN_ORDER] {
        let mut pair = Pair::new(4, features);
        for round in 0..70_000_u32 {
            let head = pair.add(&[Buffer::writable(0x8000, 64), Buffer::writable(0x9000, 64)]);
            assert_eq!(pair.round_trip(round % 128), Used { head, written: round % 128 });
        }
        assert_eq!(pair.device.base(), 70_000 % 65536);
    }
}

#[test]
fn a_full_ring_refuses_and_empties_again() {
    let mut pair = Pair::new(8, Features::NONE);
    for _ in 0..3 {
        for _ in 0..8 {
            pair.add(&[Buffer::readable(0x8000, 1)]);
        }
        let refused = pair.driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct);
        assert_eq!(refused, Err(RingError::Full { needed: 1, free: 0 }));
        assert_eq!(pair.device.available(), Ok(8));
        for _ in 0..8 {
            pair.round_trip(0);
        }
        assert_eq!(pair.pop(), None);
    }
}

#[test]
fn chains_may_come_back_in_any_order() {
    let mut pair = Pair::new(8, Features::NONE);
    let heads: Vec<u16> = (0..4).map(|n| pair.add(&[Buffer::readable(0x8000 + n, 1)])).collect();
    let chains: Vec<Chain> = (0..4).map(|_| pair.pop().unwrap()).collect();
    for at in [2, 0, 3, 1] {
        pair.device.push_used(&chains[at], 0).unwrap();
    }
    pair.device.publish();
    let back: Vec<u16> = std::iter::from_fn(|| pair.driver.pop_used().unwrap()).map(|used| used.head).collect();
    assert_eq!(back, [heads[2], heads[0], heads[3], heads[1]]);
}

#[test]
fn with_in_order_chains_come_back_in_order_whatever_the_device_does() {
    let mut pair = Pair::new(8, IN_ORDER);
    let heads: Vec<u16> = (0..4).map(|n| pair.add(&[Buffer::writable(0x8000 + n, 9)])).collect();
    let chains: Vec<Chain> = (0..4).map(|_| pair.pop().unwrap()).collect();
    pair.device.push_used(&chains[1], 1).unwrap();
    pair.device.push_used(&chains[2], 2).unwrap();
    assert!(!pair.device.publish(), "nothing to see before the first comes back");
    assert_eq!(pair.driver.pop_used(), Ok(None));
    pair.device.push_used(&chains[0], 0).unwrap();
    pair.device.publish();
    let back: Vec<Used> = std::iter::from_fn(|| pair.driver.pop_used().unwrap()).collect();
    let expected: Vec<Used> = (0..3).map(|n| Used { head: heads[n], written: n as u32 }).collect();
    assert_eq!(back, expected);
    assert_eq!(pair.device.in_flight(), 1);
}

#[test]
fn a_driver_takes_one_in_order_element_for_the_chains_before_it() {
    let mut pair = Pair::new(8, IN_ORDER);
    let heads: Vec<u16> = (0..3).map(|_| pair.add(&[Buffer::writable(0x8000, 9)])).collect();
    // What a batching device does: one element for the last chain, the index moved by three.
    pair.ram.write(pair.layout.used + 4, &u32::from(heads[2]).to_le_bytes()).unwrap();
    pair.ram.write(pair.layout.used + 8, &5_u32.to_le_bytes()).unwrap();
    pair.ram.write(pair.layout.used + 2, &3_u16.to_le_bytes()).unwrap();
    let back: Vec<Used> = std::iter::from_fn(|| pair.driver.pop_used().unwrap()).collect();
    let written = [9, 9, 5];
    let expected: Vec<Used> = heads.iter().zip(written).map(|(&head, written)| Used { head, written }).collect();
    assert_eq!(back, expected);
}

#[test]
fn what_was_given_back_comes_again_and_is_no_news() {
    for features in [Features::NONE, EVENT_IDX] {
        let mut pair = Pair::new(8, features);
        for n in 0..3 {
            pair.add(&[Buffer::writable(0x8000 + n, 1)]);
        }
        let chains: Vec<Chain> = (0..3).map(|_| pair.pop().unwrap()).collect();
        pair.device.unpop(&chains[1..]).unwrap();
        assert_eq!(pair.device.in_flight(), 1);
        assert_eq!(pair.device.enable_notifications(), Ok(false), "the caller knows of these");
        pair.driver.add(&[Buffer::writable(0x9000, 1)], Placement::Direct).unwrap();
        assert!(pair.driver.publish(), "one more is news, and worth a kick");
        assert_eq!(pair.device.enable_notifications(), Ok(true));
        pair.segments.clear();
        let again: Vec<u16> = std::iter::from_fn(|| pair.pop()).map(|chain| chain.head).collect();
        assert_eq!(again.len(), 3);
        assert_eq!(again[..2], [chains[1].head, chains[2].head]);
    }
}

#[test]
fn chains_can_only_be_given_back_newest_last() {
    let mut pair = Pair::new(8, Features::NONE);
    pair.add(&[Buffer::readable(0x8000, 1)]);
    pair.add(&[Buffer::readable(0x8000, 1)]);
    let (first, second) = (pair.pop().unwrap(), pair.pop().unwrap());
    assert_eq!(pair.device.unpop(&[first]), Err(RingError::NotInFlight { head: first.head }));
    assert_eq!(pair.device.unpop(&[first, second]), Ok(()));
    assert_eq!(pair.device.unpop(&[second]), Err(RingError::NotInFlight { head: second.head }));
}

#[test]
fn a_chain_comes_back_once_and_with_no_more_than_it_holds() {
    let mut pair = Pair::new(8, Features::NONE);
    pair.add(&[Buffer::writable(0x8000, 10)]);
    let chain = pair.pop().unwrap();
    let too_much = RingError::WrittenTooMuch { head: chain.head, written: 11, room: 10 };
    assert_eq!(pair.device.push_used(&chain, 11), Err(too_much));
    assert_eq!(pair.device.push_used(&chain, 10), Ok(()));
    assert_eq!(pair.device.push_used(&chain, 10), Err(RingError::NotInFlight { head: chain.head }));
}

#[test]
fn what_was_available_before_notifications_were_asked_for_is_not_missed() {
    for features in [Features::NONE, EVENT_IDX] {
        let mut pair = Pair::new(8, features);
        pair.device.disable_notifications();
        assert_eq!(pair.device.enable_notifications(), Ok(false));
        pair.device.disable_notifications();
        pair.add(&[Buffer::readable(0x8000, 1)]);
        assert_eq!(pair.device.enable_notifications(), Ok(true));
        pair.pop().unwrap();
        assert_eq!(pair.device.enable_notifications(), Ok(false));
        pair.driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).unwrap();
        assert!(pair.driver.publish(), "the device asked for a kick");
    }
}

#[test]
fn a_polling_device_is_not_kicked() {
    let mut pair = Pair::new(8, Features::NONE);
    pair.device.disable_notifications();
    pair.driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).unwrap();
    assert!(!pair.driver.publish());
}

#[test]
fn with_event_idx_one_kick_is_enough_until_the_device_asks_again() {
    let mut pair = Pair::new(8, EVENT_IDX);
    pair.device.enable_notifications().unwrap();
    let mut kicks = Vec::new();
    for _ in 0..3 {
        pair.driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).unwrap();
        kicks.push(pair.driver.publish());
    }
    assert_eq!(kicks, [true, false, false]);
}

#[test]
fn calls_are_suppressed_as_the_driver_asks() {
    for features in [Features::NONE, EVENT_IDX] {
        let mut pair = Pair::new(8, features);
        let mut call = |wanted: bool| {
            if wanted {
                assert!(!pair.driver.enable_notifications());
            } else {
                pair.driver.disable_notifications();
            }
            pair.add(&[Buffer::readable(0x8000, 1)]);
            let chain = pair.pop().unwrap();
            pair.device.push_used(&chain, 0).unwrap();
            let call = pair.device.publish();
            pair.driver.pop_used().unwrap().unwrap();
            call
        };
        assert!(call(false), "the first: what the driver was told before is not known");
        assert_eq!([call(true), call(false), call(false), call(true)], [true, false, false, true]);
    }
}

#[test]
fn a_burst_is_one_call() {
    let mut pair = Pair::new(8, EVENT_IDX);
    for _ in 0..5 {
        pair.add(&[Buffer::readable(0x8000, 1)]);
    }
    while let Some(chain) = pair.pop() {
        pair.device.push_used(&chain, 0).unwrap();
    }
    assert!(pair.device.publish());
    assert!(!pair.device.publish(), "nothing new");
}

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

#[test]
fn a_device_goes_on_where_another_stopped() {
    let mut pair = Pair::new(8, Features::NONE);
    for n in 0..5 {
        pair.add(&[Buffer::readable(0x8000 + n, 1)]);
    }
    for _ in 0..2 {
        pair.round_trip(0);
    }
    let base = pair.device.base();
    assert_eq!(base, 2);
    pair.device = SplitDevice::new(pair.layout, Arc::clone(pair.ram.memory()), Features::NONE, base).unwrap();
    let chain = pair.pop().unwrap();
    assert_eq!(pair.buffers(&chain), [(0x8002, 1, 'R')]);
    pair.device.push_used(&chain, 0).unwrap();
    pair.device.publish();
    assert_eq!(pair.driver.pop_used().unwrap().unwrap().head, chain.head);
}

#[test]
fn the_largest_ring_works() {
    let ram = GuestRam::new(4 << 20).unwrap();
    let (layout, end) = RingLayout::split_at(0, 32768).unwrap();
    let memory = Arc::clone(ram.memory());
    let mut driver = SplitDriver::new(layout, Arc::clone(&memory), EVENT_IDX).unwrap();
    let mut device = SplitDevice::new(layout, Arc::clone(&memory), EVENT_IDX, 0).unwrap();
    let mut segments = Segments::new(memory, 32768);
    for _ in 0..3 {
        for _ in 0..32768 {
            driver.add(&[Buffer::readable(end, 1)], Placement::Direct).unwrap();
        }
        driver.publish();
        assert_eq!(device.available(), Ok(32768));
        while let Some(chain) = device.pop(&mut segments).unwrap() {
            device.push_used(&chain, 0).unwrap();
        }
        segments.clear();
        device.publish();
        assert_eq!(std::iter::from_fn(|| driver.pop_used().unwrap()).count(), 32768);
    }
}

mod hostile_device {
    //! The driver half against a device that lies.

    use super::*;

    fn with_two_chains() -> Pair {
        let mut pair = Pair::new(8, Features::NONE);
        pair.add(&[Buffer::writable(0x8000, 10)]);
        pair.add(&[Buffer::writable(0x9000, 10)]);
        pair
    }

    fn use_raw(pair: &Pair, slot: u64, id: u32, len: u32, idx: u16) {
        pair.ram.write(pair.layout.used + 4 + 8 * slot, &id.to_le_bytes()).unwrap();
        pair.ram.write(pair.layout.used + 8 + 8 * slot, &len.to_le_bytes()).unwrap();
        pair.ram.write(pair.layout.used + 2, &idx.to_le_bytes()).unwrap();
    }

    #[test]
    fn a_used_index_beyond_what_is_out_is_rejected() {
        let mut pair = with_two_chains();
        use_raw(&pair, 0, 0, 0, 3);
        assert_eq!(pair.driver.pop_used(), Err(RingError::UsedJump { from: 0, to: 3, out: 2 }));
    }

    #[test]
    fn an_id_that_is_not_out_is_rejected() {
        for id in [2, 7, 8, 65536, u32::MAX] {
            let mut pair = with_two_chains();
            use_raw(&pair, 0, id, 0, 1);
            assert_eq!(pair.driver.pop_used(), Err(RingError::UsedUnknown { idx: 0, id }));
        }
    }

    #[test]
    fn an_id_returned_twice_is_rejected() {
        let mut pair = with_two_chains();
        use_raw(&pair, 0, 1, 0, 1);
        assert_eq!(pair.driver.pop_used(), Ok(Some(Used { head: 1, written: 0 })));
        use_raw(&pair, 1, 1, 0, 2);
        assert_eq!(pair.driver.pop_used(), Err(RingError::UsedUnknown { idx: 1, id: 1 }));
    }

    #[test]
    fn more_bytes_than_the_buffers_hold_are_rejected() {
        let mut pair = with_two_chains();
        use_raw(&pair, 0, 0, 11, 1);
        assert_eq!(pair.driver.pop_used(), Err(RingError::WrittenTooMuch { head: 0, written: 11, room: 10 }));
    }

    #[test]
    fn a_chain_that_was_never_published_is_rejected() {
        let mut pair = with_two_chains();
        let head = pair.driver.add(&[Buffer::writable(0xa000, 10)], Placement::Direct).unwrap();
        use_raw(&pair, 0, u32::from(head), 0, 1);
        assert_eq!(pair.driver.pop_used(), Err(RingError::UsedUnknown { idx: 0, id: u32::from(head) }));
    }

    #[test]
    fn a_scribbled_descriptor_table_does_not_reach_the_free_list() {
        let mut pair = with_two_chains();
        pair.ram.write(pair.layout.desc, &[0xff; 16 * 8]).unwrap();
        use_raw(&pair, 0, 0, 0, 1);
        pair.driver.pop_used().unwrap().unwrap();
        let heads: Vec<u16> = (0..7).map(|_| pair.add(&[Buffer::readable(0x8000, 1)])).collect();
        let mut sorted = heads.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 2, 3, 4, 5, 6, 7], "every descriptor but the one still out, once");
    }
}
