//! A driver that never stops and one that does nothing: who else is served, and when the worker sleeps.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use super::*;
use crate::backend::BURST;
use crate::link::{LinkCounters, LinkError, Port, Received, Transmitted};
use crate::net::{Frame, ReceiveSpace};
use crate::spec::net::NetHeader;

const PAIRS: u16 = 2;
/// Twice as many as a burst, so that there are always more.
const LONG: u16 = 2 * BURST;

/// What a [`Probe`] has seen, for the test's thread.
#[derive(Debug, Default)]
struct Seen {
    polls: AtomicU64,
    thread: AtomicI32,
    /// Frames of pair 0, sent and received.
    frames: [AtomicU64; 2],
    /// Most frames of one queue between two polls.
    most: AtomicU64,
}

/// A link that has no end of frames for pair 0, and a driver on its thread that gives pair 0 as many: each buffer it gets
/// back is available again before the worker has turned to the next queue.
struct Probe {
    seen: Arc<Seen>,
    /// transmitq0 and receiveq0, with the buffer that goes round in each.
    drivers: Option<[(Box<dyn DriverRing>, Buffer); 2]>,
    /// Frames of pair 0 since the last poll.
    since: [u64; 2],
}

impl Probe {
    /// A frame of pair 0 passed, and the driver takes its turn.
    fn passed(&mut self, way: usize) {
        self.seen.frames[way].fetch_add(1, Ordering::Relaxed);
        self.since[way] += 1;
        self.seen.most.fetch_max(self.since[way], Ordering::Relaxed);
        for (driver, buffer) in self.drivers.iter_mut().flatten() {
            while driver.pop_used().unwrap().is_some() {
                driver.add(&[*buffer], Placement::Direct).unwrap();
            }
            driver.publish();
        }
    }
}

impl Port for Probe {
    fn transmit(&mut self, pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        if pair == 0 {
            self.passed(0);
        }
        Ok(Transmitted::Taken { read: frame.len, copied: 0 })
    }

    fn pending(&mut self, pair: usize) -> Option<usize> {
        (pair == 0 && self.drivers.is_some()).then_some(60)
    }

    fn receive(&mut self, _pair: usize, space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        space.write(NetHeader::default(), &[&[0; 60]]).unwrap();
        self.passed(1);
        Ok(Received::Frame { bytes: 60 })
    }

    fn poll(&mut self, _now: Instant) {
        self.since = [0; 2];
        self.seen.polls.fetch_add(1, Ordering::Relaxed);
        self.seen.thread.store(nix::unistd::gettid().as_raw(), Ordering::Relaxed);
    }

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::new(LinkCounters::new(&[]))
    }
}

/// Two pairs on one worker with a probe. The test drives pair 1.
struct Bench {
    ram: GuestRam,
    device: Backend,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    seen: Arc<Seen>,
    /// By vhost-user index; those of pair 0 without their drivers where the probe has these.
    queues: Vec<Queue>,
    _notices: Receiver<Notice>,
}

impl Bench {
    fn new(poll: PollMode, endless: bool) -> Self {
        let ram = GuestRam::new(RAM).unwrap();
        let ring = |index: u64, size| Queue::sized(&ram, 0x1_0000 + index * 0x8000, FEATURES, size);
        let mut queues: Vec<Queue> =
            [LONG, LONG, SIZE, SIZE].into_iter().zip(0..).map(|(size, at)| ring(at, size)).collect();
        let drivers = endless.then(|| {
            [(1, Buffer::readable(HEADER, NET_HEADER_LEN as u32 + 60)), (0, Buffer::writable(RECEIVE, 100))].map(
                |(index, buffer): (usize, _)| {
                    let idle: Box<dyn DriverRing> = ring(9, 2).driver;
                    let mut driver = std::mem::replace(&mut queues[index].driver, idle);
                    for _ in 0..LONG {
                        driver.add(&[buffer], Placement::Direct).unwrap();
                    }
                    driver.publish();
                    (driver, buffer)
                },
            )
        });
        let seen = Arc::<Seen>::default();
        let probe = Probe { seen: Arc::clone(&seen), drivers, since: [0; 2] };
        let (mut device, shared, workers, notices) = on_port(probe, poll, PAIRS);
        device.set_features(FEATURES).unwrap();
        device.set_memory(Arc::clone(ram.memory())).unwrap();
        for (index, queue) in (0..).zip(&queues) {
            nix::unistd::write(&queue.kick, &1u64.to_ne_bytes()).unwrap();
            device.start_queue(index, queue.setup(0)).unwrap();
        }
        Bench { ram, device, shared, workers, seen, queues, _notices: notices }
    }

