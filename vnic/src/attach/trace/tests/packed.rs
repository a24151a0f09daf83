//! The same with a packed ring, whose driver keeps books as Linux does.

use std::collections::VecDeque;
use std::time::Duration;

use super::*;
use crate::ring::PackedDriver;
use crate::ring::packed::Position;
use crate::spec::ring::{DESC_F_AVAIL, DESC_F_USED};

const STATES: u64 = 0x9000;
const NEXT: u64 = 0xa000;
const WRAP: u64 = 0xa002;

struct PackedBench {
    ram: GuestRam,
    layout: RingLayout,
    driver: PackedDriver,
    watched: Watched,
    shared: Arc<QueueShared>,
    seen_through: Arc<Ram>,
    /// What the device has: id, slots, the chain's number.
    device: VecDeque<(u16, u16, u64)>,
    used: VecDeque<(u64, u16)>,
    all_used: Vec<u64>,
    /// Where driver, device and the driver's collecting are.
    next: Position,
    device_at: Position,
    collected_at: Position,
}

impl PackedBench {
    fn new() -> PackedBench {
        let features = Features::of(&[Feature::IndirectDesc, Feature::Version1, Feature::RingPacked]);
        let ram = GuestRam::new(RAM).unwrap();
        let layout = RingLayout { size: SIZE, desc: 0x1000, avail: 0x2000, used: 0x3000 };
        let driver = PackedDriver::new(layout, ram.memory().clone(), features).unwrap();
        let seen_through = Arc::new(Ram::of_file(ram.fd().try_clone_to_owned().unwrap().into(), RAM));
        let shared = Arc::new(QueueShared::new("transmitq0".to_owned(), 1));
        shared.events.make_room();
        let start = Position { slot: 0, wrap: true };
        ram.write(WRAP, &[1]).unwrap();
        ram.write(LAST_USED, &start.to_bits().to_le_bytes()).unwrap();
        let books = Some(Packed::Books(Books::at(STATES, NEXT, WRAP)));
        let queue = Queue { last_used: start.to_bits(), ..queue(layout, books, Frames::Sent) };
        let mut watched = Watched::new(&seen_through, &queue, features, shared.clone()).unwrap();
        watched.believe(Duration::MAX);
        let (next, device_at, collected_at) = (start, start, start);
        let (device, used, all_used) = Default::default();
        PackedBench {
            ram,
            layout,
            driver,
            watched,
            shared,
            seen_through,
            device,
            used,
            all_used,
            next,
            device_at,
            collected_at,
        }
    }

    /// A frame of two buffers that says its number, if there is room.
    fn add(&mut self, number: u64, indirect: bool) -> bool {
        let slots = if indirect { 1 } else { 2 };
        if self.driver.free() < slots {
            return false;
        }
        let at = FRAMES + number % 1024 * 64;
        self.ram.write(at + NET_HEADER_LEN as u64, &number.to_le_bytes()).unwrap();
        let buffers = [Buffer::readable(at, 32), Buffer::readable(at + 32, number as u32 + 1)];
        let table = Placement::Indirect(TABLES + number % 1024 * 32);
        let id = self.driver.add(&buffers, if indirect { table } else { Placement::Direct }).unwrap();
        self.ram.write(STATES + 2 * u64::from(id), &slots.to_le_bytes()).unwrap();
        self.next = self.next.after(slots, SIZE);
        self.ram.write(NEXT, &self.next.slot.to_le_bytes()).unwrap();
        self.ram.write(WRAP, &[u8::from(self.next.wrap)]).unwrap();
        self.driver.publish();
        self.device.push_back((id, slots, number));
        true
    }

    fn use_one(&mut self) {
        let Some((id, slots, number)) = self.device.pop_front() else { return };
        let flags = if self.device_at.wrap { DESC_F_AVAIL | DESC_F_USED } else { 0 };
        let rest = u64::from(id) << 32 | u64::from(flags) << 48;
        self.ram.write(self.layout.desc + 16 * u64::from(self.device_at.slot) + 8, &rest.to_le_bytes()).unwrap();
        self.device_at = self.device_at.after(slots, SIZE);
        self.used.push_back((number, slots));
        self.all_used.push(number);
    }

