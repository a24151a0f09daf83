//! A link that keeps frames, and is done with them late and out of order.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::link::{Completion, LinkCounters, LinkError, Port, Transmitted};
use crate::memory::{Access, Memory};
use crate::net::Frame;

const KEEPS: u16 = 8;

/// What the test's thread sees of a [`Late`], and tells it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Frames that it may be done with.
    allowed: AtomicUsize,
    pub(super) kept: AtomicUsize,
    done: AtomicUsize,
    /// Frames whose bytes were not what they had been when they were sent: their buffers went back too early.
    changed: AtomicUsize,
    pub(super) quiesced: AtomicUsize,
    /// Frames that it still had when it was dropped.
    left: AtomicUsize,
    wake: Mutex<Option<Arc<OwnedFd>>>,
}

impl Seen {
    pub(super) fn allow(&self, count: usize) {
        self.allowed.fetch_add(count, Ordering::Relaxed);
        let wake = self.wake.lock().unwrap();
        nix::unistd::write(wake.as_ref().unwrap(), &1u64.to_ne_bytes()).unwrap();
    }
}

/// A frame it has.
#[derive(Debug)]
struct Held {
    memory: Arc<Memory>,
    places: Vec<(u64, usize)>,
    bytes: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Late {
    seen: Arc<Seen>,
    kept: Vec<Option<Held>>,
    /// Those that `quiesce` has ended.
    ended: Vec<u16>,
    /// Decides which one is next.
    random: u32,
    wake: Arc<OwnedFd>,
}

impl Late {
    pub(super) fn new(seen: Arc<Seen>) -> Self {
        let wake = event();
        *seen.wake.lock().unwrap() = Some(Arc::clone(&wake));
        Late { seen, kept: (0..KEEPS).map(|_| None).collect(), ended: Vec::new(), random: 1, wake }
    }

    /// Reads a frame's bytes now, as a card that is late does.
    fn read(&mut self, ticket: u16) -> Completion {
        let held = self.kept[usize::from(ticket)].take().unwrap();
        let mut bytes = vec![0; held.bytes.len()];
        let mut at = 0;
        for (addr, len) in held.places {
            let Ok(slice) = held.memory.slice(addr, len as u64, Access::Read) else {
                // Its translation is void by now. A real card had looked the address up before.
                bytes.clone_from(&held.bytes);
                break;
            };
            at += slice.copy_to(&mut bytes[at..at + len]);
        }
        self.seen.changed.fetch_add(usize::from(bytes != held.bytes), Ordering::Relaxed);
        self.seen.kept.fetch_sub(1, Ordering::Relaxed);
        self.seen.done.fetch_add(1, Ordering::Relaxed);
        Completion { pair: 0, ticket, read: Some(bytes.len() as u32), copied: 0 }
    }
}

impl Port for Late {
    const KEEPS: u16 = KEEPS;

    fn transmit(&mut self, _pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        let Some(ticket) = self.kept.iter().position(Option::is_none) else { return Ok(Transmitted::Full) };
        let mut bytes = vec![0; frame.len as usize];
        frame.copy_to(&mut bytes);
        let places = frame.segments().map(|slice| (slice.addr(), slice.len())).collect();
        self.kept[ticket] = Some(Held { memory: Arc::clone(frame.memory()), places, bytes });
        self.seen.kept.fetch_add(1, Ordering::Relaxed);
        Ok(Transmitted::Kept { ticket: ticket as u16 })
    }

    fn completed(&mut self) -> Option<Completion> {
        if let Some(ticket) = self.ended.pop() {
            return Some(self.read(ticket));
        }
        let kept: Vec<usize> = (0..self.kept.len()).filter(|ticket| self.kept[*ticket].is_some()).collect();
        if kept.is_empty() || self.seen.allowed.load(Ordering::Relaxed) == 0 {
            return None;
        }
        self.seen.allowed.fetch_sub(1, Ordering::Relaxed);
        self.random = self.random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Some(self.read(kept[(self.random >> 16) as usize % kept.len()] as u16))
    }

    fn quiesce(&mut self, _pair: usize) {
        self.ended = (0..KEEPS).filter(|ticket| self.kept[usize::from(*ticket)].is_some()).collect();
        self.seen.quiesced.fetch_add(self.ended.len(), Ordering::Relaxed);
    }

    fn poll(&mut self, _now: Instant) {}

    fn readable_fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.wake.as_fd()]
    }

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::new(LinkCounters::new(&[]))
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.seen.left.store(self.kept.iter().flatten().count(), Ordering::Relaxed);
    }
}

/// A device on a [`Late`].
struct Bench {
    ram: GuestRam,
    device: Backend,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    seen: Arc<Seen>,
    tx: Queue,
    /// Where each head's payload is, and where there is room.
    out: HashMap<u16, u64>,
    free: Vec<u64>,
    _notices: Receiver<Notice>,
}

