//! Follows one flow through transmitq and attributes its payload: "page N of the file" or "elsewhere".
//!
//! Place: built by the control thread, handed to the workers as their [`Observer`], called there for every transmitted frame
//! while a transfer is watched, handed back at its end. No allocation and no lock in between, so that watching loses nothing
//! and changes nothing. A flow may be on any queue, and change it: each worker has a part of its own, and where the stream stands is
//! common to them.
//!
//! Operation:
//! 1. A frame's first bytes are parsed; another flow's frame is left alone.
//! 2. Its TCP sequence number tells which payload bytes are new and which are sent again (RFC 9293, 3.4); of a file in
//!    datagrams, the offset in front of the bytes ([`datagram`]).
//! 3. Each new byte is looked up by its guest-physical page: in the file's pages, or not.
//!
//! Behind an IOMMU the page is the one that the address led to, not the address's own.
//!
//! Where the bytes lay is remembered ([`trail`](crate::trail)). A file that is not in memory yet has no pages to look for: they are there
//! when the transfer is over, and [`FlowWatch::attribute_remembered`] attributes the bytes then. And
//! [`introspection`](crate::introspection) asks the guest's kernel whose the pages are, without being told of any.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde::{Deserialize, Serialize};
use vnic::datagram;
use vnic::hardware::{self, Fold, Shapes};
use vnic::introspect::Stamper;
use vnic::memory::{FilePages, Onlooker};
use vnic::net::parse::{HEAD_LEN, Packet, Transport, parse};
use vnic::observe::observer::{Observer, TransmittedFrame};
use vnic::spec::net::GSO_UDP_L4;

use crate::introspection::Introspected;
use crate::run::{DeviceAccounts, DiskAccounts};
use crate::trail::{Piece, Trail};
use crate::wire::Flow;

/// Bytes in front of a datagram's own.
const HEADER: u64 = datagram::HEADER_LEN as u64;

/// Linux's `UDP_MAX_SEGMENTS`: a frame that is to be cut into more is looked at as one.
const MAX_DATAGRAMS: u64 = 128;

/// What the device saw of a watched flow.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FlowAccounts {
    /// The figures of the run's record.
    pub device: DeviceAccounts,
    /// Bytes of a file page that stood at another place in the stream than in the file.
    pub misplaced_bytes: u64,
    /// Frames, while the flow was watched, whose headers could not be read: some may have been its own.
    pub unparsed_frames: u64,
    /// Bytes elsewhere that there was no room to remember, of a file whose pages were known only afterwards.
    #[serde(default)]
    pub forgotten_bytes: u64,
    /// What the disk brought meanwhile, where it is served by the same process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Result<DiskAccounts, String>>,
    /// The shapes of its chains.
    #[serde(default)]
    pub shapes: Shapes,
    /// What the guest's kernel says of the pages that the payload lay in, where it was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub introspection: Option<Introspected>,
}

impl FlowAccounts {
    /// The accounts of two workers that each saw a part of the flow.
    #[must_use]
    pub fn plus(mut self, other: &FlowAccounts) -> Self {
        let add = |mine: &mut Option<u64>, theirs: Option<u64>| {
            if let Some(count) = theirs {
                *mine = Some(mine.unwrap_or(0) + count);
            }
        };
        let (mine, theirs) = (&mut self.device, &other.device);
        add(&mut mine.chains, theirs.chains);
        add(&mut mine.descriptors, theirs.descriptors);
        add(&mut mine.payload_bytes, theirs.payload_bytes);
        add(&mut mine.retransmitted_bytes, theirs.retransmitted_bytes);
        add(&mut mine.from_page_cache_bytes, theirs.from_page_cache_bytes);
        add(&mut mine.from_elsewhere_bytes, theirs.from_elsewhere_bytes);
        add(&mut mine.dma_read_bytes, theirs.dma_read_bytes);
        add(&mut mine.device_copied_bytes, theirs.device_copied_bytes);
        self.misplaced_bytes += other.misplaced_bytes;
        self.unparsed_frames += other.unparsed_frames;
        self.forgotten_bytes += other.forgotten_bytes;
        self.shapes = self.shapes.plus(&other.shapes);
        self
    }
}

/// Byte counts of a watched flow; payload bytes unless named otherwise.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Totals {
    chains: u64,
    descriptors: u64,
    payload: u64,
    retransmitted: u64,
    from_page_cache: u64,
    from_elsewhere: u64,
    read: u64,
    copied: u64,
    misplaced: u64,
    unparsed: u64,
}

