//! A TCP/IP endpoint in this process: the other end of the cable, for a guest that needs no more than one.
//!
//! Place: a [`Port`]. Addresses are those of QEMU's own user network: the peer is 10.0.2.2/24, fec0::2/64 and
//! fe80::2/64, with MAC address 52:55:0a:00:02:02; the guest may be anything in these networks.
//!
//! | port | |
//! |---|---|
//! | TCP 9 | discards |
//! | TCP 7 | echoes |
//! | TCP 9000 | takes a stream, at its end answers `bytes N sha256 HEX\n` and closes |
//! | UDP 7 | echoes |
//! | UDP 9000 | takes a file in datagrams, answers in the same words ([`crate::datagram`]) |
//!
//! It answers ARP, neighbour solicitations and pings of both versions, and pings the guest when asked ([`Pinger`]).
//!
//! Operation:
//! 1. [`Port::transmit`] gathers the frame into one buffer, reused for each: that read of guest memory is the DMA. smoltcp
//!    takes it from there at once, so that nothing waits and nothing is dropped; where there is no room for an answer,
//!    `transmit` says `Full` instead. A lost frame would cost a second (smoltcp's minimum retransmission time-out). TCP
//!    segments go through in one piece; a frame of many datagrams is cut into them first ([`super::segmentation`]).
//! 2. [`Port::poll`] lets the services use what arrived, then sends what is due: one acknowledgement per burst.
//! 3. [`Port::receive`] writes the frames that smoltcp made, with whole checksums, into the driver's buffers.
//!
//! An answer comes back on the pair its flow was sent on ([`super::steering`]).
//!
//! Limits: no IP fragments, no DHCP, no frames to be segmented towards the guest. A receiveq that is in use and never gets
//! buffers holds up the others in the end: no frame is dropped for it.

mod check;
mod datagrams;
mod ping;
mod services;
#[cfg(test)]
mod tests;
mod wire;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config, Interface, PollIngressSingleResult, PollResult, SocketHandle, SocketSet};
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Address, Ipv6Address};

use self::datagrams::Datagrams;
use self::services::Services;
use self::wire::Wire;
use super::counters::counters;
use super::segmentation::Segmentation;
use super::{LinkCounters, LinkError, Port, Received, Transmitted};
use crate::net::{Frame, ReceiveSpace};
use crate::spec::net::{GSO_UDP_L4, HDR_F_DATA_VALID, NetHeader};
use crate::spec::{Feature, Features};

pub use ping::Pinger;
pub use services::{DIGEST_PORT, DISCARD_PORT, ECHO_PORT, MAX_CONNECTIONS};

/// The peer's MAC address.
pub const MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0, 2, 2];
/// The peer's IPv4 address, in a network of /24.
pub const IPV4: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
/// The peer's IPv6 address, in a network of /64.
pub const IPV6: Ipv6Address = Ipv6Address::new(0xfec0, 0, 0, 0, 0, 0, 0, 2);
/// The peer's link-local address.
pub const LINK_LOCAL: Ipv6Address = Ipv6Address::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// `UDP_MAX_SEGMENTS` of Linux. A frame of 64 KiB in pieces of one byte would keep its queue's worker from the others.
const MAX_DATAGRAMS: usize = 128;

counters!(Count {
    Frames = "transmitted_frames",
    Bytes = "transmitted_bytes",
    Full = "transmit_full",
    BadChecksum = "dropped_bad_checksum",
    Segmented = "segmented_datagrams",
    Unsegmentable = "dropped_unsegmentable",
    Received = "received_frames",
    ReceivedBytes = "received_bytes",
    NoRoom = "dropped_no_room",
    Opened = "connections_opened",
    Closed = "connections_closed",
    Payload = "payload_bytes",
    Receipts = "datagram_receipts",
    DatagramEchoes = "datagram_echoes",
    DatagramsDropped = "datagrams_dropped",
    PingsSent = "pings_sent",
    PingsDropped = "pings_dropped",
    PingsAnswered = "pings_answered",
});

