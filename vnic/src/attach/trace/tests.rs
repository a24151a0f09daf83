//! A driver and a device at work on a ring that somebody else looks at now and then.

mod packed;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::super::devices::{Frames, Queue};
use super::super::packed::{Books, Packed};
use super::super::ram::Ram;
use super::queue::Watched;
use super::told::Wanted;
use crate::backend::QueueShared;
use crate::memory::testing::GuestRam;
use crate::observe::tracer::{Event, Read, Reader};
use crate::ring::{Buffer, DriverRing, Placement, RingLayout, SplitDriver};
use crate::spec::net::NET_HEADER_LEN;
use crate::spec::{Feature, Features};

const WANTED: Wanted = Wanted { at_ns: 7, all: true };
const SIZE: u16 = 8;
const RAM: u64 = 1 << 20;
/// Where the driver's books say how far it has collected.
const LAST_USED: u64 = 0x8000;
const TABLES: u64 = 0x1_0000;
const FRAMES: u64 = 0x2_0000;

/// The NIC's queue for what is sent, with this ring.
fn queue(layout: RingLayout, packed: Option<Packed>, frames: Frames) -> Queue {
    Queue {
        name: "transmitq0".to_owned(),
        index: 1,
        layout,
        broken: false,
        free: 0,
        added: 0,
        last_used: 0,
        packed,
        frames,
        last_used_at: LAST_USED,
    }
}

/// A ring with its driver and its device, and somebody who looks at it.
struct Bench {
    ram: GuestRam,
    layout: RingLayout,
    driver: SplitDriver,
    watched: Option<Watched>,
    shared: Arc<QueueShared>,
    seen_through: Arc<Ram>,
    /// What the device has and has not used: head, and the chain's number.
    device: Vec<(u16, u64)>,
    /// What it has used, in order.
    used: Vec<u64>,
    added: u64,
    collected: usize,
}

impl Bench {
    fn new(frames: Frames) -> Bench {
        let features = Features::of(&[Feature::IndirectDesc, Feature::Version1]);
        let ram = GuestRam::new(RAM).unwrap();
        let (layout, _) = RingLayout::split_at(0x1000, SIZE).unwrap();
        let driver = SplitDriver::new(layout, ram.memory().clone(), features).unwrap();
        let seen_through = Arc::new(Ram::of_file(ram.fd().try_clone_to_owned().unwrap().into(), RAM));
        let shared = Arc::new(QueueShared::new("transmitq0".to_owned(), 1));
        shared.events.make_room();
        let queue = queue(layout, None, frames);
        let watched = Watched::new(&seen_through, &queue, features, shared.clone());
        let (device, used) = (Vec::new(), Vec::new());
        Bench { ram, layout, driver, watched, shared, seen_through, device, used, added: 0, collected: 0 }
    }

    /// A frame of two buffers that says its number, if there is room.
    fn add(&mut self, indirect: bool) {
        let free = self.driver.free();
        if free < 2 {
            return;
        }
        let number = self.added;
        let at = FRAMES + number % 1024 * 64;
        self.ram.write(at + NET_HEADER_LEN as u64, &number.to_le_bytes()).unwrap();
        let buffers = [Buffer::readable(at, 32), Buffer::readable(at + 32, number as u32 + 1)];
        let table = Placement::Indirect(TABLES + number % 1024 * 32);
        let head = self.driver.add(&buffers, if indirect { table } else { Placement::Direct }).unwrap();
        self.driver.publish();
        self.device.push((head, number));
        self.added += 1;
    }

    /// The device uses one of those that it has.
    fn use_one(&mut self, which: usize) {
        if self.device.is_empty() {
            return;
        }
        let (head, number) = self.device.remove(which % self.device.len());
        let idx = self.used.len() as u16;
        let entry = self.layout.used + 4 + 8 * u64::from(idx % SIZE);
        self.ram.write(entry, &u32::from(head).to_le_bytes()).unwrap();
        self.ram.write(entry + 4, &0_u32.to_le_bytes()).unwrap();
        self.ram.write(self.layout.used + 2, &idx.wrapping_add(1).to_le_bytes()).unwrap();
        self.used.push(number);
    }

    /// The driver takes one back, whose memory is another's from then on.
    fn collect(&mut self) {
        if self.driver.pop_used().unwrap().is_none() {
            return;
        }
        let number = self.used[self.collected];
        self.collected += 1;
        // In the kernel's order.
        self.ram.write(TABLES + number % 1024 * 32, &[0xff; 32]).unwrap();
        self.ram.write(LAST_USED, &(self.collected as u16).to_le_bytes()).unwrap();
        self.ram.write(FRAMES + number % 1024 * 64, &[0xff; 32]).unwrap();
    }

