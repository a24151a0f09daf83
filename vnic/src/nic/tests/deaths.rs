//! A worker that dies.

use super::*;
use crate::link::{LinkCounters, LinkError, Transmitted};
use crate::net::Frame;

/// A link with a bug.
struct Bomb;

impl Port for Bomb {
    fn transmit(&mut self, _pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        panic!("a frame of {} bytes was too much", frame.len);
    }

    fn poll(&mut self, _now: Instant) {}

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::new(LinkCounters::new(&[]))
    }
}

#[test]
fn a_worker_that_panics_says_so() {
    let mut rig = Rig::of(on_port(Bomb, PollMode::Adaptive, 1), FEATURES);
    rig.send(77);
    let notice = rig.notices.recv_timeout(PATIENCE).expect("a notice");
    assert!(matches!(&notice, Notice::Failed(why) if why.contains("a frame of 77 bytes was too much")), "{notice:?}");
}
