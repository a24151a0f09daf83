//! The data path as a driver meets it: the driver half of the rings, real workers, real eventfds.

mod endless;
mod iommu;
mod late;
mod long;
mod pairs;
mod unmapped;

use std::io::BufRead as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::device::{Limits, NicDevice};
use super::options::PollMode;
use super::shared::{About, QueueState, Shared};
use super::worker::{Notice, Notices};
use super::workers::{Plan, Workers};
use crate::link::{self, AnyPort, LinkKind, Port};
use crate::memory::testing::GuestRam;
use crate::net::features::OFFERED;
use crate::observe::counters::QueueCounters;
use crate::observe::flow::{FilePages, FlowWatch};
use crate::observe::protocol::{FlowBooks, TraceEvent};
use crate::observe::tracer::Read;
use crate::record::datagram::{HEADER_LEN, Header, Kind};
use crate::record::wire::{Flow, PageRun};
use crate::ring::{Buffer, DriverRing, PackedDriver, Placement, RingLayout, SplitDriver, Used};
use crate::spec::Feature;
use crate::spec::net::NET_HEADER_LEN;
use crate::vhost_user::{Device, PackedIndex, QueueSetup, RingAddresses, VringBase};
use crate::{memory, spec};

const RX: u16 = 0;
const TX: u16 = 1;
const SIZE: u16 = 64;
const RAM: u64 = 4 << 20;
const HEADER: u64 = 0x10_0000;
const PAYLOAD: u64 = 0x20_0000;
const RECEIVE: u64 = 0x30_0000;
const PATIENCE: Duration = Duration::from_secs(10);

/// One queue, seen by its driver.
struct Queue {
    layout: RingLayout,
    driver: Box<dyn DriverRing>,
    kick: Arc<OwnedFd>,
    call: Arc<OwnedFd>,
    err: Arc<OwnedFd>,
}

impl Queue {
    fn new(ram: &GuestRam, base: u64, features: spec::Features) -> Self {
        Queue::sized(ram, base, features, SIZE)
    }

    fn sized(ram: &GuestRam, base: u64, features: spec::Features, size: u16) -> Self {
        let memory = Arc::clone(ram.memory());
        let (layout, driver): (_, Box<dyn DriverRing>) = if features.has(Feature::RingPacked) {
            let (layout, _) = RingLayout::packed_at(base, size).unwrap();
            (layout, Box::new(PackedDriver::new(layout, memory, features).unwrap()))
        } else {
            let (layout, _) = RingLayout::split_at(base, size).unwrap();
            (layout, Box::new(SplitDriver::new(layout, memory, features).unwrap()))
        };
        Queue { layout, driver, kick: event(), call: event(), err: event() }
    }

    fn setup(&self, base: u16) -> QueueSetup {
        self.setup_at(VringBase::split(base))
    }

    fn setup_at(&self, base: VringBase) -> QueueSetup {
        QueueSetup {
            size: self.layout.size,
            addresses: RingAddresses {
                descriptors: self.layout.desc,
                driver: self.layout.avail,
                device: self.layout.used,
            },
            base,
            enabled: true,
            kick: Some(Arc::clone(&self.kick)),
            call: Some(Arc::clone(&self.call)),
            err: Some(Arc::clone(&self.err)),
        }
    }

    fn add(&mut self, buffers: &[Buffer]) {
        self.driver.add(buffers, Placement::Direct).unwrap();
        self.kick_if_wanted();
    }

    fn kick_if_wanted(&mut self) {
        if self.driver.publish() {
            nix::unistd::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
        }
    }

    /// Waits for the call, never by the clock alone, and takes what came back.
    fn used(&mut self) -> Used {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.driver.pop_used().unwrap() {
                return used;
            }
            if !self.driver.enable_notifications() {
                assert!(readable(&self.call), "no call within {PATIENCE:?}");
                nix::unistd::read(&self.call, &mut [0; 8]).unwrap();
            }
            assert!(Instant::now() < deadline, "nothing came back within {PATIENCE:?}");
        }
    }
}

fn event() -> Arc<OwnedFd> {
    Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap().into())
}

fn readable(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap()).unwrap() == 1
}

const FEATURES: spec::Features =
    OFFERED.without(Feature::RingPacked).without(Feature::InOrder).without(Feature::AccessPlatform);

/// Where a new ring begins.
fn start_of(features: spec::Features) -> VringBase {
    let start = PackedIndex { slot: 0, wrap: true };
    if features.has(Feature::RingPacked) { VringBase::packed(start, start) } else { VringBase::split(0) }
}

