//! Frames vanish: `sink` looks at nothing but the descriptors and the virtio-net header, `sink:copy` does what a NIC
//! that copies would do.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counters::counters;
use super::{LinkCounters, LinkError, Port, Received, Transmitted};
use crate::net::{Frame, MAX_FRAME_LEN, ReceiveSpace};
use crate::spec::Features;

counters!(Count { Frames = "transmitted_frames", Bytes = "transmitted_bytes", Copied = "copied_bytes" });

/// What both kinds count, and nothing else.
#[derive(Debug)]
struct Vanished {
    /// Since the last [`Port::poll`]: frames, their bytes.
    since: [u64; 2],
    counters: Arc<LinkCounters>,
}

impl Vanished {
    fn new() -> Self {
        Vanished { since: [0; 2], counters: Count::fresh() }
    }

    #[inline(always)]
    fn count(&mut self, frame: &Frame<'_>) {
        let [frames, bytes] = &mut self.since;
        *frames += 1;
        *bytes += u64::from(frame.len);
    }

    fn publish(&mut self) {
        for (count, since) in [Count::Frames, Count::Bytes].into_iter().zip(std::mem::take(&mut self.since)) {
            count.add(&self.counters, since);
        }
    }
}

/// The port of `sink`: no payload byte is read.
#[derive(Debug)]
pub struct Sink(Vanished);

impl Sink {
    /// A port of its own.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a port is opened, not defaulted")]
    pub fn new() -> Self {
        Sink(Vanished::new())
    }
}

/// The port of `sink:copy`: a frame is gathered into host memory, which is the DMA, and copied from there to where it
/// would be sent from.
#[derive(Debug)]
pub struct CopyingSink {
    vanished: Vanished,
    gathered: Box<[u8]>,
    outgoing: Box<[u8]>,
}

impl CopyingSink {
    /// A port of its own.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a port is opened, not defaulted")]
    pub fn new() -> Self {
        let buffer = || vec![0; MAX_FRAME_LEN as usize].into_boxed_slice();
        CopyingSink { vanished: Vanished::new(), gathered: buffer(), outgoing: buffer() }
    }
}

/// What a port does that has nothing for the driver.
macro_rules! receives_nothing {
    () => {
        fn pending(&mut self, _pair: usize) -> Option<usize> {
            None
        }

        fn receive(&mut self, _pair: usize, _space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
            Ok(Received::Nothing)
        }

        fn deadline(&mut self, _now: Instant) -> Option<Duration> {
            None
        }

        fn readable_fds(&self) -> Vec<BorrowedFd<'_>> {
            Vec::new()
        }

        fn negotiated(&mut self, _features: Features) -> Result<(), LinkError> {
            Ok(())
        }
    };
}

impl Port for Sink {
    #[inline(always)]
    fn transmit(&mut self, _pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        self.0.count(frame);
        Ok(Transmitted::Taken { read: 0, copied: 0 })
    }

    fn poll(&mut self, _now: Instant) {
        self.0.publish();
    }

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.0.counters)
    }

    receives_nothing!();
}

impl Port for CopyingSink {
    fn transmit(&mut self, _pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        self.vanished.count(frame);
        let read = frame.copy_to(&mut self.gathered);
        if let (Some(to), Some(from)) = (self.outgoing.get_mut(..read), self.gathered.get(..read)) {
            to.copy_from_slice(from);
        }
        // Nobody reads `outgoing`: keep the copy from being optimised away.
        std::hint::black_box(&self.outgoing);
        Count::Copied.add(&self.vanished.counters, read as u64);
        // A frame is no longer than MAX_FRAME_LEN.
        Ok(Transmitted::Taken { read: read as u32, copied: read as u32 })
    }

    fn poll(&mut self, _now: Instant) {
        self.vanished.publish();
    }

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.vanished.counters)
    }

    receives_nothing!();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::features::OFFERED;
    use crate::net::testing::Nic;
    use crate::spec::net::NetHeader;

    #[test]
    fn a_sink_reads_no_payload() {
        let (mut nic, mut port) = (Nic::new(OFFERED, 0, 0), Sink::new());
        let taken = nic.transmit(&mut port, NetHeader::default(), &[7; 9000]).unwrap();
        assert_eq!(taken, Transmitted::Taken { read: 0, copied: 0 });
        assert_eq!(port.pending(0), None);
        port.poll(Instant::now());
        assert_eq!((port.counters().get("transmitted_frames"), port.counters().get("transmitted_bytes")), (1, 9000));
    }

    #[test]
    fn a_copying_sink_reads_once_and_copies_once() {
        let (mut nic, mut port) = (Nic::new(OFFERED, 0, 0), CopyingSink::new());
        let frames = [vec![1; 14], vec![2; 9000], vec![3; MAX_FRAME_LEN as usize]];
        for frame in &frames {
            let len = frame.len() as u32;
            let taken = nic.transmit(&mut port, NetHeader::default(), frame).unwrap();
            assert_eq!(taken, Transmitted::Taken { read: len, copied: len });
            let outgoing = &port.outgoing;
            assert!(outgoing[..frame.len()] == frame[..], "the second copy is made");
        }
        assert_eq!(port.counters().get("copied_bytes"), frames.iter().map(|frame| frame.len() as u64).sum::<u64>());
    }
}
