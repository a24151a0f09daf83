//! Driver half against device half, in both formats.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::*;
use crate::memory::testing::GuestRam;
use crate::memory::{Gpa, Memory};
use crate::spec::{Feature, Features};

const INDIRECT: Features = Features::of(&[Feature::IndirectDesc]);
const EVENT_IDX: Features = Features::of(&[Feature::EventIdx]);
const IN_ORDER: Features = Features::of(&[Feature::InOrder]);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    Split,
    Packed,
}

impl Format {
    fn layout(self, base: u64, size: u16) -> (RingLayout, u64) {
        match self {
            Format::Split => RingLayout::split_at(base, size).unwrap(),
            Format::Packed => RingLayout::packed_at(base, size).unwrap(),
        }
    }

    fn features(self, features: Features) -> Features {
        if self == Format::Packed { features.with(Feature::RingPacked) } else { features }
    }

    /// What a ring starts from.
    fn base(self) -> u32 {
        if self == Format::Packed { 0x8000 } else { 0 }
    }

    fn driver(self, layout: RingLayout, memory: &Arc<Memory>, features: Features) -> Box<dyn DriverRing> {
        let memory = Arc::clone(memory);
        match self {
            Format::Split => Box::new(SplitDriver::new(layout, memory, features).unwrap()),
            Format::Packed => Box::new(PackedDriver::new(layout, memory, features).unwrap()),
        }
    }
}

/// Both ends of one ring. The ring is in the first MiB; from 1 MiB to 1 MiB + 64 KiB lies a second region.
struct Pair {
    features: Features,
    ram: GuestRam,
    layout: RingLayout,
    driver: Box<dyn DriverRing>,
    device: Device,
    segments: Segments,
}

impl Pair {
    fn new(format: Format, size: u16, features: Features) -> Self {
        let ram = GuestRam::with_regions(&[(Gpa(0), 1 << 20), (Gpa(1 << 20), 1 << 16)]).unwrap();
        let (layout, _) = format.layout(0x1000, size);
        let features = format.features(features);
        let driver = format.driver(layout, ram.memory(), features);
        let device = Device::new(layout, Arc::clone(ram.memory()), features, format.base()).unwrap();
        let segments = Segments::new(Arc::clone(ram.memory()), 64);
        Pair { features, ram, layout, driver, device, segments }
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
        let readable = self.segments.view(*chain).readable().map(|s| (s.addr(), s.len(), 'R'));
        readable.chain(self.segments.view(*chain).writable().map(|s| (s.addr(), s.len(), 'W'))).collect()
    }
}

