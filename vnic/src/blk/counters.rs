//! What a disk counts beside its queues: requests that were carried out, by kind, and bytes by direction.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Disk;
use super::request::Request;
use crate::backend::NamedCounters;

/// Written by all workers of a disk.
#[derive(Debug, Default)]
pub(super) struct DiskCounters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    flushes: AtomicU64,
    discards: AtomicU64,
    write_zeroes: AtomicU64,
    ids: AtomicU64,
}

impl DiskCounters {
    /// This was done.
    pub(super) fn count(&self, request: Request) {
        let add = |counter: &AtomicU64, count| {
            counter.fetch_add(count, Ordering::Relaxed);
        };
        match request {
            Request::Read { len, .. } => {
                add(&self.reads, 1);
                add(&self.read_bytes, len);
            }
            Request::Write { len, .. } => {
                add(&self.writes, 1);
                add(&self.written_bytes, len);
            }
            Request::Flush => add(&self.flushes, 1),
            Request::Discard { .. } => add(&self.discards, 1),
            Request::WriteZeroes { .. } => add(&self.write_zeroes, 1),
            Request::GetId => add(&self.ids, 1),
        }
    }
}

impl NamedCounters for Disk {
    fn read(&self) -> BTreeMap<String, u64> {
        let DiskCounters { reads, read_bytes, writes, written_bytes, flushes, discards, write_zeroes, ids } =
            &self.counters;
        [
            ("reads", reads),
            ("read_bytes", read_bytes),
            ("writes", writes),
            ("written_bytes", written_bytes),
            ("flushes", flushes),
            ("discards", discards),
            ("write_zeroes", write_zeroes),
            ("ids", ids),
        ]
        .map(|(name, count)| (name.to_owned(), count.load(Ordering::Relaxed)))
        .into()
    }
}
