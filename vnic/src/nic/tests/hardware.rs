//! A model of hardware beside the data path. Lower bounds only: how long things take at least does not depend on the machine.

use super::*;
use crate::hardware::{Applied, Direction};
use crate::link::{LinkCounters, LinkError, Received};
use crate::net::ReceiveSpace;
use crate::nic::hardware::Accounting;
use crate::nic::{self, Beside};
use crate::spec::net::NetHeader;

fn rig(hardware: &str, port: impl Port + 'static, features: spec::Features) -> Rig {
    rig_of(hardware.parse().unwrap(), port, features)
}

fn rig_of(applied: Applied, port: impl Port + 'static, features: spec::Features) -> Rig {
    let beside = Beside { hardware: Some(&applied), ..Beside::default() };
    Rig::of(started(Vec::new(), PollMode::Adaptive, 1, |workers, plan| nic::add(workers, port, beside, plan)), features)
}

fn sink() -> crate::link::sink::Sink {
    crate::link::sink::Sink::new()
}

#[test]
fn chains_are_accounted_as_they_pass() {
    for features in formats() {
        let mut rig = rig("82599", sink(), features);
        for _ in 0..5 {
            rig.send(1000);
            rig.tx.used();
        }
        let shapes = nic::shapes(&rig.workers);
        let sent = &shapes["transmitq0"];
        // The virtio-net header in front of the frame is none of a card's business.
        assert_eq!((sent.chains, sent.bytes, sent.piece_count()), (5, 5000, 5), "{features:?}");
        assert_eq!(sent.pages.of_lru(64), (4, 1));
        assert_eq!(shapes["receiveq0"].chains, 0);
    }
}

#[test]
fn a_nic_without_a_model_has_no_account() {
    let mut rig = Rig::new(&LinkKind::Sink);
    rig.send(1000);
    rig.tx.used();
    assert!(nic::shapes(&rig.workers).is_empty());
}

#[test]
fn what_comes_back_from_a_loopback_is_accounted_in_both_directions() {
    let mut rig = rig("82599", crate::link::loopback::Loopback::new(), FEATURES);
    rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
    rig.send(500);
    rig.rx.used();
    rig.tx.used();
    let shapes = nic::shapes(&rig.workers);
    assert_eq!(["transmitq0", "receiveq0"].map(|queue| (shapes[queue].chains, shapes[queue].bytes)), [(1, 500); 2]);
}

#[test]
fn no_more_is_looked_at_than_there_is_time_for() {
    let mut accounting = Accounting::new();
    let shared = Shared::new(About::default(), [queue_name(TX)], Vec::new());
    let queue = &shared.queues[0];
    accounting.have(queue);
    let start = Instant::now();
    accounting.refill(start);
    let mut seen = 0;
    while accounting.looks() {
        accounting.add(queue, crate::hardware::Kind::default(), [(0, 64), (4096, 64)].into_iter());
        seen += 2;
    }
    accounting.add(queue, crate::hardware::Kind::default(), [(0, 64)].into_iter());
    assert_eq!(
        accounting.shapes()["transmitq0"].piece_count(),
        seen,
        "what came when there was no time left is not seen"
    );
    for (after, looks) in [(1, false), (19, false), (21, true)] {
        accounting.refill(start + Duration::from_millis(after));
        assert_eq!(accounting.looks(), looks, "after {after} ms: only as many as before are worth a look");
    }
}

/// Each frame of 1000 bytes keeps the port busy for 8.192 ms: 1024 bytes at 1 Mb/s.
const SLOW: &str = "82599,line=0.001G:pace";
const EACH: Duration = Duration::from_micros(8192);

#[test]
fn a_chain_comes_back_no_earlier_than_the_card_is_done_with_it() {
    for features in formats() {
        let mut rig = rig("82599,line=0.01G:pace", sink(), features);
        let start = Instant::now();
        for _ in 0..20 {
            rig.send(1000);
        }
        for count in 1..=20 {
            rig.tx.used();
            let took = start.elapsed();
            assert!(took >= EACH / 10 * count, "{count} frames after {took:?}, {features:?}");
        }
        assert_eq!(["chains", "bytes", "link_full", "drops"].map(|name| rig.counter(TX, name)), [20, 20_000, 0, 0]);
    }
}

#[test]
fn a_card_that_was_idle_takes_its_time_again() {
    let mut rig = rig(SLOW, sink(), FEATURES);
    for _ in 0..3 {
        let start = Instant::now();
        rig.send(1000);
        rig.tx.used();
        assert!(start.elapsed() >= EACH, "{:?}", start.elapsed());
    }
}

