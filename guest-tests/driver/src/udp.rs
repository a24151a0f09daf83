//! As much of IPv4 over Ethernet as it takes to send datagrams: ARP, UDP, and an answer to pings.
//!
//! The headers are smoltcp's to read and write; there is no state here but a station's two addresses.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, Icmpv4Packet,
    Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr, UdpPacket,
};

use super::{DriverError, Nic};

/// Length of an ARP frame.
const ARP_FRAME: usize = 14 + 28;
/// Length of the headers of a datagram: Ethernet, IPv4, UDP.
pub const UDP_HEAD: usize = 14 + 20 + 8;
/// The largest IPv4 packet on Ethernet.
pub const MTU: usize = 1500;
/// How long an answer to ARP may take.
const ARP_PATIENCE: Duration = Duration::from_secs(20);
/// How long until it is asked for again.
const ARP_AGAIN: Duration = Duration::from_secs(1);
/// How long an interrupt is waited for before looking at the clock.
pub const LOOK_UP: Duration = Duration::from_millis(100);

/// A station on the network: this card, with an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Station {
    /// Of the card.
    pub mac: [u8; 6],
    /// Of the program.
    pub address: Ipv4Addr,
}

/// A datagram in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'f> {
    /// Who sent it.
    pub from: SocketAddrV4,
    /// To which port of ours.
    pub port: u16,
    /// What is in it.
    pub payload: &'f [u8],
}

/// Our own checksums are made, those of others not looked at where nothing can have changed the frame.
fn checksums() -> ChecksumCapabilities {
    ChecksumCapabilities::default()
}

impl Station {
    fn ethernet(&self, to: [u8; 6], ethertype: EthernetProtocol, frame: &mut [u8]) {
        let header = EthernetRepr { src_addr: EthernetAddress(self.mac), dst_addr: EthernetAddress(to), ethertype };
        header.emit(&mut EthernetFrame::new_unchecked(frame));
    }

    fn arp(&self, operation: ArpOperation, to: ([u8; 6], Ipv4Addr), destination: [u8; 6]) -> [u8; ARP_FRAME] {
        let mut frame = [0; ARP_FRAME];
        self.ethernet(destination, EthernetProtocol::Arp, &mut frame);
        let arp = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(self.mac),
            source_protocol_addr: self.address,
            target_hardware_addr: EthernetAddress(to.0),
            target_protocol_addr: to.1,
        };
        arp.emit(&mut ArpPacket::new_unchecked(&mut frame[14..]));
        frame
    }

    /// Asks who has `address`.
    #[must_use]
    pub fn arp_request(&self, address: Ipv4Addr) -> [u8; ARP_FRAME] {
        self.arp(ArpOperation::Request, ([0; 6], address), [0xff; 6])
    }

    /// What a frame says of who has which address: an ARP reply.
    #[must_use]
    pub fn arp_reply(&self, frame: &[u8]) -> Option<([u8; 6], Ipv4Addr)> {
        let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, source_protocol_addr, .. } = arp_in(frame)? else {
            return None;
        };
        (operation == ArpOperation::Reply).then_some((source_hardware_addr.0, source_protocol_addr))
    }

    /// The frame to answer this one with: to ARP requests for us, and to pings. `None`: nothing to say.
    #[must_use]
    pub fn answer(&self, frame: &[u8]) -> Option<Vec<u8>> {
        if let Some(ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr,
            source_protocol_addr,
            target_protocol_addr,
            ..
        }) = arp_in(frame)
        {
            let to = (source_hardware_addr.0, source_protocol_addr);
            return (target_protocol_addr == self.address).then(|| self.arp(ArpOperation::Reply, to, to.0).to_vec());
        }
        let (sender, ip) = self.packet(frame)?;
        if ip.next_header() != IpProtocol::Icmp {
            return None;
        }
        let icmp = Icmpv4Packet::new_checked(ip.payload()).ok()?;
        let Ok(Icmpv4Repr::EchoRequest { ident, seq_no, data }) = Icmpv4Repr::parse(&icmp, &checksums()) else {
            return None;
        };
        let reply = Icmpv4Repr::EchoReply { ident, seq_no, data };
        let mut answer = vec![0; 34 + reply.buffer_len()];
        self.ethernet(sender, EthernetProtocol::Ipv4, &mut answer);
        self.ipv4(ip.src_addr(), IpProtocol::Icmp, reply.buffer_len(), &mut answer[14..]);
        reply.emit(&mut Icmpv4Packet::new_unchecked(&mut answer[34..]), &checksums());
        Some(answer)
    }

    fn ipv4(&self, to: Ipv4Addr, next_header: IpProtocol, payload_len: usize, packet: &mut [u8]) {
        let header = Ipv4Repr { src_addr: self.address, dst_addr: to, next_header, payload_len, hop_limit: 64 };
        header.emit(&mut Ipv4Packet::new_unchecked(packet), &checksums());
    }

    /// The headers of a datagram of `len` bytes. Its checksum is 0, "none" (RFC 768): a sum would take a look at every byte,
    /// and this program looks at none.
    #[must_use]
    pub fn udp_head(&self, to: ([u8; 6], SocketAddrV4), from: u16, len: usize) -> [u8; UDP_HEAD] {
        let mut head = [0; UDP_HEAD];
        self.ethernet(to.0, EthernetProtocol::Ipv4, &mut head);
        self.ipv4(*to.1.ip(), IpProtocol::Udp, 8 + len, &mut head[14..]);
        let mut udp = UdpPacket::new_unchecked(&mut head[34..]);
        udp.set_src_port(from);
        udp.set_dst_port(to.1.port());
        udp.set_len((8 + len) as u16);
        udp.set_checksum(0);
        head
    }

    /// The datagram in a frame, if there is one for us.
    #[must_use]
    pub fn datagram<'f>(&self, frame: &'f [u8]) -> Option<Datagram<'f>> {
        let (_, ip) = self.packet(frame)?;
        if ip.next_header() != IpProtocol::Udp {
            return None;
        }
        let udp = UdpPacket::new_checked(ip.payload()).ok()?;
        if !udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()) {
            return None;
        }
        let from = SocketAddrV4::new(ip.src_addr(), udp.src_port());
        Some(Datagram { from, port: udp.dst_port(), payload: udp.payload() })
    }

    /// The IPv4 packet in a frame for us, and who sent the frame. Fragments are left alone.
    fn packet<'f>(&self, frame: &'f [u8]) -> Option<([u8; 6], Ipv4Packet<&'f [u8]>)> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        if ethernet.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let sender = ethernet.src_addr().0;
        let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
        let whole = !ip.more_frags() && ip.frag_offset() == 0;
        (whole && ip.verify_checksum() && ip.dst_addr() == self.address).then_some((sender, ip))
    }

    /// Asks the network for the card that has `address`.
    ///
    /// # Errors
    /// Nobody answers, or the device broke the rules.
    pub fn resolve(&self, nic: &mut Nic<'_>, address: Ipv4Addr) -> Result<[u8; 6], DriverError> {
        let request = self.arp_request(address);
        let start = Instant::now();
        let mut asked = None;
        loop {
            if asked.is_none_or(|asked: Instant| asked.elapsed() > ARP_AGAIN) {
                if start.elapsed() > ARP_PATIENCE {
                    nic.check()?;
                    return Err(DriverError::Silence { what: "an answer to ARP", seconds: ARP_PATIENCE.as_secs() });
                }
                nic.send(&request, None)?;
                nic.flush();
                asked = Some(Instant::now());
            }
            while let Some(frame) = nic.receive()? {
                if let Some((mac, who)) = self.arp_reply(frame)
                    && who == address
                {
                    return Ok(mac);
                }
            }
            nic.wait(LOOK_UP)?;
        }
    }
}

