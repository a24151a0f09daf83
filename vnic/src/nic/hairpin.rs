//! transmitq → receiveq of the same pair: one burst of a hairpin, a link whose frames come straight back.
//!
//! Operation: for each frame, as many receive buffers are at hand as it takes; the port copies it over, and both chains
//! go back. Each ring publishes what was used once per burst. While there are too few buffers, the frame stays in the
//! transmitq: nothing is lost, and only the receiveq is asked for kicks.
//!
//! Invariant: no chain of the receiveq is kept from burst to burst; those that were popped ahead and not needed go back.

use super::hardware::{Pace, pieces_of};
use super::observers::ObserverPass;
use super::transmit::{self, FrameSink, Observed};
use crate::backend::queue::taken::cross_off;
use crate::backend::{Progress, Queue, complete};
use crate::link::{LinkError, Port, Transmitted};
use crate::net::{Frame, MAX_BUFFERS, ReceiveSpace, header_len};
use crate::ring::{Chain, DeviceRing, RingError};
use crate::spec::{Feature, Features};

/// Most receive buffers popped ahead: found together, they wait for memory at the same time.
const AHEAD: usize = 32;
/// Segments from which on no more are popped ahead: buffers of many pieces gain nothing by it.
const AHEAD_SEGMENTS: usize = 1024;
/// How many of them are prefetched before they are filled. More prefetches than this would queue behind one another.
const NEAR: usize = 8;

/// The receive look-ahead: buffers popped before a frame needs them. Between bursts it is empty and only its memory is kept.
#[derive(Debug)]
pub(super) struct LookAhead {
    chains: Vec<Chain>,
    /// Those before it are used.
    next: usize,
    /// How many the last burst used: as many will do for the next, and none has to go back.
    expected: usize,
}

impl Default for LookAhead {
    fn default() -> Self {
        // A frame of 64 KiB over buffers of 1500 bytes and less.
        LookAhead { chains: Vec::with_capacity(2 * AHEAD), next: 0, expected: AHEAD }
    }
}

/// What the look-ahead has for a frame.
enum Room {
    /// This many chains; they hold it, or are all that will ever be.
    Chains(usize),
    /// Too few so far.
    TooLittle,
}

impl LookAhead {
    /// Finds room for `bytes`.
    #[inline(always)]
    fn room(&mut self, queue: &mut Queue, bytes: usize, mergeable: bool) -> Result<Room, RingError> {
        match self.chains_for(bytes, mergeable) {
            Some(count) => Ok(Room::Chains(count)),
            None => self.refill(queue, bytes, mergeable),
        }
    }

    /// How many chains hold `bytes`, if there are as many.
    #[inline(always)]
    fn chains_for(&self, bytes: usize, mergeable: bool) -> Option<usize> {
        let mut room = 0;
        for (at, chain) in self.chains.iter().skip(self.next).enumerate() {
            room += chain.writable_len as usize;
            if room >= bytes || !mergeable {
                return Some(at + 1);
            }
        }
        None
    }

    #[inline(never)]
    fn refill(&mut self, queue: &mut Queue, bytes: usize, mergeable: bool) -> Result<Room, RingError> {
        // Anew, so that the arena never holds more than one frame takes, and some.
        self.return_unused(queue)?;
        let mut room = 0;
        let mut slots = 0;
        loop {
            let ahead = self.chains.len() < self.expected && queue.segments.len() < AHEAD_SEGMENTS;
            let needed = room < bytes && mergeable && self.chains.len() < MAX_BUFFERS;
            if !ahead && !needed {
                break;
            }
            let had = self.chains.len();
            let wanted = self.expected.saturating_sub(had).max(1);
            if queue.record.is_none() {
                queue.ring.pop_buffers(&mut queue.segments, wanted as u16, &mut self.chains)?;
            }
            if self.chains.len() == had {
                match queue.pop() {
                    Ok(Some(chain)) => self.chains.push(chain),
                    Ok(None) => break,
                    // Its translation is missing, behind an IOMMU; those before it will do.
                    Err(error) if error.is_miss() && self.chains_for(bytes, mergeable).is_some() => break,
                    Err(error) => return Err(error),
                }
            }
            for chain in self.chains.iter().skip(had) {
                room += chain.writable_len as usize;
                slots += if chain.indirect { 1 } else { usize::from(chain.descriptors) };
            }
        }
        (0..NEAR).for_each(|ahead| self.prefetch_write(queue, ahead));
        // A ring that is full of buffers will never have more, and a frame may take no more than so many.
        let is_all = slots >= usize::from(queue.ring.size()) || self.chains.len() >= MAX_BUFFERS;
        let all = || is_all.then_some(self.chains.len());
        Ok(self.chains_for(bytes, mergeable).or_else(all).map_or(Room::TooLittle, Room::Chains))
    }

