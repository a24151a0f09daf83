//! Who talks to whom in a frame, where its payload begins, and the frame in words.
//!
//! Place: the tracer and the judge of a flow look at the first [`HEAD_LEN`] bytes of a frame, already copied out of
//! guest memory. Any bytes are fine: what cannot be told is [`Packet::Cut`] or a packet of another kind.
//!
//! Limits: Ethernet II with up to two VLAN tags, ARP, IPv4, IPv6 with its extension headers (RFC 8200), TCP, UDP, ICMP;
//! no checksum is looked at.

mod display;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use display::Summary;

/// As many bytes of a frame as its headers can be expected to take: two VLAN tags, IPv6, an extension header or two,
/// TCP with all its options.
pub const HEAD_LEN: usize = 192;

/// What is in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet {
    /// TCP or UDP, not a later fragment.
    Transport(Transport),
    /// ICMP of either version: addresses, version 4 or 6, type, code, and the four bytes after the checksum.
    Icmp {
        /// Sender.
        source: IpAddr,
        /// Receiver.
        destination: IpAddr,
        /// `type`.
        kind: u8,
        /// `code`.
        code: u8,
        /// Of an echo: identifier and sequence number.
        id_seq: (u16, u16),
        /// Of a neighbour solicitation or advertisement: who is meant.
        target: Option<Ipv6Addr>,
        /// Length of the ICMP message, bytes.
        len: u32,
    },
    /// ARP for IPv4 over Ethernet.
    Arp {
        /// 1 request, 2 reply.
        operation: u16,
        /// Who speaks.
        sender: ([u8; 6], Ipv4Addr),
        /// Who is asked, or told.
        target: ([u8; 6], Ipv4Addr),
    },
    /// A fragment after the first: it has no transport header.
    Fragment {
        /// Sender.
        source: IpAddr,
        /// Receiver.
        destination: IpAddr,
        /// IP protocol.
        protocol: u8,
        /// Where in the packet it belongs, bytes.
        offset: u32,
        /// Its length without IP header, bytes.
        len: u32,
    },
    /// IP with another protocol.
    Ip {
        /// Sender.
        source: IpAddr,
        /// Receiver.
        destination: IpAddr,
        /// IP protocol.
        protocol: u8,
        /// Its length without IP header, bytes.
        len: u32,
    },
    /// Another protocol over Ethernet.
    Ethernet {
        /// Sender.
        source: [u8; 6],
        /// Receiver.
        destination: [u8; 6],
        /// `EtherType`, or a length below 0x600.
        ethertype: u16,
    },
    /// Its headers contradict themselves, or end before they should.
    Cut {
        /// The header that is cut short.
        header: &'static str,
    },
}

/// A TCP segment (or many, where the NIC is to segment) or a UDP datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// IP protocol: 6 TCP, 17 UDP.
    pub protocol: u8,
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// Bytes in front of the payload: Ethernet, IP and transport headers.
    pub header_len: u32,
    /// Payload bytes, without padding of the frame.
    pub payload_len: u32,
    /// TCP's own fields.
    pub tcp: Option<Tcp>,
}

/// TCP's own fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// Sequence number of the first payload byte (of SYN, where there is one).
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// `TCP_*`.
    pub flags: u8,
    /// Window as written, unscaled.
    pub window: u16,
}

/// TCP flag: no more data.
pub const TCP_FIN: u8 = 1;
/// TCP flag: a connection begins.
pub const TCP_SYN: u8 = 2;
/// TCP flag: it is broken off.
pub const TCP_RST: u8 = 4;
/// TCP flag: `ack` counts.
pub const TCP_ACK: u8 = 16;

/// IP protocol of TCP.
pub const TCP: u8 = 6;
/// IP protocol of UDP.
pub const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const QINQ: u16 = 0x88a8;

/// Reads big-endian fields one behind the other; `None` past the end.
#[derive(Debug, Clone, Copy)]
struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let field = self.bytes.get(self.at..)?.first_chunk::<N>()?;
        self.at += N;
        Some(*field)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }
}

/// What an IP header says of the rest.
#[derive(Debug, Clone, Copy)]
struct Inner {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Where the rest begins in the frame.
    at: usize,
    /// Its length, padding of the frame left out.
    len: usize,
    /// Bytes into the whole packet, of a fragment.
    fragment_offset: u32,
}

/// What is in a frame of `frame_len` bytes that begins with `head`.
#[must_use]
pub fn parse(head: &[u8], frame_len: u32) -> Packet {
    let frame_len = frame_len as usize;
    let head = head.get(..frame_len).unwrap_or(head);
    let mut reader = Reader { bytes: head, at: 0 };
    let cut = Packet::Cut { header: "ethernet" };
    let (Some(destination), Some(source)) = (reader.take(), reader.take()) else { return cut };
    let Some(mut ethertype) = reader.u16() else { return cut };
    for _ in 0..2 {
        if ethertype == VLAN || ethertype == QINQ {
            let (Some(_tag), Some(inner)) = (reader.u16(), reader.u16()) else { return Packet::Cut { header: "vlan" } };
            ethertype = inner;
        }
    }
    match ethertype {
        IPV4 => ipv4(reader, frame_len).map_or(Packet::Cut { header: "ipv4" }, |ip| transport(reader.bytes, ip)),
        IPV6 => ipv6(reader, frame_len).map_or(Packet::Cut { header: "ipv6" }, |ip| transport(reader.bytes, ip)),
        ARP => arp(reader).unwrap_or(Packet::Cut { header: "arp" }),
        _ => Packet::Ethernet { source, destination, ethertype },
    }
}

