//! The observers of the data path: the tracer, the capture, and whoever else is given to the workers.
//!
//! Place: called by the bursts for each chain, after the link has taken or filled it and before the driver gets it
//! back, so that what is shown is what was sent. Costs one branch per chain while nobody looks.

use std::sync::Arc;
use std::time::Instant;

use super::hardware::{self, Accounting, pieces_of};
use crate::backend::labels::{EyesStamper, StamperCopy};
use crate::backend::{QueueShared, Shared, chain_event, gpa_of};
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
}

impl Observers {
    /// The observers for one pass.
    pub(super) fn look<'a>(&'a mut self, shared: &Shared, now: Instant) -> ObserverPass<'a> {
        let (traced, sampled) = (shared.traced(), shared.sampled());
        if let Some(accounting) = &mut self.accounting {
            accounting.refill(now);
        }
        let looked = traced || sampled || self.other.is_some() || self.capture.is_some();
        let open = looked || self.accounting.is_some();
        let stamper = if looked { shared.labels.stamper(&mut self.stamper) } else { None };
        ObserverPass { open, traced, sampled, stamper, started: shared.started, at_ns: None, memory: None, state: self }
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

    /// A frame the link has taken.
    #[inline(never)]
    pub(super) fn transmitted(&mut self, queue: &QueueShared, frame: &Frame<'_>, read: u32, copied: u32) {
        if let Some(capture) = &self.state.capture {
            let (memory, stamper) = (self.memory.as_deref(), self.stamper.as_ref());
            capture.transmitted(&queue.name, frame, |segment, len| {
                let gpa = gpa_of(segment, memory);
                (gpa, stamper.map_or(0, |stamper| stamper.stamp(gpa, len)))
            });
        }
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
            let mut event = self.event(frame.view(), 0);
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
            if traced {
                queue.events.record(&event);
            }
            if sampled {
                queue.samples.record(&event);
            }
        }
    }

    /// A frame of `bytes` that the link has put into the driver's buffers: an event per chain, the frame's first bytes
    /// with the first.
    pub(super) fn received(&mut self, queue: &QueueShared, segments: &Segments, space: &ReceiveSpace<'_>, bytes: u32) {
        if let Some(capture) = &self.state.capture {
            capture.received(&queue.name, segments, space);
        }
        if let Some(accounting) = &mut self.state.accounting {
            accounting.add(queue, Kind::default(), pieces_of(space.frame()));
        }
        if self.traced {
            self.look_at(segments);
            for (at, (chain, written)) in space.filled().enumerate() {
                let mut event = self.event(segments.view(*chain), written);
                if at == 0 {
                    event.frame_len = bytes;
                    event.head_len = read_back(space, &mut event.head_bytes);
                }
                queue.events.record(&event);
            }
        }
    }

    fn event(&mut self, view: ChainView<'_>, written: u32) -> Event {
        let mut event = chain_event(view, self.memory.as_deref());
        event.at_ns = *self.at_ns.get_or_insert_with(|| self.started.elapsed().as_nanos() as u64);
        event.written = written;
        event
    }
}

/// The first bytes of a frame the device has just written.
fn read_back(space: &ReceiveSpace<'_>, out: &mut [u8]) -> u8 {
    let mut count = 0;
    for slice in space.frame() {
        let Some(room) = out.get_mut(count..).filter(|room| !room.is_empty()) else { break };
        count += slice.copy_to(room);
    }
    u8::try_from(count).unwrap_or(u8::MAX)
}