/// How far a flow has come, on all queues.
#[derive(Debug, Default)]
struct Stream {
    first_seq: OnceLock<u32>,
    /// Payload bytes of the stream sent so far, from `first_seq`.
    sent: AtomicU64,
    /// File offset of the stream's first byte, learnt from the first byte found in the file.
    shift: OnceLock<u64>,
}

/// One watched flow, or one worker's part of it.
#[derive(Debug)]
pub struct FlowWatch {
    flow: Flow,
    pages: Arc<FilePages>,
    stream: Arc<Stream>,
    totals: Totals,
    shapes: Fold,
    trail: Trail,
    /// Are the file's pages known only when it is over?
    later: bool,
    /// Who remembers what the pages were.
    stamper: Option<Arc<Stamper<Arc<Onlooker>>>>,
}

impl FlowWatch {
    /// Watches `flow`, whose payload may lie in `pages`.
    #[must_use]
    pub fn new(flow: Flow, pages: Arc<FilePages>) -> Self {
        FlowWatch {
            flow,
            pages,
            stream: Arc::default(),
            totals: Totals::default(),
            shapes: Fold::default(),
            trail: Trail::default(),
            later: false,
            stamper: None,
        }
    }

    /// The same, with what the pages were remembered beside where they are.
    #[must_use]
    pub fn stamped(self, stamper: Option<Arc<Stamper<Arc<Onlooker>>>>) -> Self {
        FlowWatch { stamper, ..self }
    }

    /// The same, for a file whose pages are known only when it is over.
    #[must_use]
    pub fn later(self) -> Self {
        FlowWatch { later: true, ..self }
    }

    /// Another part of the same watch, for another worker: nothing seen yet.
    #[must_use]
    pub fn part(&self) -> Self {
        let (pages, stream, stamper) = (self.pages.clone(), self.stream.clone(), self.stamper.clone());
        FlowWatch { stream, stamper, later: self.later, ..FlowWatch::new(self.flow, pages) }
    }

    /// Where in the stream the frame's payload starts. A frame from before the first one seen (the SYN's neighbours
    /// carry no payload) cannot be: the watch starts before the first byte is sent.
    fn stream_offset(&self, packet: &Transport) -> u64 {
        // A datagram is never sent again by the transport: its payload is new.
        let sent = self.stream.sent.load(Ordering::Relaxed);
        let Some(seq) = packet.tcp.map(|tcp| tcp.seq) else { return sent };
        let first = *self.stream.first_seq.get_or_init(|| seq);
        // The distance from the highest byte sent, wrapped at 2³² and signed: retransmissions lie behind it.
        let ahead = seq.wrapping_sub(first.wrapping_add(sent as u32)) as i32;
        sent.saturating_add_signed(i64::from(ahead))
    }

    /// Sorts `count` bytes of a frame from `skip` on, which stand at `offset` in the stream.
    fn attribute(&mut self, sent: &TransmittedFrame<'_>, mut skip: u64, mut count: u64, mut offset: u64) {
        for (gpa, len) in sent.pieces() {
            if skip >= len {
                skip -= len;
                continue;
            }
            let piece = Piece { gpa: gpa + skip, len: (len - skip).min(count), offset };
            skip = 0;
            count -= piece.len;
            offset = offset.wrapping_add(piece.len);
            // As long as the device has the buffer, its pages are nobody else's.
            let stamp = self.stamper.as_ref().map_or(0, |stamper| stamper.stamp(piece.gpa, piece.len as u32));
            self.trail.remember(piece, stamp);
            if !self.later {
                sort(&mut self.totals, &self.stream.shift, &self.pages, piece);
            }
        }
    }

    /// Attributes what was remembered to these pages, where the file's are known only by now.
    pub fn attribute_remembered(&mut self, pages: &FilePages) {
        if self.later {
            for piece in self.trail.pieces() {
                sort(&mut self.totals, &self.stream.shift, pages, *piece);
            }
            self.totals.from_elsewhere += self.trail.forgotten();
        }
    }

    /// Where the payload lay, and how many bytes of it there was no room to remember.
    #[must_use]
    pub fn trail(&self) -> (&[Piece], u64) {
        (self.trail.pieces(), self.trail.forgotten())
    }

    /// The pieces that it lay in, with what their pages were then.
    pub fn stamped_trail(&self) -> impl Iterator<Item = (Piece, u64)> {
        self.trail.stamped()
    }

