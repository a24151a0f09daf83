//! The record of what is in flight: kept where this process's death does not reach it. "vhost-user protocol, Inflight I/O tracking".
//!
//! Place: one per queue, in an area that the front-end keeps ([`Request::GetInflightFd`](crate::vhost_user::message::Request)) and hands to
//! the next back-end. A queue tells it of each chain before it is served, and of each burst before and after it is published.
//!
//! Operation, after a back-end died:
//! 1. What it had published and not yet crossed off is found by the ring itself, and crossed off.
//! 2. What is left was taken and never answered: those chains are taken again, in the order in which they were taken first.
//! 3. The ring goes on behind them.
//!
//! Invariants: a chain is recorded before anything is done for it, and crossed off only after the driver can see its answer. Stores
//! are in program order: a process that is killed leaves what it stored so far. Nothing in the area is believed: every index is
//! checked, and a record that contradicts itself stops its queue.

mod packed;
mod split;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::memory::{MemoryError, SharedArea};
use crate::ring::{Chain, Device, Taken};
use crate::spec::Features;
use crate::spec::{Feature, vhost_user::Inflight};

use packed::PackedRecord;
use split::SplitRecord;

/// Each queue's part begins at a multiple of this, as other back-ends have it.
const ALIGNMENT: usize = 64;

/// The layout that this is.
const VERSION: u16 = 1;

/// Why a record cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The area is shorter than its queues.
    #[error("the area for what is in flight has {have} bytes, and its queues need {needed}")]
    Short {
        /// Its length.
        have: usize,
        /// What is needed.
        needed: usize,
    },
    /// The ring is longer than its record.
    #[error("the record of what is in flight has room for {room} descriptors, and the ring has {size}")]
    Small {
        /// Descriptors in the record.
        room: u16,
        /// In the ring.
        size: u16,
    },
    /// A layout that nobody has defined.
    #[error("the record of what is in flight is of version {0}, only 1 is known")]
    Version(u16),
    /// An index beyond the queue, or a list that does not end.
    #[error("the record of what is in flight contradicts itself: {what} {value}")]
    Broken {
        /// Which field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
}

impl RecordError {
    /// Its name among the counters.
    pub const NAME: &'static str = "in_flight_record";
}

/// The areas of all queues.
#[derive(Debug)]
pub struct Records {
    area: Arc<SharedArea>,
    queues: u16,
    size: u16,
}

impl Records {
    /// How long an area for so many queues of this size is.
    #[must_use]
    pub fn len_for(queues: u16, size: u16, features: Features) -> u64 {
        (usize::from(queues) * part_len(size, features)) as u64
    }

    /// The area that a front-end hands over.
    ///
    /// # Errors
    /// Its file is shorter than it says, or cannot be mapped.
    pub fn open(file: std::os::fd::OwnedFd, told: &Inflight) -> Result<Self, MemoryError> {
        let area = SharedArea::open(file, told.mmap_offset, told.mmap_size)?;
        Ok(Records { area: Arc::new(area), queues: told.num_queues, size: told.queue_size })
    }

    /// The record of a queue; `None`: it has none.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn of(&self, index: u16, size: u16, features: Features) -> Result<Option<Record>, RecordError> {
        // What comes back in order is in the ring itself.
        if index >= self.queues || features.has(Feature::InOrder) {
            return Ok(None);
        }
        if size > self.size {
            return Err(RecordError::Small { room: self.size, size });
        }
        let len = part_len(self.size, features);
        let needed = len * (usize::from(index) + 1);
        if needed > self.area.len() {
            return Err(RecordError::Short { have: self.area.len(), needed });
        }
        let part = Part { area: Arc::clone(&self.area), start: needed - len, room: self.size };
        Ok(Some(match features.has(Feature::RingPacked) {
            true => Record::Packed(Box::new(PackedRecord::new(part, size))),
            false => Record::Split(SplitRecord::new(part, size)),
        }))
    }
}

fn part_len(size: u16, features: Features) -> usize {
    let (head, entry) = if features.has(Feature::RingPacked) { packed::LAYOUT } else { split::LAYOUT };
    (head + entry * usize::from(size)).next_multiple_of(ALIGNMENT)
}

/// A queue's part of the area.
#[derive(Debug)]
struct Part {
    area: Arc<SharedArea>,
    start: usize,
    /// Entries.
    room: u16,
}

/// Where a ring goes on, and what is to be taken again before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resumed {
    /// Where the next used descriptor goes, as the ring has it; `None`: where the ring says by itself.
    pub used: Option<u16>,
    /// In the order in which they were taken.
    pub taken: Vec<Taken>,
}

/// The record of one queue, in its ring's format.
#[derive(Debug)]
pub enum Record {
    /// Of a split ring.
    Split(SplitRecord),
    /// Of a packed one.
    Packed(Box<PackedRecord>),
}

impl Record {
    /// What the back-end before this one left; nothing in a new record.
    ///
    /// # Errors
    /// It contradicts itself.
    pub fn recover(&mut self, ring: &Device) -> Result<Resumed, RecordError> {
        match self {
            Record::Split(record) => record.recover(ring),
            Record::Packed(record) => record.recover(ring),
        }
    }

    /// A chain was taken from the ring, and nothing done for it yet.
    ///
    /// # Errors
    /// There is no entry for it.
    pub fn take(&mut self, chain: &Chain, ring: &Device) -> Result<(), RecordError> {
        match self {
            Record::Split(record) => record.take(chain),
            Record::Packed(record) => record.take(chain, ring),
        }
    }

    /// The chain that was taken last stays in the ring.
    pub fn untake(&mut self, chain: &Chain) {
        match self {
            Record::Split(record) => record.untake(chain),
            Record::Packed(record) => record.untake(chain),
        }
    }

    /// A chain will be part of the next burst that is published.
    pub fn use_up(&mut self, chain: &Chain) {
        match self {
            Record::Split(record) => record.use_up(chain),
            Record::Packed(record) => record.use_up(chain),
        }
    }

    /// A burst is about to be published.
    pub fn publishing(&mut self) {
        match self {
            Record::Split(record) => record.publishing(),
            Record::Packed(record) => record.publishing(),
        }
    }

    /// It is.
    pub fn published(&mut self) {
        match self {
            Record::Split(record) => record.published(),
            Record::Packed(record) => record.published(),
        }
    }
}
