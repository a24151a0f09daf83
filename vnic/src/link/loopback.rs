//! Frames come back on the receive queue of the pair they were sent on.
//!
//! Operation: a frame is gathered into the port's memory (the DMA read) and written from there into the driver's
//! buffers (the DMA write); nothing is copied in between. A full buffer pushes back, so that no frame is lost.
//!
//! The driver gets its own virtio-net header back: VIRTIO 1.3, 5.1.6.4 lets a device hand over a frame with a partial
//! checksum, or one to be segmented, to a driver that accepted `guest_csum` or `guest_tso*`. To one that did not, the
//! checksum is completed here; a frame too large for it is refused.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counters::counters;
use super::{LinkCounters, LinkError, Port, Received, Transmitted};
use crate::net::{Frame, ReceiveSpace, checksum};
use crate::spec::net::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM, NetHeader};
use crate::spec::{Feature, Features};

/// Bytes on their way back, per queue pair, at which the port says `Full`.
const CAPACITY: usize = 256 << 10;

counters!(Count {
    Frames = "transmitted_frames",
    Bytes = "transmitted_bytes",
    Full = "transmit_full",
    Received = "received_frames",
    ReceivedBytes = "received_bytes",
    GsoUnwanted = "dropped_gso_not_accepted",
    NoRoom = "dropped_no_room",
});

/// The port of a loopback.
#[derive(Debug)]
pub struct Loopback {
    pairs: Vec<Lane>,
    features: Features,
    counters: Arc<LinkCounters>,
}

/// One pair's frames on their way back.
#[derive(Debug, Default)]
struct Lane {
    frames: VecDeque<(NetHeader, Vec<u8>)>,
    bytes: usize,
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
}

impl Lane {
    fn pop(&mut self) -> Option<(NetHeader, Vec<u8>)> {
        let (header, frame) = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some((header, frame))
    }
}

impl Loopback {
    /// A loopback for this many queue pairs.
    #[must_use]
    pub fn new(pairs: usize) -> Self {
        let pairs = (0..pairs).map(|_| Lane::default()).collect();
        Loopback { pairs, features: Features::NONE, counters: Count::fresh() }
    }
}

impl Port for Loopback {
    fn transmit(&mut self, pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        let bytes = frame.len;
        let Some(lane) = self.pairs.get_mut(pair) else {
            return Err(LinkError::Refused { bytes, reason: "no such queue pair" });
        };
        let accepted = match frame.header.gso_type & !GSO_ECN {
            GSO_NONE => true,
            GSO_TCPV4 => self.features.has(Feature::GuestTso4),
            GSO_TCPV6 => self.features.has(Feature::GuestTso6),
            _ => false,
        } && (frame.header.gso_type & GSO_ECN == 0 || self.features.has(Feature::GuestEcn));
        if !accepted {
            Count::GsoUnwanted.add(&self.counters, 1);
            return Err(LinkError::Refused { bytes, reason: "the driver does not accept frames to be segmented" });
        }
        // One frame always fits, however long.
        if lane.bytes > 0 && lane.bytes + bytes as usize > CAPACITY {
            Count::Full.add(&self.counters, 1);
            return Ok(Transmitted::Full);
        }
        let mut buffer = lane.spare.pop().unwrap_or_default();
        buffer.resize(bytes as usize, 0);
        let read = frame.copy_to(&mut buffer);
        let mut header = frame.header;
        if header.flags & HDR_F_NEEDS_CSUM != 0 && !self.features.has(Feature::GuestCsum) {
            // `Frame` checked that the field is within the frame.
            let done = checksum::complete(&mut buffer, header.csum_start, header.csum_offset);
            debug_assert!(done, "checksum field beyond the frame");
            header = NetHeader::default();
        } else if header.flags & HDR_F_NEEDS_CSUM == 0 && self.features.has(Feature::GuestCsum) {
            // It never left the machine, so what the driver computed holds.
            header.flags = HDR_F_DATA_VALID;
        }
        lane.bytes += buffer.len();
        lane.frames.push_back((header, buffer));
        Count::Frames.add(&self.counters, 1);
        Count::Bytes.add(&self.counters, u64::from(bytes));
        // A frame's length is 32 bits.
        Ok(Transmitted::Taken { read: read as u32, copied: 0 })
    }

    fn pending(&mut self, pair: usize) -> Option<usize> {
        self.pairs.get(pair)?.frames.front().map(|(_, frame)| frame.len())
    }

    fn receive(&mut self, pair: usize, space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        let Some((lane, (header, frame))) =
            self.pairs.get_mut(pair).and_then(|lane| lane.pop().map(|popped| (lane, popped)))
        else {
            return Ok(Received::Nothing);
        };
        // No longer than the transmitted frame, whose length is 32 bits.
        let bytes = frame.len() as u32;
        let written = space.write(header, &[&frame]);
        lane.spare.push(frame);
        if written.is_err() {
            Count::NoRoom.add(&self.counters, 1);
            return Err(LinkError::Refused { bytes, reason: "longer than the driver's buffers" });
        }
        Count::Received.add(&self.counters, 1);
        Count::ReceivedBytes.add(&self.counters, u64::from(bytes));
        Ok(Received::Frame { bytes })
    }

    fn poll(&mut self, _now: Instant) {}

    fn deadline(&mut self, _now: Instant) -> Option<Duration> {
        None
    }

    fn readable_fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    fn negotiated(&mut self, features: Features) -> Result<(), LinkError> {
        self.features = features;
        // What an earlier driver sent is not for this one.
        for lane in &mut self.pairs {
            while let Some((_, frame)) = lane.pop() {
                lane.spare.push(frame);
            }
        }
        Ok(())
    }

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.counters)
    }
}
