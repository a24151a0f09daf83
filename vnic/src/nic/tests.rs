//! The data path as a driver meets it: the driver half of the rings, real workers, real eventfds.

mod bounds;
mod capture;
mod deaths;
pub(crate) mod dirty;
mod drops;
mod endless;
mod faults;
mod features;
mod hardware;
mod holds;
mod iommu;
mod labelled;
mod late;
mod long;
mod looped;
mod observed;
mod pairs;
mod polled;
mod recorded;
mod regions;
mod seen;
mod unmapped;

use std::io::BufRead as _;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Nic, queue_name};
use crate::backend::{About, Backend, NamedCounters, Notice, Notices, Plan, PollMode, QueueState, Shared, Workers};
use crate::link::{self, AnyPort, Capture, LinkKind, Port};
use crate::memory::testing::GuestRam;
use crate::net::features::OFFERED;
use crate::observe::counters::QueueCounters;
use crate::observe::protocol::TraceEvent;
use crate::observe::tracer::Read;
use crate::ring::{Buffer, DriverRing, PackedDriver, Placement, RingLayout, SplitDriver, Used};
use crate::spec::Feature;
use crate::spec::net::NET_HEADER_LEN;
use crate::vhost_user::{Device, PackedIndex, QueueSetup, RingAddresses, VringBase};
use crate::{memory, spec};

const RX: u16 = 0;
const TX: u16 = 1;
const SIZE: u16 = 64;
pub(crate) const RAM: u64 = 4 << 20;
const HEADER: u64 = 0x10_0000;
const PAYLOAD: u64 = 0x20_0000;
const RECEIVE: u64 = 0x30_0000;
const PATIENCE: Duration = Duration::from_secs(10);

/// One queue, seen by its driver.
pub(crate) struct Queue {
    layout: RingLayout,
    pub(crate) driver: Box<dyn DriverRing>,
    kick: Arc<OwnedFd>,
    call: Arc<OwnedFd>,
    err: Arc<OwnedFd>,
}

impl Queue {
    pub(crate) fn new(ram: &GuestRam, base: u64, features: spec::Features) -> Self {
        Queue::sized(ram, base, features, SIZE)
    }

