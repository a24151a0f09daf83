//! Frames for the driver that its buffers cannot hold.

use std::collections::VecDeque;

use super::*;
use crate::link::{LinkCounters, LinkError, Received};
use crate::net::ReceiveSpace;
use crate::spec::net::NetHeader;

/// A link with frames of these lengths for the driver.
struct Pile(VecDeque<usize>);

impl Port for Pile {
    fn pending(&mut self, _pair: usize) -> Option<usize> {
        self.0.front().copied()
    }

    fn receive(&mut self, _pair: usize, space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        let Some(len) = self.0.pop_front() else { return Ok(Received::Nothing) };
        let bytes = u32::try_from(len).unwrap();
        match space.write(NetHeader::default(), &[&vec![7; len]]) {
            Ok(()) => Ok(Received::Frame { bytes }),
            Err(_) => Err(LinkError::Refused { bytes, reason: "longer than the driver's buffers" }),
        }
    }

    fn poll(&mut self, _now: Instant) {}

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::new(LinkCounters::new(&[]))
    }
}

#[test]
fn a_frame_longer_than_a_full_rings_buffers_is_dropped_and_the_next_one_spans_all_of_them() {
    for features in formats() {
        for indirect in [false, true] {
            let all = usize::from(SIZE) * 100;
            let pile = Pile([all - 11, all - 12].into());
            let (mut device, shared, _workers, _notices) = on_port(pile, PollMode::Adaptive, 1);
            let ram = GuestRam::new(RAM).unwrap();
            let mut rx = Queue::new(&ram, 0x1000, features);
            device.set_features(features).unwrap();
            device.set_memory(Arc::clone(ram.memory())).unwrap();
            device.start_queue(RX, rx.setup_at(start_of(features))).unwrap();
            let counters = &shared.queues[0].counters;
            for n in 0..u64::from(SIZE) {
                let placement = if indirect { Placement::Indirect(0x4_0000 + 64 * n) } else { Placement::Direct };
                rx.driver.add(&[Buffer::writable(RECEIVE + 100 * n, 100)], placement).unwrap();
                if n + 2 == u64::from(SIZE) {
                    // One that is missing may come yet.
                    rx.kick_if_wanted();
                    wait_for("the frame to wait", || counters.no_buffers.get() > 0);
                    assert_eq!(counters.drops.get(), 0);
                }
            }
            rx.kick_if_wanted();
            for _ in 0..SIZE {
                assert_eq!(rx.used().written, 100);
            }
            assert_eq!((counters.drops.get(), counters.chains.get()), (1, u64::from(SIZE)), "{features:?} {indirect}");
            assert_eq!(ram.read(RECEIVE, 12).unwrap()[10..12], SIZE.to_le_bytes());
        }
    }
}
