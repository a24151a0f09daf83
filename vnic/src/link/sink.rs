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

/// Bytes for frames of `sink:copy`: a burst of DPDK's, 32 buffers of 2 KiB each; and room for the longest frame.
const POOL: usize = 64 << 10;

/// Where a frame may begin: at a cache line.
const ALIGN: usize = 64;

/// The port of `sink:copy`: a frame is gathered into host memory, each into the place behind the one before.
#[derive(Debug)]
pub struct CopyingSink {
    vanished: Vanished,
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
        CopyingSink { vanished: Vanished::new(), pool, next: 0 }
    }
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
}

impl Port for CopyingSink {
    #[inline(always)]
    fn transmit(&mut self, _pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        self.vanished.count(frame);
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

    fn poll(&mut self, _now: Instant) {
        self.vanished.publish();
    }

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.vanished.counters)
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
        port.poll(Instant::now());
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