    pub(crate) fn sized(ram: &GuestRam, base: u64, features: spec::Features, size: u16) -> Self {
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

    pub(crate) fn setup_at(&self, base: VringBase) -> QueueSetup {
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

    pub(crate) fn add(&mut self, buffers: &[Buffer]) {
        self.driver.add(buffers, Placement::Direct).unwrap();
        self.kick_if_wanted();
    }

    pub(crate) fn kick_if_wanted(&mut self) {
        if self.driver.publish() {
            nix::unistd::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
        }
    }

    /// Waits for the call, never by the clock alone, and takes what came back.
    pub(crate) fn used(&mut self) -> Used {
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

pub(crate) const FEATURES: spec::Features = OFFERED
    .without(Feature::RingPacked)
    .without(Feature::InOrder)
    .without(Feature::AccessPlatform)
    .without(Feature::LogAll);

/// Where a new ring begins.
pub(crate) fn start_of(features: spec::Features) -> VringBase {
    let start = PackedIndex { slot: 0, wrap: true };
    if features.has(Feature::RingPacked) { VringBase::packed(start, start) } else { VringBase::split(0) }
}

/// A device, and those who do its work.
type Served = (Backend, Arc<Shared>, Arc<Workers>, Receiver<Notice>);

/// A device of this many pairs, with a worker per port.
fn serve(ports: Vec<AnyPort>, pairs: u16) -> Served {
    serve_captured(ports, pairs, None)
}

fn serve_captured(ports: Vec<AnyPort>, pairs: u16, capture: Option<&Capture>) -> Served {
    let counters = ports.iter().map(|port| port.counters() as Arc<dyn NamedCounters>).collect();
    started(counters, PollMode::Adaptive, pairs, |workers, plan| {
        *workers = super::start(ports, super::Beside { capture, hardware: None }, plan)?;
        Ok(())
    })
}

/// The same with one worker, on a port of the test's own.
fn on_port(port: impl Port + 'static, poll: PollMode, pairs: u16) -> Served {
    on_ports([port], poll, pairs)
}

/// The same with a worker for each of these ports.
fn on_ports<P: Port + 'static>(ports: impl IntoIterator<Item = P>, poll: PollMode, pairs: u16) -> Served {
    started(Vec::new(), poll, pairs, |workers, plan| {
        ports.into_iter().try_for_each(|port| super::add(workers, port, super::Beside::default(), plan))
    })
}

fn started(
    counters: Vec<Arc<dyn NamedCounters>>,
    poll: PollMode,
    pairs: u16,
    start: impl FnOnce(&mut Workers, &Plan<'_>) -> std::io::Result<()>,
) -> Served {
    let about = About { device: "net", offered: OFFERED, ..About::default() };
    let shared = Arc::new(Shared::new(about, (0..2 * pairs).map(queue_name), counters));
    let (workers, notices) = with_notices(&shared, poll, super::GROUP, start);
    let nic = Nic { offered: OFFERED, queue_pairs: pairs, queue_size: 1024 };
    (Backend::new(nic, Arc::clone(&shared), Arc::clone(&workers)), shared, workers, notices)
}

fn with_notices(
    shared: &Arc<Shared>,
    poll: PollMode,
    group: u16,
    start: impl FnOnce(&mut Workers, &Plan<'_>) -> std::io::Result<()>,
) -> (Arc<Workers>, Receiver<Notice>) {
    let (channel, inbox) = channel();
    let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    let mut workers = Workers::new(group);
    start(&mut workers, &Plan { shared, notices: &Notices { channel, wake }, poll, cpus: &[] }).unwrap();
    (Arc::new(workers), inbox)
}

/// Shared state and workers of a device of any kind.
pub(crate) fn with_workers(
    about: About,
    queues: impl IntoIterator<Item = String>,
    start: impl FnOnce(&mut Workers, &Plan<'_>) -> std::io::Result<()>,
) -> (Arc<Shared>, Arc<Workers>, Receiver<Notice>) {
    let shared = Arc::new(Shared::new(about, queues, Vec::new()));
    let (workers, inbox) = with_notices(&shared, PollMode::Adaptive, 1, start);
    (shared, workers, inbox)
}

struct Rig {
    ram: GuestRam,
    device: Backend,
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
        Rig::of(serve(vec![link::open(link, 1).unwrap()], 1), features)
    }

    fn of(served: Served, features: spec::Features) -> Self {
        Rig::in_ram(served, features, GuestRam::new(RAM).unwrap())
    }

    fn in_ram((device, shared, workers, notices): Served, features: spec::Features, ram: GuestRam) -> Self {
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
pub(crate) fn wait_for(what: &str, condition: impl Fn() -> bool) {
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
pub(crate) fn formats() -> [spec::Features; 4] {
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
fn sink_copy_says_that_it_copies() {
    let mut rig = Rig::new(&LinkKind::SinkCopy);
    rig.send(1000);
    rig.tx.used();
    assert_eq!(rig.counter(TX, "dma_read_bytes"), 1000);
    assert_eq!(rig.counter(TX, "device_copied_bytes"), 1000);
}

#[test]
fn a_disabled_receiveq_is_left_alone() {
    let mut rig = Rig::new(&LinkKind::Loopback);
    rig.device.set_enabled(RX, false).unwrap();
    rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
    rig.send(500);
    rig.device.set_enabled(RX, false).unwrap();
    assert_eq!((rig.counter(RX, "chains"), rig.counter(TX, "chains")), (0, 0));
    rig.device.set_enabled(RX, true).unwrap();
    rig.rx.used();
    rig.tx.used();
}

/// "vhost-user protocol, Ring states": a ring that is started and disabled has no side effects; what is to be sent is
/// processed and discarded.
#[test]
fn a_disabled_transmitq_is_processed_and_its_frames_are_discarded() {
    for features in formats() {
        for link in [LinkKind::Sink, LinkKind::Loopback] {
            let mut rig = Rig::with(&link, features);
            rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
            rig.device.set_enabled(TX, false).unwrap();
            for _ in 0..3 {
                rig.send(500);
                assert_eq!(rig.tx.used().written, 0);
            }
            let counts = ["chains", "bytes", "drops", "drop_disabled"].map(|name| rig.counter(TX, name));
            assert_eq!((counts, rig.counter(RX, "chains")), ([3, 0, 3, 3], 0), "{link} {features:?}");
            rig.device.set_enabled(TX, true).unwrap();
            rig.send(500);
            rig.tx.used();
            assert_eq!(rig.counter(TX, "bytes"), 500);
        }
    }
}

/// A front-end starts a ring first and enables it then, and a driver that lost its device has frames waiting in it.
#[test]
fn what_waits_in_a_transmitq_that_is_started_and_not_yet_enabled_is_sent_once_it_is() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Sink, features);
        rig.device.stop_queue(TX).unwrap();
        let setup = rig.tx.setup_at(start_of(features));
        rig.device.start_queue(TX, QueueSetup { enabled: false, ..setup }).unwrap();
        rig.send(500);
        // Answered between two passes.
        rig.device.set_enabled(RX, true).unwrap();
        rig.device.set_enabled(RX, true).unwrap();
        assert_eq!((rig.counter(TX, "chains"), rig.counter(TX, "drops")), (0, 0), "{features:?}");
        rig.device.set_enabled(TX, true).unwrap();
        rig.tx.used();
        assert_eq!((rig.counter(TX, "bytes"), rig.counter(TX, "drops")), (500, 0), "{features:?}");
    }
}

#[test]
fn queues_are_named_as_the_driver_sees_them() {
    assert_eq!([0, 3].map(queue_name), ["receiveq0", "transmitq1"]);
    let (_, shared, ..) = serve(vec![link::open(&LinkKind::Sink, 2).unwrap()], 2);
    assert_eq!(["receiveq0", "transmitq1", "transmitq2"].map(|name| shared.index_of(name)), [Some(0), Some(3), None]);
}
