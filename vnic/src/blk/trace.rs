//! Requests as a trace shows them: an event each, recorded when it is answered.
//!
//! Operation: a chain is described when it is taken, while it is known where its buffers lie; its event waits for the answer,
//! beside the request, in a place that is there from the start. In place of a frame's first bytes it has the request's header, and
//! the status behind it.

use std::sync::Arc;
use std::time::Instant;

use crate::backend::{QueueShared, Shared, chain_event};
use crate::memory::transfer::MOST_UNDER_WAY;
use crate::observe::tracer::Event;
use crate::ring::ChainView;
use crate::spec::blk::{
    BlkHeader, HEADER_LEN, S_IOERR, S_OK, S_UNSUPP, T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_WRITE_ZEROES,
};

/// The tracer's side of a worker.
#[derive(Debug)]
pub(super) struct Tracing {
    shared: Arc<Shared>,
    now: Instant,
    /// Does anyone trace? Asked once a pass.
    traced: bool,
    /// The chain that was taken last.
    taken: Place,
    /// By ticket.
    waiting: Box<[Place]>,
}

/// Room for an event.
#[derive(Debug, Clone, Default)]
struct Place {
    event: Event,
    /// Is there one?
    full: bool,
}

impl Tracing {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let waiting = vec![Place::default(); usize::from(MOST_UNDER_WAY)].into();
        Tracing { now: shared.started, shared, traced: false, taken: Place::default(), waiting }
    }

    /// A pass begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.now = now;
        self.traced = self.shared.traced();
    }

    /// A chain was taken, with this header, if it has one.
    pub(super) fn take(&mut self, chain: ChainView<'_>, header: Option<BlkHeader>, queue: &QueueShared) {
        self.taken.full = false;
        if !self.traced {
            return;
        }
        if !queue.events.has_room() {
            return queue.events.lose(1);
        }
        let memory = chain.memory();
        let Place { event, full } = &mut self.taken;
        (*event, *full) = (chain_event(chain, memory.iotlb().map(|_| memory.as_ref())), true);
        event.available_ns = self.now.saturating_duration_since(self.shared.started).as_nanos() as u64;
        event.taken_ns = event.available_ns;
        if let Some(header) = header {
            put(event, header, (chain.chain.readable_len, chain.chain.writable_len));
        }
    }

    /// It is under way.
    pub(super) fn under_way(&mut self, ticket: u16) {
        if let Some(place) = self.waiting.get_mut(usize::from(ticket)) {
            std::mem::swap(place, &mut self.taken);
        }
    }

    /// It was answered at once.
    pub(super) fn answered(&mut self, queue: &QueueShared, written: u32, status: Option<u8>) {
        record(&mut self.taken, self.shared.started, queue, written, status);
    }

    /// One that was under way was answered.
    pub(super) fn completed(&mut self, ticket: u16, queue: &QueueShared, written: u32, status: u8) {
        if let Some(place) = self.waiting.get_mut(usize::from(ticket)) {
            record(place, self.shared.started, queue, written, Some(status));
        }
    }
}

/// Records the event in this place, if there is one, of a device that started then.
fn record(place: &mut Place, started: Instant, queue: &QueueShared, written: u32, status: Option<u8>) {
    let Place { event, full } = place;
    if !std::mem::take(full) {
        return;
    }
    // Not the pass's time: what is in memory is answered within one.
    event.at_ns = started.elapsed().as_nanos() as u64;
    event.written = written;
    if let Some(status) = status {
        put_status(event, status);
    }
    queue.events.record(event);
}

/// Puts a request's header where a frame's first bytes would be, and the length of its data.
fn put(event: &mut Event, header: BlkHeader, (readable, writable): (u32, u32)) {
    event.frame_len = match header.kind {
        T_IN => writable.saturating_sub(1),
        _ => readable.saturating_sub(HEADER_LEN as u32),
    };
    event.head_bytes.iter_mut().zip(header.to_bytes()).for_each(|(to, from)| *to = from);
    event.head_len = HEADER_LEN as u8;
}

/// Puts its status behind it.
fn put_status(event: &mut Event, status: u8) {
    if let Some(place) = event.head_bytes.get_mut(HEADER_LEN).filter(|_| event.head_len > 0) {
        *place = status;
        event.head_len = HEADER_LEN as u8 + 1;
    }
}

/// In place of the status of a request that was answered: nobody has seen it.
const UNSEEN: u8 = 0xff;

/// Describes a request that another device has answered: its first bytes, how many the device may read and write, and the status
/// where somebody has seen it.
pub(crate) fn describe(event: &mut Event, first: &[u8], (readable, writable): (u64, u64), status: Option<u8>) {
    let Some(header) = first.first_chunk().map(|bytes| BlkHeader::from_bytes(*bytes)) else { return };
    let [readable, writable] = [readable, writable].map(|bytes| bytes.try_into().unwrap_or(u32::MAX));
    put(event, header, (readable, writable));
    put_status(event, status.unwrap_or(UNSEEN));
}

/// A request in words: `read sector 2048 len 4096`, with its status where it is not good.
pub(crate) fn summary(head: &[u8], len: u32) -> String {
    let Some((header, status)) = head.split_first_chunk::<HEADER_LEN>() else { return "no request".to_owned() };
    let BlkHeader { kind, sector } = BlkHeader::from_bytes(*header);
    let words = match kind {
        T_IN => format!("read sector {sector} len {len}"),
        T_OUT => format!("write sector {sector} len {len}"),
        T_FLUSH => "flush".to_owned(),
        T_GET_ID => "serial number".to_owned(),
        T_DISCARD => "discard".to_owned(),
        T_WRITE_ZEROES => "write zeroes".to_owned(),
        kind => format!("request {kind} sector {sector} len {len}"),
    };
    match status.first() {
        Some(&S_OK | &UNSEEN) => words,
        Some(&S_IOERR) => words + " ioerr",
        Some(&S_UNSUPP) => words + " unsupp",
        _ => words + " unanswered",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_said_in_words_with_its_status_where_it_is_not_good() {
        let said = |kind, status: &[u8]| {
            let head = [&BlkHeader { kind, sector: 8 }.to_bytes()[..], status].concat();
            summary(&head, 1024)
        };
        assert_eq!(said(T_IN, &[S_OK]), "read sector 8 len 1024");
        assert_eq!(said(T_OUT, &[S_IOERR]), "write sector 8 len 1024 ioerr");
        assert_eq!([said(T_FLUSH, &[S_OK]), said(T_GET_ID, &[S_OK])], ["flush", "serial number"]);
        assert_eq!(said(77, &[S_UNSUPP]), "request 77 sector 8 len 1024 unsupp");
        assert_eq!([said(T_FLUSH, &[]), summary(&[1, 2], 0)], ["flush unanswered", "no request"]);
    }
}
