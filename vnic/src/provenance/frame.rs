//! A frame taken apart: how much of its payload was read from what.

use std::net::SocketAddr;

use super::source::{Source, SourceKind};
use crate::introspect::{Kind, Label};
use crate::net::parse::{Packet, parse};
use crate::observe::tracer::{Event, EventBuffer};

/// Who talks to whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) protocol: u8,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// What of a frame is whose. To be used again for the next one.
#[derive(Debug, Default)]
pub struct Attribution {
    /// `None`: it has no payload.
    pub(super) flow: Option<Flow>,
    pub(super) frame_len: u64,
    pub(super) payload: u64,
    pub(super) descriptors: u16,
    pub(super) parts: Vec<(Source, u64)>,
    labels: Vec<Label>,
}

impl Attribution {
    /// Takes a chain apart that went through a transmit queue. `whose` is asked for a buffer with payload: it adds a label for
    /// each page of the buffer in their order, or a single one for all of it.
    pub fn attribute(&mut self, event: &Event, mut whose: impl FnMut(&EventBuffer, u64, &mut Vec<Label>)) {
        self.parts.clear();
        (self.frame_len, self.descriptors) = (event.frame_len.into(), event.descriptors);
        let packet = match parse(event.head(), event.frame_len) {
            Packet::Transport(packet) if packet.payload_len > 0 => packet,
            _ => {
                (self.flow, self.payload) = (None, 0);
                return;
            }
        };
        self.flow = Some(Flow { protocol: packet.protocol, source: packet.source, destination: packet.destination });
        self.payload = packet.payload_len.min(event.frame_len).into();
        let mut left = self.payload;
        let mut skip = event.front_len() + u64::from(packet.header_len);
        for (buffer, stamp) in event.buffers().iter().zip(event.stamps).filter(|(buffer, _)| !buffer.writable) {
            let len = u64::from(buffer.len);
            if skip >= len {
                skip -= len;
                continue;
            }
            let (from, bytes) = (skip, (len - skip).min(left));
            skip = 0;
            if bytes == 0 {
                break;
            }
            left -= bytes;
            self.labels.clear();
            whose(buffer, stamp, &mut self.labels);
            by_page(buffer.gpa, from, bytes, &self.labels, &mut self.parts);
        }
        // More descriptors than the event had room for.
        if left > 0 {
            self.parts.push((Source::of(SourceKind::Unsettled), left));
        }
    }
}

/// Shares `bytes` of a buffer at `gpa`, from its byte `from` on, out among its pages' labels.
fn by_page(gpa: u64, from: u64, bytes: u64, labels: &[Label], parts: &mut Vec<(Source, u64)>) {
    let mut add = |label: &Label, bytes: u64| match parts.last_mut() {
        Some((last, sum)) if last.is_of(label) => *sum += bytes,
        _ => parts.push((Source::from(label), bytes)),
    };
    let (mut at, mut left) = (gpa.saturating_add(from), bytes);
    if let [one] = labels {
        return add(one, left);
    }
    let first = at >> 12;
    for (page, label) in (gpa >> 12..).zip(labels).skip_while(|(page, _)| *page < first) {
        let here = left.min(((page + 1) << 12).saturating_sub(at));
        add(label, here);
        (at, left) = (at + here, left - here);
        if left == 0 {
            return;
        }
    }
    if left > 0 {
        add(&Label::of(at, Kind::Unsettled), left);
    }
}
