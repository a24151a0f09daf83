//! How chains are taken from a queue, and put back: with a record of what is in flight, or without.

use super::Queue;
use crate::backend::record::{Record, RecordError, Resumed};
use crate::ring::{Chain, DeviceRing, Disposition, DrainEnd, RingError, Taken, Visitor};

impl Queue {
    /// Takes the next chain: those first that a back-end before this one had taken and never used. What is popped here is in the
    /// record, so that it is not lost with this process.
    ///
    /// # Errors
    /// As [`DeviceRing::pop`].
    pub fn pop(&mut self) -> Result<Option<Chain>, RingError> {
        if let Some(taken) = self.resumed.last() {
            let chain = self.ring.retake(&mut self.segments, taken)?;
            self.retaken.extend(self.resumed.pop());
            return Ok(Some(chain));
        }
        let chain = self.ring.pop(&mut self.segments)?;
        if let (Some(record), Some(chain)) = (&mut self.record, &chain)
            && let Err(error) = record.take(chain, &self.ring)
        {
            self.stop(RecordError::NAME, &error);
            return Ok(None);
        }
        Ok(chain)
    }

    /// So many chains were left without an answer by the back-end before this one.
    fn count_resumed(&self, chains: u64) {
        self.shared.counters.resumed.add(chains);
        self.shared.counters.in_doubt.add(chains.min(self.repeats.into()));
    }

    /// As [`DeviceRing::drain`]; with a record, chain by chain, each recorded before it is looked at.
    ///
    /// # Errors
    /// As [`DeviceRing::drain`].
    #[inline(always)]
    pub fn drain<V: Visitor>(&mut self, limit: u16, visitor: &mut V) -> Result<DrainEnd, RingError> {
        match self.record {
            None => self.ring.drain(&mut self.segments, limit, visitor),
            Some(_) => self.drain_recorded(limit, visitor),
        }
    }

    #[inline(never)]
    fn drain_recorded<V: Visitor>(&mut self, limit: u16, visitor: &mut V) -> Result<DrainEnd, RingError> {
        for _ in 0..limit {
            self.segments.clear();
            let Some(chain) = self.pop()? else { return Ok(DrainEnd::Empty) };
            match visitor.visit(self.segments.view(chain)) {
                Disposition::Return => self.complete(&chain, 0),
                Disposition::Retain => {}
                Disposition::Leave => {
                    self.try_unpop(&[chain])?;
                    return Ok(DrainEnd::Left);
                }
            }
        }
        Ok(DrainEnd::Limit)
    }

    /// Goes on where the back-end before this one was when it died, as its record says. The ring has just been brought within reach.
    pub fn recover(&mut self) {
        let takes_over = std::mem::take(&mut self.takes_over);
        let Some(record) = &mut self.record else {
            // Nobody knows which of them the one before had begun with.
            // (A receive buffer that waits is nobody's work.)
            if takes_over && self.repeats > 0 {
                let left = self.ring.left_behind();
                self.count_resumed(left.into());
            }
            return;
        };
        match record.recover(&self.ring) {
            Ok(Resumed { used, taken }) => match self.ring.resume(used, &taken) {
                Ok(()) => {
                    self.count_resumed(taken.len() as u64);
                    self.resumed = taken;
                    self.resumed.reverse();
                }
                Err(error) => self.stop_ring(&error),
            },
            Err(error) => self.stop(RecordError::NAME, &error),
        }
    }

    /// Puts chains back that were popped last, in the order they were popped.
    pub fn unpop(&mut self, chains: &[Chain]) {
        if let Err(error) = self.try_unpop(chains) {
            self.stop_ring(&error);
        }
    }

    /// The same; the ring is left to the caller.
    ///
    /// # Errors
    /// As [`DeviceRing::unpop`].
    pub fn try_unpop(&mut self, chains: &[Chain]) -> Result<(), RingError> {
        let Some(record) = &mut self.record else { return self.ring.unpop(chains) };
        for chain in chains.iter().rev() {
            if let Some(taken) = self.retaken.pop_if(|taken| taken.head == chain.head) {
                self.ring.unretake(taken.head)?;
                self.resumed.push(taken);
            } else {
                self.ring.unpop(std::slice::from_ref(chain))?;
                record.untake(chain);
            }
        }
        Ok(())
    }
}

/// A chain will be part of the next burst that is published: of the record, too.
#[inline(always)]
pub(crate) fn cross_off(record: &mut Option<Record>, retaken: &mut Vec<Taken>, chain: &Chain) {
    if let Some(record) = record {
        record.use_up(chain);
        retaken.retain(|taken| taken.head != chain.head);
    }
}
