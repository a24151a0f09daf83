//! The observers of the data path: the tracer, the capture, and whoever else is given to the workers.
//!
//! Place: called by the bursts for each chain, after the link has taken or filled it and before the driver gets it
//! back, so that what is shown is what was sent. Costs one branch per chain while nobody looks.

use std::sync::Arc;
use std::time::Instant;

use super::arrivals::Arrivals;
use super::hardware::{self, Accounting, pieces_of};
use crate::backend::labels::{EyesStamper, StamperCopy};
use crate::backend::{Queue, QueueShared, Shared, chain_event, gpa_of};
use crate::hardware::Kind;
use crate::link::Capture;
use crate::memory::Memory;
use crate::net::{Frame, ReceiveSpace};
use crate::observe::observer::{Observer, TransmittedFrame};
use crate::observe::tracer::{Event, EventHeader};
use crate::ring::{ChainView, Segments};

/// The observers of one worker.
#[derive(Debug, Default)]
pub(super) struct Observers {
    /// Who else looks at transmitted frames.
    pub other: Option<Box<dyn Observer>>,
    /// The file that every frame is written to.
    pub capture: Option<Capture>,
    /// Sums up what the chains would cost a card of hardware.
    pub accounting: Option<Accounting>,
    /// Where what takes stamps was last.
    pub stamper: StamperCopy,
    /// By queue, while somebody traces: when its chains came.
    pub arrivals: Vec<Arrivals>,
    /// By pair and ticket: the events of frames that the link has kept, recorded when it is done with them.
    pub kept: Vec<Vec<Option<Box<Event>>>>,
}

impl Observers {
    /// The link is done with a frame that it had kept.
    pub(super) fn completed(&mut self, queue: &QueueShared, (pair, ticket): (usize, u16), started: Instant) {
        let kept = self.kept.get_mut(pair).and_then(|kept| kept.get_mut(usize::from(ticket)));
        if let Some(event) = kept.and_then(Option::as_mut).filter(|event| event.at_ns == KEPT) {
            // The memory is used again.
            event.at_ns = started.elapsed().as_nanos() as u64;
            queue.events.record(event);
        }
    }

    /// The queue begins anew, or is gone, or nobody looks when its chains come.
    pub(super) fn forget(&mut self, index: u16) {
        if let Some(arrivals) = self.arrivals.get_mut(usize::from(index)) {
            arrivals.forget();
        }
    }

    /// The observers for one pass.
    pub(super) fn look<'a>(&'a mut self, shared: &Shared, now: Instant) -> ObserverPass<'a> {
        let (traced, sampled) = (shared.traced(), shared.sampled());
        if let Some(accounting) = &mut self.accounting {
            accounting.refill(now);
        }
        if !traced {
            self.arrivals.clear();
        }
        let looked = traced || sampled || self.other.is_some() || self.capture.is_some();
        let open = looked || self.accounting.is_some();
        let stamper = if looked { shared.labels.stamper(&mut self.stamper) } else { None };
        let begun_ns = now.saturating_duration_since(shared.started).as_nanos() as u64;
        let (started, at_ns, memory, pair) = (shared.started, None, None, 0);
        ObserverPass { open, traced, sampled, stamper, started, begun_ns, at_ns, memory, pair, state: self }
    }
}

/// The observers during one pass.
#[derive(Debug)]
pub(super) struct ObserverPass<'a> {
    /// Does anyone look?
    open: bool,
    /// Somebody wants all events.
    traced: bool,
    /// Somebody is content with samples of what transmitqs carry.
    sampled: bool,
    /// Somebody wants to know whose the bytes are.
    stamper: Option<Arc<EyesStamper>>,
    started: std::time::Instant,
    /// Behind an IOMMU: the memory of the queue that is looked at.
    memory: Option<Arc<Memory>>,
    /// When the pass began.
    begun_ns: u64,
    /// The queue pair whose turn it is.
    pair: usize,
    /// When the pass saw its first event: the others have the same time, for asking takes longer than many a frame.
    at_ns: Option<u64>,
    state: &'a mut Observers,
}

