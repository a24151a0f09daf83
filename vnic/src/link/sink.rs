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

/// What is done to a frame before it vanishes.
#[derive(Debug)]
enum Treatment {
    /// Nothing: no payload byte is read.
    Ignore,
    /// It is gathered into host memory, which is the DMA, and copied from there to where it would be sent from.
    Copy { gathered: Box<[u8]>, outgoing: Box<[u8]> },
}

/// The port of a sink.
#[derive(Debug)]
pub struct Sink {
    treatment: Treatment,
    counters: Arc<LinkCounters>,
}

impl Sink {
    /// `sink`.
    #[must_use]
    pub fn ignoring() -> Self {
        Sink { treatment: Treatment::Ignore, counters: Count::fresh() }
    }

    /// `sink:copy`.
    #[must_use]
    pub fn copying() -> Self {
        let buffer = || vec![0; MAX_FRAME_LEN as usize].into_boxed_slice();
        let treatment = Treatment::Copy { gathered: buffer(), outgoing: buffer() };
        Sink { treatment, counters: Count::fresh() }
    }
}

impl Port for Sink {
    fn transmit(&mut self, _pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        Count::Frames.add(&self.counters, 1);
        Count::Bytes.add(&self.counters, u64::from(frame.len));
        let Treatment::Copy { gathered, outgoing } = &mut self.treatment else {
            return Ok(Transmitted::Taken { read: 0, copied: 0 });
        };
        let read = frame.copy_to(gathered);
        for (to, from) in outgoing.chunks_mut(read.max(1)).zip(gathered.chunks(read.max(1))).take(1) {
            to.copy_from_slice(from);
        }
        // Nobody reads `outgoing`: keep the copy from being optimised away.
        std::hint::black_box(&outgoing);
        Count::Copied.add(&self.counters, read as u64);
        // A frame is no longer than MAX_FRAME_LEN.
        Ok(Transmitted::Taken { read: read as u32, copied: read as u32 })
    }

    fn pending(&mut self, _pair: usize) -> Option<usize> {
        None
    }

    fn receive(&mut self, _pair: usize, _space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        Ok(Received::Nothing)
    }

    fn poll(&mut self, _now: Instant) {}

    fn deadline(&mut self, _now: Instant) -> Option<Duration> {
        None
    }

    fn readable_fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn negotiated(&mut self, _features: Features) -> Result<(), LinkError> {
        Ok(())
    }

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.counters)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::features::OFFERED;
    use crate::net::testing::Nic;
    use crate::spec::net::NetHeader;

    #[test]
    fn a_sink_reads_no_payload() {
        let (mut nic, mut port) = (Nic::new(OFFERED, 0, 0), Sink::ignoring());
        let taken = nic.transmit(&mut port, NetHeader::default(), &[7; 9000]).unwrap();
        assert_eq!(taken, Transmitted::Taken { read: 0, copied: 0 });
        assert_eq!(port.pending(0), None);
        assert_eq!((port.counters.get("transmitted_frames"), port.counters.get("transmitted_bytes")), (1, 9000));
    }

    #[test]
    fn a_copying_sink_reads_once_and_copies_once() {
        let (mut nic, mut port) = (Nic::new(OFFERED, 0, 0), Sink::copying());
        let frames = [vec![1; 14], vec![2; 9000], vec![3; MAX_FRAME_LEN as usize]];
        for frame in &frames {
            let len = frame.len() as u32;
            let taken = nic.transmit(&mut port, NetHeader::default(), frame).unwrap();
            assert_eq!(taken, Transmitted::Taken { read: len, copied: len });
            let Treatment::Copy { outgoing, .. } = &port.treatment else { panic!() };
            assert!(outgoing[..frame.len()] == frame[..], "the second copy is made");
        }
        assert_eq!(port.counters.get("copied_bytes"), frames.iter().map(|frame| frame.len() as u64).sum::<u64>());
    }
}
