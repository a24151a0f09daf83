//! The log: events and labels in, lives out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use super::step::{Life, Owner, Segment, Step, Use};
use crate::introspect::Label;
use crate::net::parse::{Packet, Transport, parse};
use crate::observe::tracer::{Event, EventBuffer};

/// Steps that are kept: all pages of 256 MiB once.
pub const MAX_STEPS: usize = 1 << 16;
/// Bytes of the names that go with them: where files have very long names, fewer steps are kept.
const MAX_TEXT: usize = 8 << 20;
/// Steps in one answer.
const MAX_TOLD: usize = 4096;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// What a queue does with the frames in its chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Transmit,
    Receive,
    Other,
}

impl Role {
    /// By a queue's name in VIRTIO 1.3, with or without a device's name and a dot before it.
    fn of_queue(name: &str) -> Self {
        let name = name.rsplit('.').next().unwrap_or(name);
        match name.trim_end_matches(|letter: char| letter.is_ascii_digit()) {
            "transmitq" => Role::Transmit,
            "receiveq" => Role::Receive,
            _ => Role::Other,
        }
    }
}

/// A step, and the one before it in the life of its page.
#[derive(Debug)]
struct Kept {
    step: Step,
    before: Option<u64>,
}

/// What has happened to pages. See the [module](super).
#[derive(Debug, Default)]
pub struct Log {
    /// Numbered from `forgotten` on.
    steps: VecDeque<Kept>,
    /// Each page's last step, by page frame number.
    last: HashMap<u64, u64>,
    forgotten: u64,
    /// Bytes of the steps' names, as if none were shared.
    text: usize,
    missed: u64,
    labels: Vec<Label>,
}

impl Log {
    /// A chain that went through this queue. `whose` is asked for a buffer that the device has read: it adds a label for each
    /// page of it in their order, or a single one for all of it, or none.
    pub fn record(
        &mut self,
        queue: &Arc<str>,
        event: &Event,
        mut whose: impl FnMut(&EventBuffer, u64, &mut Vec<Label>),
    ) {
        let role = Role::of_queue(queue);
        let packet = match parse(event.head(), event.frame_len) {
            Packet::Transport(packet) if role != Role::Other => Some(packet),
            _ => None,
        };
        let front = event.front_len();
        let (mut read, mut written) = (0, u64::from(event.written));
        let mut labels = std::mem::take(&mut self.labels);
        for (buffer, stamp) in event.buffers().iter().zip(event.stamps) {
            labels.clear();
            // What the device had no bytes for, it has left alone.
            let len = if buffer.writable { written.min(buffer.len.into()) } else { buffer.len.into() };
            if buffer.writable {
                written -= len;
            } else {
                whose(buffer, stamp, &mut labels);
            }
            let (mut at, end) = (buffer.gpa, buffer.gpa.saturating_add(len));
            for page in 0.. {
                let bytes = (PAGE - at % PAGE).min(end - at);
                if bytes == 0 {
                    break;
                }
                let label = if labels.len() == 1 { labels.first() } else { labels.get(page) };
                let segment = packet.as_ref().and_then(|packet| segment(packet, read, bytes, front));
                self.push(Step {
                    at_ns: event.at_ns,
                    queue: queue.clone(),
                    idx: event.idx,
                    gpa: at,
                    bytes: bytes as u32,
                    what: match (role, buffer.writable) {
                        (Role::Transmit, false) => Use::Sent { segment },
                        (Role::Receive, true) => Use::Received { segment },
                        (_, false) => Use::Read,
                        (_, true) => Use::Written,
                    },
                    owner: label.map(Owner::from),
                });
                (at, read) = (at + bytes, read + bytes);
            }
        }
        self.labels = labels;
    }

    /// So many chains went by that the log was not shown.
    pub fn miss(&mut self, chains: u64) {
        self.missed = self.missed.saturating_add(chains);
    }

    fn push(&mut self, step: Step) {
        self.text += text_len(&step);
        while self.steps.len() >= MAX_STEPS || (self.text > MAX_TEXT && !self.steps.is_empty()) {
            self.forget();
        }
        let frame = step.gpa / PAGE;
        let number = self.forgotten + self.steps.len() as u64;
        let before = self.last.insert(frame, number);
        self.steps.push_back(Kept { step, before });
    }

    fn forget(&mut self) {
        let Some(oldest) = self.steps.pop_front() else { return };
        self.text -= text_len(&oldest.step);
        let frame = oldest.step.gpa / PAGE;
        if self.last.get(&frame) == Some(&self.forgotten) {
            self.last.remove(&frame);
        }
        self.forgotten += 1;
    }

    fn kept(&self, number: u64) -> Option<&Kept> {
        self.steps.get(usize::try_from(number.checked_sub(self.forgotten)?).ok()?)
    }

    /// The life of the page at this guest-physical address.
    #[must_use]
    pub fn of_page(&self, gpa: u64) -> Life {
        let mut next = self.last.get(&(gpa / PAGE)).copied();
        let mut steps = Vec::new();
        while let Some(kept) = next.and_then(|number| self.kept(number)) {
            steps.push(&kept.step);
            next = kept.before;
        }
        steps.reverse();
        self.told(steps)
    }

    /// When a device last had the page at this guest-physical address, and what for.
    #[must_use]
    pub fn last_of(&self, gpa: u64) -> Option<&Step> {
        let number = self.last.get(&(gpa / PAGE))?;
        self.kept(*number).map(|kept| &kept.step)
    }

    /// The life of all pages that were this file's when a device had them.
    #[must_use]
    pub fn of_file(&self, path: &str) -> Life {
        let is_its = |step: &Step| step.owner.as_ref().and_then(Owner::path) == Some(path);
        let steps = || self.steps.iter().map(|kept| &kept.step);
        let frames: HashSet<u64> = steps().filter(|step| is_its(step)).map(|step| step.gpa / PAGE).collect();
        self.told(steps().filter(|step| frames.contains(&(step.gpa / PAGE))).collect())
    }

    fn told(&self, steps: Vec<&Step>) -> Life {
        let left_out = steps.len().saturating_sub(MAX_TOLD);
        Life {
            steps: steps.into_iter().skip(left_out).cloned().collect(),
            left_out: left_out as u64,
            forgotten: self.forgotten,
            missed_chains: self.missed,
        }
    }
}

fn text_len(step: &Step) -> usize {
    step.owner.as_ref().map_or(0, Owner::text_len)
}

/// Which bytes of the stream are in `bytes` of the chain's, from its byte `at` on; the frame starts at `front`. `None`: only
/// headers are.
fn segment(packet: &Transport, at: u64, bytes: u64, front: u64) -> Option<Segment> {
    let payload = front + u64::from(packet.header_len);
    let end = payload + u64::from(packet.payload_len);
    let first = at.max(payload);
    (first < (at + bytes).min(end)).then(|| Segment {
        source: packet.source,
        destination: packet.destination,
        seq: packet.tcp.map(|tcp| tcp.seq.wrapping_add((first - payload) as u32)),
    })
}
