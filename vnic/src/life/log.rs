//! The log: events and labels in, lives out.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use super::step::{Life, Owner, Segment, Step, Use};
use crate::introspect::Label;
use crate::net::parse::{Packet, Transport, parse};
use crate::observe::tracer::{Event, EventBuffer};
use crate::spec::blk::{BlkHeader, HEADER_LEN, SECTOR, T_IN, T_OUT};
use crate::spec::net::NET_HEADER_LEN;

/// Steps that are kept: all pages of 256 MiB once.
pub const MAX_STEPS: usize = 1 << 16;
/// Bytes of the names that go with them: where files have very long names, fewer steps are kept.
const MAX_TEXT: usize = 8 << 20;
/// Pages in one question.
const MAX_ASKED: usize = 1024;
/// Steps in one answer.
const MAX_TOLD: usize = 4096;

/// Steps of a page that are looked at for the last that filled it.
const MAX_BACK: usize = 256;

/// Bytes of a page.
const PAGE: u64 = 4096;

/// What stands in the buffers of a chain.
#[derive(Debug, Clone, Copy)]
enum Content {
    /// A frame that the guest sends.
    Sent(Option<Transport>),
    /// One that it receives.
    Received(Option<Transport>),
    /// A disk's sectors, from this one on: read, or written.
    Disk { sector: u64, to_guest: bool },
    /// Something else.
    Other,
}

impl Content {
    /// By the queue's name in VIRTIO 1.3, with or without a device's name and a dot before it, and by the event's first bytes.
    fn of(queue: &str, event: &Event) -> Self {
        let name = queue.rsplit(['.', '/']).next().unwrap_or(queue);
        let packet = || match parse(event.head(), event.frame_len) {
            Packet::Transport(packet) => Some(packet),
            _ => None,
        };
        match name.trim_end_matches(|letter: char| letter.is_ascii_digit()) {
            "transmitq" => Content::Sent(packet()),
            "receiveq" => Content::Received(packet()),
            "requestq" => match event.head().split_first_chunk().map(|(head, _)| BlkHeader::from_bytes(*head)) {
                Some(BlkHeader { kind: T_IN, sector }) => Content::Disk { sector, to_guest: true },
                Some(BlkHeader { kind: T_OUT, sector }) => Content::Disk { sector, to_guest: false },
                _ => Content::Other,
            },
            _ => Content::Other,
        }
    }

    /// Bytes that stand before it in the buffers.
    fn front_len(self, event: &Event) -> u64 {
        match self {
            Content::Disk { to_guest: true, .. } | Content::Other => 0,
            Content::Disk { to_guest: false, .. } => HEADER_LEN as u64,
            Content::Sent(_) => event.front_len(),
            Content::Received(_) => NET_HEADER_LEN as u64,
        }
    }
}

/// A step, and the one before it in the life of its page.
#[derive(Debug)]
struct Kept {
    step: Step,
    before: Option<u64>,
    /// Of a chain that the device reads: since when it was held before, 0 if it was not, and when the device was done with it.
    held_ns: u64,
    done_ns: Option<u64>,
}

impl Kept {
    /// The step with those that come before and after it.
    fn told(&self) -> impl Iterator<Item = Step> {
        let Kept { step, held_ns, done_ns, .. } = self;
        let other = |at_ns, what| Step { at_ns, what, ..step.clone() };
        let held = |from: u64, until: u64, by_hand| Use::Held { for_ns: until.saturating_sub(from), by_hand };
        let before = (*held_ns > 0).then(|| other(*held_ns, held(*held_ns, step.at_ns, true)));
        let kept = done_ns.filter(|done| *done > step.at_ns);
        let kept = kept.map(|done| other(step.at_ns, held(step.at_ns, done, false)));
        let done = done_ns.map(|done| other(done, Use::Completed));
        before.into_iter().chain([step.clone()]).chain(kept).chain(done)
    }
}

/// What stood in a page at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled<'l> {
    /// The step that put it there.
    pub by: &'l Step,
    /// How often it had been sent since, and the device was done with that.
    pub sent: u64,
    /// The last of these times.
    pub last_sent: Option<&'l Step>,
}