#[test]
fn what_the_card_works_on_goes_back_once_when_its_queue_is_taken_away() {
    for features in formats() {
        // The card takes 82 ms.
        let mut rig = rig("82599,line=0.0001G:pace", sink(), features);
        rig.send(1000);
        let sent = |rig: &Rig| nic::shapes(&rig.workers)["transmitq0"].chains;
        rig.wait_for("the frame to go out", |rig| sent(rig) == 1);
        assert_eq!(rig.counter(TX, "chains"), 0, "it is still the card's, {features:?}");
        let base = rig.device.stop_queue(TX).unwrap();
        rig.device.start_queue(TX, rig.tx.setup_at(base)).unwrap();
        rig.tx.used();
        assert_eq!((rig.counter(TX, "chains"), sent(&rig)), (1, 1), "{features:?}");
    }
}

/// Sends a frame and looks until its chain is back, whether the driver is told or not; it wants to be told of the next.
fn send_and_look(rig: &mut Rig) {
    rig.send(1000);
    let deadline = Instant::now() + PATIENCE;
    while rig.tx.driver.pop_used().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the chain is not back within {PATIENCE:?}");
        std::thread::yield_now();
    }
    rig.tx.driver.enable_notifications();
}

#[test]
fn a_driver_is_told_no_sooner_than_the_cards_throttle_allows() {
    for features in formats() {
        let mut rig = rig("82599,itr=20ms:pace", sink(), features);
        let told = |rig: &Rig, times| rig.wait_for("the driver to be told", |rig| rig.counter(TX, "calls") >= times);
        rig.tx.driver.enable_notifications();
        let start = Instant::now();
        send_and_look(&mut rig);
        told(&rig, 1);
        for times in 2..5 {
            (0..10).for_each(|_| send_and_look(&mut rig));
            told(&rig, times);
        }
        // The throttle began with the first; what came between was told of together.
        let most = 2 + start.elapsed().as_millis() as u64 / 20;
        assert!(rig.counter(TX, "calls") <= most, "more than {most} times, {features:?}");
    }
}

#[test]
fn a_call_that_waits_is_sent_when_its_queue_is_taken_away() {
    for features in formats() {
        let mut applied: Applied = "82599:pace".parse().unwrap();
        applied.model.hardware.as_mut().unwrap().itr = Duration::from_secs(600);
        let mut rig = rig_of(applied, sink(), features);
        rig.tx.driver.enable_notifications();
        (0..20).for_each(|_| send_and_look(&mut rig));
        assert_eq!(["chains", "calls"].map(|name| rig.counter(TX, name)), [20, 1], "the next is due in ten minutes");
        rig.device.stop_queue(TX).unwrap();
        assert_eq!(rig.counter(TX, "calls"), 2, "{features:?}");
    }
}

#[test]
fn an_ideal_card_paces_nothing() {
    let mut rig = rig("ideal:pace", sink(), FEATURES);
    (0..20).for_each(|_| rig.send(1000));
    (0..20).for_each(|_| assert_eq!(rig.tx.used().written, 0));
    assert_eq!(nic::shapes(&rig.workers)["transmitq0"].chains, 20);
}

/// A link with so many frames of 1000 bytes for the driver.
struct Frames(u32);

impl Port for Frames {
    fn pending(&mut self, _pair: usize) -> Option<usize> {
        (self.0 > 0).then_some(1000)
    }

    fn receive(&mut self, _pair: usize, space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        self.0 -= 1;
        space.write(NetHeader::default(), &[&[7; 1000]]).unwrap();
        Ok(Received::Frame { bytes: 1000 })
    }

    fn poll(&mut self, _now: Instant) {}

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::new(LinkCounters::new(&[]))
    }
}

#[test]
fn frames_for_the_driver_come_no_faster_than_the_card_brings_them() {
    let mut rig = rig("82599,line=0.01G:pace", Frames(20), FEATURES);
    let start = Instant::now();
    for _ in 0..20 {
        rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
    }
    for count in 0..20 {
        assert_eq!(rig.rx.used().written, 1012);
        let took = start.elapsed();
        assert!(took >= EACH / 10 * count, "{count} frames before this one, after {took:?}");
    }
    let received = &nic::shapes(&rig.workers)["receiveq0"];
    let cost = "82599".parse::<crate::hardware::Model>().unwrap().account(Direction::Receive, received);
    assert_eq!((cost.chains, cost.payload_bytes), (20, 20_000));
}

/// The card has one translation, and a look-up takes 5 ms: the driver's buffer and the frame's take it from each other. Sent to
/// nobody, the frames would need no look-up but the first.
#[test]
fn what_comes_back_from_a_loopback_comes_no_faster_than_the_card_brings_it() {
    for features in formats() {
        let mut rig = rig("82599,iotlb=1,iotlb-miss=5ms:pace", crate::link::loopback::Loopback::new(), features);
        let start = Instant::now();
        for _ in 0..10 {
            rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
            rig.send(1000);
        }
        for count in 0..10 {
            rig.rx.used();
            let took = start.elapsed();
            assert!(took >= Duration::from_millis(10) * count, "{count} frames before this one, after {took:?}");
        }
        for _ in 0..10 {
            rig.tx.used();
        }
        assert_eq!(rig.counter(TX, "link_full"), 0, "it is the card that holds them back: {features:?}");
    }
}
