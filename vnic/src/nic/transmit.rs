//! transmitq → link: one burst.

use std::sync::Arc;

use super::hardware::{Pace, Work};
use super::observers::ObserverPass;
use crate::backend::{BURST, InFlight, Progress, Queue, QueueShared};
use crate::link::{LinkError, Port, Transmitted};
use crate::net::{Frame, header_len};
use crate::observe::counters::QueueCounters;
use crate::ring::{ChainView, Disposition, DrainEnd, RingError, SingleBufferBatch, Visitor};
use crate::spec::Features;
use crate::spec::net::NET_HEADER_LEN;

/// What a burst did: counted here, and added to the queue's counters once.
#[derive(Debug, Default)]
struct BurstCounts {
    chains: u64,
    descriptors: u64,
    bytes: u64,
    read: u64,
    copied: u64,
    /// Of the chains, those that the link has kept.
    kept: u64,
    /// Chains whose frames went nowhere.
    lost: u64,
}

impl BurstCounts {
    /// The link has taken a frame.
    #[inline(always)]
    fn taken(&mut self, frame: &Frame<'_>, read: u32, copied: u32) {
        self.chains += 1;
        self.descriptors += u64::from(frame.chain().descriptors);
        self.bytes += u64::from(frame.len);
        self.read += u64::from(read);
        self.copied += u64::from(copied);
    }

    /// The chain goes back, and what is in it nowhere.
    #[cold]
    fn lost(&mut self, chain: ChainView<'_>, queue: &QueueShared, reason: &'static str) {
        self.chains += 1;
        self.lost += 1;
        self.descriptors += u64::from(chain.chain.descriptors);
        queue.counters.count_drop(reason);
    }

    #[inline(always)]
    fn add(&mut self, other: &BurstCounts) {
        self.chains += other.chains;
        self.descriptors += other.descriptors;
        self.bytes += other.bytes;
        self.read += other.read;
        self.copied += other.copied;
        self.lost += other.lost;
    }

    fn add_to(&self, counters: &QueueCounters) {
        counters.chains.add(self.chains);
        counters.descriptors.add(self.descriptors);
        counters.bytes.add(self.bytes);
        counters.dma_read_bytes.add(self.read);
        counters.device_copied_bytes.add(self.copied);
    }
}

/// What takes the frames of a burst.
pub(super) trait FrameSink {
    /// Does it keep frames?
    const KEEPS: bool;
    /// Does it read the frames itself?
    const READS: bool;
    /// Does it hand them to a driver at once? Then a modelled card has to bring them there, too.
    const BRINGS: bool;

    /// So many frames, of so many bytes together, were taken in this burst.
    fn transmitted(&mut self, frames: u64, bytes: u64);

    /// Takes a frame, or says that it is full. What it has taken it shows to the observers, and to the card's model what it
    /// [brings](FrameSink::BRINGS).
    fn offer(
        &mut self,
        frame: &Frame<'_>,
        observed: Observed<'_, '_>,
        pace: Option<&mut Pace>,
    ) -> Result<Transmitted, LinkError>;
}

/// The transmitq, and who looks on; `None` where nobody does.
pub(super) type Observed<'a, 'e> = Option<(&'a QueueShared, &'a mut ObserverPass<'e>)>;

/// The link, for one queue pair.
pub(super) struct LinkTransmit<'a, P> {
    pub(super) port: &'a mut P,
    pub(super) pair: usize,
    pub(super) in_flight: InFlight,
}

impl<P: Port> FrameSink for LinkTransmit<'_, P> {
    const KEEPS: bool = P::KEEPS > 0;
    const READS: bool = P::READS;
    const BRINGS: bool = false;

    fn transmitted(&mut self, frames: u64, bytes: u64) {
        self.port.transmitted(frames, bytes);
    }

    #[inline(always)]
    fn offer(
        &mut self,
        frame: &Frame<'_>,
        observed: Observed<'_, '_>,
        _pace: Option<&mut Pace>,
    ) -> Result<Transmitted, LinkError> {
        let transmitted = self.port.transmit(self.pair, frame)?;
        let (read, copied, kept) = match transmitted {
            Transmitted::Taken { read, copied } => (read, copied, None),
            Transmitted::Kept { ticket } => {
                self.in_flight.start(ticket, frame.view());
                // It is read from where it lies: that is what it is kept for.
                (frame.len, 0, Some(ticket))
            }
            Transmitted::Full => return Ok(Transmitted::Full),
        };
        if let Some((queue, observers)) = observed {
            observers.transmitted(queue, frame, (read, copied), kept);
        }
        Ok(transmitted)
    }
}