/// A device of this many pairs, with a worker per port.
fn serve(ports: Vec<AnyPort>, pairs: u16) -> (NicDevice, Arc<Shared>, Arc<Workers>, Receiver<Notice>) {
    let about = About { offered: OFFERED, ..About::default() };
    let shared = Arc::new(Shared::new(about, 2 * pairs, ports.iter().map(AnyPort::counters).collect()));
    let (channel, notices) = channel();
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    let workers = Workers::start(ports, &shared, &Notices { channel, wake }, PollMode::Adaptive, &[], None);
    let workers = Arc::new(workers.unwrap());
    let limits = Limits { queue_pairs: pairs, queue_size: 1024 };
    (NicDevice::new(Arc::clone(&shared), Arc::clone(&workers), limits), shared, workers, notices)
}

/// The same with one worker, on a port of the test's own.
fn on_port(
    port: impl Port + 'static,
    poll: PollMode,
    pairs: u16,
) -> (NicDevice, Arc<Shared>, Arc<Workers>, Receiver<Notice>) {
    let shared = Arc::new(Shared::new(About::default(), 2 * pairs, vec![]));
    let (channel, notices) = channel();
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    let plan = Plan { shared: &shared, notices: &Notices { channel, wake }, poll, capture: None };
    let workers = Arc::new(Workers::on_port(port, &plan).unwrap());
    let limits = Limits { queue_pairs: pairs, queue_size: 1024 };
    (NicDevice::new(Arc::clone(&shared), Arc::clone(&workers), limits), shared, workers, notices)
}

struct Rig {
    ram: GuestRam,
    device: NicDevice,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    notices: Receiver<Notice>,
    tx: Queue,
    rx: Queue,
}

impl Rig {
    fn new(link: &LinkKind) -> Self {
        Rig::with(link, FEATURES)
    }

    fn with(link: &LinkKind, features: spec::Features) -> Self {
        let (device, shared, workers, notices) = serve(vec![link::open(link, 1).unwrap()], 1);
        let ram = GuestRam::new(RAM).unwrap();
        let (rx, tx) = (Queue::new(&ram, 0x1000, features), Queue::new(&ram, 0x8000, features));
        let mut rig = Rig { ram, device, shared, workers, notices, tx, rx };
        rig.device.set_features(features).unwrap();
        rig.shared.view().negotiated = features;
        rig.device.set_memory(Arc::clone(rig.ram.memory())).unwrap();
        let base = start_of(features);
        rig.device.start_queue(RX, rig.rx.setup_at(base)).unwrap();
        rig.device.start_queue(TX, rig.tx.setup_at(base)).unwrap();
        rig
    }

    fn send(&mut self, len: u32) {
        self.tx.add(&[Buffer::readable(HEADER, NET_HEADER_LEN as u32), Buffer::readable(PAYLOAD, len)]);
    }

    fn counter(&self, queue: u16, name: &str) -> u64 {
        self.shared.queues[usize::from(queue)].counters.snapshot().get(name).copied().unwrap_or(0)
    }

    fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        wait_for(what, || condition(self));
    }
}

/// Looks until it is so.
fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::yield_now();
    }
}

#[test]
fn a_transmitted_frame_is_counted_and_its_buffer_comes_back() {
    let mut rig = Rig::new(&LinkKind::Sink);
    rig.send(1000);
    assert_eq!(rig.tx.used().written, 0);
    assert_eq!(rig.counter(TX, "chains"), 1);
    assert_eq!(rig.counter(TX, "descriptors"), 2);
    assert_eq!(rig.counter(TX, "bytes"), 1000);
    assert_eq!(rig.counter(TX, "device_copied_bytes"), 0);
}

/// Split and packed, in whatever order and in order.
fn formats() -> [spec::Features; 4] {
    let packed = FEATURES.with(Feature::RingPacked);
    [FEATURES, FEATURES.with(Feature::InOrder), packed, packed.with(Feature::InOrder)]
}

