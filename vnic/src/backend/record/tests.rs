//! Back-ends that die, at every moment, and what the next one takes again.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::memory::Memory;
use crate::memory::testing::GuestRam;
use crate::ring::{
    Buffer, DeviceRing, DriverRing, PackedDriver, Placement, RingError, RingLayout, Segments, SplitDriver,
};

const SIZE: u16 = 8;
const RAM: u64 = 1 << 20;
const DATA: u64 = 0x8_0000;
const TABLES: u64 = 0x4_0000;

fn formats() -> [Features; 2] {
    let split = Features::of(&[Feature::Version1, Feature::IndirectDesc, Feature::EventIdx]);
    [split, split.with(Feature::RingPacked)]
}

/// What outlives a back-end.
struct World {
    features: Features,
    ram: GuestRam,
    layout: RingLayout,
    driver: Box<dyn DriverRing>,
    file: OwnedFd,
    len: u64,
    /// What the driver made available and has not had back.
    out: BTreeSet<u16>,
    added: u64,
}

impl World {
    fn new(features: Features) -> Self {
        let ram = GuestRam::new(RAM).unwrap();
        let memory = Arc::clone(ram.memory());
        let (layout, driver): (_, Box<dyn DriverRing>) = if features.has(Feature::RingPacked) {
            let (layout, _) = RingLayout::packed_at(0x1000, SIZE).unwrap();
            (layout, Box::new(PackedDriver::new(layout, memory, features).unwrap()))
        } else {
            let (layout, _) = RingLayout::split_at(0x1000, SIZE).unwrap();
            (layout, Box::new(SplitDriver::new(layout, memory, features).unwrap()))
        };
        // Room for more than the ring has, as a front-end may have it.
        let len = Records::len_for(2, 2 * SIZE, features);
        let file = SharedArea::file(len).unwrap();
        World { features, ram, layout, driver, file, len, out: BTreeSet::new(), added: 0 }
    }

    /// Makes a chain of this shape available, if there is room.
    fn add(&mut self, shape: u64) {
        self.added += 1;
        let at = DATA + self.added % 256 * 64;
        let buffers = [Buffer::readable(at, 16), Buffer::readable(at + 16, 16), Buffer::writable(at + 32, 8)];
        let table = TABLES + self.added % 256 * 64;
        let head = match shape % 3 {
            0 => self.driver.add(&buffers, Placement::Direct),
            1 => self.driver.add(&buffers, Placement::Indirect(table)),
            _ => self.driver.add(&buffers[2..], Placement::Direct),
        };
        if let Ok(head) = head {
            assert!(self.out.insert(head));
            self.driver.publish();
        }
    }

    /// Takes what has come back: each once, and each of what is out.
    fn take_back(&mut self) -> Vec<u16> {
        let mut back = Vec::new();
        while let Some(used) = self.driver.pop_used().unwrap() {
            assert!(self.out.remove(&used.head), "{} came back and was not out", used.head);
            assert_eq!(used.written, 8);
            back.push(used.head);
        }
        back
    }

    fn records(&self) -> Records {
        let told = Inflight { mmap_size: self.len, mmap_offset: 0, num_queues: 2, queue_size: 2 * SIZE };
        Records::open(self.file.try_clone().unwrap(), &told).unwrap()
    }

    fn memory(&self) -> &Arc<Memory> {
        self.ram.memory()
    }
}

/// A back-end. When it is dropped, it was killed.
struct BackEnd {
    ring: Device,
    segments: Segments,
    record: Record,
    resumed: std::collections::VecDeque<Taken>,
    /// Taken and not answered.
    busy: Vec<Chain>,
    /// Its record may say anything.
    hostile: bool,
}

impl BackEnd {
    fn start(world: &World) -> Result<Self, String> {
        // What a front-end says of a packed ring whose back-end died means nothing: its start is as good.
        let base = if world.features.has(Feature::RingPacked) { 1 << 15 | 1 << 31 } else { 0 };
        let ring = Device::new(world.layout, Arc::clone(world.memory()), world.features, base).unwrap();
        // The second queue's: what the first one's part holds is no business of it.
        let record = world.records().of(1, SIZE, world.features).unwrap().unwrap();
        let segments = Segments::new(Arc::clone(world.memory()), 8);
        let mut back_end =
            BackEnd { ring, segments, record, resumed: Default::default(), busy: Vec::new(), hostile: false };
        let Resumed { used, taken } = back_end.record.recover(&back_end.ring).map_err(|error| error.to_string())?;
        back_end.ring.resume(used, &taken).map_err(|error| error.to_string())?;
        back_end.resumed = taken.into();
        Ok(back_end)
    }

    fn pop(&mut self) -> Result<Option<u16>, RingError> {
        self.segments.clear();
        let chain = match self.resumed.front() {
            Some(taken) => {
                let chain = self.ring.retake(&mut self.segments, taken)?;
                self.resumed.pop_front();
                chain
            }
            None => {
                let Some(chain) = self.ring.pop(&mut self.segments)? else { return Ok(None) };
                self.record.take(&chain, &self.ring).unwrap();
                chain
            }
        };
        let bytes: u64 = self.segments.view(chain).writable().map(|slice| slice.len() as u64).sum();
        assert!(bytes == 8 || self.hostile, "the chain is whole");
        self.busy.push(chain);
        Ok(Some(chain.head))
    }

    fn use_up(&mut self, at: usize) {
        let chain = self.busy.remove(at);
        self.record.use_up(&chain);
        self.ring.push_used(&chain, chain.writable_len.min(8)).unwrap();
    }

    fn publish(&mut self) {
        self.record.publishing();
        self.ring.publish().unwrap();
        self.record.published();
    }
}

