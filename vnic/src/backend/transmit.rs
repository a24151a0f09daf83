//! transmitq → link: one burst.

use super::flights::Flights;
use super::queue::Queue;
use super::shared::QueueShared;
use super::worker::{BURST, Eyes, Progress};
use crate::link::{LinkError, Port, Transmitted};
use crate::net::{Frame, header_len};
use crate::observe::counters::QueueCounters;
use crate::ring::{ChainView, DeviceRing, Ended, Fate, Visitor};
use crate::spec::Features;
use crate::spec::net::NET_HEADER_LEN;

/// What a burst did: counted here, and added to the queue's counters once.
#[derive(Debug, Default)]
struct Tally {
    chains: u64,
    descriptors: u64,
    bytes: u64,
    read: u64,
    copied: u64,
    /// Of the chains, those that the link has kept.
    kept: u64,
}

impl Tally {
    fn add_to(&self, counters: &QueueCounters) {
        counters.chains.add(self.chains);
        counters.descriptors.add(self.descriptors);
        counters.bytes.add(self.bytes);
        counters.dma_read_bytes.add(self.read);
        counters.device_copied_bytes.add(self.copied);
    }
}

/// What takes the frames of a burst.
pub(super) trait Outlet {
    /// Takes a frame, or says that it is full. What it has taken it shows to `eyes`, if anyone looks.
    fn offer(&mut self, queue: &QueueShared, frame: &Frame<'_>, eyes: &mut Eyes<'_>) -> Result<Transmitted, LinkError>;
}

/// The link, for one queue pair.
pub(super) struct ToLink<'a, P> {
    pub(super) port: &'a mut P,
    pub(super) pair: usize,
    pub(super) flights: Flights,
}

impl<P: Port> Outlet for ToLink<'_, P> {
    #[inline(always)]
    fn offer(&mut self, queue: &QueueShared, frame: &Frame<'_>, eyes: &mut Eyes<'_>) -> Result<Transmitted, LinkError> {
        let transmitted = self.port.transmit(self.pair, frame)?;
        let (read, copied) = match transmitted {
            Transmitted::Taken { read, copied } => (read, copied),
            Transmitted::Kept { ticket } => {
                self.flights.start(ticket, frame.chain());
                // It is read from where it lies: that is what it is kept for.
                (frame.len, 0)
            }
            Transmitted::Full => return Ok(Transmitted::Full),
        };
        if eyes.open() {
            eyes.transmitted(queue, frame, read, copied);
        }
        Ok(transmitted)
    }
}

/// What is done with each chain of a burst.
struct Transmit<'a, 'e, O> {
    outlet: &'a mut O,
    features: Features,
    shared: &'a QueueShared,
    eyes: &'a mut Eyes<'e>,
    /// A glance can be enough: nobody watches, and headers are not the short ones.
    glances: bool,
    tally: Tally,
}

impl<O: Outlet> Visitor for Transmit<'_, '_, O> {
    #[inline(always)]
    fn glance(&mut self, chain: ChainView<'_>) -> Option<Fate> {
        if !self.glances {
            return None;
        }
        let frame = Frame::plain(chain)?;
        Some(self.offer(&frame))
    }

    #[inline(always)]
    fn visit(&mut self, chain: ChainView<'_>) -> Fate {
        match self.glance(chain) {
            Some(fate) => fate,
            None => self.look(chain),
        }
    }
}

impl<O: Outlet> Transmit<'_, '_, O> {
    /// Looks at a chain whatever it is.
    #[inline(never)]
    fn look(&mut self, chain: ChainView<'_>) -> Fate {
        match Frame::new(chain, self.features) {
            Ok(frame) => self.offer(&frame),
            // The chain is sound, what it holds is no frame: the driver gets it back, the others live on.
            Err(error) => {
                self.shared.counters.count_drop(error.name());
                self.tally.chains += 1;
                self.tally.descriptors += u64::from(chain.chain.descriptors);
                Fate::Return
            }
        }
    }

    /// Offers a frame to the outlet.
    #[inline(always)]
    fn offer(&mut self, frame: &Frame<'_>) -> Fate {
        match self.outlet.offer(self.shared, frame, self.eyes) {
            Ok(Transmitted::Taken { read, copied }) => {
                self.tally.bytes += u64::from(frame.len);
                self.tally.read += u64::from(read);
                self.tally.copied += u64::from(copied);
            }
            Ok(Transmitted::Kept { .. }) => {
                self.tally.bytes += u64::from(frame.len);
                self.tally.chains += 1;
                self.tally.descriptors += u64::from(frame.chain().descriptors);
                self.tally.kept += 1;
                return Fate::Keep;
            }
            Ok(Transmitted::Full) => return Fate::Leave,
            // The port has counted it by reason; a log line per frame would cost more than the frame.
            Err(_) => self.shared.counters.count_drop("link_error"),
        }
        self.tally.chains += 1;
        self.tally.descriptors += u64::from(frame.chain().descriptors);
        Fate::Return
    }
}

/// Takes up to [`BURST`] chains from `queue` and offers their frames to `outlet`. What it has no room for stays in the
/// ring.
pub(super) fn burst(queue: &mut Queue, outlet: &mut impl Outlet, features: Features, eyes: &mut Eyes<'_>) -> Progress {
    let Queue { ring, segments, shared, .. } = queue;
    let glances = !eyes.open() && header_len(features) == NET_HEADER_LEN;
    let mut transmit = Transmit { outlet, features, shared, eyes, glances, tally: Tally::default() };
    let ended = ring.drain(segments, BURST, &mut transmit);
    let Transmit { tally, .. } = transmit;
    if tally.chains > 0 {
        tally.add_to(&shared.counters);
    }
    if tally.chains > tally.kept {
        queue.publish();
    }
    match ended {
        Err(error) => {
            queue.stop_ring(&error);
            if tally.chains > 0 { Progress::Some } else { Progress::Idle }
        }
        Ok(Ended::Left) => {
            queue.shared.counters.link_full.add(1);
            Progress::Blocked
        }
        Ok(Ended::Limit) => Progress::More,
        Ok(Ended::Empty) if tally.chains > 0 => Progress::Some,
        Ok(Ended::Empty) => Progress::Idle,
    }
}