impl Bench {
    fn new(features: spec::Features) -> Self {
        let ram = GuestRam::new(RAM).unwrap();
        let tx = Queue::new(&ram, 0x8000, features);
        let seen = Arc::<Seen>::default();
        let (mut device, shared, workers, notices) = on_port(Late::new(Arc::clone(&seen)), PollMode::Adaptive, 1);
        device.set_features(features).unwrap();
        device.set_memory(Arc::clone(ram.memory())).unwrap();
        device.start_queue(TX, tx.setup_at(start_of(features))).unwrap();
        let free = (0..u64::from(SIZE)).map(|at| PAYLOAD + 0x400 * at).collect();
        Bench { ram, device, shared, workers, seen, tx, out: HashMap::new(), free, _notices: notices }
    }

    fn send(&mut self, number: u64) {
        let place = self.free.pop().unwrap();
        self.ram.write(place, &[number as u8 | 1; 100]).unwrap();
        let frame = [Buffer::readable(HEADER, NET_HEADER_LEN as u32), Buffer::readable(place, 100)];
        let head = self.tx.driver.add(&frame, Placement::Direct).unwrap();
        assert_eq!(self.out.insert(head, place), None, "head {head} is out");
        self.tx.kick_if_wanted();
    }

    fn count(&self, what: impl Fn(&Seen) -> &AtomicUsize) -> usize {
        what(&self.seen).load(Ordering::Relaxed)
    }

    /// Sends `count` frames, which the link keeps.
    fn in_flight(features: spec::Features, count: usize) -> Self {
        let mut bench = Bench::new(features);
        (0..count as u64).for_each(|number| bench.send(number));
        wait_for("frames in flight", || bench.count(|seen| &seen.kept) == count);
        assert!(bench.tx.driver.pop_used().unwrap().is_none(), "returned while the link still has it");
        bench
    }

    /// The driver takes back what has come back, and writes all over it.
    fn take_back(&mut self) -> usize {
        let mut count = 0;
        while let Some(used) = self.tx.driver.pop_used().unwrap() {
            let place = self.out.remove(&used.head).expect("a head that is out");
            self.ram.write(place, &[0xee; 100]).unwrap();
            self.free.push(place);
            count += 1;
        }
        count
    }
}

#[test]
fn frames_that_are_done_with_late_and_out_of_order_come_back_once_each_and_unchanged() {
    for features in formats() {
        let mut bench = Bench::new(features);
        let (mut sent, mut back) = (0_u64, 0);
        // How many may be finished at a time shares no period with how many are kept.
        for allowed in [1, 5, 2, 11, 3].into_iter().cycle() {
            while sent < 400 && sent - back < u64::from(SIZE / 2) {
                bench.send(sent);
                sent += 1;
            }
            bench.seen.allow(allowed);
            let target = (back + 1).min(400);
            let deadline = Instant::now() + PATIENCE;
            while back < target {
                // In order, a frame can wait for one before it.
                let came = bench.take_back() as u64;
                if came == 0 && bench.count(|seen| &seen.allowed) == 0 {
                    bench.seen.allow(1);
                }
                back += came;
                assert!(Instant::now() < deadline, "{features:?}: {back} of {sent} came back");
                std::thread::yield_now();
            }
            if back == 400 {
                break;
            }
        }
        assert_eq!((bench.count(|seen| &seen.done), bench.count(|seen| &seen.changed)), (400, 0), "{features:?}");
        let counters = bench.shared.queues[usize::from(TX)].counters.snapshot();
        assert_eq!(["chains", "dma_read_bytes", "drops", "errors"].map(|name| counters[name]), [400, 40_000, 0, 0]);
        assert!(counters["link_full"] > 0, "never more than the link keeps");
    }
}

#[test]
fn what_is_in_flight_is_ended_before_a_queue_is_given_up() {
    type GiveUp = fn(&mut Bench);
    let ways: [(&str, GiveUp); 5] = [
        ("stop", |bench| {
            bench.device.stop_queue(TX).unwrap();
        }),
        ("disable", |bench| bench.device.set_enabled(TX, false).unwrap()),
        ("reset", |bench| bench.device.reset()),
        ("other memory", |bench| {
            let file = bench.ram.fd().try_clone_to_owned().unwrap();
            let again = Memory::map(vec![(bench.ram.specs()[0], file)]).unwrap();
            bench.device.set_memory(Arc::new(again)).unwrap();
        }),
        ("hold and stop", |bench| {
            assert!(bench.workers.hold(TX, true));
            bench.device.stop_queue(TX).unwrap();
        }),
    ];
    for features in formats() {
        for (name, give_up) in ways {
            let mut bench = Bench::in_flight(features, 5);
            give_up(&mut bench);
            let state = [bench.count(|seen| &seen.kept), bench.count(|seen| &seen.quiesced)];
            assert_eq!(state, [0, 5], "{name}: answered while the link has frames");
            assert_eq!((bench.take_back(), bench.count(|seen| &seen.changed)), (5, 0), "{name}");
        }
    }
}

