//! Frames for the driver that cannot be delivered.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::backend::BURST;
use crate::link::{LinkCounters, LinkError, Received};
use crate::net::ReceiveSpace;

/// A link with many frames, all longer than the driver's buffers.
struct Flood {
    left: u64,
    since_poll: u64,
    most: Arc<AtomicU64>,
}

impl Port for Flood {
    fn pending(&mut self, _pair: usize) -> Option<usize> {
        (self.left > 0).then_some(60)
    }

    fn receive(&mut self, _pair: usize, _space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        self.left -= 1;
        self.since_poll += 1;
        self.most.fetch_max(self.since_poll, Ordering::Relaxed);
        Err(LinkError::Refused { bytes: 9000, reason: "longer than the driver's buffers" })
    }

    fn poll(&mut self, _now: Instant) {
        self.since_poll = 0;
    }

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::new(LinkCounters::new(&[]))
    }
}

#[test]
fn frames_that_do_not_fit_count_towards_the_burst() {
    const FRAMES: u64 = 20 * BURST as u64;
    let most = Arc::<AtomicU64>::default();
    let port = Flood { left: FRAMES, since_poll: 0, most: Arc::clone(&most) };
    let mut rig = Rig::of(on_port(port, PollMode::Adaptive, 1), FEATURES);
    rig.rx.add(&[Buffer::writable(RECEIVE, 2000)]);
    rig.wait_for("all dropped", |rig| rig.counter(RX, "drop_link_error") == FRAMES);
    let most = most.load(Ordering::Relaxed);
    assert!(most <= u64::from(BURST), "{most} in one pass, while commands and the other queues wait");
    assert!(rig.rx.driver.pop_used().unwrap().is_none(), "the buffer is still the device's");
}
