//! What one frame, and one odd driver, may cost.

use super::*;
use crate::link::{LinkCounters, LinkError, Received, Transmitted};
use crate::net::{Frame, MAX_BUFFERS, ReceiveSpace};
use crate::spec::net::NetHeader;

/// A receiveq of 8192 buffers of one byte each: fewer than the ring could have, more than a frame may take.
fn with_tiny_buffers(served: Served, features: spec::Features) -> Rig {
    let mut rig = Rig::of(served, features);
    rig.device.stop_queue(RX).unwrap();
    rig.rx = Queue::sized(&rig.ram, 0x10_0000, features, 16384);
    rig.device.start_queue(RX, rig.rx.setup_at(start_of(features))).unwrap();
    for _ in 0..8192 {
        rig.rx.driver.add(&[Buffer::writable(RECEIVE, 1)], Placement::Direct).unwrap();
    }
    rig.rx.driver.publish();
    nix::unistd::write(&rig.rx.kick, &1u64.to_ne_bytes()).unwrap();
    rig
}

#[test]
fn a_looped_frame_takes_no_more_buffers_than_the_text_allows() {
    for features in formats() {
        let mut rig = with_tiny_buffers(serve(vec![link::open(&LinkKind::Loopback, 1).unwrap()], 1), features);
        rig.send(MAX_BUFFERS as u32 - 11);
        rig.tx.used();
        rig.wait_for("the drop", |rig| rig.counter(TX, "drop_link_error") == 1);
        assert_eq!(rig.counter(RX, "chains"), 0, "{features:?}");
        rig.send(MAX_BUFFERS as u32 - 12);
        rig.tx.used();
        rig.wait_for("its buffers", |rig| rig.counter(RX, "chains") == MAX_BUFFERS as u64);
    }
}

/// One frame for the driver, until it is told what became of it.
struct OneFrame(Option<usize>);

impl Port for OneFrame {
    fn transmit(&mut self, _pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        Ok(Transmitted::Taken { read: frame.len, copied: 0 })
    }

    fn pending(&mut self, _pair: usize) -> Option<usize> {
        self.0
    }

    fn receive(&mut self, _pair: usize, space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        let len = self.0.take().unwrap_or(0);
        space
            .write(NetHeader::default(), &[&vec![0; len]])
            .map_err(|_| LinkError::Refused { bytes: len as u32, reason: "no room" })?;
        Ok(Received::Frame { bytes: len as u32 })
    }

    fn poll(&mut self, _now: Instant) {}

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::new(LinkCounters::new(&[]))
    }
}

#[test]
fn a_received_frame_takes_no_more_buffers_than_the_text_allows() {
    for (len, drops, chains) in [(MAX_BUFFERS - 11, 1, 0), (MAX_BUFFERS - 12, 0, MAX_BUFFERS as u64)] {
        let rig = with_tiny_buffers(on_port(OneFrame(Some(len)), PollMode::Adaptive, 1), FEATURES);
        let count = |rig: &Rig| (rig.counter(RX, "drops"), rig.counter(RX, "chains"));
        rig.wait_for("the frame's end", |rig| count(rig) == (drops, chains));
    }
}

/// A chain of 65 buffers in a ring of 64: more than the driver half makes, so its table is written by hand. And one whose flags
/// have no meaning.
pub(super) fn send_odd_chains(rig: &mut Rig) {
    let desc = rig.tx.layout.desc;
    let head = rig.tx.driver.add(&[Buffer::readable(HEADER, 1)], Placement::Indirect(0x4_0000)).unwrap();
    for at in 0..=SIZE {
        let rest = 1 | u64::from(at < SIZE) << 32 | u64::from(at + 1) << 48;
        rig.ram.write(0x4_0000 + 16 * u64::from(at), &[HEADER.to_le_bytes(), rest.to_le_bytes()].concat()).unwrap();
    }
    rig.ram.write(desc + 16 * u64::from(head) + 8, &(16 * u32::from(SIZE + 1)).to_le_bytes()).unwrap();
    rig.tx.kick_if_wanted();
    rig.tx.used();
    let head = rig.tx.driver.add(&[Buffer::readable(HEADER, 100)], Placement::Direct).unwrap();
    rig.ram.write(desc + 16 * u64::from(head) + 12, &[0x40, 0]).unwrap();
    rig.tx.kick_if_wanted();
    rig.tx.used();
}

#[test]
fn odd_chains_are_taken_and_counted_where_status_shows_them() {
    let mut rig = Rig::new(&LinkKind::Sink);
    send_odd_chains(&mut rig);
    assert_eq!(["chains", "long_chains", "unknown_flags", "errors"].map(|name| rig.counter(TX, name)), [2, 1, 1, 0]);
}