#[test]
fn every_ring_format_carries_frames_of_every_shape_lap_after_lap() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Sink, features);
        let (mut frames, mut descriptors) = (0, 0);
        for round in 0..40_u16 {
            let mut out = 0;
            for n in 0..u32::from(1 + round % 20) {
                let one = [Buffer::readable(HEADER, NET_HEADER_LEN as u32 + 60 + n)];
                let three = [
                    Buffer::readable(HEADER, NET_HEADER_LEN as u32),
                    Buffer::readable(PAYLOAD, 14),
                    Buffer::readable(PAYLOAD + 4096, 46 + n),
                ];
                let table = Placement::Indirect(0x4_0000 + 64 * u64::from(n));
                let (chain, placement): (&[Buffer], _) = match (n + u32::from(round)) % 3 {
                    0 => (&three, Placement::Direct),
                    1 => (&three, table),
                    _ => (&one, Placement::Direct),
                };
                rig.tx.driver.add(chain, placement).unwrap();
                descriptors += chain.len() as u64;
                out += 1;
            }
            rig.tx.kick_if_wanted();
            (0..out).for_each(|_| assert_eq!(rig.tx.used().written, 0));
            frames += out;
        }
        assert_eq!((rig.counter(TX, "chains"), rig.counter(TX, "descriptors")), (frames, descriptors), "{features:?}");
        assert_eq!(rig.counter(TX, "errors"), 0);
    }
}

#[test]
fn a_ring_of_either_format_is_seen_as_it_stands() {
    for features in [FEATURES, FEATURES.with(Feature::RingPacked)] {
        let mut rig = Rig::with(&LinkKind::Sink, features);
        for _ in 0..3 {
            rig.send(100);
            rig.tx.used();
        }
        assert!(rig.workers.hold(TX, true));
        rig.send(200);
        let seen = super::status::rings(&rig.shared, Some(TX));
        let [ring] = seen.as_slice() else { panic!("one ring: {seen:?}") };
        assert_eq!(ring.faults, Vec::<String>::new());
        let [chain] = ring.chains.as_slice() else { panic!("one chain: {ring:?}") };
        let buffers: Vec<_> = chain.buffers.iter().map(|buffer| (buffer.addr, buffer.len)).collect();
        assert_eq!(buffers, [(HEADER, NET_HEADER_LEN as u32), (PAYLOAD, 200)]);
    }
}

#[test]
fn sink_copy_says_that_it_copies() {
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    rig.send(1000);
    rig.tx.used();
    assert_eq!(rig.counter(TX, "dma_read_bytes"), 1000);
    assert_eq!(rig.counter(TX, "device_copied_bytes"), 1000);
}

#[test]
fn a_looped_frame_waits_for_receive_buffers_and_spans_as_many_as_it_takes() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        let frame: Vec<u8> = (0..3000u32).map(|at| at as u8).collect();
        rig.ram.write(PAYLOAD, &frame).unwrap();
        rig.send(3000);
        rig.wait_for("starving", |rig| rig.counter(RX, "no_buffers") > 0 && rig.counter(TX, "link_full") > 0);
        rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
        rig.rx.add(&[Buffer::writable(RECEIVE + 0x1000, 2000)]);
        assert_eq!(rig.rx.used().written, 2000);
        assert_eq!(rig.rx.used().written, 1012);
        rig.tx.used();
        let header = rig.ram.read(RECEIVE, NET_HEADER_LEN).unwrap();
        assert_eq!(header[10..12], [2, 0], "num_buffers");
        let mut received = rig.ram.read(RECEIVE + 12, 1988).unwrap();
        received.extend(rig.ram.read(RECEIVE + 0x1000, 1012).unwrap());
        assert_eq!(received, frame);
        let counters = ["dma_read_bytes", "device_copied_bytes", "drops"].map(|name| rig.counter(TX, name));
        assert_eq!((counters, rig.counter(RX, "bytes")), ([3000, 0, 0], 3000));
    }
}

#[test]
fn a_frame_longer_than_all_the_buffers_of_a_full_ring_is_dropped_and_the_next_one_comes() {
    for features in formats() {
        for indirect in [false, true] {
            let mut rig = Rig::with(&LinkKind::Loopback, features);
            for n in 0..u64::from(SIZE) {
                let placement = if indirect { Placement::Indirect(0x4_0000 + 64 * n) } else { Placement::Direct };
                rig.rx.driver.add(&[Buffer::writable(RECEIVE + 100 * n, 100)], placement).unwrap();
            }
            rig.rx.kick_if_wanted();
            rig.send(u32::from(SIZE) * 100);
            rig.tx.used();
            rig.send(u32::from(SIZE) * 100 - 12);
            rig.tx.used();
            for _ in 0..SIZE {
                assert_eq!(rig.rx.used().written, 100);
            }
            assert_eq!((rig.counter(TX, "drops"), rig.counter(RX, "chains")), (1, u64::from(SIZE)), "{features:?}");
        }
    }
}