    /// Asks for the first bytes of the buffer that is `ahead` of the next.
    #[inline(always)]
    fn prefetch_write(&self, queue: &Queue, ahead: usize) {
        if let Some(chain) = self.chains.get(self.next + ahead)
            && let Some(slice) = queue.segments.view(*chain).writable().next()
        {
            slice.prefetch_write();
        }
    }

    /// Gives back what was not used.
    fn return_unused(&mut self, queue: &mut Queue) -> Result<(), RingError> {
        let unused = self.chains.get(self.next..).unwrap_or_default();
        let outcome = queue.try_unpop(unused);
        queue.segments.clear();
        self.chains.clear();
        self.next = 0;
        outcome
    }
}

/// The other end of a burst.
struct Hairpin<'a, P> {
    port: &'a mut P,
    receiveq: &'a mut Queue,
    look_ahead: &'a mut LookAhead,
    features: Features,
    chains: u64,
    descriptors: u64,
    bytes: u64,
    /// Of the chains, those whose frames nobody was shown.
    unseen: u64,
    starved: bool,
    broken: Option<RingError>,
}

impl<P: Port> FrameSink for Hairpin<'_, P> {
    const KEEPS: bool = false;
    const READS: bool = true;
    const BRINGS: bool = true;

    fn transmitted(&mut self, _frames: u64, _bytes: u64) {}

    #[inline(always)]
    fn offer(
        &mut self,
        frame: &Frame<'_>,
        observed: Observed<'_, '_>,
        pace: Option<&mut Pace>,
    ) -> Result<Transmitted, LinkError> {
        let needed = frame.len as usize + header_len(self.features);
        let count = match self.look_ahead.room(self.receiveq, needed, self.features.has(Feature::MrgRxbuf)) {
            Ok(Room::Chains(count)) => count,
            Ok(Room::TooLittle) => {
                self.starved = true;
                return Ok(Transmitted::Full);
            }
            Err(error) => {
                self.broken = Some(error);
                return Ok(Transmitted::Full);
            }
        };
        self.look_ahead.prefetch_write(self.receiveq, NEAR);
        let Queue { ring, segments, shared, log, record, retaken, .. } = &mut *self.receiveq;
        let chains = self.look_ahead.chains.get(self.look_ahead.next..).and_then(|chains| chains.get(..count));
        let mut space = ReceiveSpace::new(segments, chains.unwrap_or_default(), self.features);
        self.port.hairpin(frame, &mut space)?;
        let seen = observed.is_some();
        if let Some((queue, observers)) = observed {
            observers.looped(queue, frame, shared, segments, &space);
        }
        if let Some(pace) = pace {
            pace.received(pieces_of(space.frame()));
        }
        self.bytes += u64::from(frame.len);
        for (chain, written) in space.filled() {
            self.look_ahead.next += 1;
            self.chains += 1;
            self.unseen += u64::from(!seen);
            self.descriptors += u64::from(chain.descriptors);
            cross_off(record, retaken, chain);
            if let Err(error) = complete(ring, segments, log.as_ref(), chain, written) {
                self.broken = Some(error);
            }
        }
        Ok(Transmitted::Taken { read: frame.len, copied: 0 })
    }
}

/// Hands up to a burst of frames of `transmitq` over to `receiveq`. Returns how it went on either.
pub(super) fn burst<P: Port>(
    transmitq: &mut Queue,
    receiveq: &mut Queue,
    port: &mut P,
    features: Features,
    look_ahead: &mut LookAhead,
    observers: &mut ObserverPass<'_>,
    pace: &mut Option<Pace>,
) -> [Progress; 2] {
    observers.begin(receiveq);
    let (chains, descriptors, bytes, unseen, starved, broken) = (0, 0, 0, 0, false, None);
    let mut hairpin =
        Hairpin { port, receiveq, look_ahead, features, chains, descriptors, bytes, unseen, starved, broken };
    hairpin.receiveq.ring.prefetch(AHEAD as u16);
    let sent = transmit::burst(transmitq, &mut hairpin, features, observers, pace);
    let Hairpin { chains, descriptors, bytes, unseen, starved, broken, .. } = hairpin;
    observers.missed(&receiveq.shared, unseen);
    look_ahead.expected = look_ahead.next.clamp(1, AHEAD);
    let returned = look_ahead.return_unused(receiveq);
    let counters = &receiveq.shared.counters;
    if starved {
        counters.no_buffers.add(1);
    }
    if chains > 0 {
        counters.chains.add(chains);
        counters.descriptors.add(descriptors);
        counters.bytes.add(bytes);
        receiveq.publish();
    }
    if let Some(error) = broken.or(returned.err()) {
        receiveq.stop_ring(&error);
    }
    let received = match (starved, chains > 0) {
        (true, _) => Progress::Blocked,
        (false, true) => Progress::Some,
        (false, false) => Progress::Idle,
    };
    [sent, received]
}
