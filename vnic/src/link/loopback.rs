//! Frames come back on the receive queue of the pair they were sent on.
//!
//! Operation: a frame goes straight from the buffers it was sent in into those it is received in, one copy from guest
//! memory to guest memory. While the receiveq has no room, it stays where it is: none is lost.
//!
//! The driver gets its own virtio-net header back: VIRTIO 1.3, 5.1.6.4 lets a device hand over a frame with a partial
//! checksum, or one to be segmented, to a driver that accepted `guest_csum`, `guest_tso*` or `guest_uso*`. To one that
//! did not, the checksum is completed here, in memory of the port, as it is known only when the whole frame has been read; a frame
//! too large for such a driver is refused. A frame that leaves nothing to the device comes back with an empty header:
//! nobody has looked at its checksum, so none is called valid.

use std::sync::Arc;
use std::time::Instant;

use super::counters::counters;
use super::{LinkCounters, LinkError, Port};
use crate::net::{Frame, MAX_FRAME_LEN, NoRoom, ReceiveSpace, checksum};
use crate::spec::net::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, HDR_F_NEEDS_CSUM, NetHeader};
use crate::spec::{Feature, Features};

counters!(Count {
    Frames = "looped_frames",
    Bytes = "looped_bytes",
    GsoUnwanted = "dropped_gso_not_accepted",
    NoRoom = "dropped_no_room",
});

/// The port of a loopback.
#[derive(Debug)]
pub struct Loopback {
    features: Features,
    /// Where a frame is that lacks its checksum; empty while no driver needs that.
    whole: Box<[u8]>,
    /// Since the last [`Port::poll`]: frames, their bytes.
    since: [u64; 2],
    counters: Arc<LinkCounters>,
}

impl Loopback {
    /// A loopback, for any number of queue pairs.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a port is opened, not defaulted")]
    pub fn new() -> Self {
        Loopback { features: Features::NONE, whole: Box::default(), since: [0; 2], counters: Count::fresh() }
    }

    /// Does the driver take frames of this `gso_type`?
    fn accepts(&self, gso_type: u8) -> bool {
        let has = |feature| self.features.has(feature);
        let kind = match gso_type & !GSO_ECN {
            GSO_NONE => true,
            GSO_TCPV4 => has(Feature::GuestTso4),
            GSO_TCPV6 => has(Feature::GuestTso6),
            // The type does not say which IP it is.
            GSO_UDP_L4 => has(Feature::GuestUso4) && has(Feature::GuestUso6),
            _ => false,
        };
        kind && (gso_type & GSO_ECN == 0 || has(Feature::GuestEcn))
    }

    /// A frame that leaves something to the device.
    #[inline(never)]
    fn hairpin_offloaded(&mut self, frame: &Frame<'_>, space: &mut ReceiveSpace<'_>) -> Result<(), LinkError> {
        let bytes = frame.len;
        if !self.accepts(frame.header.gso_type) {
            Count::GsoUnwanted.add(&self.counters, 1);
            return Err(LinkError::Refused { bytes, reason: "the driver does not accept frames to be segmented" });
        }
        if self.features.has(Feature::GuestCsum) {
            let copied = space.copy(frame.header, frame);
            return self.counted(frame, copied);
        }
        let NetHeader { csum_start, csum_offset, .. } = frame.header;
        let whole = self.whole.get_mut(..bytes as usize).unwrap_or_default();
        frame.copy_to(whole);
        // `Frame` checked that the field is within the frame.
        let done = checksum::complete(whole, csum_start, csum_offset);
        debug_assert!(done, "checksum field beyond the frame");
        let written = space.write(NetHeader::default(), &[whole]);
        self.counted(frame, written)
    }

    /// Counts what became of a frame.
    #[inline(always)]
    fn counted(&mut self, frame: &Frame<'_>, outcome: Result<(), NoRoom>) -> Result<(), LinkError> {
        if outcome.is_err() {
            Count::NoRoom.add(&self.counters, 1);
            return Err(LinkError::Refused { bytes: frame.len, reason: "longer than the driver's buffers" });
        }
        let [frames, bytes] = &mut self.since;
        *frames += 1;
        *bytes += u64::from(frame.len);
        Ok(())
    }
}

impl Port for Loopback {
    const HAIRPIN: bool = true;

    #[inline(always)]
    fn hairpin(&mut self, frame: &Frame<'_>, space: &mut ReceiveSpace<'_>) -> Result<(), LinkError> {
        if frame.header.flags & HDR_F_NEEDS_CSUM != 0 {
            // All that are to be segmented among them: `Frame` checked that.
            return self.hairpin_offloaded(frame, space);
        }
        let copied = space.copy(NetHeader::default(), frame);
        self.counted(frame, copied)
    }