fn arp_in(frame: &[u8]) -> Option<ArpRepr> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Arp {
        return None;
    }
    ArpRepr::parse(&ArpPacket::new_checked(ethernet.payload()).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Station = Station { mac: [2, 0, 0, 0, 0, 1], address: Ipv4Addr::new(10, 0, 2, 15) };
    const PEER: Station = Station { mac: [2, 0, 0, 0, 0, 2], address: Ipv4Addr::new(10, 0, 2, 2) };

    #[test]
    fn a_request_for_us_is_answered_and_the_answer_understood() {
        let asked = PEER.arp_request(US.address);
        let answer = US.answer(&asked).expect("an answer");
        assert_eq!(PEER.arp_reply(&answer), Some((US.mac, US.address)));
        assert_eq!(US.answer(&PEER.arp_request(Ipv4Addr::new(10, 0, 2, 3))), None, "somebody else");
        assert_eq!(US.arp_reply(&asked), None, "a request is no reply");
    }

    #[test]
    fn a_datagram_has_the_right_headers_and_no_checksum() {
        let to = (PEER.mac, SocketAddrV4::new(PEER.address, 9000));
        let mut frame = US.udp_head(to, 40_000, 5).to_vec();
        frame.extend_from_slice(b"hello");
        let datagram = PEER.datagram(&frame).expect("a datagram");
        assert_eq!(datagram.from, SocketAddrV4::new(US.address, 40_000));
        assert_eq!((datagram.port, datagram.payload), (9000, &b"hello"[..]));
        assert_eq!(US.datagram(&frame), None, "it is for the peer");
        assert_eq!(frame[40..42], [0, 0], "the checksum");
    }

    #[test]
    fn frames_cut_short_anywhere_are_nothing() {
        let to = (PEER.mac, SocketAddrV4::new(PEER.address, 9000));
        let mut frame = US.udp_head(to, 40_000, 5).to_vec();
        frame.extend_from_slice(b"hello");
        for len in 0..frame.len() {
            assert_eq!(PEER.datagram(&frame[..len]), None, "{len}");
            assert_eq!(PEER.answer(&frame[..len]), None, "{len}");
        }
        let arp = PEER.arp_request(US.address);
        for len in 0..arp.len() {
            assert_eq!(US.answer(&arp[..len]), None, "{len}");
        }
    }

    #[test]
    fn a_ping_comes_back_with_its_data() {
        let request = Icmpv4Repr::EchoRequest { ident: 7, seq_no: 9, data: b"are you there?" };
        let mut frame = vec![0; 34 + request.buffer_len()];
        PEER.ethernet(US.mac, EthernetProtocol::Ipv4, &mut frame);
        PEER.ipv4(US.address, IpProtocol::Icmp, request.buffer_len(), &mut frame[14..]);
        request.emit(&mut Icmpv4Packet::new_unchecked(&mut frame[34..]), &checksums());
        let answer = US.answer(&frame).expect("an answer");
        let (sender, ip) = PEER.packet(&answer).expect("a packet for the peer");
        assert_eq!(sender, US.mac);
        let icmp = Icmpv4Packet::new_checked(ip.payload()).expect("ICMP");
        let reply = Icmpv4Repr::parse(&icmp, &checksums()).expect("with a right checksum");
        assert_eq!(reply, Icmpv4Repr::EchoReply { ident: 7, seq_no: 9, data: b"are you there?" });
    }
}
