//! What a link counts, readable from any thread while its port works.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// A fixed set of counters, each known by name.
///
/// Only the port's thread adds; readers see each counter's latest value, but no moment common to all of them.
#[derive(Debug)]
pub struct LinkCounters {
    names: &'static [&'static str],
    values: Box<[AtomicU64]>,
}

impl LinkCounters {
    /// Counters of these names, all 0.
    #[must_use]
    pub fn new(names: &'static [&'static str]) -> Self {
        LinkCounters { names, values: names.iter().map(|_| AtomicU64::new(0)).collect() }
    }

    /// Adds to the counter at `index` of the names.
    pub(super) fn add(&self, index: usize, amount: u64) {
        debug_assert!(index < self.values.len(), "a counter without a name");
        if let Some(value) = self.values.get(index) {
            // The port's thread is the only writer: no read-modify-write needed.
            value.store(value.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
        }
    }

    /// The counter of this name; 0 if there is none.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        let found = self.names.iter().zip(&self.values).find(|(known, _)| **known == name);
        found.map_or(0, |(_, value)| value.load(Ordering::Relaxed))
    }

    /// All of them by name.
    #[must_use]
    pub fn to_map(&self) -> BTreeMap<String, u64> {
        let load = |(name, value): (&&str, &AtomicU64)| ((*name).to_owned(), value.load(Ordering::Relaxed));
        self.names.iter().zip(&self.values).map(load).collect()
    }
}

/// Declares an enum whose variants index a [`LinkCounters`] made by its `fresh`.
macro_rules! counters {
    ($enum:ident { $($variant:ident = $name:literal),* $(,)? }) => {
        #[derive(Debug, Clone, Copy)]
        enum $enum { $($variant),* }

        impl $enum {
            fn fresh() -> std::sync::Arc<$crate::link::LinkCounters> {
                std::sync::Arc::new($crate::link::LinkCounters::new(&[$($name),*]))
            }

            fn add(self, counters: &$crate::link::LinkCounters, amount: u64) {
                counters.add(self as usize, amount);
            }
        }
    };
}
pub(super) use counters;