    fn look(&mut self) -> bool {
        let Some(watched) = &mut self.watched else { return false };
        watched.look(&self.seen_through, WANTED, None)
    }
}

/// What is told: each chain by its number, or how many were missed before the next.
fn number(event: &Event) -> u64 {
    let number = u64::from_le_bytes(event.head()[..8].try_into().unwrap());
    assert_eq!(event.buffers().len(), 2, "{event:?}");
    let at = FRAMES + number % 1024 * 64;
    assert_eq!([event.buffers[0].addr, event.buffers[1].addr], [at, at + 32], "{event:?}");
    assert_eq!(event.buffers[1].len, number as u32 + 1, "{event:?}");
    assert_eq!((event.frame_len, event.descriptors), (20 + number as u32 + 1, 2));
    number
}

#[test]
fn what_the_device_still_has_is_seen_and_what_was_collected_between_two_looks_is_missed() {
    let mut bench = Bench::new(Frames::Sent);
    let shared = bench.shared.clone();
    let mut reader = shared.events.reader();
    assert!(!bench.look());
    // One is used before the first look at it, and not collected; one after.
    (0..2).for_each(|_| bench.add(true));
    bench.use_one(0);
    assert!(bench.look());
    bench.use_one(0);
    bench.collect();
    assert!(bench.look());
    // This one comes and goes unseen, and the next has its head and its place.
    bench.collect();
    bench.add(false);
    bench.use_one(0);
    bench.collect();
    bench.add(false);
    assert!(bench.look());
    bench.use_one(0);
    assert!(bench.look() && !bench.look());
    let read = |read: Option<Read>| match read.unwrap() {
        Read::Event(event) => Ok(number(&event)),
        Read::Lost(events) => Err(events),
    };
    // The first lay in a table that the driver may have been about to free.
    assert_eq!(std::array::from_fn(|_| read(reader.read())), [Err(1), Ok(1), Err(1), Ok(3)]);
    assert_eq!(reader.read(), None);
}

#[test]
fn an_index_that_jumps_is_so_many_missed_and_nothing_of_it_is_told() {
    for jump in [SIZE + 1, 1000, 0x8000, u16::MAX] {
        let mut bench = Bench::new(Frames::Sent);
        let shared = bench.shared.clone();
        let mut reader = shared.events.reader();
        bench.add(true);
        assert!(bench.look());
        bench.ram.write(bench.layout.used + 2, &jump.to_le_bytes()).unwrap();
        assert!(bench.look() && !bench.look());
        assert_eq!(told(&mut reader), (vec![], jump.into()), "{jump}");
        // One step from there is one chain, which was not seen either.
        bench.ram.write(bench.layout.used + 2, &jump.wrapping_add(1).to_le_bytes()).unwrap();
        assert!(bench.look() && !bench.look());
        assert_eq!(told(&mut reader), (vec![], 1), "{jump}");
    }
    // The same of what is made available: which of them are in flight is not known any more.
    let mut bench = Bench::new(Frames::Sent);
    let shared = bench.shared.clone();
    let mut reader = shared.events.reader();
    bench.ram.write(bench.layout.avail + 2, &30_000_u16.to_le_bytes()).unwrap();
    assert!(bench.look() && !bench.look());
    bench.ram.write(bench.layout.used + 2, &1_u16.to_le_bytes()).unwrap();
    assert!(bench.look());
    assert_eq!(told(&mut reader), (vec![], 1));
}

#[test]
fn a_ring_of_a_size_that_there_is_not_is_not_followed() {
    let bench = Bench::new(Frames::Sent);
    let packed = Some(Packed::Ring);
    for (packed, size, follows) in [
        (None, SIZE, true),
        (None, 0, false),
        (None, 3, false),
        (None, 65_535, false),
        (packed, 32_769, false),
        (packed, 65_535, false),
    ] {
        let queue = queue(RingLayout { size, ..bench.layout }, packed, Frames::Sent);
        let watched =
            Watched::new(&bench.seen_through, &queue, Features::of(&[Feature::Version1]), bench.shared.clone());
        assert_eq!(watched.is_some(), follows, "{size}");
    }
}

