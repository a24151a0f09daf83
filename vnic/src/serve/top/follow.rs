//! What the transmit queues of a device carry, as samples: read, and labelled.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::guest::Guest;
use crate::backend::{QueueShared, Shared};
use crate::introspect::{Kind, Label};
use crate::observe::tracer::{Event, Read, Reader};
use crate::provenance::{Attribution, Passed};
use crate::serve::trace::Following;

/// What an event costs the worker that records it, about, and each page that it takes a stamp of.
const EVENT: Duration = Duration::from_nanos(400);
const PAGE: Duration = Duration::from_nanos(150);

/// A device that is followed.
pub(super) struct Device<'s> {
    guest: Box<dyn Guest + 's>,
    queues: Vec<Queue<'s>>,
    pub(super) kernel: Option<String>,
    pub(super) why: Option<String>,
    frame: Attribution,
    _following: Following<'s>,
}

/// A transmit queue, and how far it was read.
struct Queue<'s> {
    shared: &'s QueueShared,
    reader: Reader<'s>,
}

impl<'s> Device<'s> {
    pub(super) fn new(shared: &'s Shared, guest: Box<dyn Guest + 's>) -> Self {
        let transmits = shared.queues.iter().filter(|queue| queue.is_transmitq());
        let queues = transmits.map(|queue| Queue { shared: queue, reader: queue.samples.reader() });
        let _following = Following::samples(shared);
        let frame = Attribution::default();
        Device { guest, queues: queues.collect(), kernel: None, why: None, frame, _following }
    }

    /// Has the workers take stamps, of the kernel that runs now.
    fn open(&mut self) {
        // One that sends no frames is nobody's question.
        if self.queues.is_empty() {
            return;
        }
        match self.guest.open() {
            Ok(kernel) => (self.kernel, self.why) = (Some(kernel), None),
            Err(why) => self.why = Some(why),
        }
    }

    /// Shows what was sent since the last time. Returns what it has cost the workers. Where nothing was sent, the guest is
    /// looked into only if `now`.
    pub(super) fn advance(&mut self, now: bool, show: &mut dyn FnMut(&Attribution)) -> Duration {
        let events: Vec<Event> = self.queues.iter_mut().flat_map(Queue::read).collect();
        if now || !events.is_empty() {
            self.open();
        }
        if events.is_empty() {
            return Duration::ZERO;
        }
        let pages =
            |event: &Event| -> u64 { event.buffers().iter().map(|buffer| u64::from(buffer.len >> 12) + 1).sum() };
        let Device { guest, frame, .. } = self;
        let cost = |event: &Event| EVENT + PAGE * pages(event).min(100) as u32;
        let cost = if guest.costs_workers() { events.iter().map(cost).sum() } else { EVENT };
        let looked = guest.look(&mut |label| {
            for event in &events {
                frame.attribute(event, |buffer, stamp, labels| label(buffer, stamp, labels));
                show(frame);
            }
        });
        if looked.is_none() {
            for event in &events {
                frame.attribute(event, |buffer, _, labels| labels.push(Label::of(buffer.gpa, Kind::Unsettled)));
                show(frame);
            }
        }
        cost
    }
}

impl Queue<'_> {
    /// What there is, but no more than the ring holds.
    fn read(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < self.shared.samples.slots() {
            match self.reader.read() {
                Some(Read::Event(event)) => events.push(*event),
                // What had no room, the queue has counted with all others.
                Some(Read::Lost(_)) => {}
                None => break,
            }
        }
        events
    }
}

/// What the transmit queues of these devices have carried ever.
pub(super) fn passed(devices: &[Arc<Shared>]) -> Passed {
    let queues = devices.iter().flat_map(|shared| &shared.queues).filter(|queue| queue.is_transmitq());
    queues.fold(Passed::default(), |sum, queue| Passed {
        frames: sum.frames + queue.counters.chains.get(),
        bytes: sum.bytes + queue.counters.bytes.get(),
    })
}