fn ipv4(mut reader: Reader<'_>, frame_len: usize) -> Option<Inner> {
    let start = reader.at;
    let version = reader.u8()?;
    let header_len = usize::from(version & 0xf) * 4;
    if version >> 4 != 4 || header_len < 20 {
        return None;
    }
    let _tos = reader.u8()?;
    let total = usize::from(reader.u16()?);
    let _id = reader.u16()?;
    let fragment = reader.u16()?;
    let _ttl = reader.u8()?;
    let protocol = reader.u8()?;
    let _checksum = reader.u16()?;
    let source = Ipv4Addr::from(reader.take::<4>()?).into();
    let destination = Ipv4Addr::from(reader.take::<4>()?).into();
    let left = frame_len.checked_sub(start)?;
    // A packet to be segmented may be longer than the field can say: then it is 0.
    let total = if total == 0 { left } else { total.min(left) };
    let len = total.checked_sub(header_len)?;
    let fragment_offset = u32::from(fragment & 0x1fff) * 8;
    Some(Inner { source, destination, protocol, at: start + header_len, len, fragment_offset })
}

fn ipv6(mut reader: Reader<'_>, frame_len: usize) -> Option<Inner> {
    let first = reader.u32()?;
    if first >> 28 != 6 {
        return None;
    }
    let payload = usize::from(reader.u16()?);
    let mut protocol = reader.u8()?;
    let _hop_limit = reader.u8()?;
    let source = Ipv6Addr::from(reader.take::<16>()?).into();
    let destination = Ipv6Addr::from(reader.take::<16>()?).into();
    let left = frame_len.checked_sub(reader.at)?;
    let end = reader.at + if payload == 0 { left } else { payload.min(left) };
    let mut fragment_offset = 0;
    // RFC 8200, 4.1: each extension header once, but for destination options.
    for _ in 0..8 {
        let start = reader.at;
        let (next, len) = match protocol {
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => (reader.u8()?, (usize::from(reader.u8()?) + 1) * 8),
            44 => {
                let next = reader.u8()?;
                let _reserved = reader.u8()?;
                fragment_offset = u32::from(reader.u16()? & 0xfff8);
                (next, 8)
            }
            // Authentication: RFC 4302, 2.2.
            51 => (reader.u8()?, (usize::from(reader.u8()?) + 2) * 4),
            _ => break,
        };
        protocol = next;
        reader.at = start + len;
        if fragment_offset > 0 {
            break;
        }
    }
    let at = reader.at;
    Some(Inner { source, destination, protocol, at, len: end.checked_sub(at)?, fragment_offset })
}

fn transport(bytes: &[u8], ip: Inner) -> Packet {
    let Inner { source, destination, protocol, at, fragment_offset, .. } = ip;
    // A frame's length is 32 bits.
    let len = ip.len as u32;
    if fragment_offset > 0 {
        return Packet::Fragment { source, destination, protocol, offset: fragment_offset, len };
    }
    let reader = Reader { bytes, at };
    let found = match protocol {
        TCP => ("tcp", tcp(reader, ip)),
        UDP => ("udp", udp(reader, ip)),
        ICMP | ICMPV6 => ("icmp", icmp(reader, ip)),
        _ => return Packet::Ip { source, destination, protocol, len },
    };
    found.1.unwrap_or(Packet::Cut { header: found.0 })
}

fn tcp(mut reader: Reader<'_>, ip: Inner) -> Option<Packet> {
    let ports = (reader.u16()?, reader.u16()?);
    let (seq, ack) = (reader.u32()?, reader.u32()?);
    let header_len = usize::from(reader.u8()? >> 4) * 4;
    let flags = reader.u8()?;
    let window = reader.u16()?;
    if header_len < 20 {
        return None;
    }
    between(ip, ports, header_len, Some(Tcp { seq, ack, flags, window }))
}

fn udp(mut reader: Reader<'_>, ip: Inner) -> Option<Packet> {
    let ports = (reader.u16()?, reader.u16()?);
    let _length = reader.u16()?;
    between(ip, ports, 8, None)
}

fn between(ip: Inner, ports: (u16, u16), header_len: usize, tcp: Option<Tcp>) -> Option<Packet> {
    let payload_len = ip.len.checked_sub(header_len)?;
    Some(Packet::Transport(Transport {
        protocol: ip.protocol,
        source: SocketAddr::new(ip.source, ports.0),
        destination: SocketAddr::new(ip.destination, ports.1),
        // Both are within a frame, whose length is 32 bits.
        header_len: (ip.at + header_len) as u32,
        payload_len: payload_len as u32,
        tcp,
    }))
}

fn icmp(mut reader: Reader<'_>, ip: Inner) -> Option<Packet> {
    let (kind, code) = (reader.u8()?, reader.u8()?);
    let _checksum = reader.u16()?;
    let id_seq = (reader.u16()?, reader.u16()?);
    let target = if ip.protocol == ICMPV6 && (kind == 135 || kind == 136) {
        Some(Ipv6Addr::from(reader.take::<16>()?))
    } else {
        None
    };
    let Inner { source, destination, len, .. } = ip;
    Some(Packet::Icmp { source, destination, kind, code, id_seq, target, len: len as u32 })
}

fn arp(mut reader: Reader<'_>) -> Option<Packet> {
    let (hardware, protocol) = (reader.u16()?, reader.u16()?);
    let lengths = reader.take::<2>()?;
    if (hardware, protocol, lengths) != (1, IPV4, [6, 4]) {
        return None;
    }
    let operation = reader.u16()?;
    let sender = (reader.take()?, Ipv4Addr::from(reader.take::<4>()?));
    let target = (reader.take()?, Ipv4Addr::from(reader.take::<4>()?));
    Some(Packet::Arp { operation, sender, target })
}