#[test]
fn looped_frames_wait_in_the_transmitq_and_none_is_lost() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        for _ in 0..SIZE / 2 {
            rig.send(60_000);
        }
        rig.wait_for("push back", |rig| rig.counter(TX, "link_full") > 0);
        assert!(rig.tx.driver.pop_used().unwrap().is_none(), "a frame went back before there was room for it");
        for _ in 0..SIZE / 2 {
            rig.rx.add(&[Buffer::writable(RECEIVE, 60_012)]);
            assert_eq!(rig.rx.used().written, 60_012);
            rig.tx.used();
        }
        assert_eq!(rig.counter(TX, "drops") + rig.counter(RX, "drops"), 0);
    }
}

#[test]
fn bursts_of_looped_frames_leave_the_buffers_they_do_not_need() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        for slot in 0..u64::from(SIZE) {
            rig.rx.add(&[Buffer::writable(RECEIVE + 0x100 * slot, 0x100)]);
        }
        // More and fewer than the device takes at a time, in sums that share no period with the ring.
        for burst in [1_u16, 40, 3, 17, 31].into_iter().cycle().take(40) {
            rig.ram.write(PAYLOAD, &[burst as u8; 60]).unwrap();
            let frame = [Buffer::readable(HEADER, 12), Buffer::readable(PAYLOAD, 60)];
            let sent = (0..burst).filter(|_| rig.tx.driver.add(&frame, Placement::Direct).is_ok()).count() as u64;
            rig.tx.kick_if_wanted();
            for _ in 0..sent {
                let used = rig.rx.used();
                assert_eq!(used.written, 72);
                rig.tx.used();
            }
            for slot in 0..sent {
                rig.rx.add(&[Buffer::writable(RECEIVE + 0x100 * slot, 0x100)]);
            }
        }
        let chains = [TX, RX].map(|queue| rig.counter(queue, "chains"));
        assert!(chains[0] > 500 && chains[0] == chains[1], "{chains:?}");
    }
}

#[test]
fn a_looped_frame_that_a_full_receiveq_cannot_hold_is_dropped_and_the_next_one_goes_through() {
    let small = FEATURES.without(Feature::MrgRxbuf);
    for (features, buffers) in [(FEATURES, SIZE), (small, 2)] {
        let mut rig = Rig::with(&LinkKind::Loopback, features);
        for _ in 0..buffers {
            rig.rx.add(&[Buffer::writable(RECEIVE, 100)]);
        }
        rig.send(60_000);
        rig.tx.used();
        assert_eq!(rig.counter(TX, "drop_link_error"), 1);
        rig.send(88);
        assert_eq!(rig.rx.used().written, 100);
        rig.tx.used();
    }
}

#[test]
fn a_looped_frame_waits_while_its_receiveq_is_held() {
    let mut rig = Rig::new(&LinkKind::Loopback);
    rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
    assert!(rig.workers.hold(RX, true));
    rig.send(100);
    // Two answers from the worker: it has looked at its queues in between.
    assert!(rig.workers.hold(RX, true) && rig.workers.hold(RX, true));
    assert!(rig.tx.driver.pop_used().unwrap().is_none() && rig.rx.driver.pop_used().unwrap().is_none());
    assert!(rig.workers.hold(RX, false));
    assert_eq!(rig.rx.used().written, 112);
    rig.tx.used();
}

#[test]
fn a_looped_frame_is_traced_on_either_queue() {
    let mut rig = Rig::new(&LinkKind::Loopback);
    rig.shared.tracers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let queues = [RX, TX].map(|queue| Arc::clone(&rig.shared.queues[usize::from(queue)]));
    let mut readers = queues.each_ref().map(|queue| queue.events.reader());
    rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
    rig.send(100);
    rig.rx.used();
    rig.tx.used();
    for (reader, written) in readers.iter_mut().zip([112, 0]) {
        let Some(Read::Event(event)) = reader.read() else { panic!("no event") };
        assert_eq!((event.frame_len, event.written), (100, written));
    }
}

#[test]
fn a_broken_chain_stops_its_ring_alone_and_a_restart_recovers_it() {
    let mut rig = Rig::new(&LinkKind::Loopback);
    rig.tx.add(&[Buffer::readable(RAM - 4, 60)]);
    assert!(readable(&rig.tx.err), "the err file tells");
    rig.wait_for("stopped", |rig| rig.shared.queues[1].state() == QueueState::Stopped);
    assert_eq!(rig.counter(TX, "error_unmapped"), 1);
    assert!(rig.shared.queues[1].error().unwrap().contains("0x3ffffc"), "{:?}", rig.shared.queues[1].error());
    assert_eq!(rig.shared.queues[0].state(), QueueState::Running);

    rig.device.stop_queue(TX);
    rig.tx = Queue::new(&rig.ram, 0x8000, FEATURES);
    rig.device.start_queue(TX, rig.tx.setup(0)).unwrap();
    rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
    rig.send(100);
    rig.tx.used();
    assert_eq!(rig.rx.used().written, 112);
    assert_eq!(rig.shared.queues[1].error(), None);
}

