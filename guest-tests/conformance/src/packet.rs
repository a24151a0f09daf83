//! Frames of a kind each, with the header that a driver would write.

use vnic::net::checksum;
use vnic::spec::net::{GSO_TCPV4, HDR_F_NEEDS_CSUM, NetHeader};

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: usize = 20;
const TCP_CHECKSUM: u16 = 16;

/// A frame and its header.
#[derive(Debug, Clone)]
pub struct Packet {
    /// What the driver says of the frame.
    pub header: NetHeader,
    /// Its bytes.
    pub frame: Vec<u8>,
}

impl Packet {
    /// A frame of this length of no protocol that anybody knows; its bytes are others than those of another number.
    #[must_use]
    pub fn plain(len: usize, number: u8) -> Packet {
        let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x88, 0xb5];
        frame.extend((frame.len()..len).map(|at| (at as u8).wrapping_mul(7) ^ number));
        Packet { header: NetHeader::default(), frame }
    }

    /// A TCP segment over IPv4 with so much payload and a good checksum.
    #[must_use]
    pub fn tcp(payload: usize) -> Packet {
        let mut packet = Packet::tcp_partial(payload);
        // The checksum's place is in the frame.
        let _ = checksum::complete(&mut packet.frame, (ETHERNET + IPV4) as u16, TCP_CHECKSUM);
        packet.header = NetHeader::default();
        packet
    }

    /// The same with the checksum of the pseudo-header only: the device completes it.
    #[must_use]
    pub fn tcp_partial(payload: usize) -> Packet {
        let mut frame = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x08, 0x00];
        let total = (IPV4 + TCP + payload) as u16;
        let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        put(&mut ip, 2, total);
        let sum = checksum::of(&ip);
        put(&mut ip, 10, sum);
        // Ports, sequence, acknowledgement, 20 bytes of header, ACK, window.
        let mut tcp = vec![0x1f, 0x90, 0x1f, 0x91, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
        let addresses = ip.get(12..).unwrap_or_default();
        let len = (TCP + payload) as u16;
        let pseudo = [addresses, &[0, 6], &len.to_be_bytes()].concat();
        put(&mut tcp, usize::from(TCP_CHECKSUM), !checksum::of(&pseudo));
        frame.extend(ip);
        frame.extend(tcp);
        frame.extend((0..payload).map(|at| (at % 251) as u8));
        let csum_start = (ETHERNET + IPV4) as u16;
        let header =
            NetHeader { flags: HDR_F_NEEDS_CSUM, csum_start, csum_offset: TCP_CHECKSUM, ..NetHeader::default() };
        Packet { header, frame }
    }

    /// A TCP super-frame over IPv4, to be cut into segments of 1000 bytes.
    #[must_use]
    pub fn tcp_super(payload: usize) -> Packet {
        let mut packet = Packet::tcp_partial(payload);
        packet.header.gso_type = GSO_TCPV4;
        packet.header.gso_size = 1000;
        packet.header.hdr_len = (ETHERNET + IPV4 + TCP) as u16;
        packet
    }

    /// As it lies in the driver's buffers.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        [&self.header.to_bytes()[..], &self.frame].concat()
    }
}

/// The payload of a TCP segment over IPv4, if its checksums are right.
pub(crate) fn tcp_payload(frame: &[u8]) -> Option<&[u8]> {
    let ip = frame.get(ETHERNET..ETHERNET + IPV4)?;
    let segment = frame.get(ETHERNET + IPV4..)?;
    let pseudo = [ip.get(12..)?, &[0, 6], &(segment.len() as u16).to_be_bytes()[..]].concat();
    let sum = checksum::add(checksum::add(0, &pseudo), segment);
    (checksum::of(ip) == 0 && checksum::finish(sum) == 0).then(|| segment.get(TCP..)).flatten()
}

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}