#[test]
fn a_ring_behind_the_guests_iommu_is_not_followed() {
    let bench = Bench::new(Frames::Sent);
    let Bench { seen_through, layout, shared, .. } = bench;
    let queue = queue(layout, None, Frames::Sent);
    let features = Features::of(&[Feature::Version1, Feature::AccessPlatform]);
    assert!(Watched::new(&seen_through, &queue, features, shared).is_none());
}

#[test]
fn a_received_frames_bytes_are_told_until_the_driver_has_collected_it() {
    let mut bench = Bench::new(Frames::Received);
    let shared = bench.shared.clone();
    let mut reader = shared.events.reader();
    let at = |number: u64| FRAMES + number * 64;
    for number in 0..2 {
        bench.driver.add(&[Buffer::writable(at(number), 64)], Placement::Direct).unwrap();
        bench.driver.publish();
        bench.device.push((number as u16, number));
    }
    bench.look();
    for number in 0..2 {
        bench.ram.write(at(number) + NET_HEADER_LEN as u64, &[0x11; 20]).unwrap();
        let entry = bench.layout.used + 4 + 8 * number;
        bench.use_one(0);
        bench.ram.write(entry + 4, &32_u32.to_le_bytes()).unwrap();
    }
    bench.collect();
    assert!(bench.look());
    let mut heads = Vec::new();
    while let Some(Read::Event(event)) = reader.read() {
        assert_eq!((event.written, event.frame_len), (32, 20));
        heads.push(event.head().to_vec());
    }
    assert_eq!(heads, [vec![], vec![0x11; 20]]);
}

/// What is told by now, and how many were missed.
fn told(reader: &mut Reader<'_>) -> (Vec<u64>, u64) {
    let (mut told, mut missed) = (Vec::new(), 0);
    while let Some(read) = reader.read() {
        match read {
            Read::Event(event) => told.push(number(&event)),
            Read::Lost(events) => missed += events,
        }
    }
    (told, missed)
}

/// Driver and device go on while somebody looks.
#[test]
fn nothing_is_told_that_was_not_so_while_the_ring_moves_under_the_look() {
    let mut bench = Bench::new(Frames::Sent);
    let (shared, ram) = (bench.shared.clone(), bench.seen_through.clone());
    let mut watched = bench.watched.take().unwrap();
    let mut reader = shared.events.reader();
    let looks = AtomicUsize::new(0);
    let (mut all, mut missed) = (Vec::new(), 0);
    let used = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut random = 1_u64;
            let (mut steps, mut seen) = (0, 0);
            while bench.used.len() < 20_000 {
                steps += 1;
                // Not all passes unseen, however slow the one who looks is. Should he end, so does this.
                let mut patience = 1 << 20;
                while steps % 16 == 0 && looks.load(Ordering::Acquire) == seen && patience > 0 {
                    patience -= 1;
                    std::thread::yield_now();
                }
                seen = looks.load(Ordering::Acquire);
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                let which = (random >> 60) as usize;
                match random >> 32 & 7 {
                    0..3 => bench.add(which.is_multiple_of(2)),
                    3..5 => bench.use_one(which),
                    _ => bench.collect(),
                }
            }
            bench.used
        });
        loop {
            let last = worker.is_finished();
            let moved = watched.look(&ram, WANTED, None);
            let (more, gone) = told(&mut reader);
            all.extend(more);
            missed += gone;
            looks.fetch_add(1, Ordering::Release);
            if last && !moved {
                return worker.join().unwrap();
            }
        }
    });
    assert_eq!(all.len() as u64 + missed, used.len() as u64);
    let mut used = used.iter();
    assert!(all.iter().all(|number| used.any(|used| used == number)), "in another order");
    assert!(!all.is_empty());
}

proptest! {
    /// Whatever happens between looks, what is told was so, and all that was used is told or counted.
    #[test]
    fn nothing_is_told_that_was_not_so(steps in prop::collection::vec((0..8_u8, 0..8_usize), 1..300)) {
        let mut bench = Bench::new(Frames::Sent);
        let shared = bench.shared.clone();
        let mut reader = shared.events.reader();
        for (step, which) in steps {
            match step {
                0..3 => bench.add(which.is_multiple_of(2)),
                3..5 => bench.use_one(which),
                5..7 => bench.collect(),
                _ => drop(bench.look()),
            }
        }
        bench.look();
        let (told, missed) = told(&mut reader);
        prop_assert_eq!(told.len() as u64 + missed, bench.used.len() as u64);
        let mut used = bench.used.iter();
        prop_assert!(told.iter().all(|number| used.any(|used| used == number)), "{:?} of {:?}", told, bench.used);
    }
}
