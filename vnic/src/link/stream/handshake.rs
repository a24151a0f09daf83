//! The end of TCP's handshake in passt's place, which some versions of it leave out.
//!
//! Why: passt takes the guest's SYN, ACK, and acknowledges it with the first bytes that come from the host (seen with Debian
//! 12's, of March 2023). Where the server is to speak first (FTP, SMTP, MySQL), none come: the guest waits for the
//! acknowledgement, and the client for the guest.
//!
//! Operation: each SYN, ACK of the guest's is acknowledged here at once. A version that does so itself does it twice, which
//! changes nothing (RFC 9293, 3.10.7.4). The window that is granted is small; passt's next segment has its own.
//!
//! Limits: an acknowledgement that finds no room is left out; the guest says its SYN, ACK again after a second.

use std::collections::VecDeque;

use crate::net::checksum;

/// Acknowledgements that wait for the driver, at most.
const MAX_WAITING: usize = 64;
/// In the unit that both sides have agreed on: from 512 bytes to 128 KiB with what passt says in its SYN.
const WINDOW: u16 = 512;

const ETHERNET: usize = 14;
const TCP: usize = 20;
const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x10;

/// Acknowledgements on their way to the driver, oldest first.
#[derive(Debug, Default)]
pub(super) struct Handshakes(VecDeque<Vec<u8>>);

impl Handshakes {
    /// A frame of the guest's passes: if it is a SYN, ACK, there is an acknowledgement now. Was there?
    pub(super) fn note(&mut self, frame: &[u8]) -> bool {
        if self.0.len() >= MAX_WAITING {
            return false;
        }
        let Some(answer) = acknowledgement(frame) else { return false };
        self.0.push_back(answer);
        true
    }

    /// The next acknowledgement.
    pub(super) fn frame(&self) -> Option<&[u8]> {
        self.0.front().map(Vec::as_slice)
    }

    /// It is taken.
    pub(super) fn take(&mut self) {
        self.0.pop_front();
    }

    /// There is nobody to be answered for any more.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// The acknowledgement of a SYN, ACK, in its receiver's name; `None`: it is another frame.
fn acknowledgement(frame: &[u8]) -> Option<Vec<u8>> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
    // Where the addresses are, and how the header's length is told.
    let (ip_len, addresses, address_len) = match (ethernet.get(12..)?, packet.first()?) {
        ([0x08, 0x00], first) if first >> 4 == 4 && packet.get(9) == Some(&6) => (usize::from(first & 15) * 4, 12, 4),
        ([0x86, 0xdd], first) if first >> 4 == 6 && packet.get(6) == Some(&6) => (40, 8, 16),
        _ => return None,
    };
    let tcp = packet.get(ip_len..)?.first_chunk::<TCP>()?;
    if tcp[13] & 0x3f != SYN_ACK || ip_len < 20 {
        return None;
    }
    let source = packet.get(addresses..addresses + address_len)?;
    let destination = packet.get(addresses + address_len..addresses + 2 * address_len)?;

    let mut segment = [&tcp[2..4], &tcp[0..2], &tcp[8..12]].concat();
    let [a, b, c, d] = [tcp[4], tcp[5], tcp[6], tcp[7]];
    segment.extend(u32::from_be_bytes([a, b, c, d]).wrapping_add(1).to_be_bytes());
    segment.extend([0x50, ACK]);
    segment.extend(WINDOW.to_be_bytes());
    segment.extend([0; 4]);
    let pseudo = checksum::add(checksum::add(checksum::add(0, destination), source), &[0, 6]) + TCP as u64;
    let sum = checksum::finish(checksum::add(pseudo, &segment));
    segment.get_mut(16..18)?.copy_from_slice(&sum.to_be_bytes());

    let mut header = match address_len {
        4 => vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0],
        _ => vec![0x60, 0, 0, 0, 0, 20, 6, 64],
    };
    header.extend(destination);
    header.extend(source);
    if address_len == 4 {
        let sum = checksum::of(&header);
        header.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
    }
    Some([ethernet.get(6..12)?, ethernet.get(..6)?, ethernet.get(12..)?, &header, &segment].concat())
}

#[cfg(test)]
mod tests {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{EthernetFrame, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr};

    use super::*;

    /// Of 10.0.2.15 or its like in version 6, port 21, to port 40000.
    fn syn_ack(version: u8) -> Vec<u8> {
        let mut frame = [[2_u8; 6], [3; 6]].concat();
        match version {
            4 => {
                frame.extend([8, 0, 0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
            }
            _ => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 6, 64]);
                frame.extend([[0xfe; 16], [0xfd; 16]].concat());
            }
        }
        frame.extend([0, 21, 0x9c, 0x40, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9, 0x60, SYN_ACK, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend([2, 4, 5, 0xb4]);
        frame
    }

    #[test]
    fn a_syn_ack_is_acknowledged_in_its_receivers_name() {
        for version in [4, 6] {
            let mut waiting = Handshakes::default();
            assert!(waiting.note(&syn_ack(version)));
            let frame = EthernetFrame::new_checked(waiting.frame().unwrap()).unwrap();
            assert_eq!((frame.dst_addr().0, frame.src_addr().0), ([3; 6], [2; 6]));
            let sums = ChecksumCapabilities::default();
            let repr = if version == 4 {
                let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
                let ip = Ipv4Repr::parse(&packet, &sums).unwrap();
                let tcp = TcpPacket::new_checked(packet.payload()).unwrap();
                let repr = TcpRepr::parse(&tcp, &ip.src_addr.into(), &ip.dst_addr.into(), &sums).unwrap();
                assert_eq!((ip.src_addr.octets()[3], ip.dst_addr.octets()[3], repr.payload.len()), (2, 15, 0));
                (repr.src_port, repr.dst_port, repr.control, repr.seq_number.0, repr.ack_number.unwrap().0)
            } else {
                let packet = Ipv6Packet::new_checked(frame.payload()).unwrap();
                let ip = Ipv6Repr::parse(&packet).unwrap();
                let tcp = TcpPacket::new_checked(packet.payload()).unwrap();
                let repr = TcpRepr::parse(&tcp, &ip.src_addr.into(), &ip.dst_addr.into(), &sums).unwrap();
                assert_eq!((ip.src_addr.octets()[3], ip.dst_addr.octets()[3], repr.payload.len()), (0xfd, 0xfe, 0));
                (repr.src_port, repr.dst_port, repr.control, repr.seq_number.0, repr.ack_number.unwrap().0)
            };
            assert_eq!(repr, (40000, 21, TcpControl::None, 9, 0));
            waiting.take();
            assert!(waiting.frame().is_none());
        }
    }

    #[test]
    fn nothing_else_is_and_no_more_than_there_is_room_for() {
        let mut waiting = Handshakes::default();
        let whole = syn_ack(4);
        for len in 0..whole.len() - 4 {
            assert!(!waiting.note(&whole[..len]), "{len}");
        }
        for (at, value) in [(12, 9), (14, 0x65), (14, 0x41), (23, 17), (47, 2), (47, 0x10), (47, 0x16)] {
            let mut other = whole.clone();
            other[at] = value;
            assert!(!waiting.note(&other), "{at}: {value:#x}");
        }
        assert_eq!((0..100).filter(|_| waiting.note(&whole)).count(), MAX_WAITING);
        waiting.clear();
        assert!(waiting.frame().is_none());
    }
}
