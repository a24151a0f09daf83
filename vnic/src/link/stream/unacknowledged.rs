//! What passt takes from the socket and drops without a word is sent to it again, in the guest's place.
//!
//! Why: of a connection to the host itself, passt acknowledges what its socket takes and grants the receiver's window, whatever
//! lies in the socket. When that is full, it drops all that it has read, and says nothing (seen with Debian 12's, of March
//! 2023). The guest has nothing to go by but its own timer, of 200 ms and more: a transfer of a quarter of a second becomes one of two.
//!
//! Operation, for each of the guest's TCP connections:
//! 1. Where a segment with payload ends in the send buffer is noted as it goes out, and what passt has acknowledged as that
//!    comes by.
//! 2. Once passt has been silent for longer than it takes to answer (as RFC 6298 has it, but of [`SOONEST`] at least), or where it
//!    says twice the same, all segments without an answer go out again; then later, twice as long after each time.
//! 3. What was acknowledged is left out, and so is what others have taken the place of. After [`TRIES`] it is the guest's own again.
//!
//! passt leaves aside what it has already. The guest sees nothing of it, and its window of congestion stays.
//!
//! Limits: connections are told apart by a hash of [`FLOWS`] places; of two with the same one, the one that sent last has it.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::send::SendBuffer;
use crate::net::parse::{HEAD_LEN, Packet, TCP_ACK, TCP_RST, TCP_SYN, Tcp, Transport, parse};

/// Connections that are followed.
const FLOWS: usize = 64;
/// Segments that are known, of all connections.
const SEGMENTS: usize = 4096;
/// The shortest silence that means anything: a process that was not scheduled is silent for a moment.
const SOONEST: Duration = Duration::from_millis(5);
/// The silence of a connection that has not answered yet, and the longest: then the guest's own timer is due.
const LATEST: Duration = Duration::from_millis(200);
/// How often the same is said.
const TRIES: u32 = 6;

/// A connection.
#[derive(Debug)]
struct Flow {
    key: u64,
    /// What passt has, and what it was sent: sequence numbers.
    acked: u32,
    sent: u32,
    window: u16,
    /// How long an answer takes, and by how much that varies; `None`: not known yet.
    takes: Option<(Duration, Duration)>,
    /// When its silence is too long.
    due: Instant,
    tries: u32,
}

impl Flow {
    fn is_waiting(&self) -> bool {
        self.acked != self.sent
    }

    fn patience(&self) -> Duration {
        self.takes.map_or(LATEST, |(takes, varies)| (takes + 4 * varies).clamp(SOONEST, LATEST))
    }

    /// An answer has taken so long. RFC 6298, 2.
    fn answered_after(&mut self, took: Duration) {
        self.takes = Some(match self.takes {
            None => (took, took / 2),
            Some((takes, varies)) => ((7 * takes + took) / 8, (3 * varies + takes.abs_diff(took)) / 4),
        });
    }
}

/// A segment with payload, on its way.
#[derive(Debug)]
struct Segment {
    flow: u64,
    /// The sequence number behind it.
    end: u32,
    /// Where its frame ends in the send buffer, and how long that is.
    place: u64,
    len: usize,
    /// When it went out; `None`: more than once.
    at: Option<Instant>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Unacknowledged {
    flows: Box<[Option<Flow>]>,
    /// As they went out first.
    segments: VecDeque<Segment>,
    /// No connection's silence is too long before.
    due: Option<Instant>,
}

impl Unacknowledged {
    pub(super) fn new() -> Self {
        let flows = (0..FLOWS).map(|_| None).collect();
        Unacknowledged { flows, segments: VecDeque::with_capacity(SEGMENTS), due: None }
    }

    /// When [`Unacknowledged::say_again`] has something to say, or a little earlier.
    pub(super) const fn due(&self) -> Option<Instant> {
        self.due
    }

    /// There is nobody who could answer any more.
    pub(super) fn clear(&mut self) {
        self.flows.fill_with(|| None);
        self.segments.clear();
        self.due = None;
    }

    /// A frame of the guest's goes out, and ends at this place of the send buffer.
    pub(super) fn sent(&mut self, frame: &[u8], place: u64, now: Instant) {
        let Some((packet, tcp)) = segment(frame) else { return };
        let key = key(packet.source, packet.destination);
        let Some(slot) = self.flows.get_mut(key as usize % FLOWS) else { return };
        if tcp.flags & (TCP_SYN | TCP_RST) != 0 {
            slot.take_if(|flow| flow.key == key);
            return;
        }
        if packet.payload_len == 0 {
            return;
        }
        let end = tcp.seq.wrapping_add(packet.payload_len);
        let fresh = || Flow { key, acked: tcp.seq, sent: tcp.seq, window: 0, takes: None, due: now, tries: 0 };
        if slot.as_ref().is_none_or(|flow| flow.key != key) {
            *slot = None;
        }
        let flow = slot.get_or_insert_with(fresh);
        // Of what the guest says again by itself it is not known which of the two is answered.
        let is_new = is_after(end, flow.sent);
        if is_new {
            if !flow.is_waiting() {
                flow.due = now + flow.patience();
                self.due = Some(self.due.map_or(flow.due, |due| due.min(flow.due)));
            }
            flow.sent = end;
        }
        if self.segments.len() == SEGMENTS {
            self.segments.pop_front();
        }
        self.segments.push_back(Segment { flow: key, end, place, len: frame.len(), at: is_new.then_some(now) });
    }

