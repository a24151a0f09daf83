//! A frame of many segments (TSO, USO), cut into them as a NIC would: while it is copied, or where it lies.
//!
//! Operation (VIRTIO 1.3, 5.1.6.2 Packet Transmission): each piece has the frame's headers in front, with lengths, IPv4
//! identification, TCP sequence number and flags of its own, `gso_size` payload bytes, and a checksum over all of it.
//!
//! Limits: no IP options are touched, and IPv6 extension headers are refused. How many pieces there may be is for the caller
//! to say: see [`Segmentation::pieces`].

use std::ops::Range;

use crate::net::checksum;
use crate::spec::net::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NetHeader};

/// Ethernet with two VLAN tags, IPv4 with all its options, TCP with all its.
pub(super) const MAX_HEADERS: usize = 14 + 8 + 60 + 60;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const TCP_FIN_PSH: u8 = 0x09;
const TCP_CWR: u8 = 0x80;

/// How a frame is to be cut.
#[derive(Debug, Clone)]
pub(super) struct Segmentation {
    headers: [u8; MAX_HEADERS],
    headers_len: usize,
    ip_at: usize,
    transport_at: usize,
    ipv4: bool,
    tcp: bool,
    /// Payload bytes of a piece.
    size: usize,
    /// Payload bytes of the frame.
    payload: usize,
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|pair| u16::from_be_bytes(*pair))
}

fn put16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(place) = bytes.get_mut(at..).and_then(<[u8]>::first_chunk_mut) {
        *place = value.to_be_bytes();
    }
}

impl Segmentation {
    /// Of a frame of `len` bytes whose first bytes are `start` and whose checked virtio-net header asks for it. `None`: the
    /// frame is not what that header says.
    pub(super) fn new(start: &[u8], len: usize, header: NetHeader) -> Option<Self> {
        let mut ip_at = 14;
        let mut ethertype = be16(start, 12)?;
        while matches!(ethertype, 0x8100 | 0x88a8) && ip_at < 22 {
            ethertype = be16(start, ip_at + 2)?;
            ip_at += 4;
        }
        let tcp = match header.gso_type & !GSO_ECN {
            GSO_TCPV4 | GSO_TCPV6 => true,
            GSO_UDP_L4 => false,
            _ => return None,
        };
        let ipv4 = match ethertype {
            ETHERTYPE_IPV4 => true,
            ETHERTYPE_IPV6 => false,
            _ => return None,
        };
        let first = *start.get(ip_at)?;
        let (ip_len, protocol_at) = if ipv4 { (usize::from(first & 15) * 4, 9) } else { (40, 6) };
        let transport_at = ip_at + ip_len;
        let is_whole = !ipv4 || be16(start, ip_at + 6)? & 0x3fff == 0;
        // Drivers may leave it 0 in a frame that is too long for it.
        let stated =
            if ipv4 { usize::from(be16(start, ip_at + 2)?) } else { 40 + usize::from(be16(start, ip_at + 4)?) };
        let protocol = *start.get(ip_at + protocol_at)?;
        let version = if ipv4 { 4 } else { 6 };
        let offset = if tcp { 16 } else { 6 };
        let as_stated = first >> 4 == version
            && ip_len >= 20
            && is_whole
            && ip_at + stated <= len
            && protocol == if tcp { 6 } else { 17 }
            && usize::from(header.csum_start) == transport_at
            && header.csum_offset == offset;
        let transport_len = if tcp { usize::from(*start.get(transport_at + 12)? >> 4) * 4 } else { 8 };
        let headers_len = transport_at + transport_len;
        let payload = len.checked_sub(headers_len).filter(|payload| *payload > 0)?;
        let size = usize::from(header.gso_size);
        if !as_stated || transport_len < if tcp { 20 } else { 8 } || size == 0 {
            return None;
        }
        let mut headers = [0; MAX_HEADERS];
        headers.get_mut(..headers_len)?.copy_from_slice(start.get(..headers_len)?);
        Some(Segmentation { headers, headers_len, ip_at, transport_at, ipv4, tcp, size, payload })
    }

    /// Bytes of the headers that stand in front of each piece.
    pub(super) const fn headers_len(&self) -> usize {
        self.headers_len
    }

    /// How many pieces there are.
    pub(super) const fn pieces(&self) -> usize {
        self.payload.div_ceil(self.size)
    }

    /// Bytes of all pieces together, each with its headers and `prefix` bytes more.
    pub(super) const fn framed_len(&self, prefix: usize) -> usize {
        self.pieces() * (prefix + self.headers_len) + self.payload
    }