/// What is done with each chain of a burst.
struct Transmit<'a, 'e, O> {
    sink: &'a mut O,
    features: Features,
    shared: &'a QueueShared,
    observers: &'a mut ObserverPass<'e>,
    /// What holds chains back, and this queue's index.
    pace: Option<(&'a mut Pace, u16)>,
    /// The last chain was held back.
    paced: bool,
    /// The observers see the frames of this burst.
    seen: bool,
    /// Batches are taken: nobody sees the frames, no frame is kept, and headers are not the short ones.
    batches: bool,
    counts: BurstCounts,
}

impl<O: FrameSink> Visitor for Transmit<'_, '_, O> {
    const READS: bool = O::READS;

    #[inline(always)]
    fn takes_batches(&self) -> bool {
        self.batches
    }

    #[inline(always)]
    fn visit_batch(&mut self, batch: SingleBufferBatch<'_>) -> usize {
        let mut counts = BurstCounts::default();
        for chain in batch.views() {
            let Some(frame) = Frame::plain(chain) else { break };
            match self.sink.offer(&frame, None, None) {
                Ok(Transmitted::Taken { read, copied }) => counts.taken(&frame, read, copied),
                // One that keeps frames takes no batches.
                Ok(Transmitted::Full | Transmitted::Kept { .. }) => break,
                Err(_) => counts.lost(frame.view(), self.shared, "link_error"),
            }
        }
        self.counts.add(&counts);
        counts.chains as usize
    }

    #[inline(always)]
    fn visit(&mut self, chain: ChainView<'_>) -> Disposition {
        if !self.batches {
            return self.look(chain);
        }
        match Frame::plain(chain) {
            Some(frame) => self.offer(&frame),
            None => self.look(chain),
        }
    }
}

impl<O: FrameSink> Transmit<'_, '_, O> {
    /// Looks at a chain whatever it is.
    #[inline(never)]
    fn look(&mut self, chain: ChainView<'_>) -> Disposition {
        match Frame::new(chain, self.features) {
            Ok(frame) => self.offer(&frame),
            // The chain is sound, what it holds is no frame: the driver gets it back, the others live on.
            Err(error) => {
                self.counts.lost(chain, self.shared, error.name());
                Disposition::Return
            }
        }
    }

    /// Offers a frame to the sink.
    #[inline(always)]
    fn offer(&mut self, frame: &Frame<'_>) -> Disposition {
        if self.pace.is_some() { self.offer_paced(frame) } else { self.offer_now(frame) }
    }

    /// The same at a modelled card's pace.
    #[inline(never)]
    fn offer_paced(&mut self, frame: &Frame<'_>) -> Disposition {
        let Some((pace, index)) = &mut self.pace else { return Disposition::Leave };
        match pace.work(*index, frame) {
            // It is not done yet with the one before, on its way to the driver.
            Work::Begins if O::BRINGS && !pace.may_receive() => {
                self.paced = true;
                return Disposition::Leave;
            }
            Work::Begins => {}
            Work::Goes => {
                self.paced = true;
                return Disposition::Leave;
            }
            Work::Done { read, copied } => {
                self.counts.taken(frame, read, copied);
                return Disposition::Return;
            }
        }
        let observed = self.seen.then_some((self.shared, &mut *self.observers));
        let (read, copied, disposition) = match self.sink.offer(frame, observed, Some(pace)) {
            Ok(Transmitted::Taken { read, copied }) => (read, copied, Disposition::Leave),
            Ok(Transmitted::Kept { .. }) => {
                self.counts.taken(frame, 0, 0);
                self.counts.kept += 1;
                (0, 0, Disposition::Retain)
            }
            Ok(Transmitted::Full) => return Disposition::Leave,
            Err(_) => {
                self.counts.lost(frame.view(), self.shared, "link_error");
                return Disposition::Return;
            }
        };
        pace.begun(*index, frame, read, copied);
        if disposition == Disposition::Retain {
            pace.kept(*index);
        } else if let Work::Done { read, copied } = pace.work(*index, frame) {
            // The worker woke late: by its own clock the card has been done for a while.
            self.counts.taken(frame, read, copied);
            return Disposition::Return;
        } else {
            self.paced = true;
        }
        disposition
    }

