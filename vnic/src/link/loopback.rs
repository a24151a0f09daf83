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

/// Room for frames on their way back, per queue pair, bytes: several of the longest.
const CAPACITY: usize = 256 << 10;
/// Frames on their way back, per queue pair.
const MAX_FRAMES: usize = 2048;

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

/// One pair's frames on their way back, in a buffer that goes round; each frame is in one piece.
#[derive(Debug)]
struct Lane {
    bytes: Box<[u8]>,
    frames: VecDeque<Held>,
}

/// A frame at `start` of the lane's bytes.
#[derive(Debug, Clone, Copy)]
struct Held {
    header: NetHeader,
    start: usize,
    len: usize,
}

impl Lane {
    fn new() -> Self {
        Lane { bytes: vec![0; CAPACITY].into_boxed_slice(), frames: VecDeque::with_capacity(MAX_FRAMES) }
    }

    /// Where `len` bytes have room.
    fn place(&self, len: usize) -> Option<usize> {
        let (Some(first), Some(last)) = (self.frames.front(), self.frames.back()) else { return Some(0) };
        if self.frames.len() >= MAX_FRAMES {
            return None;
        }
        let end = last.start + last.len;
        if last.start >= first.start {
            // Behind the last one, or at the front again.
            if len <= self.bytes.len() - end { Some(end) } else { (len <= first.start).then_some(0) }
        } else {
            (len <= first.start - end).then_some(end)
        }
    }
}

impl Loopback {
    /// A loopback for this many queue pairs.
    #[must_use]
    pub fn new(pairs: usize) -> Self {
        let pairs = (0..pairs).map(|_| Lane::new()).collect();
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
        let room = lane.place(bytes as usize);
        let room = room.and_then(|start| Some((start, lane.bytes.get_mut(start..start + bytes as usize)?)));
        let Some((start, buffer)) = room else {
            Count::Full.add(&self.counters, 1);
            return Ok(Transmitted::Full);
        };
        let read = frame.copy_to(buffer);
        let mut header = frame.header;
        if header.flags & HDR_F_NEEDS_CSUM != 0 && !self.features.has(Feature::GuestCsum) {
            // `Frame` checked that the field is within the frame.
            let done = checksum::complete(buffer, header.csum_start, header.csum_offset);
            debug_assert!(done, "checksum field beyond the frame");
            header = NetHeader::default();
        } else if header.flags & HDR_F_NEEDS_CSUM == 0 && self.features.has(Feature::GuestCsum) {
            // It never left the machine, so what the driver computed holds.
            header.flags = HDR_F_DATA_VALID;
        }
        lane.frames.push_back(Held { header, start, len: bytes as usize });
        Count::Frames.add(&self.counters, 1);
        Count::Bytes.add(&self.counters, u64::from(bytes));
        // A frame's length is 32 bits.
        Ok(Transmitted::Taken { read: read as u32, copied: 0 })
    }

    fn pending(&mut self, pair: usize) -> Option<usize> {
        self.pairs.get(pair)?.frames.front().map(|held| held.len)
    }

    fn receive(&mut self, pair: usize, space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        let Some(lane) = self.pairs.get_mut(pair) else { return Ok(Received::Nothing) };
        let Some(Held { header, start, len }) = lane.frames.pop_front() else { return Ok(Received::Nothing) };
        let frame = lane.bytes.get(start..start + len).unwrap_or_default();
        // No longer than the transmitted frame, whose length is 32 bits.
        let bytes = len as u32;
        let written = space.write(header, &[frame]);
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
        self.pairs.iter_mut().for_each(|lane| lane.frames.clear());
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

    const TSO: NetHeader = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };

    fn loopback(features: Features) -> Loopback {
        let mut port = Loopback::new(1);
        port.negotiated(features).unwrap();
        port
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 13 + at / 255) as u8).collect()
    }

    #[test]
    fn frames_come_back_in_order_with_their_headers() {
        let mut nic = Nic::new(OFFERED, 64, 2048);
        let mut port = loopback(OFFERED);
        for len in [14, 60, 1514, 65_000] {
            let taken = nic.transmit(&mut port, TSO_IF[usize::from(len > 1514)], &pattern(len)).unwrap();
            assert_eq!(taken, Transmitted::Taken { read: len as u32, copied: 0 });
        }
        for len in [14, 60, 1514, 65_000] {
            assert_eq!(port.pending(0), Some(len));
            let (header, frame) = nic.receive(&mut port).unwrap().unwrap();
            let expected = if len > 1514 { TSO } else { NetHeader { flags: HDR_F_DATA_VALID, ..NetHeader::default() } };
            assert_eq!(NetHeader { num_buffers: 0, ..header }, expected);
            assert!(frame == pattern(len));
        }
        assert_eq!(port.pending(0), None);
        assert!(nic.receive(&mut port).is_none());
        for name in ["transmitted", "received"] {
            assert_eq!(port.counters.get(&format!("{name}_frames")), 4);
            assert_eq!(port.counters.get(&format!("{name}_bytes")), 14 + 60 + 1514 + 65_000);
        }
    }

    const TSO_IF: [NetHeader; 2] = [
        NetHeader { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0, num_buffers: 0 },
        TSO,
    ];

    #[test]
    fn a_full_loopback_pushes_back_and_loses_nothing() {
        let mut nic = Nic::new(OFFERED, 64, 2048);
        let mut port = loopback(OFFERED);
        let mut sent = 0_usize;
        while nic.transmit(&mut port, NetHeader::default(), &pattern(1000 + sent)).unwrap() != Transmitted::Full {
            sent += 1;
            assert!(sent < 1000, "nothing bounds it");
        }
        let (_, frame) = nic.receive(&mut port).unwrap().unwrap();
        assert!(frame == pattern(1000));
        assert_ne!(nic.transmit(&mut port, NetHeader::default(), &pattern(1000)).unwrap(), Transmitted::Full);
        let mut back = 1;
        while let Some(frame) = nic.receive(&mut port) {
            let len = if back == sent { 1000 } else { 1000 + back };
            assert!(frame.unwrap().1 == pattern(len));
            back += 1;
        }
        assert_eq!(back, sent + 1);
        assert_eq!(port.counters.get("transmit_full"), 1);
    }

    #[test]
    fn the_buffer_goes_round_without_mixing_frames_up() {
        let mut nic = Nic::new(OFFERED, 64, 2048);
        let mut port = loopback(OFFERED);
        let mut waiting = VecDeque::new();
        for turn in 0..400_usize {
            // Lengths and moments that share no period with the buffer's size.
            let len = 14 + turn * 7919 % 60_000;
            if nic.transmit(&mut port, NetHeader::default(), &pattern(len)).unwrap() != Transmitted::Full {
                waiting.push_back(len);
            }
            while waiting.len() > turn % 3 {
                assert!(nic.receive(&mut port).unwrap().unwrap().1 == pattern(waiting.pop_front().unwrap()));
            }
        }
        assert!(port.counters.get("transmit_full") == 0 && port.counters.get("received_frames") > 390);
    }

    #[test]
    fn short_frames_are_bounded_in_number() {
        let mut nic = Nic::new(OFFERED, 64, 2048);
        let mut port = loopback(OFFERED);
        let sent = (0..)
            .take_while(|_| nic.transmit(&mut port, NetHeader::default(), &pattern(14)).unwrap() != Transmitted::Full);
        assert_eq!(sent.take(MAX_FRAMES * 2).count(), MAX_FRAMES);
    }

    #[test]
    fn a_driver_without_guest_csum_gets_whole_checksums() {
        let features = OFFERED.without(Feature::GuestCsum);
        let mut nic = Nic::new(features, 8, 2048);
        let mut port = loopback(features);
        let csum = NetHeader { gso_type: GSO_NONE, gso_size: 0, hdr_len: 0, ..TSO };
        nic.transmit(&mut port, csum, &pattern(200)).unwrap();
        let (header, frame) = nic.receive(&mut port).unwrap().unwrap();
        assert_eq!(header, NetHeader { num_buffers: 1, ..NetHeader::default() });
        let mut expected = pattern(200);
        assert!(checksum::complete(&mut expected, 34, 16));
        assert!(frame == expected && frame != pattern(200));
    }

    #[test]
    fn a_frame_to_be_segmented_needs_a_driver_that_takes_it() {
        let features = OFFERED.without(Feature::GuestTso4);
        let mut nic = Nic::new(features, 8, 2048);
        let mut port = loopback(features);
        assert!(nic.transmit(&mut port, TSO, &pattern(3000)).is_err());
        assert_eq!(port.counters.get("dropped_gso_not_accepted"), 1);
        let v6 = NetHeader { gso_type: GSO_TCPV6 | GSO_ECN, ..TSO };
        assert!(nic.transmit(&mut port, v6, &pattern(3000)).is_ok());
        port.negotiated(OFFERED.without(Feature::GuestEcn)).unwrap();
        assert_eq!(port.pending(0), None, "what an earlier driver sent is not for this one");
        assert!(nic.transmit(&mut port, v6, &pattern(3000)).is_err());
    }

    #[test]
    fn a_frame_longer_than_the_drivers_buffers_is_counted() {
        let features = OFFERED.without(Feature::MrgRxbuf);
        let mut nic = Nic::new(features, 8, 100);
        let mut port = loopback(features);
        nic.transmit(&mut port, NetHeader::default(), &pattern(89)).unwrap();
        nic.transmit(&mut port, NetHeader::default(), &pattern(88)).unwrap();
        assert!(nic.receive(&mut port).unwrap().is_err());
        assert!(nic.receive(&mut port).unwrap().unwrap().1 == pattern(88));
        assert_eq!(port.counters.get("dropped_no_room"), 1);
    }

    #[test]
    fn a_pair_that_is_not_there_is_refused() {
        let mut nic = Nic::new(OFFERED, 8, 2048);
        let mut none = Loopback::new(0);
        assert!(nic.transmit(&mut none, NetHeader::default(), &pattern(60)).is_err());
        assert!(nic.receive(&mut none).is_none());
    }
}