    /// Where in the frame each piece is, if its payload stays where it lies: its headers then overwrite the piece before.
    pub(super) fn places(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let Segmentation { headers_len, size, payload, .. } = *self;
        (0..self.pieces()).map(move |at| at * size..headers_len + (at * size + size).min(payload))
    }

    /// Puts headers in front of piece `at`, whose payload is in its place already, and its checksum into them.
    pub(super) fn finish(&self, at: usize, piece: &mut [u8]) {
        let len = piece.len();
        let short = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
        for (to, from) in piece.iter_mut().zip(self.headers.iter().take(self.headers_len)) {
            *to = *from;
        }
        let transport_len = len.saturating_sub(self.transport_at);
        if self.ipv4 {
            put16(piece, self.ip_at + 2, short(len - self.ip_at));
            let identification = be16(piece, self.ip_at + 4).unwrap_or(0);
            put16(piece, self.ip_at + 4, identification.wrapping_add(at as u16));
            put16(piece, self.ip_at + 10, 0);
            let sum = checksum::of(piece.get(self.ip_at..self.transport_at).unwrap_or_default());
            put16(piece, self.ip_at + 10, sum);
        } else {
            put16(piece, self.ip_at + 4, short(transport_len));
        }
        if self.tcp {
            self.finish_tcp(at, piece);
        } else {
            put16(piece, self.transport_at + 4, short(transport_len));
        }
        let checksum_at = self.transport_at + if self.tcp { 16 } else { 6 };
        put16(piece, checksum_at, 0);
        let addresses = if self.ipv4 { self.ip_at + 12..self.ip_at + 20 } else { self.ip_at + 8..self.ip_at + 40 };
        let pseudo = checksum::add(0, piece.get(addresses).unwrap_or_default());
        let pseudo = pseudo + if self.tcp { 6 } else { 17 } + transport_len as u64;
        let sum = checksum::finish(checksum::add(pseudo, piece.get(self.transport_at..).unwrap_or_default()));
        // UDP sends 0 as all ones (RFC 768); for TCP both mean the same.
        put16(piece, checksum_at, if sum == 0 { u16::MAX } else { sum });
    }

    /// RFC 9293, 3.1, and RFC 3168, 6.1.2: CWR belongs to the first segment, FIN and PSH to the last.
    fn finish_tcp(&self, at: usize, piece: &mut [u8]) {
        let is_last = (at + 1) * self.size >= self.payload;
        let Some(tcp) = piece.get_mut(self.transport_at..) else { return };
        if let Some(sequence) = tcp.get_mut(4..).and_then(<[u8]>::first_chunk_mut::<4>) {
            // A frame's payload has no 2^32 bytes.
            *sequence = u32::from_be_bytes(*sequence).wrapping_add((at * self.size) as u32).to_be_bytes();
        }
        if let Some(flags) = tcp.get_mut(13) {
            *flags &= !(if at > 0 { TCP_CWR } else { 0 } | if is_last { 0 } else { TCP_FIN_PSH });
        }
    }
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::{EthernetFrame, IpAddress, Ipv4Packet, Ipv6Packet, TcpPacket, UdpPacket};

    use super::*;
    use crate::spec::net::HDR_F_NEEDS_CSUM;

    const FIN: u8 = 1;
    const PSH: u8 = 8;
    const ACK: u8 = 16;

    fn frame(ipv4: bool, tcp: bool, payload: usize) -> (Vec<u8>, NetHeader) {
        let mut frame = vec![2; 12];
        let transport = if tcp { 20 } else { 8 };
        let protocol = if tcp { 6 } else { 17 };
        if ipv4 {
            frame.extend([8, 0, 0x45, 0, 0, 0, 0xff, 0xff, 0x40, 0, 64, protocol, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, protocol, 64]);
            frame.extend([0xfe; 32]);
        }
        let csum_start = frame.len() as u16;
        frame.extend([0x9c, 0x40, 0, 80]);
        if tcp {
            frame.extend([0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x50, TCP_CWR | ACK | PSH | FIN, 1, 0, 0, 0, 0, 0]);
        } else {
            frame.extend([0; 4]);
        }
        assert_eq!(frame.len(), usize::from(csum_start) + transport);
        frame.extend((0..payload).map(|at| at as u8));
        let gso_type = match (tcp, ipv4) {
            (true, true) => GSO_TCPV4,
            (true, false) => GSO_TCPV6,
            _ => GSO_UDP_L4,
        };
        let csum_offset = if tcp { 16 } else { 6 };
        let header = NetHeader {
            flags: HDR_F_NEEDS_CSUM,
            gso_type,
            gso_size: 100,
            csum_start,
            csum_offset,
            ..NetHeader::default()
        };
        (frame, header)
    }

