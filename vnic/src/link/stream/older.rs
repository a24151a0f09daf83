//! Asks passt once what it has of a TCP connection that is older than this link's socket.
//!
//! Why: whoever had the socket before may have died with an acknowledgement in hand, and passt says none again: it passes over what it
//! has already without a word (seen with Debian 12's, of March 2023). The guest says its oldest segment again and again, and hears nothing.
//!
//! Operation: behind the guest's first segment with payload of each connection whose SYN did not pass here goes one of a single byte, [`AHEAD`] of
//! it. passt takes bytes in their order only: it drops this one, and answers with what it has.
//!
//! Invariants: only passt is asked ([`is_passt`]). Another receiver might take the byte for the guest's.
//!
//! Limits: so many connections ([`MOST`]) for each time that the far end is connected to. They are told apart by a hash of [`FLOWS`] places: one
//! may be asked for twice, which changes nothing. A passt in another PID namespace is not known for one.

use std::fs;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{getsockopt, sockopt};

use super::unacknowledged::{key, segment};
use crate::net::checksum;
use crate::net::parse::{TCP_RST, TCP_SYN};

const FLOWS: usize = 256;
const MOST: u16 = 256;
/// More than a guest has on the way, and less than the 16 MiB within which passt takes a number for one that is still to come: what lies
/// beyond makes it reset the connection.
const AHEAD: u32 = 8 << 20;

const ETHERNET: usize = 14;
const TCP: usize = 20;
/// Header of 20 bytes, ACK.
const OFFSET_AND_FLAGS: [u8; 2] = [0x50, 0x10];

/// Is it passt that has the other end? To be asked while there are files to ask.
pub(super) fn is_passt(socket: &UnixStream) -> bool {
    let name = getsockopt(socket, sockopt::PeerCredentials)
        .ok()
        .and_then(|peer| fs::read_to_string(format!("/proc/{}/comm", peer.pid())).ok());
    // It may call itself after what its CPU can do: passt.avx2.
    name.is_some_and(|name| name.trim_end().split('.').next() == Some("passt"))
}

/// See the module.
#[derive(Debug)]
pub(super) struct Older {
    /// Connections that are known to be young, or were asked for.
    known: Box<[u64]>,
    left: u16,
}

impl Older {
    /// The far end was connected to just now.
    pub(super) fn new() -> Self {
        Older { known: vec![0; FLOWS].into_boxed_slice(), left: MOST }
    }

    /// A frame of the guest's goes out: what is to go out behind it, if anything.
    pub(super) fn ask(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        if self.left == 0 {
            return None;
        }
        let (packet, tcp) = segment(frame)?;
        let key = key(packet.source, packet.destination);
        let known = self.known.get_mut(key as usize % FLOWS)?;
        if *known == key || packet.payload_len == 0 && tcp.flags & TCP_SYN == 0 {
            return None;
        }
        *known = key;
        if tcp.flags & (TCP_SYN | TCP_RST) != 0 {
            return None;
        }
        self.left -= 1;
        question(frame, tcp.seq.wrapping_add(AHEAD))
    }
}

/// A segment of the same connection, with this number and one byte.
fn question(frame: &[u8], seq: u32) -> Option<Vec<u8>> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET)?;
    let (ip_len, addresses) = match packet.first()? >> 4 {
        4 => (usize::from(packet.first()? & 15) * 4, 12..20),
        // What carries extension headers is left alone.
        _ => (packet.get(6) == Some(&6)).then_some((40, 8..40))?,
    };
    let (ip, tcp) = (packet.get(..ip_len)?, packet.get(ip_len..)?.first_chunk::<TCP>()?);

    let mut segment = *tcp;
    segment.get_mut(4..8)?.copy_from_slice(&seq.to_be_bytes());
    segment.get_mut(12..14)?.copy_from_slice(&OFFSET_AND_FLAGS);
    // Checksum and urgent pointer.
    segment.get_mut(16..20)?.fill(0);
    let mut segment = [segment.as_slice(), &[0]].concat();
    let pseudo = checksum::add(checksum::add(0, ip.get(addresses)?), &[0, 6]) + segment.len() as u64;
    let sum = checksum::finish(checksum::add(pseudo, &segment));
    segment.get_mut(16..18)?.copy_from_slice(&sum.to_be_bytes());

    let mut ip = ip.to_vec();
    if ip_len == 40 && ip.first()? >> 4 == 6 {
        ip.get_mut(4..6)?.copy_from_slice(&(segment.len() as u16).to_be_bytes());
    } else {
        ip.get_mut(2..4)?.copy_from_slice(&((ip_len + segment.len()) as u16).to_be_bytes());
        ip.get_mut(10..12)?.fill(0);
        let sum = checksum::of(&ip);
        ip.get_mut(10..12)?.copy_from_slice(&sum.to_be_bytes());
    }
    Some([ethernet, &ip, &segment].concat())
}