/// Each test once for either format.
macro_rules! for_both_formats {
    ($(fn $name:ident($format:ident: Format) $body:block)*) => {
        $(fn $name($format: Format) $body)*
        mod split {
            $(#[test] fn $name() { super::$name(super::Format::Split) })*
        }
        mod packed {
            $(#[test] fn $name() { super::$name(super::Format::Packed) })*
        }
    };
}

for_both_formats! {
    fn a_direct_chain_arrives_as_it_was_sent(format: Format) {
        let mut pair = Pair::new(format, 8, Features::NONE);
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

    fn an_indirect_chain_takes_one_descriptor_of_the_ring(format: Format) {
        let mut pair = Pair::new(format, 4, INDIRECT);
        let buffers = [Buffer::readable(0x8000, 78), Buffer::readable(0x9000, 1448), Buffer::writable(0xa000, 4)];
        pair.driver.add(&buffers, Placement::Indirect(0x7000)).unwrap();
        assert_eq!(pair.driver.free(), 3);
        pair.driver.publish();
        let chain = pair.pop().unwrap();
        assert_eq!(pair.buffers(&chain), [(0x8000, 78, 'R'), (0x9000, 1448, 'R'), (0xa000, 4, 'W')]);
        assert!(chain.indirect);
        assert_eq!((chain.descriptors, chain.slots), (3, 1));
    }

    fn an_indirect_table_may_cross_regions_and_stand_unaligned(format: Format) {
        for table in [(1 << 20) - 24, (1 << 20) - 16, 0x7001] {
            let mut pair = Pair::new(format, 4, INDIRECT);
            let buffers = [Buffer::readable(0x8000, 1), Buffer::readable(0x9000, 2), Buffer::readable(0xa000, 3)];
            pair.driver.add(&buffers, Placement::Indirect(table)).unwrap();
            pair.driver.publish();
            let chain = pair.pop().unwrap();
            assert_eq!(pair.buffers(&chain), [(0x8000, 1, 'R'), (0x9000, 2, 'R'), (0xa000, 3, 'R')], "table at {table:#x}");
        }
    }

    fn a_buffer_across_regions_is_two_segments_of_one_descriptor(format: Format) {
        let mut pair = Pair::new(format, 4, Features::NONE);
        pair.add(&[Buffer::readable((1 << 20) - 100, 300)]);
        let chain = pair.pop().unwrap();
        assert_eq!(pair.buffers(&chain), [((1 << 20) - 100, 100, 'R'), (1 << 20, 200, 'R')]);
        assert_eq!((chain.descriptors, chain.count), (1, 2));
        let continues: Vec<bool> = pair.segments.view(chain).segments().iter().map(|s| s.continues).collect();
        assert_eq!(continues, [false, true]);
    }

    fn a_ring_goes_on_past_65535(format: Format) {
        for features in [Features::NONE, EVENT_IDX, IN_ORDER] {
            let mut pair = Pair::new(format, 4, features);
            for round in 0..70_000_u32 {
                let head = pair.add(&[Buffer::writable(0x8000, 64), Buffer::writable(0x9000, 64)]);
                assert_eq!(pair.round_trip(round % 128), Used { head, written: round % 128 });
            }
            if format == Format::Split {
                assert_eq!(pair.device.base(), 70_000 % 65536);
            }
        }
    }

    fn a_full_ring_refuses_and_empties_again(format: Format) {
        let mut pair = Pair::new(format, 8, Features::NONE);
        for _ in 0..3 {
            for _ in 0..8 {
                pair.add(&[Buffer::readable(0x8000, 1)]);
            }
            let refused = pair.driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct);
            assert_eq!(refused, Err(RingError::Full { needed: 1, free: 0 }));
            assert!(pair.device.available().unwrap() >= 1);
            for _ in 0..8 {
                pair.round_trip(0);
            }
            assert_eq!(pair.pop(), None);
        }
    }

    fn chains_may_come_back_in_any_order(format: Format) {
        let mut pair = Pair::new(format, 8, Features::NONE);
        let heads: Vec<u16> = (0..4).map(|n| pair.add(&[Buffer::readable(0x8000 + n, 1)])).collect();
        let chains: Vec<Chain> = (0..4).map(|_| pair.pop().unwrap()).collect();
        for at in [2, 0, 3, 1] {
            pair.device.push_used(&chains[at], 0).unwrap();
        }
        pair.device.publish();
        let back: Vec<u16> = std::iter::from_fn(|| pair.driver.pop_used().unwrap()).map(|used| used.head).collect();
        assert_eq!(back, [heads[2], heads[0], heads[3], heads[1]]);
    }

    fn with_in_order_chains_come_back_in_order_whatever_the_device_does(format: Format) {
        let mut pair = Pair::new(format, 8, IN_ORDER);
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

    fn a_driver_takes_one_in_order_element_for_the_chains_before_it(format: Format) {
        let mut pair = Pair::new(format, 8, IN_ORDER);
        let heads: Vec<u16> = (0..3).map(|_| pair.add(&[Buffer::writable(0x8000, 9)])).collect();
        // What a batching device does: one element for the last chain; it stands for all three.
        match format {
            Format::Split => {
                pair.ram.write(pair.layout.used + 4, &u32::from(heads[2]).to_le_bytes()).unwrap();
                pair.ram.write(pair.layout.used + 8, &5_u32.to_le_bytes()).unwrap();
                pair.ram.write(pair.layout.used + 2, &3_u16.to_le_bytes()).unwrap();
            }
            Format::Packed => {
                pair.ram.write(pair.layout.desc + 8, &5_u32.to_le_bytes()).unwrap();
                pair.ram.write(pair.layout.desc + 12, &heads[2].to_le_bytes()).unwrap();
                pair.ram.write(pair.layout.desc + 14, &0x8080_u16.to_le_bytes()).unwrap();
            }
        }
        let back: Vec<Used> = std::iter::from_fn(|| pair.driver.pop_used().unwrap()).collect();
        let written = [9, 9, 5];
        let expected: Vec<Used> = heads.iter().zip(written).map(|(&head, written)| Used { head, written }).collect();
        assert_eq!(back, expected);
    }

    fn receive_buffers_are_taken_together_up_to_what_is_none(format: Format) {
        let mut pair = Pair::new(format, 16, INDIRECT);
        let buffer = |n: u64| Buffer::writable(0x8000 + 0x100 * n, 100);
        let mut heads: Vec<u16> = (0..4).map(|n| pair.add(&[buffer(n)])).collect();
        heads.push(pair.add(&[buffer(4), buffer(5)]));
        heads.extend((6..9).map(|n| pair.add(&[buffer(n)])));
        // The arena knows no region yet: whatever comes first, `pop` takes.
        let mut chains = Vec::new();
        pair.device.pop_buffers(&mut pair.segments, 9, &mut chains).unwrap();
        assert_eq!(chains, []);
        let mut all = vec![pair.pop().unwrap()];
        pair.device.pop_buffers(&mut pair.segments, 2, &mut chains).unwrap();
        assert_eq!(chains.len(), 2, "as many as were asked for");
        pair.device.pop_buffers(&mut pair.segments, 9, &mut chains).unwrap();
        assert_eq!(chains.len(), 3, "two buffers in a chain are not one");
        all.append(&mut chains);
        assert_eq!(pair.buffers(&all[3]), [(0x8300, 100, 'W')]);
        all.push(pair.pop().unwrap());
        pair.device.pop_buffers(&mut pair.segments, 9, &mut chains).unwrap();
        assert_eq!((chains.len(), pair.device.in_flight()), (3, 8));
        all.append(&mut chains);
        assert_eq!(all.iter().map(|chain| chain.head).collect::<Vec<_>>(), heads);
        // They are as good as any: given back and taken again, written to and returned once.
        pair.device.unpop(&all[6..]).unwrap();
        pair.device.pop_buffers(&mut pair.segments, 1, &mut chains).unwrap();
        assert_eq!((chains[0].head, chains[0].writable_len), (heads[6], 100));
        assert_eq!(pair.device.push_used(&chains[0], 101).unwrap_err().name(), "written_too_much");
        assert_eq!(pair.device.push_used(&chains[0], 100), Ok(()));
        assert_eq!(pair.device.push_used(&chains[0], 100), Err(RingError::NotInFlight { head: heads[6] }));
    }

    fn what_was_given_back_comes_again_and_is_no_news(format: Format) {
        for features in [Features::NONE, EVENT_IDX] {
            let mut pair = Pair::new(format, 8, features);
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

    fn what_stands_behind_a_chain_given_back_is_no_news_either(format: Format) {
        // A full link: the first chain goes back, the two behind it were never looked at.
        for features in [Features::NONE, EVENT_IDX] {
            let mut pair = Pair::new(format, 8, features);
            for n in 0..3 {
                pair.driver.add(&[Buffer::readable(0x8000 + n, 1)], Placement::Direct).unwrap();
            }
            pair.driver.publish();
            let chain = pair.pop().unwrap();
            pair.device.unpop(&[chain]).unwrap();
            assert_eq!(pair.device.enable_notifications(), Ok(false));
            pair.segments.clear();
            pair.pop().unwrap();
            assert_eq!(pair.device.enable_notifications(), Ok(true), "two are left, and nobody gave them back");
        }
    }

    fn nobody_sleeps_through_a_notification(format: Format) {
        for features in [Features::NONE, EVENT_IDX] {
            two_threads(Pair::new(format, 8, features));
        }
    }

    fn chains_can_only_be_given_back_newest_last(format: Format) {
        let mut pair = Pair::new(format, 8, Features::NONE);
        pair.add(&[Buffer::readable(0x8000, 1)]);
        pair.add(&[Buffer::readable(0x8000, 1)]);
        let (first, second) = (pair.pop().unwrap(), pair.pop().unwrap());
        assert_eq!(pair.device.unpop(&[first]), Err(RingError::NotInFlight { head: first.head }));
        assert_eq!(pair.device.unpop(&[first, second]), Ok(()));
        assert_eq!(pair.device.unpop(&[second]), Err(RingError::NotInFlight { head: second.head }));
    }

    fn a_chain_comes_back_once_and_with_no_more_than_it_holds(format: Format) {
        let mut pair = Pair::new(format, 8, Features::NONE);
        pair.add(&[Buffer::writable(0x8000, 10)]);
        let chain = pair.pop().unwrap();
        let too_much = RingError::WrittenTooMuch { head: chain.head, written: 11, room: 10 };
        assert_eq!(pair.device.push_used(&chain, 11), Err(too_much));
        assert_eq!(pair.device.push_used(&chain, 10), Ok(()));
        assert_eq!(pair.device.push_used(&chain, 10), Err(RingError::NotInFlight { head: chain.head }));
    }

    fn what_was_available_before_notifications_were_asked_for_is_not_missed(format: Format) {
        for features in [Features::NONE, EVENT_IDX] {
            let mut pair = Pair::new(format, 8, features);
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

    fn a_polling_device_is_not_kicked(format: Format) {
        let mut pair = Pair::new(format, 8, Features::NONE);
        pair.device.disable_notifications();
        pair.driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).unwrap();
        assert!(!pair.driver.publish());
    }

    fn with_event_idx_one_kick_is_enough_until_the_device_asks_again(format: Format) {
        let mut pair = Pair::new(format, 8, EVENT_IDX);
        pair.device.enable_notifications().unwrap();
        let mut kicks = Vec::new();
        for _ in 0..3 {
            pair.driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).unwrap();
            kicks.push(pair.driver.publish());
        }
        assert_eq!(kicks, [true, false, false]);
    }

    fn calls_are_suppressed_as_the_driver_asks(format: Format) {
        for features in [Features::NONE, EVENT_IDX] {
            let mut pair = Pair::new(format, 8, features);
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

    fn a_burst_is_one_call(format: Format) {
        let mut pair = Pair::new(format, 8, EVENT_IDX);
        for _ in 0..5 {
            pair.add(&[Buffer::readable(0x8000, 1)]);
        }
        while let Some(chain) = pair.pop() {
            pair.device.push_used(&chain, 0).unwrap();
        }
        assert!(pair.device.publish());
        assert!(!pair.device.publish(), "nothing new");
    }

    fn a_device_goes_on_where_another_stopped(format: Format) {
        let mut pair = Pair::new(format, 8, Features::NONE);
        for n in 0..5 {
            pair.add(&[Buffer::readable(0x8000 + n, 1)]);
        }
        for _ in 0..2 {
            pair.round_trip(0);
        }
        let base = pair.device.base();
        assert_eq!(base, if format == Format::Split { 2 } else { 0x8002_8002 });
        pair.device = Device::new(pair.layout, Arc::clone(pair.ram.memory()), pair.features, base).unwrap();
        let chain = pair.pop().unwrap();
        assert_eq!(pair.buffers(&chain), [(0x8002, 1, 'R')]);
        pair.device.push_used(&chain, 0).unwrap();
        pair.device.publish();
        assert_eq!(pair.driver.pop_used().unwrap().unwrap().head, chain.head);
    }

    fn the_largest_ring_works(format: Format) {
        let ram = GuestRam::new(4 << 20).unwrap();
        let (layout, end) = format.layout(0, 32768);
        let memory = Arc::clone(ram.memory());
        let features = format.features(EVENT_IDX);
        let mut driver = format.driver(layout, &memory, features);
        let mut device = Device::new(layout, Arc::clone(&memory), features, format.base()).unwrap();
        let mut segments = Segments::new(memory, 32768);
        for _ in 0..3 {
            for _ in 0..32768 {
                driver.add(&[Buffer::readable(end, 1)], Placement::Direct).unwrap();
            }
            driver.publish();
            while let Some(chain) = device.pop(&mut segments).unwrap() {
                device.push_used(&chain, 0).unwrap();
            }
            segments.clear();
            device.publish();
            assert_eq!(std::iter::from_fn(|| driver.pop_used().unwrap()).count(), 32768);
        }
    }

    fn a_chain_may_wrap_around_the_end_of_the_ring(format: Format) {
        // Odd sizes exist for packed rings only.
        for size in if format == Format::Packed { [3, 5, 7] } else { [4, 8, 16] } {
            for features in [Features::NONE, IN_ORDER, EVENT_IDX] {
                let mut pair = Pair::new(format, size, features);
                for _ in 0..20 {
                    let head = pair.add(&[Buffer::readable(0x8000, 1), Buffer::writable(0x9000, 2)]);
                    let chain = pair.pop().unwrap();
                    assert_eq!(pair.buffers(&chain), [(0x8000, 1, 'R'), (0x9000, 2, 'W')]);
                    pair.segments.clear();
                    pair.device.push_used(&chain, 2).unwrap();
                    pair.device.publish();
                    assert_eq!(pair.driver.pop_used(), Ok(Some(Used { head, written: 2 })));
                }
            }
        }
    }

    fn random_traffic_loses_nothing(format: Format) {
        for (seed, features) in [Features::NONE, EVENT_IDX, IN_ORDER, INDIRECT, IN_ORDER.with(Feature::EventIdx)].into_iter().enumerate() {
            traffic(&mut Pair::new(format, if format == Format::Packed { 13 } else { 16 }, features), seed as u64);
        }
    }
}

/// Does one thing or another with each chain of a burst.
struct Fates<'r, R> {
    random: &'r mut R,
    chains: Vec<(Chain, Fate)>,
}

impl<R: FnMut(u64) -> u64> Visitor for Fates<'_, R> {
    const READS: bool = false;

    fn glances(&self) -> bool {
        // As good as random: from burst to burst.
        self.chains.len().is_multiple_of(2)
    }

    fn glance(&mut self, singles: Singles<'_>) -> usize {
        let count = (self.random)(singles.views().count() as u64 + 1) as usize;
        self.chains.extend(singles.views().take(count).map(|view| (view.chain, Fate::Return)));
        count
    }

    fn visit(&mut self, chain: ChainView<'_>) -> Fate {
        let fate = match (self.random)(8) {
            0 => Fate::Leave,
            1..4 => Fate::Keep,
            _ => Fate::Return,
        };
        self.chains.push((chain.chain, fate));
        fate
    }
}

/// Adds, pops, drains, gives back, returns out of order, publishes and takes back at random; every chain must come back once,
/// with what was written, and whoever is told to sleep must be woken.
fn traffic(pair: &mut Pair, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let in_order = pair.features.has(Feature::InOrder);
    let indirect = pair.features.has(Feature::IndirectDesc);
    let mut out: Vec<(u16, u32)> = Vec::new();
    let mut popped: Vec<Chain> = Vec::new();
    let mut expected: Vec<Used> = Vec::new();
    let (mut device_sleeps, mut driver_sleeps) = (false, false);
    for step in 0..if cfg!(miri) { 300 } else { 30_000_u64 } {
        match random(7) {
            0 | 1 => {
                let count = 1 + random(4);
                let writable = random(3) > 0;
                let buffers: Vec<Buffer> =
                    (0..count).map(|n| Buffer { addr: 0x8000 + 0x100 * n, len: 1 + n as u32, writable }).collect();
                let table = 0x40000 + 0x100 * (step % 64);
                let placement = if indirect && random(2) == 0 { Placement::Indirect(table) } else { Placement::Direct };
                if let Ok(head) = pair.driver.add(&buffers, placement) {
                    out.push((head, buffers.iter().filter(|b| b.writable).map(|b| b.len).sum()));
                    if pair.driver.publish() {
                        device_sleeps = false;
                    }
                    assert!(!device_sleeps, "step {step}: the device sleeps and was not kicked");
                }
            }
            2 => {
                if let Some(chain) = pair.device.pop(&mut pair.segments).unwrap() {
                    assert!(out.iter().any(|&(head, room)| head == chain.head && room == chain.writable_len));
                    popped.push(chain);
                }
            }
            3 if !popped.is_empty() => {
                let chain = popped.remove(random(popped.len() as u64) as usize);
                let written = random(u64::from(chain.writable_len) + 1) as u32;
                pair.device.push_used(&chain, written).unwrap();
                expected.push(Used { head: chain.head, written });
                if pair.device.publish() {
                    driver_sleeps = false;
                }
                let waits = !in_order && driver_sleeps;
                assert!(!waits, "step {step}: the driver sleeps and was not called");
            }
            4 => {
                while let Some(used) = pair.driver.pop_used().unwrap() {
                    let at = expected.iter().position(|other| *other == used);
                    expected.remove(at.unwrap_or_else(|| panic!("step {step}: {used:?} was not returned")));
                    let at = out.iter().position(|&(head, _)| head == used.head).unwrap();
                    out.remove(at);
                }
                driver_sleeps = !pair.driver.enable_notifications();
            }
            6 => {
                let mut fates = Fates { random: &mut random, chains: Vec::new() };
                pair.device.drain(&mut pair.segments, 5, &mut fates).unwrap();
                for (chain, fate) in fates.chains {
                    assert!(out.iter().any(|&(head, room)| head == chain.head && room == chain.writable_len));
                    match fate {
                        Fate::Return => expected.push(Used { head: chain.head, written: 0 }),
                        Fate::Keep => popped.push(chain),
                        Fate::Leave => {}
                    }
                }
                if pair.device.publish() {
                    driver_sleeps = false;
                }
                let waits = !in_order && driver_sleeps && !expected.is_empty();
                assert!(!waits, "step {step}: the driver sleeps and was not called");
            }
            5 => {
                if let Some(chain) = pair.device.pop(&mut pair.segments).unwrap() {
                    pair.device.unpop(&[chain]).unwrap();
                }
                while let Some(chain) = pair.device.pop(&mut pair.segments).unwrap() {
                    popped.push(chain);
                }
                device_sleeps = !pair.device.enable_notifications().unwrap();
                assert!(device_sleeps, "all was taken");
            }
            _ => {}
        }
        if popped.is_empty() {
            pair.segments.clear();
        }
    }
    for chain in popped {
        pair.device.push_used(&chain, 0).unwrap();
        expected.push(Used { head: chain.head, written: 0 });
    }
    pair.device.publish();
    while let Some(used) = pair.driver.pop_used().unwrap() {
        let at = expected.iter().position(|other| *other == used).unwrap();
        expected.remove(at);
    }
    assert_eq!((expected.as_slice(), pair.device.in_flight()), (&[][..], 0));
}

/// Both halves on threads of their own, each asleep whenever it may be. A notification that is not sent when the other
/// side needs it leaves both asleep for good.
fn two_threads(pair: Pair) {
    const CHAINS: u32 = if cfg!(miri) { 60 } else { 50_000 };
    const DEADLINE: Duration = Duration::from_secs(60);
    let Pair { mut driver, mut device, mut segments, ram: _ram, .. } = pair;
    // As an eventfd: however often it is signalled, one wake-up.
    let (kick, kicked) = mpsc::sync_channel(1);
    let (call, called) = mpsc::sync_channel(1);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut served = 0;
            while served < CHAINS {
                while let Some(chain) = device.pop(&mut segments).unwrap() {
                    device.push_used(&chain, 0).unwrap();
                    segments.clear();
                    served += 1;
                    if served % 3 == 0 && device.publish() {
                        let _full = call.try_send(());
                    }
                }
                if device.publish() {
                    let _full = call.try_send(());
                }
                if served < CHAINS && !device.enable_notifications().unwrap() {
                    kicked.recv_timeout(DEADLINE).expect("a kick");
                }
                device.disable_notifications();
            }
        });
        let (mut added, mut back) = (0, 0);
        while back < CHAINS {
            while added < CHAINS && driver.add(&[Buffer::readable(0x8000, 1)], Placement::Direct).is_ok() {
                added += 1;
                if added % 2 == 0 && driver.publish() {
                    let _full = kick.try_send(());
                }
            }
            if driver.publish() {
                let _full = kick.try_send(());
            }
            while driver.pop_used().unwrap().is_some() {
                back += 1;
            }
            if back < CHAINS && driver.out() > 0 && !driver.enable_notifications() {
                called.recv_timeout(DEADLINE).expect("a call");
            }
            driver.disable_notifications();
        }
    });
}