impl ObserverPass<'_> {
    /// The next chains are of this arena.
    pub(super) fn look_at(&mut self, segments: &Segments) {
        let memory = segments.memory();
        self.memory = memory.iotlb().map(|_| Arc::clone(memory));
    }

    /// It is this queue's turn.
    #[inline]
    pub(super) fn begin(&mut self, queue: &mut Queue) {
        self.pair = usize::from(queue.index) / 2;
        // When chains came is asked for only where there is room to say so: a look costs more than a frame.
        if self.traced && queue.shared.events.has_room() {
            let arrivals = self.state.arrivals.get(usize::from(queue.index));
            if queue.held_since.is_some() || !arrivals.is_some_and(|arrivals| arrivals.is_current(&mut queue.ring)) {
                self.look_for_arrivals(queue);
            }
            return;
        }
        if !queue.held {
            queue.held_since = None;
        }
        if self.traced {
            self.state.forget(queue.index);
        }
    }

    #[inline(never)]
    fn look_for_arrivals(&mut self, queue: &mut Queue) {
        let index = usize::from(queue.index);
        let all = &mut self.state.arrivals;
        if all.len() <= index {
            all.resize_with(index + 1, Arrivals::default);
        }
        if let Some(arrivals) = all.get_mut(index) {
            arrivals.look(&mut queue.ring, self.begun_ns);
            if !queue.held
                && let Some(since) = queue.held_since.take()
            {
                arrivals.released(since.saturating_duration_since(self.started).as_nanos() as u64);
            }
        }
    }

    /// Would any of them see the next frames of the transmitq? Not so if only those look that have no room for events.
    #[inline]
    pub(super) fn see(&self, queue: &QueueShared) -> bool {
        self.open
            && (self.state.other.is_some()
                || self.state.capture.is_some()
                || self.traced && queue.events.has_room()
                || self.sampled && queue.samples.has_room()
                || self.state.accounting.as_ref().is_some_and(Accounting::looks))
    }

    /// So many chains of `queue` went by that nobody was shown.
    #[inline]
    pub(super) fn missed(&self, queue: &QueueShared, chains: u64) {
        if self.traced && chains > 0 {
            queue.events.lose(chains);
        }
    }

    /// A frame the link has taken, having read and copied so many bytes of it; or that it keeps, by this ticket.
    #[inline(never)]
    pub(super) fn transmitted(
        &mut self,
        queue: &QueueShared,
        frame: &Frame<'_>,
        (read, copied): (u32, u32),
        kept: Option<u16>,
    ) {
        self.capture(queue, frame, None);
        self.sent(queue, frame, (read, copied), kept);
    }

    /// A frame that came straight back, into buffers of the queue `to`.
    #[inline(never)]
    pub(super) fn looped(
        &mut self,
        queue: &QueueShared,
        frame: &Frame<'_>,
        to: &QueueShared,
        segments: &Segments,
        space: &ReceiveSpace<'_>,
    ) {
        self.capture(queue, frame, Some((&to.name, segments, space)));
        self.sent(queue, frame, (frame.len, 0), None);
        self.brought(to, segments, space, frame.len);
    }

    fn capture(&self, queue: &QueueShared, frame: &Frame<'_>, looped: Option<(&str, &Segments, &ReceiveSpace<'_>)>) {
        if let Some(capture) = &self.state.capture {
            let (memory, stamper) = (self.memory.as_deref(), self.stamper.as_ref());
            capture.transmitted(&queue.name, frame, looped, |segment, len| {
                let gpa = gpa_of(segment, memory);
                (gpa, stamper.map_or(0, |stamper| stamper.stamp(gpa, len)))
            });
        }
    }

    fn sent(&mut self, queue: &QueueShared, frame: &Frame<'_>, (read, copied): (u32, u32), kept: Option<u16>) {
        if let Some(other) = &mut self.state.other {
            other.transmitted(&TransmittedFrame { frame, read, copied, translated: self.memory.as_deref() });
        }
        if let Some(accounting) = &mut self.state.accounting {
            // By the driver's addresses: they are what an IO-TLB is asked for.
            accounting.add(queue, hardware::kind(frame), pieces_of(frame.segments()));
        }
        let traced = self.traced && queue.events.has_room();
        let sampled = self.sampled && queue.samples.has_room();
        if self.traced && !traced {
            queue.events.lose(1);
        }
        if traced || sampled {
            let mut event = self.event(frame.view(), 0, 2 * self.pair + 1);
            event.frame_len = frame.len;
            event.gso_size = frame.header.gso_size;
            event.net_header = Some(EventHeader::of(&frame.header));
            event.head_len = frame.peek(&mut event.head_bytes).len() as u8;
            event.net_header_len = (frame.chain().readable_len - frame.len) as u8;
            if let Some(stamper) = &self.stamper {
                for (stamp, buffer) in event.stamps.iter_mut().zip(event.buffers.iter().take(event.buffer_count.into()))
                {
                    *stamp = stamper.stamp(buffer.gpa, buffer.len);
                }
            }
            if sampled {
                queue.samples.record(&event);
            }
            match kept {
                Some(ticket) if traced => self.keep(ticket, event),
                None if traced => queue.events.record(&event),
                _ => {}
            }
        }
    }

    /// A frame of `bytes` that the link has put into the driver's buffers: an event per chain, the frame's first bytes
    /// with the first.
    pub(super) fn received(&mut self, queue: &QueueShared, segments: &Segments, space: &ReceiveSpace<'_>, bytes: u32) {
        if let Some(capture) = &self.state.capture {
            capture.received(&queue.name, segments, space);
        }
        self.brought(queue, segments, space, bytes);
    }

    fn brought(&mut self, queue: &QueueShared, segments: &Segments, space: &ReceiveSpace<'_>, bytes: u32) {
        if let Some(accounting) = &mut self.state.accounting {
            accounting.add(queue, Kind::default(), pieces_of(space.frame()));
        }
        if self.traced {
            self.look_at(segments);
            for (at, (chain, written)) in space.filled().enumerate() {
                let mut event = self.event(segments.view(*chain), written, 2 * self.pair);
                if at == 0 {
                    event.frame_len = bytes;
                    event.head_len = read_back(space, &mut event.head_bytes);
                }
                queue.events.record(&event);
            }
        }
    }

    /// Its event waits until the link is done with it.
    fn keep(&mut self, ticket: u16, event: Event) {
        let (pairs, pair, ticket) = (&mut self.state.kept, self.pair, usize::from(ticket));
        if pairs.len() <= pair {
            pairs.resize_with(pair + 1, Vec::new);
        }
        let Some(kept) = pairs.get_mut(pair) else { return };
        if kept.len() <= ticket {
            kept.resize_with(ticket + 1, || None);
        }
        let event = Event { taken_ns: event.at_ns, at_ns: KEPT, ..event };
        match kept.get_mut(ticket) {
            Some(Some(place)) => **place = event,
            Some(place) => *place = Some(Box::new(event)),
            None => {}
        }
    }

    /// An event of a chain of the queue with this index.
    fn event(&mut self, view: ChainView<'_>, written: u32, index: usize) -> Event {
        let mut event = chain_event(view, self.memory.as_deref());
        let arrivals = self.state.arrivals.get(index);
        let came = arrivals.and_then(|arrivals| arrivals.of(view.chain.idx));
        // What came during the pass was there when it began, as far as anybody can tell.
        event.available_ns = came.unwrap_or(self.begun_ns);
        event.held_ns = arrivals.and_then(|arrivals| arrivals.held(view.chain.idx)).unwrap_or_default();
        event.at_ns = *self.at_ns.get_or_insert_with(|| self.started.elapsed().as_nanos() as u64);
        event.written = written;
        event
    }
}

/// In place of the time: the link has it still.
const KEPT: u64 = u64::MAX;

/// The first bytes of a frame the device has just written.
fn read_back(space: &ReceiveSpace<'_>, out: &mut [u8]) -> u8 {
    let mut count = 0;
    for slice in space.frame() {
        let Some(room) = out.get_mut(count..).filter(|room| !room.is_empty()) else { break };
        count += slice.copy_to(room);
    }
    u8::try_from(count).unwrap_or(u8::MAX)
}