#[test]
fn a_chain_that_holds_no_frame_is_dropped_by_name_and_comes_back() {
    let mut rig = Rig::new(&LinkKind::Sink);
    rig.tx.add(&[Buffer::readable(HEADER, 12)]);
    rig.tx.used();
    assert_eq!((rig.counter(TX, "drops"), rig.counter(TX, "drop_no_frame")), (1, 1));
    rig.send(64);
    rig.tx.used();
    assert_eq!(rig.counter(TX, "bytes"), 64);
}

#[test]
fn a_held_queue_keeps_its_buffers_until_released_and_loses_none() {
    let mut rig = Rig::new(&LinkKind::Sink);
    assert!(rig.workers.hold(TX, true));
    for _ in 0..10 {
        rig.send(500);
    }
    // A command later the worker has seen the kicks and left the ring alone.
    assert!(rig.workers.hold(TX, true));
    assert_eq!(rig.shared.queues[1].state(), QueueState::Held);
    assert_eq!(rig.counter(TX, "chains"), 0);
    assert!(rig.workers.hold(TX, false));
    for _ in 0..10 {
        rig.tx.used();
    }
    assert_eq!(rig.counter(TX, "bytes"), 5000);
}

#[test]
fn a_hold_ends_with_the_session_and_the_next_one_gets_what_was_held() {
    let mut rig = Rig::new(&LinkKind::Sink);
    assert!(rig.workers.hold(TX, true));
    for _ in 0..3 {
        rig.send(500);
    }
    // The front-end goes away: nothing waits for the buffers, and none was taken.
    let base = rig.device.stop_queue(TX);
    rig.device.reset();
    assert_eq!(base, VringBase::split(0));
    assert_eq!(rig.shared.queues[1].state(), QueueState::Off);
    assert!(!rig.workers.hold(TX, false), "there is nothing to release");

    // The next one comes with the same rings.
    rig.device.set_features(FEATURES).unwrap();
    rig.device.set_memory(Arc::clone(rig.ram.memory())).unwrap();
    rig.device.start_queue(TX, rig.tx.setup(0)).unwrap();
    rig.wait_for("running", |rig| rig.shared.queues[1].state() == QueueState::Running);
    rig.send(500);
    for _ in 0..4 {
        rig.tx.used();
    }
    assert_eq!(rig.counter(TX, "bytes"), 2000);
}

#[test]
fn a_ring_whose_device_died_goes_on_where_its_used_ring_stands_whatever_the_front_end_says() {
    for base in [0, 9, 0x1234] {
        let mut rig = Rig::new(&LinkKind::Sink);
        for _ in 0..6 {
            rig.send(500);
            rig.tx.used();
        }
        let _ = rig.device.stop_queue(TX);
        for _ in 0..3 {
            rig.send(500);
        }
        rig.device.start_queue(TX, rig.tx.setup(base)).unwrap();
        for _ in 0..3 {
            rig.tx.used();
        }
        assert_eq!((rig.counter(TX, "chains"), rig.counter(TX, "errors")), (9, 0), "base {base}");
    }
}

#[test]
fn memory_replaced_under_a_held_queue_leaves_it_held() {
    let mut rig = Rig::new(&LinkKind::Sink);
    assert!(rig.workers.hold(TX, true));
    rig.send(500);
    let file = rig.ram.fd().try_clone_to_owned().unwrap();
    let again = memory::Memory::map(vec![(rig.ram.specs()[0], file)]).unwrap();
    rig.device.set_memory(Arc::new(again)).unwrap();
    assert!(rig.workers.hold(TX, true));
    assert_eq!(rig.shared.queues[1].state(), QueueState::Held);
    assert_eq!(rig.counter(TX, "chains"), 0);
    assert!(rig.workers.hold(TX, false));
    rig.tx.used();
    assert_eq!(rig.counter(TX, "bytes"), 500);
}

#[test]
fn a_disabled_queue_is_left_alone() {
    let mut rig = Rig::new(&LinkKind::Sink);
    rig.device.set_enabled(TX, false);
    rig.send(500);
    rig.device.set_enabled(TX, false);
    assert_eq!(rig.counter(TX, "chains"), 0);
    rig.device.set_enabled(TX, true);
    rig.tx.used();
}

