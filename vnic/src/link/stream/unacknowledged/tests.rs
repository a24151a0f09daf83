//! Against a clock and an answerer of the test's own.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use super::*;
use crate::link::stream::send::PREFIX;

const MS: Duration = Duration::from_millis(1);
const NONE: [u32; 0] = [];

/// The guest's connections from this port, what goes out, and a clock.
struct Desk {
    waiting: Unacknowledged,
    buffer: SendBuffer,
    ours: UnixStream,
    theirs: UnixStream,
    now: Instant,
}

fn frame(ports: [u16; 2], [seq, ack]: [u32; 2], flags: u8, payload: usize) -> Vec<u8> {
    let mut frame = vec![2; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend((40 + payload as u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 15]);
    frame.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    frame.extend([seq, ack].iter().flat_map(|number| number.to_be_bytes()));
    frame.extend([0x50, flags, 1, 0, 0, 0, 0, 0]);
    frame.resize(54 + payload, seq as u8);
    frame
}

impl Desk {
    fn new(kept: usize) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let buffer = SendBuffer::keeping(kept);
        Desk { waiting: Unacknowledged::new(), buffer, ours, theirs, now: Instant::now() }
    }

    fn send(&mut self, port: u16, seq: u32, flags: u8, payload: usize) {
        let frame = frame([port, 80], [seq, 1], TCP_ACK | flags, payload);
        let (place, room) = self.buffer.frame(frame.len());
        room.copy_from_slice(&frame);
        self.waiting.sent(&frame, place, self.now);
        self.take();
    }

    fn answer(&mut self, port: u16, ack: u32, flags: u8) {
        self.waiting.came(&frame([80, port], [1, ack], flags, 0), self.now);
    }

    /// What goes out now: sequence numbers.
    fn take(&mut self) -> Vec<u32> {
        let mut bytes = Vec::new();
        while !self.buffer.is_empty() {
            self.buffer.write(self.ours.as_fd()).unwrap();
            let mut some = vec![0; 1 << 20];
            let count = self.theirs.read(&mut some).unwrap();
            bytes.extend_from_slice(&some[..count]);
        }
        let mut seqs = Vec::new();
        while let Some((prefix, rest)) = bytes.split_first_chunk::<PREFIX>() {
            let (frame, rest) = rest.split_at(u32::from_be_bytes(*prefix) as usize);
            seqs.push(segment(frame).unwrap().1.seq);
            bytes = rest.to_vec();
        }
        seqs
    }

    /// What is said again once so much time has passed.
    fn after(&mut self, pause: Duration) -> Vec<u32> {
        self.now += pause;
        let count = self.waiting.say_again(&mut self.buffer, self.now);
        let seqs = self.take();
        assert_eq!(seqs.len() as u64, count);
        seqs
    }

    /// A connection whose answers take a millisecond, up to sequence number 1000.
    fn known(&mut self, port: u16) {
        for seq in [0, 500] {
            self.send(port, seq, 0, 500);
            self.now += MS;
            self.answer(port, seq + 500, TCP_ACK);
        }
    }
}

#[test]
fn what_is_not_answered_goes_out_again_ever_later_until_it_is() {
    let mut desk = Desk::new(1 << 20);
    desk.known(7);
    assert_eq!(desk.after(LATEST), NONE, "all is answered");
    for seq in [1000, 1100, 1200] {
        desk.send(7, seq, 0, 100);
    }
    assert_eq!(desk.after(SOONEST - MS), NONE);
    assert_eq!(desk.after(MS), [1000, 1100, 1200]);
    assert_eq!(desk.after(2 * SOONEST - MS), NONE);
    desk.answer(7, 1100, TCP_ACK);
    assert_eq!(desk.after(SOONEST), [1100, 1200], "an answer begins it anew");
    assert_eq!(desk.after(2 * SOONEST), [1100, 1200]);
    assert_eq!(desk.after(4 * SOONEST), [1100, 1200]);
    desk.answer(7, 1301, TCP_ACK);
    assert_eq!(desk.after(LATEST), NONE, "all of it, and the connection's end");
    assert_eq!((desk.waiting.due(), desk.waiting.segments.len()), (None, 0));
}

#[test]
fn what_is_never_answered_is_left_to_the_guest() {
    let mut desk = Desk::new(1 << 20);
    desk.known(7);
    desk.send(7, 1000, 0, 100);
    let count = (0..100).map(|_| desk.after(LATEST * 100).len()).sum::<usize>();
    assert_eq!((count as u32, desk.waiting.due()), (TRIES, None));
    desk.send(8, 0, 0, 100);
    assert_eq!(desk.after(LATEST - MS), NONE, "how long this one takes is not known yet");
}

#[test]
fn the_same_answer_twice_means_that_something_is_missing() {
    let mut desk = Desk::new(1 << 20);
    desk.known(7);
    desk.send(7, 1000, 0, 100);
    desk.answer(7, 1000, TCP_ACK);
    assert_eq!(desk.after(Duration::ZERO), [1000]);
    desk.answer(7, 1000, TCP_ACK);
    assert_eq!(desk.after(Duration::ZERO), NONE, "but it is said once for that");
}

#[test]
fn connections_are_apart_and_end() {
    let mut desk = Desk::new(1 << 20);
    for port in [7, 8, 9, 10] {
        desk.known(port);
        desk.send(port, 1000, 0, usize::from(port));
    }
    desk.answer(8, 1008, TCP_ACK);
    desk.answer(9, 0, TCP_RST);
    desk.send(10, 0, TCP_SYN, 0);
    assert_eq!(desk.after(SOONEST), [1000], "only the first has no answer");
    desk.answer(7, 1007, TCP_ACK);
    assert_eq!(desk.after(LATEST), NONE);
}

#[test]
fn what_others_have_taken_the_place_of_is_left_out() {
    let mut desk = Desk::new(0);
    desk.known(7);
    desk.send(7, 1000, 0, 100);
    for _ in 0..20 {
        desk.buffer.frame(60_000).1.fill(0);
        while !desk.buffer.is_empty() {
            desk.buffer.write(desk.ours.as_fd()).unwrap();
            let _ = desk.theirs.read(&mut vec![0; 1 << 20]).unwrap();
        }
    }
    desk.send(7, 1100, 0, 100);
    assert_eq!(desk.after(SOONEST), [1100]);
}

#[test]
fn any_bytes_will_do_and_memory_has_an_end() {
    let mut desk = Desk::new(0);
    let whole = frame([7, 80], [0, 0], TCP_ACK, 10);
    for len in 0..whole.len() {
        desk.waiting.sent(&whole[..len], 0, desk.now);
        desk.waiting.came(&whole[..len], desk.now);
    }
    for seq in 0..2 * SEGMENTS as u32 {
        let odd = frame([seq as u16, 80], [seq.wrapping_mul(0x9e37_79b9), seq], TCP_ACK, 10);
        desk.waiting.sent(&odd, u64::from(seq), desk.now);
        desk.waiting.came(&odd, desk.now);
    }
    assert!(desk.waiting.segments.len() <= SEGMENTS);
    // Places that there never were.
    assert_eq!(desk.waiting.say_again(&mut desk.buffer, desk.now + LATEST * 2), 0);
}