#[test]
fn a_ring_goes_on_where_it_was_stopped_with_frames_in_flight() {
    for features in formats() {
        let mut bench = Bench::in_flight(features, 5);
        let base = bench.device.stop_queue(TX).unwrap();
        assert_eq!(bench.take_back(), 5);
        bench.device.start_queue(TX, bench.tx.setup_at(base)).unwrap();
        bench.seen.allow(3);
        for number in 0..3 {
            bench.send(number);
            wait_for("the frame", || bench.count(|seen| &seen.done) == 6 + number as usize);
        }
        let deadline = Instant::now() + PATIENCE;
        let mut back = 0;
        while back < 3 {
            back += bench.take_back();
            assert!(Instant::now() < deadline, "{features:?}: {back} of 3 came back");
        }
        assert_eq!(bench.shared.queues[usize::from(TX)].counters.errors.get(), 0, "{features:?}");
    }
}

#[test]
fn a_device_that_ends_with_frames_in_flight_ends() {
    let bench = Bench::in_flight(FEATURES, 5);
    let Bench { device, workers, seen, shared, .. } = bench;
    drop((device, workers));
    assert_eq!(seen.left.load(Ordering::Relaxed), 5, "the port is dropped with what it has");
    drop(shared);
}

#[test]
fn what_is_done_with_while_the_queue_is_held_comes_back_when_it_is_released() {
    let mut bench = Bench::in_flight(FEATURES, 5);
    assert!(bench.workers.hold(TX, true));
    bench.seen.allow(5);
    wait_for("the link", || bench.count(|seen| &seen.done) == 5);
    // Answered after the pass in which the last one was done with.
    assert!(bench.workers.hold(TX, true));
    assert_eq!(bench.take_back(), 0);
    assert!(bench.workers.hold(TX, false));
    assert_eq!(bench.take_back(), 5);
}

#[test]
fn a_head_that_is_in_flight_is_not_taken_again() {
    let mut bench = Bench::in_flight(FEATURES, 1);
    // The driver half would not: the same head once more, in the next slot of the available ring.
    let avail = bench.tx.layout.avail;
    let head = bench.ram.read(avail + 4, 2).unwrap();
    bench.ram.write(avail + 6, &head).unwrap();
    bench.ram.write(avail + 2, &2_u16.to_le_bytes()).unwrap();
    nix::unistd::write(&bench.tx.kick, &1u64.to_ne_bytes()).unwrap();
    let errors = |bench: &Bench| bench.shared.queues[usize::from(TX)].counters.snapshot();
    wait_for("the error", || errors(&bench).get("error_head_in_flight") == Some(&1));
    bench.seen.allow(1);
    wait_for("the frame", || bench.count(|seen| &seen.done) == 1);
    assert!(bench.workers.hold(TX, false));
    assert_eq!((bench.take_back(), bench.count(|seen| &seen.kept)), (1, 0));
}

/// Memory that is plugged in concerns no frame: all that is there stays where it is.
#[test]
fn frames_in_flight_outlive_memory_that_is_plugged_in() {
    for features in formats() {
        let mut bench = Bench::in_flight(features, 5);
        let more = GuestRam::with_regions(&[(memory::Gpa(1 << 32), 1 << 20)]).unwrap();
        let file = more.fd().try_clone_to_owned().unwrap();
        let memory = bench.ram.memory().with_region(more.specs()[0], file).unwrap();
        bench.device.set_memory(Arc::new(memory)).unwrap();
        assert_eq!([bench.count(|seen| &seen.kept), bench.count(|seen| &seen.quiesced)], [5, 0], "{features:?}");
        bench.seen.allow(5);
        wait_for("the link", || bench.count(|seen| &seen.done) == 5);
        assert!(bench.workers.hold(TX, false));
        assert_eq!((bench.take_back(), bench.count(|seen| &seen.changed)), (5, 0), "{features:?}");
        // And the new memory is in use.
        more.write(1 << 32, &[7; 100]).unwrap();
        bench.tx.add(&[Buffer::readable(HEADER, NET_HEADER_LEN as u32), Buffer::readable(1 << 32, 100)]);
        wait_for("a frame of the new memory", || bench.count(|seen| &seen.kept) == 1);
        bench.seen.allow(1);
        bench.tx.used();
        let counters = bench.shared.queues[usize::from(TX)].counters.snapshot();
        assert_eq!((counters["errors"], counters["drops"]), (0, 0), "{features:?}");
    }
}
