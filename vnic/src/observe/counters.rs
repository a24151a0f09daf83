//! Counters of a queue: written by the worker that owns it, read by anyone at any time.
//!
//! Place: one [`QueueCounters`] per queue, shared between its worker and the control socket. Invariant: a single
//! writer, so an increment is a load and a store, never a locked instruction.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// A counter with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the owning worker may call it.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }

    /// The count so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// The counters of one queue, by the names that `vnic status` and the metrics use.
        #[derive(Debug, Default)]
        pub struct QueueCounters {
            $($(#[doc = $doc])+ pub $name: Counter,)*
            named: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
        }

        impl QueueCounters {
            /// The names of all counters that every queue has.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name),)*];

            /// What the counter of this name counts; of those that every queue has.
            #[must_use]
            pub fn help(name: &str) -> Option<&'static str> {
                $(if name == stringify!($name) { return Some(concat!($($doc),+).trim()) })*
                None
            }

            /// All counters by name: the fixed ones, and `error_NAME` / `drop_NAME` for each that happened.
            #[must_use]
            pub fn snapshot(&self) -> BTreeMap<String, u64> {
                let mut all = BTreeMap::new();
                $(all.insert(stringify!($name).to_owned(), self.$name.get());)*
                for ((kind, name), count) in self.named.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                    all.insert(format!("{kind}_{name}"), *count);
                }
                all
            }
        }
    };
}

counters! {
    /// Chains taken from the ring.
    chains,
    /// Their descriptors.
    descriptors,
    /// Bytes of the frames, without virtio-net header.
    bytes,
    /// Times at least one chain was returned.
    bursts,
    /// Available-buffer notifications that came from the driver.
    kicks,
    /// Used-buffer notifications sent to the driver.
    calls,
    /// Bursts after which the driver wanted no notification.
    calls_suppressed,
    /// Bytes read out of guest memory: the DMA copy.
    dma_read_bytes,
    /// Bytes copied once more inside the device.
    device_copied_bytes,
    /// Times the link had no room and the ring was pushed back.
    link_full,
    /// Times there was a frame for the driver and no buffer for it.
    no_buffers,
    /// Frames that were lost, for all reasons; `drop_NAME` says which.
    drops,
    /// Chains longer than the ring, by an indirect table: against the text, and taken.
    long_chains,
    /// Descriptors with flags that have no meaning: taken as if these were not set.
    unknown_flags,
    /// Of those, what a back-end before this one may have done already: possibly sent twice.
    in_doubt,
    /// Chains that a back-end before this one left without an answer, taken by this one: those of its record, or all that waited.
    resumed,
    /// Times the ring stopped because of what the driver wrote; `error_NAME` says which.
    errors,
}

impl QueueCounters {
    /// A ring stopped, for this reason.
    pub fn count_error(&self, name: &'static str) {
        self.errors.add(1);
        self.count_named("error", name, 1);
    }

    /// A frame was lost, for this reason.
    pub fn count_drop(&self, name: &'static str) {
        self.count_drops(name, 1);
    }

    /// So many frames were lost, for this reason.
    pub fn count_drops(&self, name: &'static str, count: u64) {
        self.drops.add(count);
        self.count_named("drop", name, count);
    }

    /// Off the fast path: it takes a lock, which readers hold only while they copy the map.
    fn count_named(&self, kind: &'static str, name: &'static str, count: u64) {
        *self.named.lock().unwrap_or_else(PoisonError::into_inner).entry((kind, name)).or_default() += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_has_every_fixed_counter_and_the_named_ones_that_happened() {
        let counters = QueueCounters::default();
        counters.chains.add(3);
        counters.count_error("loop");
        counters.count_error("loop");
        let snapshot = counters.snapshot();
        assert_eq!(snapshot["chains"], 3);
        assert_eq!((snapshot["error_loop"], snapshot["errors"]), (2, 2));
        assert_eq!(snapshot.len(), QueueCounters::NAMES.len() + 1);
    }
}