#[test]
fn memory_can_be_replaced_under_running_queues() {
    let mut rig = Rig::new(&LinkKind::Sink);
    rig.send(100);
    rig.tx.used();
    let file = rig.ram.fd().try_clone_to_owned().unwrap();
    let again = memory::Memory::map(vec![(rig.ram.specs()[0], file)]).unwrap();
    rig.device.set_memory(Arc::new(again)).unwrap();
    rig.send(100);
    rig.tx.used();
    assert_eq!(rig.counter(TX, "chains"), 2);
}

#[test]
fn memory_without_the_rings_is_refused_and_the_old_goes_on() {
    let mut rig = Rig::new(&LinkKind::Sink);
    let error = rig.device.set_memory(Arc::new(memory::Memory::empty())).unwrap_err();
    assert!(error.to_string().contains("receiveq0"), "{error}");
    rig.send(100);
    rig.tx.used();
}

#[test]
fn a_truncated_memory_file_is_told_and_survived() {
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    nix::unistd::ftruncate(rig.ram.fd(), 0x10_0000).unwrap();
    rig.send(1000);
    let notice = rig.notices.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(notice, Notice::MemoryLost), "{notice:?}");
}

#[test]
fn a_kick_file_at_its_end_stops_the_queue_instead_of_spinning() {
    let mut rig = Rig::new(&LinkKind::Sink);
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(writer);
    rig.device.set_kick(TX, Some(Arc::new(reader))).unwrap();
    rig.wait_for("stopped", |rig| rig.counter(TX, "error_kick_file") == 1);
}

#[test]
fn a_full_pipe_for_a_call_file_does_not_hang_the_worker() {
    let mut rig = Rig::new(&LinkKind::Sink);
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    let size = nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_GETPIPE_SZ).unwrap();
    nix::unistd::write(&writer, &vec![0; size as usize]).unwrap();
    rig.device.set_call(TX, Some(Arc::new(writer)));
    rig.send(100);
    rig.wait_for("served", |rig| rig.counter(TX, "chains") == 1);
    assert!(rig.workers.hold(TX, false), "the worker still answers");
}

#[test]
fn a_traced_chain_shows_its_descriptors() {
    let mut rig = Rig::new(&LinkKind::Sink);
    let queue = Arc::clone(&rig.shared.queues[1]);
    let mut reader = queue.events.reader();
    rig.shared.tracers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    rig.send(1000);
    rig.tx.used();
    let Some(Read::Event(event)) = reader.read() else { panic!("no event") };
    let buffers: Vec<_> = event.buffers().iter().map(|buffer| (buffer.addr, buffer.len, buffer.writable)).collect();
    assert_eq!(buffers, [(HEADER, 12, false), (PAYLOAD, 1000, false)]);
    assert_eq!(event.frame_len, 1000);
}

#[test]
fn a_follower_that_is_too_slow_is_told_what_it_missed_and_it_is_counted() {
    const FRAMES: u64 = 12_000;
    let mut rig = Rig::new(&LinkKind::Sink);
    let (mut socket, client) = UnixStream::pair().unwrap();
    let shared = Arc::clone(&rig.shared);
    let follower = std::thread::spawn(move || super::trace::follow(&mut socket, &shared));
    rig.wait_for("tracing", |rig| rig.shared.traced());
    // Nobody reads meanwhile: what the socket does not hold is lost in the end.
    for _ in 0..FRAMES {
        rig.send(60);
        rig.tx.used();
    }
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut chains, mut lost) = (0, 0);
    let mut lines = std::io::BufReader::new(&client).lines();
    while chains + lost < FRAMES {
        match serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() {
            TraceEvent::Chain(_) => chains += 1,
            TraceEvent::Lost { queue, events } => {
                assert_eq!(queue, "transmitq0");
                lost += events;
            }
        }
    }
    assert_eq!(chains + lost, FRAMES);
    assert!(lost > 0 && chains > 0, "{chains} seen, {lost} lost");
    assert_eq!(rig.shared.queues[1].counts()["trace_lost"], lost);
    let metrics = super::metrics::text(&rig.shared);
    assert!(metrics.contains(&format!("vnic_queue_trace_lost_total{{queue=\"transmitq0\"}} {lost}\n")), "{metrics}");
    client.shutdown(std::net::Shutdown::Both).unwrap();
    follower.join().unwrap().unwrap();
}

