//! A frame of many datagrams (USO), cut into them as a NIC would.
//!
//! Operation (VIRTIO 1.3, 5.1.6.2 Packet Transmission, `VIRTIO_NET_HDR_GSO_UDP_L4`): each piece of `gso_size` payload bytes
//! gets the frame's headers in front, with lengths and the IPv4 identification of its own. That is done in the buffer the
//! frame is in, over the piece before, which has been taken by then: nothing is copied but headers.
//!
//! Limits: at most [`MAX_DATAGRAMS`], as many as Linux makes; no VLAN tags, no IPv6 extension headers. The checksum stays
//! partial: nobody here looks at it.

use std::ops::Range;

use smoltcp::wire::{
    ETHERNET_HEADER_LEN, EthernetFrame, EthernetProtocol, IPV6_HEADER_LEN, IpProtocol, Ipv4Packet, Ipv6Packet,
    UDP_HEADER_LEN, UdpPacket,
};

use crate::spec::net::NetHeader;

/// `UDP_MAX_SEGMENTS` of Linux. A frame of 64 KiB in pieces of one byte would keep its queue's worker from the others.
pub(super) const MAX_DATAGRAMS: usize = 128;

/// Ethernet, IPv4 with all its options, UDP.
const MAX_HEADERS: usize = ETHERNET_HEADER_LEN + 60 + UDP_HEADER_LEN;
/// Where UDP's checksum stands in its header.
const CHECKSUM_AT: u16 = 6;

/// How a frame is to be cut, and how far that has come.
#[derive(Debug)]
pub(super) struct Segments {
    headers: [u8; MAX_HEADERS],
    headers_len: usize,
    /// Payload bytes of a piece.
    size: usize,
    /// Where the next piece's payload stands in the frame, and where the last one's ends.
    left: Range<usize>,
    /// Pieces so far.
    count: u16,
}

