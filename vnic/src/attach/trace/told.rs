//! What the followers of a queue that is watched are told.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::devices::{Frames, Queue};
use super::super::fetched::Fetched;
use super::chain::Seen;
use super::sight::Sight;
use crate::backend::QueueShared;
use crate::introspect::GuestPhysical;
use crate::observe::tracer::{Event, EventHeader, HEAD_BYTES};
use crate::spec::net::{GSO_NONE, NET_HEADER_LEN, NetHeader};
use crate::spec::{Feature, Features};

/// Pages that are looked at in one look at a ring, at most: meanwhile it misses chains.
const SIGHTED: u64 = 256;
/// Chains of which what is wanted is fetched beforehand; of more than these it is read as it comes.
pub(super) const FETCHED: usize = 128;

/// What one look is for.
#[derive(Debug, Clone, Copy)]
pub(in crate::attach) struct Wanted {
    /// The time.
    pub(in crate::attach) at_ns: u64,
    /// Somebody follows all chains: not only those with stamps.
    pub(in crate::attach) all: bool,
}

/// Who is told, and of what.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) shared: Arc<QueueShared>,
    pub(super) queue: Queue,
    pub(super) features: Features,
    /// Of the frames' headers, bytes.
    pub(super) header: usize,
}

impl Told {
    /// Of chains that were just followed, if the guest sends them: their first bytes, and what their pages are.
    pub(super) fn look_into<M: GuestPhysical>(
        &self,
        new: &mut VecDeque<Seen>,
        fetched: &mut Fetched<'_, M>,
        mut sight: Option<&mut Sight<M>>,
    ) {
        if !matches!(self.queue.frames, Frames::Sent | Frames::Requests) {
            return;
        }
        let mut pages = 0;
        // The youngest will be there longest.
        let is_sighted = |seen: &&Seen| {
            let goes = pages < SIGHTED;
            pages += seen.pages();
            goes
        };
        let sighted = if sight.is_some() { new.iter().rev().take_while(is_sighted).count() } else { 0 };
        let structures = sight.as_mut().map(|sight| sight.structures(new.iter().rev().take(sighted)));
        let starts = new.iter().rev().take(FETCHED).flat_map(|seen| seen.start(false, self.header));
        fetched.fetch(starts.chain(structures.into_iter().flatten()));
        for seen in new.iter_mut() {
            seen.first = seen.peek(fetched, false, self.header);
        }
        if let Some(sight) = sight {
            sight.look(new.iter_mut().rev().take(sighted), fetched);
        }
    }

    /// A chain was used; `written` bytes, says the device. `is_collected`: may what the device has written be another's by now?
    pub(super) fn pass<M: GuestPhysical>(
        &self,
        ram: &M,
        seen: &Seen,
        written: u32,
        (wanted, sight): (Wanted, Option<&mut Sight<M>>),
        is_collected: impl FnOnce() -> bool,
    ) {
        if !seen.is_whole || !wanted.all && seen.stamps.is_empty() {
            return self.miss(1);
        }
        if let Some(sight) = sight {
            sight.keep(seen);
        }
        let event = self.event(ram, seen, written, wanted.at_ns, is_collected);
        // Not its bytes: those of what is missed nobody knows, and a share of both would say too much.
        self.shared.counters.chains.add(1);
        self.shared.events.record(&event);
        // Whose it was is not to be said of what nobody looked at in time: to who wants to know that, it was missed.
        if !seen.stamps.is_empty() && self.queue.frames == Frames::Sent {
            self.shared.samples.record(&event);
        }
    }

    /// So many chains went by unseen.
    pub(super) fn miss(&self, chains: u16) {
        self.shared.counters.chains.add(chains.into());
        self.shared.events.lose(chains.into());
    }

    fn event(
        &self,
        ram: &impl GuestPhysical,
        seen: &Seen,
        written: u32,
        at_ns: u64,
        is_collected: impl FnOnce() -> bool,
    ) -> Event {
        let mut event = Event {
            at_ns,
            available_ns: seen.available_ns,
            head: seen.head,
            idx: seen.idx,
            descriptors: seen.descriptors,
            indirect: seen.indirect,
            written,
            ..Event::default()
        };
        seen.buffers.iter().for_each(|buffer| event.push(*buffer));
        event.stamps.iter_mut().zip(&seen.stamps).for_each(|(stamp, (seen, _))| *stamp = *seen);
        let (first, bytes) = match self.queue.frames {
            Frames::Sent => (seen.first.clone(), seen.readable),
            Frames::Received => {
                let first = seen.peek(ram, true, self.header);
                // Once it is collected, others write there.
                (if is_collected() { Vec::new() } else { first }, written.into())
            }
            Frames::Requests => {
                let status = if is_collected() { None } else { seen.last_written(ram) };
                crate::blk::describe(&mut event, &seen.first, (seen.readable, seen.writable), status);
                return event;
            }
            Frames::None => return event,
        };
        event.net_header_len = self.header as u8;
        event.frame_len = bytes.saturating_sub(self.header as u64).try_into().unwrap_or(u32::MAX);
        // A header of an old driver is shorter, by its last field.
        let mut header = [0; NET_HEADER_LEN];
        header.iter_mut().zip(first.iter().take(self.header)).for_each(|(to, from)| *to = *from);
        let header = NetHeader::from_bytes(header);
        event.gso_size = if header.gso_type == GSO_NONE { 0 } else { header.gso_size };
        event.net_header = (first.len() >= self.header).then(|| EventHeader::of(&header));
        let known = first.get(self.header..).unwrap_or_default();
        let len = known.len().min(HEAD_BYTES).min(event.frame_len as usize);
        if let (Some(room), Some(known)) = (event.head_bytes.get_mut(..len), known.get(..len)) {
            room.copy_from_slice(known);
            event.head_len = len as u8;
        }
        event
    }

    /// Does the device use chains in the order in which they came?
    pub(super) fn in_order(&self) -> bool {
        self.features.has(Feature::InOrder)
    }
}

pub(super) fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let bytes = bytes.get(at..at + len).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

pub(super) fn short(ram: &impl GuestPhysical, at: u64) -> Option<u16> {
    let mut bytes = [0; 2];
    ram.copy(at, &mut bytes)?;
    Some(u16::from_le_bytes(bytes))
}