    fn poll(&mut self, _now: Instant) {
        for (count, since) in [Count::Frames, Count::Bytes].into_iter().zip(std::mem::take(&mut self.since)) {
            count.add(&self.counters, since);
        }
    }

    fn negotiated(&mut self, features: Features) -> Result<(), LinkError> {
        self.features = features;
        let room = if features.has(Feature::GuestCsum) { 0 } else { MAX_FRAME_LEN as usize };
        self.whole = vec![0; room].into_boxed_slice();
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
        let mut port = Loopback::new();
        port.negotiated(features).unwrap();
        port
    }

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at * 13 + at / 255) as u8).collect()
    }

    #[test]
    fn frames_come_back_with_their_headers_over_as_many_buffers_as_they_take() {
        for buffer_len in [2048, 100] {
            let mut nic = Nic::new(OFFERED, 700, buffer_len);
            let mut port = loopback(OFFERED);
            let lengths = [14, 60, 80, 88, 89, 188, 189, 1514, 65_000];
            for len in lengths {
                let sent = if len > 1514 { TSO } else { NetHeader::default() };
                let (header, frame) = nic.hairpin(&mut port, sent, &pattern(len)).unwrap();
                // Nothing is said of a checksum that nobody has checked.
                assert_eq!(NetHeader { num_buffers: 0, ..header }, sent);
                assert!(frame == pattern(len), "{len} bytes over buffers of {buffer_len}");
            }
            port.poll(Instant::now());
            assert_eq!(port.counters.get("looped_frames"), lengths.len() as u64);
            assert_eq!(port.counters.get("looped_bytes"), lengths.iter().sum::<usize>() as u64);
        }
    }

    #[test]
    fn a_checksum_that_nobody_checked_is_not_called_valid() {
        let mut nic = Nic::new(OFFERED, 8, 2048);
        let mut port = loopback(OFFERED);
        // A frame with a checksum of its own, right or wrong: the driver must look at it itself.
        let (header, _) = nic.hairpin(&mut port, NetHeader::default(), &pattern(60)).unwrap();
        assert_eq!(header, NetHeader { num_buffers: 1, ..NetHeader::default() });
    }

    #[test]
    fn a_driver_with_the_short_header_gets_the_short_header() {
        let features = Features::NONE;
        let (mut nic, mut port) = (Nic::new(features, 8, 2048), loopback(features));
        for len in [14, 70, 1514] {
            assert!(nic.hairpin(&mut port, NetHeader::default(), &pattern(len)).unwrap().1 == pattern(len));
        }
    }

    #[test]
    fn a_driver_without_guest_csum_gets_whole_checksums() {
        let features = OFFERED.without(Feature::GuestCsum);
        let mut nic = Nic::new(features, 8, 2048);
        let mut port = loopback(features);
        let csum = NetHeader { gso_type: GSO_NONE, gso_size: 0, hdr_len: 0, ..TSO };
        let (header, frame) = nic.hairpin(&mut port, csum, &pattern(200)).unwrap();
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
        assert!(nic.hairpin(&mut port, TSO, &pattern(3000)).is_err());
        assert_eq!(port.counters.get("dropped_gso_not_accepted"), 1);
        let v6 = NetHeader { gso_type: GSO_TCPV6 | GSO_ECN, ..TSO };
        assert!(nic.hairpin(&mut port, v6, &pattern(3000)).is_ok());
        port.negotiated(OFFERED.without(Feature::GuestEcn)).unwrap();
        assert!(nic.hairpin(&mut port, v6, &pattern(3000)).is_err());
        let uso = NetHeader { gso_type: GSO_UDP_L4, csum_offset: 6, ..TSO };
        assert!(nic.hairpin(&mut port, uso, &pattern(3000)).is_ok());
        for missing in [Feature::GuestUso4, Feature::GuestUso6] {
            port.negotiated(OFFERED.without(missing)).unwrap();
            assert!(nic.hairpin(&mut port, uso, &pattern(3000)).is_err());
        }
    }

    #[test]
    fn a_frame_longer_than_the_drivers_buffers_is_counted() {
        let features = OFFERED.without(Feature::MrgRxbuf);
        let mut nic = Nic::new(features, 8, 100);
        let mut port = loopback(features);
        assert!(nic.hairpin(&mut port, NetHeader::default(), &pattern(89)).is_err());
        assert!(nic.hairpin(&mut port, NetHeader::default(), &pattern(88)).unwrap().1 == pattern(88));
        assert_eq!(port.counters.get("dropped_no_room"), 1);
    }
}