    /// The driver takes one back, whose memory is another's from then on.
    fn collect(&mut self) {
        let Some((number, slots)) = self.used.pop_front() else { return };
        self.driver.pop_used().unwrap().unwrap();
        self.ram.write(TABLES + number % 1024 * 32, &[0xff; 32]).unwrap();
        self.collected_at = self.collected_at.after(slots, SIZE);
        self.ram.write(LAST_USED, &self.collected_at.to_bits().to_le_bytes()).unwrap();
        self.ram.write(FRAMES + number % 1024 * 64, &[0xff; 32]).unwrap();
    }

    fn look(&mut self) -> bool {
        self.watched.look(&self.seen_through, WANTED, None)
    }
}

#[test]
fn what_a_packed_ring_carries_is_seen_and_what_came_and_went_between_two_looks_is_missed() {
    let mut bench = PackedBench::new();
    let shared = bench.shared.clone();
    let mut reader = shared.events.reader();
    assert!(bench.look() && !bench.look());
    for number in 0..100 {
        assert!(bench.add(number, number % 3 == 0));
        bench.look();
        bench.use_one();
        if number % 2 == 0 {
            bench.look();
        }
        bench.collect();
    }
    bench.look();
    assert_eq!(told(&mut reader), ((0..100).collect(), 0));
    // Three of one slot each come and go.
    for number in 100..103 {
        assert!(bench.add(number, true));
        bench.use_one();
        bench.collect();
    }
    assert!(bench.add(103, true));
    assert!(bench.look());
    assert_eq!(told(&mut reader), (vec![], 3));
    // It is there still.
    assert!(bench.look());
    bench.use_one();
    assert!(bench.look());
    assert_eq!(told(&mut reader), (vec![103], 0));
}

#[test]
fn a_look_that_took_longer_than_the_ring_may_take_to_go_round_twice_is_not_believed() {
    let mut bench = PackedBench::new();
    bench.watched.believe(Duration::ZERO);
    let shared = bench.shared.clone();
    let mut reader = shared.events.reader();
    bench.add(0, true);
    assert!(bench.look());
    bench.use_one();
    assert!(bench.look());
    assert_eq!(told(&mut reader), (vec![], 1));
}

#[test]
fn a_packed_ring_of_anything_is_looked_at_and_left() {
    for seed in 0..200_u64 {
        let mut bench = PackedBench::new();
        let mut state = seed;
        for _ in 0..20 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let at = [0x1000 + (state >> 32) % 128, STATES + (state >> 32) % 16, NEXT, WRAP, LAST_USED];
            bench.ram.write(at[(state >> 60) as usize % 5], &state.to_le_bytes()[3..5]).unwrap();
            bench.look();
        }
    }
}

proptest! {
    /// Whatever happens between looks, what is told was so, in its order, if the ring does not go round meanwhile.
    #[test]
    fn nothing_is_told_of_a_packed_ring_that_was_not_so(steps in prop::collection::vec((0..8_u8, any::<bool>()), 1..300)) {
        let mut bench = PackedBench::new();
        let shared = bench.shared.clone();
        let mut reader = shared.events.reader();
        let (mut number, mut since) = (0, 0);
        for (step, indirect) in steps {
            match step {
                // Less than a round between two looks.
                0..3 if since < SIZE => {
                    if bench.add(number, indirect) {
                        number += 1;
                        since += 2;
                    }
                }
                0..5 => bench.use_one(),
                5..7 => bench.collect(),
                _ => {
                    bench.look();
                    since = 0;
                }
            }
        }
        bench.look();
        let (told, _) = told(&mut reader);
        let mut used = bench.all_used.iter();
        prop_assert!(told.iter().all(|number| used.any(|used| used == number)), "{:?} of {:?}", told, bench.all_used);
    }
}