    /// A frame of passt's comes by.
    pub(super) fn came(&mut self, frame: &[u8], now: Instant) {
        let Some((packet, tcp)) = segment(frame) else { return };
        let key = key(packet.destination, packet.source);
        let Some(slot) = self.flows.get_mut(key as usize % FLOWS) else { return };
        let Some(flow) = slot.as_mut().filter(|flow| flow.key == key) else { return };
        if tcp.flags & TCP_RST != 0 {
            *slot = None;
        } else if tcp.flags & TCP_ACK != 0 && is_after(tcp.ack, flow.acked) {
            // The end of the connection has a number, too, and is not waited for.
            flow.acked = if is_after(tcp.ack, flow.sent) { flow.sent } else { tcp.ack };
            (flow.tries, flow.window) = (0, tcp.window);
            self.drop_answered(now);
        } else {
            let again = packet.payload_len == 0 && tcp.ack == flow.acked && tcp.window == flow.window;
            if again && flow.tries == 0 && flow.is_waiting() && flow.takes.is_some() {
                (flow.due, self.due) = (now, Some(now));
            }
            flow.window = tcp.window;
            return;
        }
        if let Some(flow) = self.flow_mut(key) {
            flow.due = now + flow.patience();
        }
    }

    fn flow(&self, key: u64) -> Option<&Flow> {
        self.flows.get(key as usize % FLOWS)?.as_ref().filter(|flow| flow.key == key)
    }

    fn flow_mut(&mut self, key: u64) -> Option<&mut Flow> {
        self.flows.get_mut(key as usize % FLOWS)?.as_mut().filter(|flow| flow.key == key)
    }

    /// Drops the segments at the front that nobody waits for, and takes the time of those that were answered now.
    fn drop_answered(&mut self, now: Instant) {
        while let Some(segment) = self.segments.front() {
            let (key, at) = (segment.flow, segment.at);
            match self.flow(key) {
                Some(flow) if is_after(segment.end, flow.acked) => return,
                Some(_) => {
                    if let (Some(at), Some(flow)) = (at, self.flow_mut(key)) {
                        flow.answered_after(now.saturating_duration_since(at));
                    }
                }
                None => {}
            }
            self.segments.pop_front();
        }
    }

    /// Sends again what there was no answer to for too long. Returns how many frames that are.
    pub(super) fn say_again(&mut self, buffer: &mut SendBuffer, now: Instant) -> u64 {
        if self.due.is_none_or(|due| due > now) {
            return 0;
        }
        let Unacknowledged { flows, segments, due } = self;
        let mut count = 0;
        *due = None;
        for slot in flows.iter_mut() {
            let Some(flow) = slot.as_mut().filter(|flow| flow.is_waiting()) else { continue };
            if flow.due <= now {
                if flow.tries == TRIES {
                    *slot = None;
                    continue;
                }
                let unanswered = |segment: &&mut Segment| segment.flow == flow.key && is_after(segment.end, flow.acked);
                for segment in segments.iter_mut().filter(unanswered) {
                    if !buffer.again(segment.place, segment.len) {
                        continue;
                    }
                    (segment.place, segment.at) = (buffer.end(), None);
                    count += 1;
                }
                flow.tries += 1;
                flow.due = now + flow.patience() * 2_u32.pow(flow.tries);
            }
            *due = Some(due.map_or(flow.due, |due| due.min(flow.due)));
        }
        count
    }
}

/// Is the sequence number `one` behind `other`?
const fn is_after(one: u32, other: u32) -> bool {
    one.wrapping_sub(other).cast_signed() > 0
}

/// A connection, from the side of the guest.
pub(super) fn key(guest: SocketAddr, other: SocketAddr) -> u64 {
    let mut hasher = DefaultHasher::new();
    (guest, other).hash(&mut hasher);
    hasher.finish()
}

pub(super) fn segment(frame: &[u8]) -> Option<(Transport, Tcp)> {
    let head = frame.get(..frame.len().min(HEAD_LEN))?;
    match parse(head, frame.len() as u32) {
        Packet::Transport(packet) => packet.tcp.map(|tcp| (packet, tcp)),
        _ => None,
    }
}
