//! Laps and laps: rings that go round, fill up, and go on where they stood.

use super::*;

for_both_formats! {
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
        pair.device.publish().unwrap();
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
            device.publish().unwrap();
            assert_eq!(std::iter::from_fn(|| driver.pop_used().unwrap()).count(), 32768);
        }
    }

    fn random_traffic_loses_nothing(format: Format) {
        for (seed, features) in [Features::NONE, EVENT_IDX, IN_ORDER, INDIRECT, IN_ORDER.with(Feature::EventIdx)].into_iter().enumerate() {
            traffic(&mut Pair::new(format, if format == Format::Packed { 13 } else { 16 }, features), seed as u64);
        }
    }
}

/// Does one thing or another with each chain of a burst.
struct Dispositions<'r, R> {
    random: &'r mut R,
    chains: Vec<(Chain, Disposition)>,
}

impl<R: FnMut(u64) -> u64> Visitor for Dispositions<'_, R> {
    const READS: bool = false;

    fn takes_batches(&self) -> bool {
        // As good as random: from burst to burst.
        self.chains.len().is_multiple_of(2)
    }

    fn visit_batch(&mut self, batch: SingleBufferBatch<'_>) -> usize {
        let count = (self.random)(batch.views().count() as u64 + 1) as usize;
        self.chains.extend(batch.views().take(count).map(|view| (view.chain, Disposition::Return)));
        count
    }

    fn visit(&mut self, chain: ChainView<'_>) -> Disposition {
        let disposition = match (self.random)(8) {
            0 => Disposition::Leave,
            1..4 => Disposition::Retain,
            _ => Disposition::Return,
        };
        self.chains.push((chain.chain, disposition));
        disposition
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
                if pair.device.publish().unwrap() {
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
                let mut dispositions = Dispositions { random: &mut random, chains: Vec::new() };
                pair.device.drain(&mut pair.segments, 5, &mut dispositions).unwrap();
                for (chain, disposition) in dispositions.chains {
                    assert!(out.iter().any(|&(head, room)| head == chain.head && room == chain.writable_len));
                    match disposition {
                        Disposition::Return => expected.push(Used { head: chain.head, written: 0 }),
                        Disposition::Retain => popped.push(chain),
                        Disposition::Leave => {}
                    }
                }
                if pair.device.publish().unwrap() {
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
    pair.device.publish().unwrap();
    while let Some(used) = pair.driver.pop_used().unwrap() {
        let at = expected.iter().position(|other| *other == used).unwrap();
        expected.remove(at);
    }
    assert_eq!((expected.as_slice(), pair.device.in_flight()), (&[][..], 0));
}