#[test]
fn what_was_taken_and_not_answered_is_taken_again_in_order_and_nothing_else() {
    for features in formats() {
        let mut world = World::new(features);
        let mut first = BackEnd::start(&world).unwrap();
        for _ in 0..5 {
            world.add(2);
        }
        let heads: Vec<u16> = (0..5).map(|_| first.pop().unwrap().unwrap()).collect();
        // The fourth, then the second.
        first.use_up(3);
        first.publish();
        first.use_up(1);
        first.publish();
        drop(first);
        assert_eq!(world.take_back(), [heads[3], heads[1]], "{features:?}");
        world.add(1);
        let mut next = BackEnd::start(&world).unwrap();
        let again: Vec<u16> = (0..3).map(|_| next.pop().unwrap().unwrap()).collect();
        assert_eq!(again, [heads[0], heads[2], heads[4]], "{features:?}");
        assert!(next.pop().unwrap().is_some() && next.pop().unwrap().is_none(), "behind them what is new");
        while !next.busy.is_empty() {
            next.use_up(0);
        }
        next.publish();
        assert_eq!(world.take_back().len(), 4);
        assert!(world.out.is_empty());
        // A clean end: the next one has nothing to take again.
        drop(next);
        assert!(BackEnd::start(&world).unwrap().resumed.is_empty());
    }
}

/// Numbers that can be foretold: a multiplicative generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

#[test]
fn killed_at_any_moment_a_back_end_loses_no_chain_and_none_comes_back_twice() {
    for features in formats() {
        for seed in 0..200 {
            let (mut world, mut dice) = (World::new(features), Dice(seed));
            let mut back_end = BackEnd::start(&world).unwrap();
            for _ in 0..120 {
                match dice.roll(12) {
                    0..=2 => world.add(dice.roll(3)),
                    3..=5 => drop(back_end.pop().unwrap()),
                    6..=7 if !back_end.busy.is_empty() => {
                        back_end.use_up(dice.roll(back_end.busy.len() as u64) as usize);
                    }
                    8 => back_end.publish(),
                    9 => drop(world.take_back()),
                    10 => back_end = BackEnd::start(&world).unwrap(),
                    11 => {
                        // In the middle of publishing.
                        back_end.record.publishing();
                        if dice.roll(2) == 0 {
                            back_end.ring.publish().unwrap();
                        }
                        back_end = BackEnd::start(&world).unwrap();
                    }
                    _ => {}
                }
            }
            // The last one lives, and answers all there is.
            let mut last = BackEnd::start(&world).unwrap();
            while last.pop().unwrap().is_some() {}
            while !last.busy.is_empty() {
                last.use_up(0);
            }
            last.publish();
            world.take_back();
            assert!(world.out.is_empty(), "{features:?} {seed}: lost {:?}", world.out);
        }
    }
}

#[test]
fn a_record_that_says_anything_at_all_is_refused_or_stops_the_ring_and_no_more() {
    for features in formats() {
        for seed in 0..500 {
            let (mut world, mut dice) = (World::new(features), Dice(seed));
            let mut back_end = BackEnd::start(&world).unwrap();
            (0..4).for_each(|shape| world.add(shape));
            while back_end.pop().unwrap().is_some() {}
            back_end.use_up(0);
            back_end.publish();
            let area = SharedArea::open(world.file.try_clone().unwrap(), 0, world.len).unwrap();
            for _ in 0..1 + dice.roll(6) {
                let at = dice.roll(world.len) as usize;
                area.byte(at).unwrap().store(dice.roll(256) as u8, Relaxed);
            }
            // The one that goes on, and the one that comes.
            for _ in 0..2 {
                let Ok(mut next) = BackEnd::start(&world) else { break };
                next.hostile = true;
                while let Ok(Some(_)) = next.pop() {
                    if next.busy.len() > usize::from(SIZE) {
                        panic!("more than the ring has");
                    }
                }
                while !next.busy.is_empty() {
                    next.use_up(0);
                }
                next.publish();
            }
        }
    }
}

/// The figure is SPDK's: 65,792 bytes for four queues of 1024.
#[test]
fn an_area_is_as_long_as_other_back_ends_have_it() {
    let [split, packed] = formats();
    assert_eq!(Records::len_for(4, 1024, split), 65_792);
    assert_eq!(Records::len_for(1, 256, packed), 32 + 256 * 32 + 32);
}

#[test]
fn an_area_that_is_too_short_or_of_another_version_is_refused() {
    let [split, packed] = formats();
    let records = |len, queue_size| {
        let told = Inflight { mmap_size: len, mmap_offset: 0, num_queues: 2, queue_size };
        Records::open(SharedArea::file(len).unwrap(), &told).unwrap()
    };
    assert_eq!(records(320, 8).of(1, 8, split).unwrap_err(), RecordError::Short { have: 320, needed: 384 });
    assert_eq!(records(4096, 8).of(0, 16, packed).unwrap_err(), RecordError::Small { room: 8, size: 16 });
    assert!(records(4096, 8).of(2, 8, split).unwrap().is_none(), "a queue of which nothing is recorded");
    assert!(records(4096, 8).of(0, 8, split.with(Feature::InOrder)).unwrap().is_none());
    for features in formats() {
        let world = World::new(features);
        let area = SharedArea::open(world.file.try_clone().unwrap(), 0, world.len).unwrap();
        let second = Records::len_for(1, 2 * SIZE, features) as usize;
        area.half(second + 8).unwrap().store(2, Relaxed);
        let refused = BackEnd::start(&world).err().unwrap();
        assert!(refused.contains("of version 2, only 1 is known"), "{refused}");
    }
}