#[cfg(test)]
mod tests {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{EthernetFrame, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr};

    use super::*;

    const SYN: u8 = 2;
    const ACK: u8 = 16;

    /// From port 40000 of the guest's to port 80.
    fn frame(version: u8, port: u16, flags: u8, payload: usize) -> Vec<u8> {
        let mut frame = [[2_u8; 6], [3; 6]].concat();
        let len = (20 + payload) as u16;
        if version == 4 {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + len).to_be_bytes());
            frame.extend([0, 9, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        } else {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(len.to_be_bytes());
            frame.extend([6, 64]);
            frame.extend([[0xfe; 16], [0xfd; 16]].concat());
        }
        frame.extend(port.to_be_bytes());
        frame.extend([0, 80, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 9, 0x50, flags, 1, 0, 7, 7, 0, 0]);
        frame.resize(frame.len() + payload, 0xaa);
        frame
    }

    #[test]
    fn a_connection_that_began_before_is_asked_for_once_ahead_of_what_is_on_the_way() {
        for version in [4, 6] {
            let mut older = Older::new();
            let asked = older.ask(&frame(version, 40000, ACK, 100)).unwrap();
            let frame_of = EthernetFrame::new_checked(&asked).unwrap();
            let sums = ChecksumCapabilities::default();
            let tcp = if version == 4 {
                let packet = Ipv4Packet::new_checked(frame_of.payload()).unwrap();
                let ip = Ipv4Repr::parse(&packet, &sums).unwrap();
                let tcp = TcpPacket::new_checked(packet.payload()).unwrap();
                TcpRepr::parse(&tcp, &ip.src_addr.into(), &ip.dst_addr.into(), &sums).map(|tcp| whole(&tcp)).unwrap()
            } else {
                let packet = Ipv6Packet::new_checked(frame_of.payload()).unwrap();
                let ip = Ipv6Repr::parse(&packet).unwrap();
                let tcp = TcpPacket::new_checked(packet.payload()).unwrap();
                TcpRepr::parse(&tcp, &ip.src_addr.into(), &ip.dst_addr.into(), &sums).map(|tcp| whole(&tcp)).unwrap()
            };
            assert_eq!(tcp, (40000, 80, TcpControl::None, 0x007f_fff0, 9, 1));
            assert_eq!(older.ask(&frame(version, 40000, ACK, 100)), None);
            assert!(older.ask(&frame(version, 40001, ACK, 100)).is_some());
        }
    }

    fn whole(tcp: &TcpRepr<'_>) -> (u16, u16, TcpControl, i32, i32, usize) {
        (tcp.src_port, tcp.dst_port, tcp.control, tcp.seq_number.0, tcp.ack_number.unwrap().0, tcp.payload.len())
    }

    #[test]
    fn who_has_the_other_end_is_known_by_name() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(!is_passt(&ours), "it is this test");
    }

    #[test]
    fn nobody_is_asked_for_one_that_begins_here_or_says_nothing_and_no_more_than_so_many() {
        let mut older = Older::new();
        assert_eq!(older.ask(&frame(4, 1, SYN, 0)), None);
        assert_eq!(older.ask(&frame(4, 1, ACK, 100)), None);
        assert_eq!(older.ask(&frame(4, 2, ACK, 0)), None, "it only acknowledges");
        assert_eq!(older.ask(&frame(4, 2, TCP_RST, 1)), None);
        let mut datagram = frame(4, 3, ACK, 100);
        datagram[23] = 17;
        assert_eq!(older.ask(&datagram), None);
        let whole = frame(4, 4, ACK, 1);
        assert!((0..whole.len() - 1).all(|len| older.ask(&whole[..len]).is_none()));
        let asked = (10..u16::MAX).filter(|port| older.ask(&frame(4, *port, ACK, 1)).is_some());
        assert_eq!(asked.count(), usize::from(MOST));
    }
}