/// `filled from sector 8 by requestq0 #12, sent and completed 2 times since, last by transmitq0 #14`
impl fmt::Display for Filled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.by)?;
        let Some(last) = self.last_sent else { return Ok(()) };
        let by = format!("by {} #{}", last.queue, last.idx);
        match self.sent {
            1 => write!(f, ", sent and completed since {by}"),
            times => write!(f, ", sent and completed {times} times since, last {by}"),
        }
    }
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
        let content = Content::of(queue, event);
        let front = content.front_len(event);
        // Bytes of the chain that the device has read, and written: what it had none for it has left alone.
        let (mut read, mut written) = (0, 0);
        let mut labels = std::mem::take(&mut self.labels);
        for (buffer, stamp) in event.buffers().iter().zip(event.stamps) {
            labels.clear();
            let left = u64::from(event.written).saturating_sub(written);
            let (done, len) = match buffer.writable {
                true => (&mut written, left.min(buffer.len.into())),
                false => (&mut read, u64::from(buffer.len)),
            };
            if !buffer.writable {
                whose(buffer, stamp, &mut labels);
            }
            let (mut at, end) = (buffer.gpa, buffer.gpa.saturating_add(len));
            loop {
                // A request's header is a piece of its own.
                let before = match content {
                    Content::Disk { .. } if *done < front => front - *done,
                    _ => PAGE,
                };
                let bytes = (PAGE - at % PAGE).min(end - at).min(before);
                if bytes == 0 {
                    break;
                }
                let page = (at >> 12) - (buffer.gpa >> 12);
                let label = if labels.len() == 1 { labels.first() } else { labels.get(page as usize) };
                if let Some(what) = step_of(content, buffer.writable, *done, bytes, front) {
                    // What the device reads it has from the beginning on, what it writes is there in the end.
                    let read = !buffer.writable;
                    let taken_ns = if event.taken_ns == 0 { event.at_ns } else { event.taken_ns.min(event.at_ns) };
                    let step = Step {
                        at_ns: if read { taken_ns } else { event.at_ns },
                        queue: queue.clone(),
                        idx: event.idx,
                        gpa: at,
                        bytes: bytes as u32,
                        what,
                        owner: label.map(Owner::from),
                    };
                    let held_ns = if read { event.held_ns.min(taken_ns) } else { 0 };
                    self.push(step, held_ns, read.then_some(event.at_ns));
                }
                (at, *done) = (at + bytes, *done + bytes);
            }
        }
        self.labels = labels;
    }

    /// So many chains went by that the log was not shown.
    pub fn miss(&mut self, chains: u64) {
        self.missed = self.missed.saturating_add(chains);
    }

    fn push(&mut self, step: Step, held_ns: u64, done_ns: Option<u64>) {
        self.text += text_len(&step);
        while self.steps.len() >= MAX_STEPS || (self.text > MAX_TEXT && !self.steps.is_empty()) {
            self.forget();
        }
        let frame = step.gpa / PAGE;
        let number = self.forgotten + self.steps.len() as u64;
        let before = self.last.insert(frame, number);
        self.steps.push_back(Kept { step, before, held_ns, done_ns });
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
        self.of_pages(&[gpa])
    }

    /// The lives of the pages at these addresses, one after the other.
    #[must_use]
    pub fn of_pages(&self, addresses: &[u64]) -> Life {
        let mut steps = Vec::new();
        for gpa in addresses.iter().take(MAX_ASKED) {
            let mut next = self.last.get(&(gpa / PAGE)).copied();
            let mut own = Vec::new();
            while let Some(kept) = next.and_then(|number| self.kept(number)) {
                own.push(kept);
                next = kept.before;
            }
            steps.extend(in_order(own.into_iter().rev()));
        }
        self.told(steps)
    }

    /// When a device last had the page at this guest-physical address, and what for.
    #[must_use]
    pub fn last_of(&self, gpa: u64) -> Option<&Step> {
        let number = self.last.get(&(gpa / PAGE))?;
        self.kept(*number).map(|kept| &kept.step)
    }

    /// What a device had put last into the page at this guest-physical address when `at_ns` came, if that is among its last steps,
    /// and what it was sent in since.
    #[must_use]
    pub fn filled_before(&self, gpa: u64, at_ns: u64) -> Option<Filled<'_>> {
        let mut next = self.last.get(&(gpa / PAGE)).copied();
        let (mut sent, mut last_sent) = (0, None);
        for _ in 0..MAX_BACK {
            let kept = self.kept(next?)?;
            if kept.step.at_ns <= at_ns && kept.step.what.overwrites() {
                return Some(Filled { by: &kept.step, sent, last_sent });
            }
            if matches!(kept.step.what, Use::Sent { .. }) && kept.done_ns.is_some_and(|done| done < at_ns) {
                sent += 1;
                last_sent = last_sent.or(Some(&kept.step));
            }
            next = kept.before;
        }
        None
    }

    /// The life of all pages that were this file's when a device had them.
    #[must_use]
    pub fn of_file(&self, path: &str) -> Life {
        let is_its = |step: &Step| step.owner.as_ref().and_then(Owner::path) == Some(path);
        let frame = |kept: &&Kept| kept.step.gpa / PAGE;
        let frames: HashSet<u64> =
            self.steps.iter().filter(|kept| is_its(&kept.step)).map(|kept| frame(&kept)).collect();
        self.told(in_order(self.steps.iter().filter(|kept| frames.contains(&frame(kept)))))
    }

    fn told(&self, steps: Vec<Step>) -> Life {
        let left_out = steps.len().saturating_sub(MAX_TOLD);
        Life {
            steps: steps.into_iter().skip(left_out).collect(),
            left_out: left_out as u64,
            forgotten: self.forgotten,
            missed_chains: self.missed,
        }
    }
}

/// In the order of time: of what happened at the same, as it was recorded.
fn in_order<'k>(kept: impl Iterator<Item = &'k Kept>) -> Vec<Step> {
    let mut steps: Vec<Step> = kept.flat_map(Kept::told).collect();
    steps.sort_by_key(|step| step.at_ns);
    steps
}

fn text_len(step: &Step) -> usize {
    step.owner.as_ref().map_or(0, Owner::text_len)
}

/// What the device did with `bytes` from the chain's byte `at` on, which it has read or written; the content starts at `front`.
/// `None`: they are of a request's header, or its status.
fn step_of(content: Content, writable: bool, at: u64, bytes: u64, front: u64) -> Option<Use> {
    match content {
        Content::Sent(packet) if !writable => {
            Some(Use::Sent { segment: packet.and_then(|packet| segment(&packet, at, bytes, front)) })
        }
        Content::Received(packet) if writable => {
            Some(Use::Received { segment: packet.and_then(|packet| segment(&packet, at, bytes, front)) })
        }
        Content::Disk { sector, to_guest } => {
            let at = at.checked_sub(front).filter(|_| writable == to_guest && bytes >= SECTOR)?;
            let sector = sector.wrapping_add(at / SECTOR);
            Some(if to_guest { Use::ReadFrom { sector } } else { Use::WrittenTo { sector } })
        }
        _ if writable => Some(Use::Written),
        _ => Some(Use::Read),
    }
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
