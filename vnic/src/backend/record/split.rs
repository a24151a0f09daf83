//! The record of a split ring: `QueueRegionSplit`.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU16, Ordering, compiler_fence};

use super::{Part, RecordError, Resumed, VERSION};
use crate::ring::{Chain, Device, Taken};

/// Bytes of the head, and of each descriptor's state.
pub(super) const LAYOUT: (usize, usize) = (16, 16);

const VERSION_AT: usize = 8;
const COUNT_AT: usize = 10;
const LAST_BATCH_AT: usize = 12;
const USED_IDX_AT: usize = 14;

const NEXT_IN_ENTRY: usize = 6;
const COUNTER_IN_ENTRY: usize = 8;

/// See the [module](self).
#[derive(Debug)]
pub struct SplitRecord {
    part: Part,
    size: u16,
    counter: u64,
    /// Heads that were used and are not published yet.
    batch: Vec<u16>,
}

impl SplitRecord {
    pub(super) fn new(part: Part, size: u16) -> Self {
        SplitRecord { part, size, counter: 0, batch: Vec::with_capacity(usize::from(size)) }
    }

    fn half(&self, at: usize) -> Option<&AtomicU16> {
        self.part.area.half(self.part.start + at)
    }

    /// Where the state of a descriptor is.
    fn entry(&self, head: u16) -> usize {
        self.part.start + LAYOUT.0 + LAYOUT.1 * usize::from(head)
    }

    fn load(&self, at: usize) -> u16 {
        self.half(at).map_or(0, |half| half.load(Relaxed))
    }

    fn store(&self, at: usize, value: u16) {
        if let Some(half) = self.half(at) {
            half.store(value, Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
    }

    fn set_in_flight(&self, head: u16, on: bool) {
        if let Some(byte) = self.part.area.byte(self.entry(head)) {
            byte.store(u8::from(on), Relaxed);
        }
        compiler_fence(Ordering::SeqCst);
    }

    pub(super) fn recover(&mut self, ring: &Device) -> Result<Resumed, RecordError> {
        self.batch.clear();
        let used_idx = ring.used_position();
        match self.load(VERSION_AT) {
            0 => {
                self.store(COUNT_AT, self.part.room);
                self.store(USED_IDX_AT, used_idx);
                self.store(VERSION_AT, VERSION);
                return Ok(Resumed::default());
            }
            VERSION => {}
            version => return Err(RecordError::Version(version)),
        }
        // What was published last, and perhaps not crossed off.
        let mut head = self.load(LAST_BATCH_AT);
        let burst = used_idx.wrapping_sub(self.load(USED_IDX_AT));
        if burst > self.size {
            return Err(RecordError::Broken { what: "used_idx", value: self.load(USED_IDX_AT).into() });
        }
        for _ in 0..burst {
            if head >= self.size {
                return Err(RecordError::Broken { what: "a head of the last batch", value: head.into() });
            }
            self.set_in_flight(head, false);
            head = self.part.area.half(self.entry(head) + NEXT_IN_ENTRY).map_or(0, |next| next.load(Relaxed));
        }
        self.store(USED_IDX_AT, used_idx);
        let mut taken: Vec<(u64, u16)> = Vec::new();
        for head in 0..self.size {
            let entry = self.entry(head);
            if self.part.area.byte(entry).is_some_and(|byte| byte.load(Relaxed) == 1) {
                let counter = self.part.area.long(entry + COUNTER_IN_ENTRY).map_or(0, |counter| counter.load(Relaxed));
                taken.push((counter, head));
            }
        }
        taken.sort_unstable();
        self.counter = taken.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        let taken = taken.into_iter().map(|(_, head)| Taken { head, descriptors: Vec::new() }).collect();
        Ok(Resumed { used: None, taken })
    }

    pub(super) fn take(&mut self, chain: &Chain) -> Result<(), RecordError> {
        let Some(counter) = self.part.area.long(self.entry(chain.head) + COUNTER_IN_ENTRY) else {
            return Err(RecordError::Broken { what: "head", value: chain.head.into() });
        };
        counter.store(self.counter, Relaxed);
        compiler_fence(Ordering::SeqCst);
        self.counter = self.counter.wrapping_add(1);
        self.set_in_flight(chain.head, true);
        Ok(())
    }

    pub(super) fn untake(&mut self, chain: &Chain) {
        self.set_in_flight(chain.head, false);
    }

    pub(super) fn use_up(&mut self, chain: &Chain) {
        self.batch.push(chain.head);
    }

    pub(super) fn publishing(&mut self) {
        for head in &self.batch {
            let next = self.part.area.half(self.entry(*head) + NEXT_IN_ENTRY);
            if let Some(next) = next {
                next.store(self.load(LAST_BATCH_AT), Relaxed);
            }
            compiler_fence(Ordering::SeqCst);
            self.store(LAST_BATCH_AT, *head);
        }
    }

    pub(super) fn published(&mut self) {
        compiler_fence(Ordering::SeqCst);
        for head in &self.batch {
            self.set_in_flight(*head, false);
        }
        // No more than the ring has.
        self.store(USED_IDX_AT, self.load(USED_IDX_AT).wrapping_add(self.batch.len() as u16));
        self.batch.clear();
    }
}