impl Segments {
    /// Of a frame whose virtio-net header asks for it; `None`: it is not what that says, or more than the limits allow.
    pub(super) fn new(frame: &[u8], header: NetHeader) -> Option<Self> {
        let ethernet = EthernetFrame::new_checked(frame).ok()?;
        let (ip_len, end) = match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => {
                let ip = Ipv4Packet::new_checked(ethernet.payload()).ok()?;
                let whole = !ip.more_frags() && ip.frag_offset() == 0;
                (whole && ip.next_header() == IpProtocol::Udp)
                    .then(|| (ip.header_len().into(), ip.total_len().into()))?
            }
            EthernetProtocol::Ipv6 => {
                let ip = Ipv6Packet::new_checked(ethernet.payload()).ok()?;
                (ip.next_header() == IpProtocol::Udp).then(|| (IPV6_HEADER_LEN, ip.total_len()))?
            }
            _ => return None,
        };
        let udp_at = ETHERNET_HEADER_LEN + ip_len;
        let headers_len = udp_at + UDP_HEADER_LEN;
        // Its headers state no more than there is: they were checked.
        let left = headers_len..(ETHERNET_HEADER_LEN + end).min(frame.len());
        let size = usize::from(header.gso_size);
        let is_right = usize::from(header.csum_start) == udp_at && header.csum_offset == CHECKSUM_AT;
        if !is_right || size == 0 || left.is_empty() || left.len().div_ceil(size) > MAX_DATAGRAMS {
            return None;
        }
        let mut headers = [0; MAX_HEADERS];
        headers.get_mut(..headers_len)?.copy_from_slice(frame.get(..headers_len)?);
        Some(Segments { headers, headers_len, size, left, count: 0 })
    }

    /// Makes the next datagram and says where in the buffer it is. The ones before are gone.
    pub(super) fn next(&mut self, buffer: &mut [u8]) -> Option<Range<usize>> {
        let start = self.left.start;
        let end = start.saturating_add(self.size).min(self.left.end);
        let frame_at = start.checked_sub(self.headers_len)?;
        let frame = buffer.get_mut(frame_at..end).filter(|_| start < end)?;
        let (headers, _) = frame.split_at_mut(self.headers_len);
        headers.copy_from_slice(self.headers.get(..self.headers_len)?);
        // A frame's length, so a piece's: what does not fit into 16 bits was refused with the headers that state it.
        let len = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX);
        let udp_len = UDP_HEADER_LEN + (end - start);
        let udp_at = self.headers_len - UDP_HEADER_LEN;
        let mut ethernet = EthernetFrame::new_unchecked(&mut *frame);
        match ethernet.ethertype() {
            EthernetProtocol::Ipv4 => {
                let mut ip = Ipv4Packet::new_unchecked(ethernet.payload_mut());
                ip.set_total_len(len(udp_at - ETHERNET_HEADER_LEN + udp_len));
                ip.set_ident(ip.ident().wrapping_add(self.count));
                ip.fill_checksum();
            }
            _ => Ipv6Packet::new_unchecked(ethernet.payload_mut()).set_payload_len(len(udp_len)),
        }
        UdpPacket::new_unchecked(frame.get_mut(udp_at..)?).set_len(len(udp_len));
        self.left.start = end;
        self.count = self.count.wrapping_add(1);
        Some(frame_at..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::net::{GSO_UDP_L4, HDR_F_NEEDS_CSUM};

    const HEADER: NetHeader = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: 42,
        gso_size: 100,
        csum_start: 34,
        csum_offset: 6,
        num_buffers: 0,
    };

    /// A frame of this many payload bytes, which count up.
    fn frame(payload: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((28 + payload).to_be_bytes());
        frame.extend([0xff, 0xfe, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2, 0x9c, 0x40, 0, 7]);
        frame.extend((8 + payload).to_be_bytes());
        frame.extend([0, 0]);
        frame.extend((0..payload).map(|at| at as u8));
        frame
    }

    fn datagrams(mut buffer: Vec<u8>, header: NetHeader) -> Option<Vec<Vec<u8>>> {
        let mut segments = Segments::new(&buffer, header)?;
        Some(std::iter::from_fn(|| segments.next(&mut buffer).map(|at| buffer[at].to_vec())).collect())
    }

    #[test]
    fn each_piece_is_a_datagram_of_its_own() {
        let pieces = datagrams(frame(250), HEADER).unwrap();
        assert_eq!(pieces.len(), 3);
        let mut payload: Vec<u8> = Vec::new();
        for (piece, (count, len)) in pieces.iter().zip([(0, 100), (1, 100), (2, 50)]) {
            let ip = Ipv4Packet::new_checked(&piece[14..]).unwrap();
            assert!(ip.verify_checksum());
            assert_eq!((ip.ident(), ip.total_len()), (0xfffe_u16.wrapping_add(count), 28 + len));
            assert_eq!(UdpPacket::new_checked(ip.payload()).unwrap().len(), 8 + len);
            payload.extend(&piece[42..]);
        }
        assert_eq!(payload, frame(250)[42..]);
        assert_eq!(datagrams(frame(90), HEADER).unwrap().len(), 1, "no longer than one piece");
    }

    #[test]
    fn what_is_not_as_its_header_says_is_refused() {
        let refused = |header| datagrams(frame(1000), header).is_none();
        assert!(!refused(HEADER));
        for csum_start in [0, 33, 35, 1000, u16::MAX] {
            assert!(refused(NetHeader { csum_start, ..HEADER }), "{csum_start}");
        }
        assert!(refused(NetHeader { csum_offset: 16, ..HEADER }));
        assert!(refused(NetHeader { gso_size: 0, ..HEADER }));
        assert!(refused(NetHeader { gso_size: 7, ..HEADER }), "143 datagrams");
        assert!(!refused(NetHeader { gso_size: 8, ..HEADER }), "125 datagrams");
        assert!(datagrams(frame(0), HEADER).is_none(), "nothing to cut");
        // TCP, a fragment, another protocol, a length beyond the frame, headers cut short.
        for (at, byte) in [(23, 6), (20, 0x20), (12, 9), (16, 0xff), (14, 0x4f), (14, 0x44)] {
            let mut frame = frame(40);
            frame[at] = byte;
            assert!(datagrams(frame, HEADER).is_none(), "byte {at}");
        }
        for len in 0..43 {
            assert!(datagrams(frame(40)[..len].to_vec(), HEADER).is_none(), "{len} bytes");
        }
    }
}
