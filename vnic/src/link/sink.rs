//! Frames vanish: `sink` looks at nothing but the descriptors and the virtio-net header, `sink:copy` gathers every frame
//! into buffers of its own, as DPDK's vhost does into its mbufs.
//!
//! The gathering is the one read of each byte (`dma_read_bytes`), and it is a CPU that does it: where a card would have
//! read the bytes on their way out, they now lie in the host's memory once more. So the same bytes count as
//! `device_copied_bytes` too.

use std::sync::Arc;
use std::time::Instant;

use super::counters::counters;
use super::{LinkCounters, LinkError, Port, Transmitted};
use crate::net::{Frame, MAX_FRAME_LEN};

counters!(Count { Frames = "transmitted_frames", Bytes = "transmitted_bytes" });

fn count(counters: &LinkCounters, frames: u64, bytes: u64) {
    Count::Frames.add(counters, frames);
    Count::Bytes.add(counters, bytes);
}

/// The port of `sink`: no payload byte is read.
#[derive(Debug)]
pub struct Sink(Arc<LinkCounters>);

impl Sink {
    /// A port of its own.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a port is opened, not defaulted")]
    pub fn new() -> Self {
        Sink(Count::fresh())
    }
}

/// Bytes for frames of `sink:copy`: a burst of DPDK's, 32 buffers of 2 KiB each; and room for the longest frame.
const POOL: usize = 64 << 10;

/// Where a frame may begin: at a cache line.
const ALIGN: usize = 64;

/// The port of `sink:copy`: a frame is gathered into host memory, each into the place behind the one before.
#[derive(Debug)]
pub struct CopyingSink {
    counters: Arc<LinkCounters>,
    pool: Box<[u8]>,
    /// Where the next frame goes.
    next: usize,
}

impl CopyingSink {
    /// A port of its own.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a port is opened, not defaulted")]
    pub fn new() -> Self {
        let pool = vec![0; POOL + MAX_FRAME_LEN as usize].into_boxed_slice();
        CopyingSink { counters: Count::fresh(), pool, next: 0 }
    }
}

impl Port for Sink {
    #[inline(always)]
    fn transmit(&mut self, _pair: usize, _frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        Ok(Transmitted::Taken { read: 0, copied: 0 })
    }

    fn transmitted(&mut self, frames: u64, bytes: u64) {
        count(&self.0, frames, bytes);
    }

    fn poll(&mut self, _now: Instant) {}

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.0)
    }
}

impl Port for CopyingSink {
    const READS: bool = true;

    #[inline(always)]
    fn transmit(&mut self, _pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        // `next` is below POOL, and behind that there is room for any frame.
        let room = self.pool.get_mut(self.next..).unwrap_or_default();
        let read = frame.copy_to(room);
        // Nobody reads it: keep the copy from being optimised away.
        std::hint::black_box(room.as_ptr());
        let next = self.next + read.next_multiple_of(ALIGN);
        self.next = if next < POOL { next } else { 0 };
        // A frame is no longer than MAX_FRAME_LEN.
        Ok(Transmitted::Taken { read: read as u32, copied: read as u32 })
    }

    fn transmitted(&mut self, frames: u64, bytes: u64) {
        count(&self.counters, frames, bytes);
    }

    fn poll(&mut self, _now: Instant) {}

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
        let (mut nic, mut port) = (Nic::new(OFFERED, 0, 0), Sink::new());
        let taken = nic.transmit(&mut port, NetHeader::default(), &[7; 9000]).unwrap();
        assert_eq!(taken, Transmitted::Taken { read: 0, copied: 0 });
        assert_eq!(port.pending(0), None);
        port.transmitted(1, 9000);
        assert_eq!((port.counters().get("transmitted_frames"), port.counters().get("transmitted_bytes")), (1, 9000));
    }

    #[test]
    fn a_copying_sink_gathers_each_frame_once_and_next_to_the_one_before() {
        let (mut nic, mut port) = (Nic::new(OFFERED, 0, 0), CopyingSink::new());
        let lengths = [14, 15, 16, 17, 64, 127, 128, 129, 9000, MAX_FRAME_LEN as usize];
        let mut at = 0;
        for len in lengths {
            let frame: Vec<u8> = (0..len).map(|byte| (byte * 7 + len) as u8).collect();
            let taken = nic.transmit(&mut port, NetHeader::default(), &frame).unwrap();
            assert_eq!(taken, Transmitted::Taken { read: len as u32, copied: len as u32 });
            assert!(port.pool[at..][..len] == frame[..], "a frame of {len} bytes at {at}");
            at += len.next_multiple_of(ALIGN);
        }
        assert_eq!(port.next, 0, "it begins anew once the pool is full");
    }
}