#[test]
fn every_counter_is_in_the_status_and_in_the_metrics() {
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    rig.send(100);
    rig.tx.used();
    rig.tx.add(&[Buffer::readable(RAM, 12)]);
    rig.wait_for("error", |rig| rig.counter(TX, "errors") == 1);
    let status = super::status::status(&rig.shared);
    let metrics = super::metrics::text(&rig.shared);
    let of_tx = &status.queues[usize::from(TX)].counters;
    for name in QueueCounters::NAMES.iter().copied().chain(["trace_lost", "error_unmapped"]) {
        let line = format!("vnic_queue_{name}_total{{queue=\"transmitq0\"}} {}\n", of_tx[name]);
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    // The link's own are published at its next poll.
    let link = "vnic_link_transmitted_bytes_total 100\n";
    rig.wait_for("the link's counters", |rig| super::metrics::text(&rig.shared).contains(link));
}

/// An Ethernet + IPv4 + TCP header from 10.0.2.15:1000 to 10.0.2.2:9000 with this sequence number.
fn tcp_header(seq: u32, payload: u16) -> Vec<u8> {
    let mut bytes = vec![0x52, 0x55, 10, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 0x08, 0x00];
    bytes.extend([0x45, 0]);
    bytes.extend((40 + payload).to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    bytes.extend(1000u16.to_be_bytes());
    bytes.extend(9000u16.to_be_bytes());
    bytes.extend(seq.to_be_bytes());
    bytes.extend([0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

/// Watches a flow whose file is the two pages at [`PAYLOAD`] (its pages 5 and 6), sends segments of it, each as
/// (sequence number, address, length), and returns the books.
fn watched(segments: &[(u32, u64, u16)]) -> FlowBooks {
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    let flow = Flow { protocol: 6, local: "10.0.2.15:1000".parse().unwrap(), remote: "10.0.2.2:9000".parse().unwrap() };
    let pages = Arc::new(FilePages::new(&[PageRun { page: 5, gpa: PAYLOAD, count: 2 }]).unwrap());
    rig.workers.watch(Some(&FlowWatch::new(flow, pages)));
    for (seq, addr, len) in segments {
        let header = tcp_header(*seq, *len);
        rig.ram.write(HEADER + 12, &header).unwrap();
        rig.tx.add(&[Buffer::readable(HEADER, 12 + header.len() as u32), Buffer::readable(*addr, u32::from(*len))]);
        rig.tx.used();
    }
    let watches = rig.workers.watch(None);
    watches.iter().fold(FlowBooks::default(), |sum, watch| sum.plus(&watch.books()))
}

#[test]
fn payload_in_the_files_pages_is_told_from_payload_elsewhere() {
    let books = watched(&[(u32::MAX - 999, PAYLOAD, 4096), (3096, PAYLOAD + 4096, 1000), (4096, RECEIVE, 500)]);
    assert_eq!(books.device.payload_bytes, Some(5596));
    assert_eq!(books.device.from_page_cache_bytes, Some(5096));
    assert_eq!(books.device.from_elsewhere_bytes, Some(500));
    assert_eq!(books.device.retransmitted_bytes, Some(0));
    assert_eq!(books.device.dma_read_bytes, Some(5596));
    assert_eq!(books.device.chains, Some(3));
    assert_eq!(books.misplaced_bytes, 0);
}

#[test]
fn bytes_sent_again_are_counted_apart() {
    let books = watched(&[(1, PAYLOAD, 1000), (501, PAYLOAD + 500, 1000), (1, PAYLOAD, 200)]);
    assert_eq!(books.device.payload_bytes, Some(1500));
    assert_eq!(books.device.retransmitted_bytes, Some(700));
    assert_eq!(books.device.from_page_cache_bytes, Some(1500));
}

#[test]
fn a_page_of_the_file_at_the_wrong_place_of_the_stream_is_told() {
    let books = watched(&[(1, PAYLOAD, 4096), (4097, PAYLOAD, 4096)]);
    assert_eq!(books.misplaced_bytes, 4096);
}

/// The same with datagrams: (kind, offset, address, length).
fn watched_datagrams(datagrams: &[(Kind, u64, u64, u16)]) -> FlowBooks {
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    let flow =
        Flow { protocol: 17, local: "10.0.2.15:1000".parse().unwrap(), remote: "10.0.2.2:9000".parse().unwrap() };
    let pages = Arc::new(FilePages::new(&[PageRun { page: 0, gpa: PAYLOAD, count: 2 }]).unwrap());
    rig.workers.watch(Some(&FlowWatch::new(flow, pages)));
    for &(kind, offset, addr, len) in datagrams {
        // Ethernet and IPv4 of the TCP frame, with UDP in its place.
        let mut header = tcp_header(0, len + 12);
        header.truncate(34);
        header[23] = 17;
        header.extend(1000u16.to_be_bytes());
        header.extend(9000u16.to_be_bytes());
        header.extend((8 + HEADER_LEN as u16 + len).to_be_bytes());
        header.extend([0, 0]);
        header.extend(Header { kind, transfer: 5, offset }.to_bytes());
        rig.ram.write(HEADER + 12, &header).unwrap();
        rig.tx.add(&[Buffer::readable(HEADER, 12 + header.len() as u32), Buffer::readable(addr, u32::from(len))]);
        rig.tx.used();
    }
    let watches = rig.workers.watch(None);
    watches.iter().fold(FlowBooks::default(), |sum, watch| sum.plus(&watch.books()))
}

#[test]
fn a_file_in_datagrams_is_attributed_without_the_headers_between() {
    let books = watched_datagrams(&[
        (Kind::Data, 0, PAYLOAD, 1408),
        (Kind::Data, 1408, PAYLOAD + 1408, 1408),
        (Kind::Data, 2816, RECEIVE, 500),
        (Kind::Data, 0, PAYLOAD, 100),
        (Kind::End, 3316, PAYLOAD, 0),
    ]);
    assert_eq!(books.device.payload_bytes, Some(3316));
    assert_eq!((books.device.from_page_cache_bytes, books.device.from_elsewhere_bytes), (Some(2816), Some(500)));
    assert_eq!((books.device.retransmitted_bytes, books.misplaced_bytes), (Some(100), 0));
    assert_eq!((books.device.dma_read_bytes, books.device.chains), (Some(3416), Some(4)));
}

#[test]
fn a_datagram_that_says_another_place_is_misplaced_and_no_offset_overflows() {
    let wrong = watched_datagrams(&[(Kind::Data, 0, PAYLOAD, 1000), (Kind::Data, 1000, PAYLOAD, 1000)]);
    assert_eq!(wrong.misplaced_bytes, 1000);
    let books = watched_datagrams(&[(Kind::Data, u64::MAX, PAYLOAD, 1000), (Kind::Data, u64::MAX - 5, PAYLOAD, 1000)]);
    assert_eq!(books.device.payload_bytes.unwrap() + books.device.retransmitted_bytes.unwrap(), 2000);
}

#[test]
fn another_flow_is_not_counted() {
    let mut rig = Rig::new(&LinkKind::Sink);
    let flow = Flow { protocol: 6, local: "10.0.2.15:1001".parse().unwrap(), remote: "10.0.2.2:9000".parse().unwrap() };
    rig.workers.watch(Some(&FlowWatch::new(flow, Arc::default())));
    let header = tcp_header(1, 100);
    rig.ram.write(HEADER + 12, &header).unwrap();
    rig.tx.add(&[Buffer::readable(HEADER, 12 + header.len() as u32), Buffer::readable(PAYLOAD, 100)]);
    rig.tx.used();
    assert_eq!(rig.workers.watch(None)[0].books().device.chains, Some(0));
}

#[test]
fn every_counter_of_a_queue_rises_somewhere() {
    let counted = |queue: u16, rig: &Rig| rig.shared.queues[usize::from(queue)].counters.snapshot();
    let mut seen = std::collections::BTreeSet::new();
    let mut note = |counters: std::collections::BTreeMap<String, u64>| {
        seen.extend(counters.into_iter().filter(|(_, count)| *count > 0).map(|(name, _)| name));
    };
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    rig.send(100);
    rig.tx.used();
    rig.tx.driver.disable_notifications();
    rig.send(100);
    rig.wait_for("suppressed call", |rig| rig.counter(TX, "chains") == 2);
    rig.wait_for("suppressed call", |rig| rig.counter(TX, "calls_suppressed") > 0);
    rig.tx.add(&[Buffer::readable(HEADER, 12)]);
    rig.wait_for("drop", |rig| rig.counter(TX, "drops") == 1);
    rig.tx.add(&[Buffer::readable(RAM, 12)]);
    rig.wait_for("error", |rig| rig.counter(TX, "errors") == 1);
    note(counted(TX, &rig));
    let mut rig = Rig::new(&LinkKind::Loopback);
    for _ in 0..SIZE / 2 {
        rig.send(60_000);
    }
    rig.wait_for("full", |rig| rig.counter(TX, "link_full") > 0 && rig.counter(RX, "no_buffers") > 0);
    note(counted(TX, &rig));
    note(counted(RX, &rig));
    for name in QueueCounters::NAMES {
        assert!(seen.contains(*name), "{name} never rises");
    }
}
