//! A second smoltcp is the guest, as in the peer's own tests.

use smoltcp::iface::SocketHandle;

use super::*;
use crate::link::peer::{IPV4, Peer};
use crate::link::testing::{Clock, Lab, Offload};

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