    fn pieces(frame: &[u8], header: NetHeader) -> Option<Vec<Vec<u8>>> {
        let cut = Segmentation::new(&frame[..frame.len().min(MAX_HEADERS)], frame.len(), header)?;
        let mut payload = frame.get(cut.headers_len()..)?;
        let pieces = cut.places().map(|place| place.len()).enumerate().map(|(at, len)| {
            let mut piece = vec![0xaa; len];
            let (here, rest) = payload.split_at(len - cut.headers_len());
            piece[cut.headers_len()..].copy_from_slice(here);
            payload = rest;
            cut.finish(at, &mut piece);
            piece
        });
        Some(pieces.collect())
    }

    #[test]
    fn each_piece_is_a_sound_packet_of_its_own_and_together_they_are_the_payload() {
        for (ipv4, tcp) in [(true, true), (true, false), (false, true), (false, false)] {
            let (frame, header) = frame(ipv4, tcp, 250);
            let pieces = pieces(&frame, header).unwrap();
            assert_eq!(pieces.len(), 3);
            let mut payload: Vec<u8> = Vec::new();
            for (at, piece) in pieces.iter().enumerate() {
                let ethernet = EthernetFrame::new_checked(piece).unwrap();
                let (source, destination, transport): (IpAddress, IpAddress, &[u8]) = if ipv4 {
                    let ip = Ipv4Packet::new_checked(ethernet.payload()).unwrap();
                    assert!(ip.verify_checksum());
                    assert_eq!(ip.ident(), 0xffff_u16.wrapping_add(at as u16));
                    (ip.src_addr().into(), ip.dst_addr().into(), ip.payload())
                } else {
                    let ip = Ipv6Packet::new_checked(ethernet.payload()).unwrap();
                    (ip.src_addr().into(), ip.dst_addr().into(), ip.payload())
                };
                if tcp {
                    let tcp = TcpPacket::new_checked(transport).unwrap();
                    assert!(tcp.verify_checksum(&source, &destination));
                    assert_eq!(tcp.seq_number().0, 0xffff_fff0_u32.wrapping_add(at as u32 * 100) as i32);
                    assert_eq!((tcp.psh(), tcp.fin(), tcp.cwr()), (at == 2, at == 2, at == 0));
                    payload.extend(tcp.payload());
                } else {
                    let udp = UdpPacket::new_checked(transport).unwrap();
                    assert!(udp.verify_checksum(&source, &destination));
                    payload.extend(udp.payload());
                }
            }
            assert_eq!(payload, (0..250).map(|at| at as u8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_not_as_its_virtio_net_header_says_is_refused() {
        let (whole, header) = frame(true, true, 300);
        assert!(pieces(&whole, header).is_some());
        for header in [
            NetHeader { csum_start: 33, ..header },
            NetHeader { csum_offset: 6, ..header },
            NetHeader { gso_type: GSO_UDP_L4, ..header },
            NetHeader { gso_size: 0, ..header },
        ] {
            assert!(pieces(&whole, header).is_none(), "{header:?}");
        }
        // Another ethertype, version, header length, a length beyond the frame, a fragment, another protocol, a TCP header too
        // short.
        for (at, byte) in [(12, 9), (14, 0x65), (14, 0x44), (14, 0x4f), (16, 0xff), (20, 0x20), (23, 17), (46, 0x40)] {
            let mut frame = whole.clone();
            frame[at] = byte;
            assert!(pieces(&frame, header).is_none(), "byte {at}");
        }
        for len in 0..=54 {
            assert!(pieces(&whole[..len], header).is_none(), "{len} bytes");
        }
    }

    #[test]
    fn the_bytes_of_all_pieces_are_told_before_they_are_made() {
        let (frame, header) = frame(true, true, 250);
        let cut = Segmentation::new(&frame, frame.len(), header).unwrap();
        assert_eq!(cut.framed_len(4), cut.places().map(|place| place.len() + 4).sum::<usize>());
    }

    #[test]
    fn pieces_that_are_cut_where_they_lie_are_the_same() {
        for payload in [90, 100, 250] {
            let (mut frame, header) = frame(true, false, payload);
            let copied = pieces(&frame, header).unwrap();
            let cut = Segmentation::new(&frame, frame.len(), header).unwrap();
            assert_eq!(cut.pieces(), copied.len());
            for (at, (place, copied)) in cut.places().zip(copied).enumerate() {
                let piece = frame.get_mut(place).unwrap();
                cut.finish(at, piece);
                assert_eq!(piece, copied);
            }
        }
    }
}