    #[inline(always)]
    fn offer_now(&mut self, frame: &Frame<'_>) -> Disposition {
        let observed = self.seen.then_some((self.shared, &mut *self.observers));
        match self.sink.offer(frame, observed, None) {
            Ok(Transmitted::Taken { read, copied }) => self.counts.taken(frame, read, copied),
            Ok(Transmitted::Kept { .. }) => {
                self.counts.taken(frame, 0, 0);
                self.counts.kept += 1;
                return Disposition::Retain;
            }
            Ok(Transmitted::Full) => return Disposition::Leave,
            // The port has counted it by reason; a log line per frame would cost more than the frame.
            Err(_) => self.counts.lost(frame.view(), self.shared, "link_error"),
        }
        Disposition::Return
    }
}

/// Takes up to [`BURST`] chains from `queue` and offers their frames to `sink`. What it has no room for stays in the
/// ring.
pub(super) fn burst<O: FrameSink>(
    queue: &mut Queue,
    sink: &mut O,
    features: Features,
    observers: &mut ObserverPass<'_>,
    pace: &mut Option<Pace>,
) -> Progress {
    observers.begin(queue);
    // The queue itself is what is drained.
    let (shared, index) = (Arc::clone(&queue.shared), queue.index);
    let shared = shared.as_ref();
    let seen = observers.see(shared);
    if seen {
        observers.look_at(&queue.segments);
    }
    let batches = !seen && header_len(features) == NET_HEADER_LEN && !O::KEEPS && pace.is_none();
    let counts = BurstCounts::default();
    let pace = pace.as_mut().map(|pace| (pace, index));
    let mut transmit = Transmit { sink, features, shared, observers, pace, paced: false, seen, batches, counts };
    let ended = queue.drain(BURST, &mut transmit);
    let Transmit { counts, observers, pace, paced, .. } = transmit;
    if let Some((pace, index)) = pace
        && matches!(ended, Ok(DrainEnd::Empty))
    {
        pace.found_empty(index);
    }
    if !seen {
        observers.missed(shared, counts.chains - counts.lost);
    }
    if counts.chains > 0 {
        sink.transmitted(counts.chains - counts.lost, counts.bytes);
    }
    if paced {
        // What was held back is the card's doing, and no sign of a link that is full.
        finish(queue, &counts, Ok(DrainEnd::Empty));
        return Progress::Blocked;
    }
    finish(queue, &counts, ended)
}

/// Publishes and counts what a burst did, and says how it went on.
fn finish(queue: &mut Queue, counts: &BurstCounts, ended: Result<DrainEnd, RingError>) -> Progress {
    if counts.chains > 0 {
        counts.add_to(&queue.shared.counters);
    }
    if counts.chains > counts.kept {
        queue.publish();
    }
    match ended {
        Err(error) => {
            queue.stop_ring(&error);
            if counts.chains > 0 { Progress::Some } else { Progress::Idle }
        }
        Ok(DrainEnd::Left) => {
            queue.shared.counters.link_full.add(1);
            Progress::Blocked
        }
        Ok(DrainEnd::Limit) => Progress::More,
        Ok(DrainEnd::Empty) if counts.chains > 0 => Progress::Some,
        Ok(DrainEnd::Empty) => Progress::Idle,
    }
}

/// Returns the chain at `place`, whose frame has gone out, if it is the next.
struct Gone(u16, BurstCounts);

impl Visitor for Gone {
    const READS: bool = false;

    fn takes_batches(&self) -> bool {
        false
    }

    fn visit_batch(&mut self, _batch: SingleBufferBatch<'_>) -> usize {
        0
    }

    fn visit(&mut self, chain: ChainView<'_>) -> Disposition {
        if chain.chain.idx != self.0 {
            return Disposition::Leave;
        }
        self.1.chains += 1;
        self.1.descriptors += u64::from(chain.chain.descriptors);
        Disposition::Return
    }
}

/// A queue is taken away: the chain at `place`, whose frame a paced card has sent, goes back, and is not sent again.
pub(super) fn return_sent(queue: &mut Queue, place: u16) {
    let mut gone = Gone(place, BurstCounts::default());
    // What is wrong with a chain is said when it is the device's turn to take it.
    let _ = queue.drain(1, &mut gone);
    let Gone(_, counts) = gone;
    finish(queue, &counts, Ok(DrainEnd::Empty));
}

/// What a disabled transmitq holds: "the back-end must process the ring without causing any side effects", which for what
/// is to be sent means to discard it. "vhost-user protocol, Ring states". Not so before the front-end [has enabled
/// it](Queue::awaits_enable).
struct Discard(BurstCounts);

impl Visitor for Discard {
    const READS: bool = false;

    fn takes_batches(&self) -> bool {
        false
    }

    fn visit_batch(&mut self, _batch: SingleBufferBatch<'_>) -> usize {
        0
    }

    fn visit(&mut self, chain: ChainView<'_>) -> Disposition {
        self.0.chains += 1;
        self.0.descriptors += u64::from(chain.chain.descriptors);
        Disposition::Return
    }
}

/// Takes up to [`BURST`] chains from a disabled transmitq, and returns them unread.
pub(super) fn discard(queue: &mut Queue) -> Progress {
    let mut discard = Discard(BurstCounts::default());
    let ended = queue.drain(BURST, &mut discard);
    let Discard(counts) = discard;
    if counts.chains > 0 {
        queue.shared.counters.count_drops("disabled", counts.chains);
    }
    finish(queue, &counts, ended)
}
