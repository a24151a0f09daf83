//! A NIC whose back-end died in the middle of its work, and the next: with a record of what was in flight, which the front-end kept, and
//! without one, as QEMU has its network cards.
//!
//! The one that died is one that stands still: its link keeps what it was given, it is told of nothing any more, and what it held of
//! memory stays as it is. The next has the same memory, and the same record.

use std::os::fd::OwnedFd;

use super::late::{Late, Seen};
use super::*;
use crate::memory::SharedArea;
use crate::spec::vhost_user::Inflight;

/// Frames that the first one has when it dies: as many as its link keeps.
const KEPT: usize = 8;
const AREA: u64 = 1 << 16;

/// Split and packed, in any order: what comes back in order is in the ring itself.
fn recorded() -> [spec::Features; 2] {
    [FEATURES, FEATURES.with(Feature::RingPacked)]
}

struct Scene {
    ram: GuestRam,
    rx: Queue,
    tx: Queue,
    features: spec::Features,
    area: Option<OwnedFd>,
    /// The one that died: to be kept, as a thread that is gone touches nothing.
    _dead: (Served, Arc<Seen>),
    added: u64,
}

impl Scene {
    /// A back-end that has sent `before` frames and given them back, and died with [`KEPT`] more.
    fn after_a_death(features: spec::Features, area: bool, before: usize) -> Self {
        let ram = GuestRam::new(RAM).unwrap();
        let (rx, tx) = (Queue::new(&ram, 0x1000, features), Queue::new(&ram, 0x8000, features));
        let area = area.then(|| SharedArea::file(AREA).unwrap());
        let seen = Arc::new(Seen::default());
        let mut dead = on_port(Late::new(Arc::clone(&seen)), PollMode::Adaptive, 1);
        start(&mut dead.0, &ram, [&rx, &tx], features, area.as_ref());
        let mut scene = Scene { ram, rx, tx, features, area, _dead: (dead, Arc::clone(&seen)), added: 0 };
        for _ in 0..before {
            scene.add();
            seen.allow(1);
            scene.tx.used();
        }
        (0..KEPT).for_each(|_| scene.add());
        wait_for("the frames to be under way", || seen.kept.load(std::sync::atomic::Ordering::Relaxed) == KEPT);
        // It hears nothing any more.
        (scene.tx.kick, scene.rx.kick) = (event(), event());
        scene
    }

    /// Adds a frame with its number in it.
    fn add(&mut self) {
        let at = PAYLOAD + 0x100 * self.added;
        self.ram.write(at, &[self.added as u8; 60]).unwrap();
        self.tx.add(&[Buffer::readable(HEADER, NET_HEADER_LEN as u32), Buffer::readable(at, 60)]);
        self.added += 1;
    }

    /// The next back-end, with this link.
    fn next(&self, link: &LinkKind) -> Served {
        let mut served = serve(vec![link::open(link, 1).unwrap()], 1);
        start(&mut served.0, &self.ram, [&self.rx, &self.tx], self.features, self.area.as_ref());
        served
    }
}

fn start(device: &mut Backend, ram: &GuestRam, queues: [&Queue; 2], features: spec::Features, area: Option<&OwnedFd>) {
    device.set_features(features).unwrap();
    device.set_memory(Arc::clone(ram.memory())).unwrap();
    if let Some(area) = area {
        let told = Inflight { mmap_size: AREA, mmap_offset: 0, num_queues: 2, queue_size: SIZE };
        device.set_in_flight_area(Some((area.try_clone().unwrap(), told))).unwrap();
    }
    for (index, queue) in (0..).zip(queues) {
        device.start_queue(index, queue.setup_at(start_of(features))).unwrap();
    }
}

fn counts(shared: &Shared, names: [&str; 3]) -> [u64; 3] {
    let counters = shared.queues[usize::from(TX)].counters.snapshot();
    names.map(|name| counters[name])
}

#[test]
fn frames_on_record_are_sent_once_more_and_each_buffer_comes_back_once() {
    for features in recorded() {
        for before in [0, 5, 100] {
            let mut scene = Scene::after_a_death(features, true, before);
            // Added while nobody was there.
            (0..3).for_each(|_| scene.add());
            let (_device, shared, ..) = scene.next(&LinkKind::Sink);
            for _ in 0..KEPT + 3 {
                assert_eq!(scene.tx.used().written, 0);
            }
            // It goes on as if nothing had been, round the ring and more.
            for _ in 0..2 * SIZE {
                scene.add();
                scene.tx.used();
            }
            let all = (KEPT + 3 + 2 * usize::from(SIZE)) as u64;
            let kept = KEPT as u64;
            assert_eq!(counts(&shared, ["chains", "resumed", "in_doubt"]), [all, kept, kept], "{features:?} {before}");
            assert_eq!(counts(&shared, ["drops", "link_full", "no_buffers"]), [0; 3]);
        }
    }
}