/// The port of the peer. See the module.
pub struct Peer {
    wire: Wire,
    interface: Interface,
    sockets: SocketSet<'static>,
    services: Services,
    datagrams: Datagrams,
    pinger: Pinger,
    ping_socket: SocketHandle,
    ping_seq: u16,
    /// The clock's zero.
    started: Instant,
    now: smoltcp::time::Instant,
    /// Something arrived, or room was made, since the services last worked.
    stale: bool,
    features: Features,
    counters: Arc<LinkCounters>,
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let connections = self.services.connections();
        f.debug_struct("Peer")
            .field("connections", &connections)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl Peer {
    /// A peer on this many queue pairs that nobody has spoken to yet.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new(pairs: usize) -> io::Result<Self> {
        let mut wire = Wire::new(pairs);
        let now = smoltcp::time::Instant::ZERO;
        let mut config = Config::new(EthernetAddress(MAC).into());
        // Keyed anew in each process: good enough for initial sequence numbers on a cable of two.
        config.random_seed = RandomState::new().build_hasher().finish();
        let mut interface = Interface::new(config, &mut wire, now);
        interface.update_ip_addrs(|addresses| {
            for (address, prefix) in [(IpAddress::Ipv4(IPV4), 24), (IPV6.into(), 64), (LINK_LOCAL.into(), 64)] {
                let added = addresses.push(IpCidr::new(address, prefix));
                debug_assert!(added.is_ok(), "smoltcp is built for four addresses");
            }
        });
        let mut sockets = SocketSet::new(Vec::new());
        let services = Services::new(&mut sockets);
        let datagrams = Datagrams::new(&mut sockets);
        let ping_socket = sockets.add(ping::socket());
        Ok(Peer {
            wire,
            interface,
            sockets,
            services,
            datagrams,
            pinger: Pinger::new()?,
            ping_socket,
            ping_seq: 0,
            started: Instant::now(),
            now,
            stale: false,
            features: Features::NONE,
            counters: Count::fresh(),
        })
    }

    /// The way to have the peer ping the guest, for any thread.
    #[must_use]
    pub fn pinger(&self) -> Pinger {
        self.pinger.clone()
    }

    /// Has smoltcp and the services take the frame in this part of the wire's buffer.
    fn take(&mut self, at: Range<usize>) {
        self.wire.arrived(at);
        let result = self.interface.poll_ingress_single(self.now, &mut self.wire, &mut self.sockets);
        debug_assert!(!matches!(result, PollIngressSingleResult::None), "the frame was not taken");
        // The next frame of this burst may be another connection's first.
        let opened = self.services.accept(&mut self.sockets);
        Count::Opened.add(&self.counters, opened);
        let happened = self.datagrams.work(&mut self.sockets);
        if happened != datagrams::Happened::default() {
            Count::Payload.add(&self.counters, happened.bytes);
            Count::Receipts.add(&self.counters, happened.receipts);
            Count::DatagramEchoes.add(&self.counters, happened.echoes);
            Count::DatagramsDropped.add(&self.counters, happened.dropped);
        }
    }

    /// Lets the services work and sends what is due, as far as there is room.
    fn work(&mut self) {
        self.stale = false;
        while let Some(to) = self.pinger.next() {
            let socket = self.sockets.get_mut(self.ping_socket);
            let sent = ping::send(socket, to, self.ping_seq);
            self.ping_seq = self.ping_seq.wrapping_add(1);
            if sent { Count::PingsSent } else { Count::PingsDropped }.add(&self.counters, 1);
        }
        loop {
            let happened = self.services.work(&mut self.sockets);
            Count::Opened.add(&self.counters, happened.opened);
            Count::Closed.add(&self.counters, happened.closed);
            Count::Payload.add(&self.counters, happened.bytes);
            // Sending may make room for more to echo.
            let sent = self.interface.poll_egress(self.now, &mut self.wire, &mut self.sockets);
            if sent == PollResult::None {
                break;
            }
        }
        let answered = ping::replies(self.sockets.get_mut(self.ping_socket));
        Count::PingsAnswered.add(&self.counters, answered);
    }
}