    fn send_and_wait(&mut self) {
        let tx = &mut self.queues[3];
        tx.add(&[Buffer::readable(HEADER, NET_HEADER_LEN as u32 + 60)]);
        assert_eq!(tx.used().written, 0);
    }

    /// Is the worker in `epoll_wait`, for as long as it takes?
    fn is_asleep(&self) -> bool {
        let thread = self.seen.thread.load(Ordering::Relaxed);
        let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).unwrap_or_default();
        let words: Vec<&str> = call.split_whitespace().collect();
        let timeout = words.get(4).and_then(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
        // The time-out is an int.
        words.first() == Some(&libc::SYS_epoll_wait.to_string().as_str())
            && timeout.map(|all| all as u32) == Some(u32::MAX)
    }
}

#[test]
fn an_endless_producer_starves_no_queue_no_request_and_no_stop() {
    for poll in [PollMode::Adaptive, PollMode::Always, PollMode::Never] {
        let mut bench = Bench::new(poll, true);
        let passed = |bench: &Bench| bench.seen.frames.each_ref().map(|frames| frames.load(Ordering::Relaxed));
        for round in 1..=50 {
            // Pair 0 goes on meanwhile, in both directions.
            let least = passed(&bench).map(|frames| frames + u64::from(BURST));
            wait_for("frames of the endless pair", || {
                passed(&bench).iter().zip(least).all(|(now, least)| *now >= least)
            });
            bench.send_and_wait();
            assert_eq!(bench.shared.queues[3].counters.chains.get(), round);
            assert!(bench.workers.hold(3, true) && bench.workers.hold(3, false));
        }
        assert!(crate::serve::status::device(&bench.shared).queues.iter().all(|queue| queue.error.is_none()));
        let file = bench.ram.fd().try_clone_to_owned().unwrap();
        let again = memory::Memory::map(vec![(bench.ram.specs()[0], file)]).unwrap();
        bench.device.set_memory(Arc::new(again)).unwrap();
        bench.send_and_wait();
        for index in [1, 0] {
            bench.device.stop_queue(index).unwrap();
        }
        let stopped = passed(&bench);
        bench.send_and_wait();
        assert_eq!(passed(&bench), stopped, "{poll:?}: stopped, and served all the same");
        let most = bench.seen.most.load(Ordering::Relaxed);
        assert!(most <= u64::from(BURST), "{poll:?}: {most} frames of one queue in one pass");
    }
}

#[test]
fn an_idle_worker_sleeps_until_something_happens() {
    for poll in [PollMode::Adaptive, PollMode::Never] {
        let mut bench = Bench::new(poll, false);
        for _ in 0..20 {
            bench.send_and_wait();
            wait_for("the worker to sleep", || bench.is_asleep());
        }
    }
}

#[test]
fn a_worker_that_never_polls_looks_once_in_vain_and_sleeps() {
    let mut bench = Bench::new(PollMode::Never, false);
    // It is told of its queues one by one, and may sleep in between: not so once the last has served a frame.
    bench.send_and_wait();
    wait_for("the worker to sleep", || bench.is_asleep());
    for _ in 0..20 {
        let before = bench.seen.polls.load(Ordering::Relaxed);
        bench.send_and_wait();
        wait_for("the worker to sleep", || bench.is_asleep());
        // Before and after the frame, before the look in vain.
        assert_eq!(bench.seen.polls.load(Ordering::Relaxed) - before, 3);
    }
}

#[test]
fn a_worker_that_always_polls_goes_on_by_itself_and_wants_no_kicks() {
    let mut bench = Bench::new(PollMode::Always, false);
    let polls = |bench: &Bench| bench.seen.polls.load(Ordering::Relaxed);
    let first = polls(&bench);
    wait_for("passes that nobody asked for", || polls(&bench) > first + 10_000);
    for count in 1..=20 {
        let tx = &mut bench.queues[3].driver;
        tx.add(&[Buffer::readable(HEADER, NET_HEADER_LEN as u32 + 60)], Placement::Direct).unwrap();
        // With EVENT_IDX a device that never asks has asked for one all the same: the first.
        assert!(!tx.publish() || count == 1, "a kick is wanted");
        wait_for("the frame", || bench.shared.queues[3].counters.chains.get() == count);
    }
    assert!(!bench.is_asleep());
}