    /// What was seen so far.
    #[must_use]
    pub fn accounts(&self) -> FlowAccounts {
        let totals = &self.totals;
        FlowAccounts {
            device: DeviceAccounts {
                chains: Some(totals.chains),
                descriptors: Some(totals.descriptors),
                payload_bytes: Some(totals.payload),
                retransmitted_bytes: Some(totals.retransmitted),
                from_page_cache_bytes: Some(totals.from_page_cache),
                from_elsewhere_bytes: Some(totals.from_elsewhere),
                dma_read_bytes: Some(totals.read),
                device_copied_bytes: Some(totals.copied),
            },
            misplaced_bytes: totals.misplaced,
            unparsed_frames: totals.unparsed,
            forgotten_bytes: if self.later { self.trail.forgotten() } else { 0 },
            shapes: self.shapes.shapes(),
            disk: None,
            introspection: None,
        }
    }
}

impl Observer for FlowWatch {
    fn transmitted(&mut self, sent: &TransmittedFrame<'_>) {
        let mut head = [0; HEAD_LEN];
        let seen = sent.frame.peek(&mut head);
        let packet = match parse(seen, sent.frame.len) {
            Packet::Transport(packet) if self.flow.is_of(&packet) => packet,
            // It might have been one of ours: the judge must know.
            Packet::Cut { .. } => {
                self.totals.unparsed += 1;
                return;
            }
            _ => return,
        };
        let (mut header_len, mut payload) = (u64::from(packet.header_len), u64::from(packet.payload_len));
        // Bytes of the headers of further datagrams in the same frame.
        let mut headers = 0;
        let header = packet.tcp.is_none().then(|| seen.get(packet.header_len as usize..)).flatten();
        // Bytes of each datagram, where the NIC is to cut the frame into several.
        let mut cut = u64::MAX;
        let start = match header.and_then(datagram::Header::read) {
            Some((header, _)) => {
                if header.kind != datagram::Kind::Data {
                    return;
                }
                // The datagram's own header belongs to the headers; only data has payload.
                let segment = u64::from(sent.frame.header.gso_size);
                let datagrams = match sent.frame.header.gso_type {
                    GSO_UDP_L4 if segment > HEADER && payload.div_ceil(segment) <= MAX_DATAGRAMS => {
                        cut = segment - HEADER;
                        payload.div_ceil(segment)
                    }
                    _ => 1,
                };
                header_len += HEADER;
                payload = payload.saturating_sub(datagrams * HEADER);
                headers = datagrams.saturating_sub(1) * HEADER;
                header.offset
            }
            None => self.stream_offset(&packet),
        };
        if payload == 0 {
            return;
        }
        // A guest writes any offset it likes: nothing overflows.
        let before = self.stream.sent.fetch_max(start.saturating_add(payload), Ordering::Relaxed);
        let old = before.saturating_sub(start).min(payload);
        let chain = sent.frame.chain();
        let segment = sent.frame.header.gso_size;
        let kind = hardware::Kind { indirect: chain.indirect, segment, headers: packet.header_len };
        // By the driver's addresses: they are what an IO-TLB is asked for.
        self.shapes.add(kind, sent.frame.segments().map(|slice| (slice.addr(), slice.len() as u64)));
        self.totals.chains += 1;
        self.totals.descriptors += u64::from(chain.descriptors);
        self.totals.payload += payload - old;
        self.totals.retransmitted += old;
        self.totals.read += u64::from(sent.read).saturating_sub(header_len + headers);
        self.totals.copied += u64::from(sent.copied).saturating_sub(header_len + headers);
        if cut == u64::MAX {
            self.attribute(sent, header_len + old, payload - old, start.wrapping_add(old));
            return;
        }
        // A datagram is never sent again by the transport: all of it is new.
        let mut done = 0;
        while done < payload {
            let piece = cut.min(payload - done);
            let skip = header_len + done + done / cut * HEADER;
            self.attribute(sent, skip, piece, start.wrapping_add(done));
            done += piece;
        }
    }
}

/// Sorts the bytes of `piece`: in the file's pages, and at their place in it, or elsewhere.
fn sort(totals: &mut Totals, shift: &OnceLock<u64>, pages: &FilePages, piece: Piece) {
    for here in piece.by_page() {
        match pages.page_at(here.gpa) {
            Some(page) => {
                totals.from_page_cache += here.len;
                let found = here.shift(page);
                if *shift.get_or_init(|| found) != found {
                    totals.misplaced += here.len;
                }
            }
            None => totals.from_elsewhere += here.len,
        }
    }
}

#[cfg(test)]
mod tests;