/// How a frame of many datagrams is to be cut; `None`: it is not what its header says, or of more than [`MAX_DATAGRAMS`].
fn datagrams(frame: &[u8], header: NetHeader) -> Option<Segmentation> {
    Segmentation::new(frame, frame.len(), header).filter(|cut| cut.pieces() <= MAX_DATAGRAMS)
}

impl Port for Peer {
    fn stays(&self) -> Option<&'static str> {
        Some("connections with the peer end: it is a part of this process (tap moves)")
    }

    fn transmit(&mut self, pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        if self.wire.is_full() {
            Count::Full.add(&self.counters, 1);
            return Ok(Transmitted::Full);
        }
        let read = frame.copy_to(self.wire.buffer());
        // A frame's length is 32 bits.
        let taken = Ok(Transmitted::Taken { read: read as u32, copied: 0 });
        Count::Frames.add(&self.counters, 1);
        Count::Bytes.add(&self.counters, u64::from(frame.len));
        let bytes = self.wire.buffer().get_mut(..read).unwrap_or_default();
        if !check::prepare(bytes, frame.header) {
            Count::BadChecksum.add(&self.counters, 1);
            return taken;
        }
        let datagrams = (frame.header.gso_type == GSO_UDP_L4).then(|| datagrams(bytes, frame.header));
        self.wire.note(read, pair);
        match datagrams {
            None => self.take(0..read),
            Some(Some(cut)) => {
                for (at, place) in cut.places().enumerate() {
                    cut.finish(at, self.wire.buffer().get_mut(place.clone()).unwrap_or_default());
                    Count::Segmented.add(&self.counters, 1);
                    self.take(place);
                }
            }
            Some(None) => Count::Unsegmentable.add(&self.counters, 1),
        }
        self.stale = true;
        taken
    }

    fn pending(&mut self, pair: usize) -> Option<usize> {
        if self.stale {
            self.work();
        }
        self.wire.next_len(pair)
    }

    fn receive(&mut self, pair: usize, space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        // What could not be sent for want of room can be now.
        self.stale |= self.wire.is_full();
        let Some(frame) = self.wire.pop(pair) else { return Ok(Received::Nothing) };
        let flags = if self.features.has(Feature::GuestCsum) { HDR_F_DATA_VALID } else { 0 };
        let written = space.write(NetHeader { flags, ..NetHeader::default() }, &[&frame]);
        // smoltcp makes no frame longer than its MTU.
        let bytes = frame.len() as u32;
        self.wire.done(frame);
        if written.is_err() {
            Count::NoRoom.add(&self.counters, 1);
            return Err(LinkError::Refused { bytes, reason: "longer than the driver's buffers" });
        }
        Count::Received.add(&self.counters, 1);
        Count::ReceivedBytes.add(&self.counters, u64::from(bytes));
        Ok(Received::Frame { bytes })
    }

    fn poll(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.started);
        self.now = smoltcp::time::Instant::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
        self.work();
    }

    fn deadline(&mut self, now: Instant) -> Option<Duration> {
        if self.stale {
            return Some(Duration::ZERO);
        }
        // Only `receive` makes room; time does not.
        if self.wire.is_full() {
            return None;
        }
        let since = now.saturating_duration_since(self.started);
        let now = smoltcp::time::Instant::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX));
        self.interface.poll_delay(now, &self.sockets).map(Duration::from)
    }

    fn readable_fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.pinger.fd()]
    }

    fn set_receiving(&mut self, pair: usize, on: bool) {
        self.wire.set_receiving(pair, on);
    }

    fn negotiated(&mut self, features: Features) -> Result<(), LinkError> {
        // Connections stay: a guest may reset its NIC and keep its own.
        self.features = features;
        Ok(())
    }

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.counters)
    }
}
