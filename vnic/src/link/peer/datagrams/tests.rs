//! A second smoltcp is the guest, as in the peer's own tests.

use std::net::IpAddr;

use smoltcp::iface::SocketHandle;

use super::*;
use crate::link::peer::{IPV4, IPV6, Peer};
use crate::link::testing::{Clock, Lab, Offload};
use crate::net::parse::{Packet, UDP, parse};
use crate::spec::net::{GSO_UDP_L4, HDR_F_NEEDS_CSUM, NetHeader};

const GUEST: u16 = 40_000;

struct Sender {
    lab: Lab<Peer>,
    socket: SocketHandle,
}

impl Sender {
    fn new() -> Self {
        let mut lab = Lab::new(Peer::new(1).unwrap(), Offload::None, Clock::Virtual);
        let buffer = || PacketBuffer::new(vec![PacketMetadata::EMPTY; 64], vec![0; 128 << 10]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.bind(GUEST).unwrap();
        let socket = lab.sockets.add(socket);
        Sender { lab, socket }
    }

    fn send(&mut self, port: u16, datagram: &[u8]) {
        let socket = self.lab.sockets.get_mut::<Socket<'_>>(self.socket);
        socket.send_slice(datagram, (IPV4, port)).unwrap();
        let handle = self.socket;
        self.lab.until("sent", |lab| lab.sockets.get::<Socket<'_>>(handle).send_queue() == 0);
        while self.lab.turn() {}
    }

    fn say(&mut self, kind: Kind, transfer: u64, offset: u64, bytes: &[u8]) {
        let datagram = [&Header { kind, transfer, offset }.to_bytes()[..], bytes].concat();
        self.send(datagram::PORT, &datagram);
    }

    fn hear(&mut self) -> Option<Vec<u8>> {
        self.lab.sockets.get_mut::<Socket<'_>>(self.socket).recv().ok().map(|(bytes, _)| bytes.to_vec())
    }

    fn count(&self, counter: &str) -> u64 {
        self.lab.port.counters.get(counter)
    }
}

fn receipt_of(transfer: u64, bytes: &[u8]) -> Vec<u8> {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let header = Header { kind: Kind::Receipt, transfer, offset: bytes.len() as u64 };
    [&header.to_bytes()[..], format!("bytes {} sha256 {hex}\n", bytes.len()).as_bytes()].concat()
}

#[test]
fn a_file_in_datagrams_is_answered_with_length_and_digest_as_often_as_asked() {
    let mut sender = Sender::new();
    let file: Vec<u8> = (0..10_000).map(|at| (at % 251) as u8).collect();
    for (at, piece) in file.chunks(1408).enumerate() {
        sender.say(Kind::Data, 7, at as u64 * 1408, piece);
    }
    assert_eq!(sender.hear(), None, "nobody asked yet");
    for _ in 0..2 {
        sender.say(Kind::End, 7, 10_000, b"");
        assert_eq!(sender.hear(), Some(receipt_of(7, &file)));
    }
    assert_eq!((sender.count("payload_bytes"), sender.count("datagram_receipts")), (10_000, 2));
    assert_eq!(sender.count("datagrams_dropped"), 0);
    sender.say(Kind::End, 8, 0, b"");
    assert_eq!(sender.hear(), Some(receipt_of(8, b"")), "a file without a byte");
}

#[test]
fn at_a_gap_the_receipt_stops() {
    let mut sender = Sender::new();
    sender.say(Kind::Data, 1, 0, b"abc");
    sender.say(Kind::Data, 1, 4, b"efg");
    sender.say(Kind::Data, 1, 0, b"abc");
    sender.say(Kind::End, 1, 7, b"");
    assert_eq!(sender.hear(), Some(receipt_of(1, b"abc")));
    assert_eq!(sender.count("datagrams_dropped"), 2);
    // It goes on from where it stands.
    sender.say(Kind::Data, 1, 3, b"defg");
    sender.say(Kind::End, 1, 7, b"");
    assert_eq!(sender.hear(), Some(receipt_of(1, b"abcdefg")));
}

#[test]
fn files_do_not_mix_and_the_quietest_is_forgotten() {
    let mut sender = Sender::new();
    for number in 0..=MAX_TRANSFERS as u64 {
        sender.say(Kind::Data, number, 0, &[number as u8; 5]);
    }
    sender.say(Kind::End, 1, 5, b"");
    assert_eq!(sender.hear(), Some(receipt_of(1, &[1; 5])));
    sender.say(Kind::End, 0, 5, b"");
    assert_eq!(sender.hear(), None, "the first one gave way to the last");
    sender.say(Kind::Data, 0, 5, &[0; 5]);
    assert_eq!(sender.count("datagrams_dropped"), 2);
    assert_eq!(sender.lab.port.datagrams.transfers.len(), MAX_TRANSFERS);
}

#[test]
fn what_is_no_header_is_dropped_and_what_comes_to_the_echo_port_comes_back() {
    let mut sender = Sender::new();
    sender.send(datagram::PORT, b"hello");
    sender.say(Kind::Receipt, 1, 0, b"");
    assert_eq!((sender.hear(), sender.count("datagrams_dropped")), (None, 2));
    for len in [0, 1, MAX_ECHO] {
        sender.send(ECHO_PORT, &vec![7; len]);
        assert_eq!(sender.hear(), Some(vec![7; len]));
    }
    assert_eq!(sender.count("datagram_echoes"), 3);
}

/// Sends `payload` as one frame that the NIC is to cut into datagrams of `size` bytes (USO), from the guest to `to`.
fn send_to_be_cut(sender: &mut Sender, to: IpAddr, payload: &[u8], size: u16) {
    let lab = &mut sender.lab;
    // The guest's own stack makes the headers, once it knows the peer's MAC address.
    lab.sockets.get_mut::<Socket<'_>>(sender.socket).send_slice(b"?", (to, ECHO_PORT)).unwrap();
    let mut frame = loop {
        let now = smoltcp::time::Instant::from_micros(lab.elapsed.as_micros() as i64);
        lab.guest.poll(now, &mut lab.queues, &mut lab.sockets);
        let is_udp =
            |frame: &Vec<u8>| matches!(parse(frame, 1500), Packet::Transport(packet) if packet.protocol == UDP);
        match lab.queues.from_guest.iter().position(is_udp) {
            Some(at) => break lab.queues.from_guest.remove(at).unwrap(),
            None => drop(lab.turn()),
        }
    };
    let transport = frame.len() - 9;
    frame.truncate(transport + 8);
    frame.extend(payload);
    let len = |bytes: usize| u16::try_from(bytes).unwrap().to_be_bytes();
    let (udp, ip) = (len(8 + payload.len()), len(transport - 14 + 8 + payload.len()));
    frame[transport + 4..transport + 6].copy_from_slice(&udp);
    if to.is_ipv4() {
        frame[16..18].copy_from_slice(&ip);
        smoltcp::wire::Ipv4Packet::new_unchecked(&mut frame[14..]).fill_checksum();
    } else {
        frame[18..20].copy_from_slice(&udp);
    }
    let header = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: (transport + 8) as u16,
        gso_size: size,
        csum_start: transport as u16,
        csum_offset: 6,
        num_buffers: 0,
    };
    lab.nic.transmit(&mut lab.port, header, &frame).unwrap();
    while lab.turn() {}
}

#[test]
fn datagrams_in_one_frame_arrive_one_by_one_and_are_answered_so() {
    for to in [IpAddr::V4(IPV4), IpAddr::V6(IPV6)] {
        let mut sender = Sender::new();
        let payload: Vec<u8> = (0..40 * 1400 + 77).map(|at: u32| (at * 7 + at / 251) as u8).collect();
        send_to_be_cut(&mut sender, to, &payload, 1400);
        let back: Vec<Vec<u8>> = std::iter::from_fn(|| sender.hear()).collect();
        assert_eq!(back.iter().map(Vec::len).collect::<Vec<_>>(), [vec![1400; 40], vec![77]].concat(), "{to}");
        assert!(back.concat() == payload);
        assert_eq!((sender.count("segmented_datagrams"), sender.count("dropped_unsegmentable")), (41, 0));
    }
}

#[test]
fn a_frame_in_too_many_datagrams_is_dropped_and_counted() {
    let mut sender = Sender::new();
    send_to_be_cut(&mut sender, IpAddr::V4(IPV4), &[1; 20_000], 1);
    assert_eq!(sender.hear(), None);
    assert_eq!((sender.count("segmented_datagrams"), sender.count("dropped_unsegmentable")), (0, 1));
}