/// The link has no room for what is taken again: it stays on record, and goes in its order once there is.
#[test]
fn frames_on_record_wait_for_room_and_keep_their_order() {
    for features in recorded() {
        let mut scene = Scene::after_a_death(features, true, 5);
        let (device, shared, ..) = scene.next(&LinkKind::Loopback);
        wait_for("starving", || counts(&shared, ["link_full"; 3])[0] > 0);
        scene.add();
        for number in 0..=KEPT as u64 {
            scene.rx.add(&[Buffer::writable(RECEIVE + 0x1000 * number, 2000)]);
            assert_eq!(scene.rx.used().written, 72);
            scene.tx.used();
            let frame = scene.ram.read(RECEIVE + 0x1000 * number + 12, 1).unwrap();
            assert_eq!(u64::from(frame[0]), 5 + number, "{features:?}");
        }
        assert_eq!(counts(&shared, ["resumed", "in_doubt", "drops"]), [KEPT as u64, KEPT as u64, 0]);
        drop(device);
    }
}

/// An area that is handed on from one to the next without a death between them has nothing in it.
#[test]
fn nothing_is_on_record_of_what_went_back() {
    for features in recorded() {
        for link in [LinkKind::Sink, LinkKind::Loopback] {
            let ram = GuestRam::new(RAM).unwrap();
            let (mut rx, mut tx) = (Queue::new(&ram, 0x1000, features), Queue::new(&ram, 0x8000, features));
            let area = SharedArea::file(AREA).unwrap();
            let mut bases = [start_of(features); 2];
            for _ in 0..3 {
                let (mut device, shared, ..) = serve(vec![link::open(&link, 1).unwrap()], 1);
                device.set_features(features).unwrap();
                device.set_memory(Arc::clone(ram.memory())).unwrap();
                let told = Inflight { mmap_size: AREA, mmap_offset: 0, num_queues: 2, queue_size: SIZE };
                device.set_in_flight_area(Some((area.try_clone().unwrap(), told))).unwrap();
                device.start_queue(RX, rx.setup_at(bases[0])).unwrap();
                device.start_queue(TX, tx.setup_at(bases[1])).unwrap();
                for _ in 0..100 {
                    rx.add(&[Buffer::writable(RECEIVE, 2000)]);
                    tx.add(&[Buffer::readable(HEADER, 12), Buffer::readable(PAYLOAD, 60)]);
                    tx.used();
                    if link == LinkKind::Loopback {
                        rx.used();
                    } else {
                        rx = Queue::new(&ram, 0x1000, features);
                        device.stop_queue(RX).unwrap();
                        ram.write(0x1000, &[0; 0x2000]).unwrap();
                        device.start_queue(RX, rx.setup_at(start_of(features))).unwrap();
                    }
                }
                bases = [device.stop_queue(RX).unwrap(), device.stop_queue(TX).unwrap()];
                let resumed = shared.queues.iter().map(|queue| queue.counters.snapshot()["resumed"]).sum::<u64>();
                assert_eq!(resumed, 0, "{link} {features:?}");
            }
        }
    }
}

/// Without a record, the used ring says where to go on, and nothing what had been sent: that is said. With IN_ORDER there is none,
/// whatever the front-end keeps.
#[test]
fn without_a_record_all_that_waits_is_sent_and_what_may_have_been_before_is_said() {
    let in_order = FEATURES.with(Feature::InOrder);
    for (features, area) in [(FEATURES, false), (in_order, false), (in_order, true)] {
        for before in [1, 70] {
            let mut scene = Scene::after_a_death(features, area, before);
            (0..3).for_each(|_| scene.add());
            let (_device, shared, ..) = scene.next(&LinkKind::Sink);
            let all = KEPT as u64 + 3;
            // The driver takes them in order, each once, however many the device gives back with one used element.
            (0..all).for_each(|_| assert_eq!(scene.tx.used().written, 0));
            assert_eq!(counts(&shared, ["chains", "resumed", "in_doubt"]), [all; 3], "{features:?} {area} {before}");
            scene.add();
            scene.tx.used();
        }
    }
}

#[test]
fn of_a_ring_that_is_new_nothing_is_in_doubt() {
    for features in formats() {
        let mut rig = Rig::with(&LinkKind::Sink, features);
        rig.send(60);
        rig.tx.used();
        assert_eq!(counts(&rig.shared, ["chains", "resumed", "in_doubt"]), [1, 0, 0]);
    }
}

/// For the test that every counter of a queue rises somewhere.
pub(super) fn counts_of_a_queue_in_doubt() -> std::collections::BTreeMap<String, u64> {
    let mut scene = Scene::after_a_death(FEATURES, false, 1);
    let (_device, shared, ..) = scene.next(&LinkKind::Sink);
    (0..KEPT).for_each(|_| assert_eq!(scene.tx.used().written, 0));
    shared.queues[usize::from(TX)].counters.snapshot()
}
