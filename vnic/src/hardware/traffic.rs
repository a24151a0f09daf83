//! What crosses the bus, in TLPs and bytes.

use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What crosses the bus in one direction. Counts stop at the largest number there is: a record may say anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Way {
    /// Transaction layer packets.
    pub tlps: u64,
    /// Their bytes, headers and framing included.
    pub bytes: u64,
}

/// What crosses the bus in both directions, which do not disturb each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Traffic {
    /// Towards the host: the device's requests, what it writes, interrupts.
    pub up: Way,
    /// Towards the device: what it reads, and the host's doorbells.
    pub down: Way,
}

impl Way {
    /// So many TLPs with `data` bytes in all of them together, each with `overhead` bytes beside.
    pub(super) fn new(tlps: u64, overhead: u64, data: u64) -> Self {
        Way { tlps, bytes: tlps.saturating_mul(overhead).saturating_add(data) }
    }
}

impl Traffic {
    /// The same with the directions exchanged: what the host does to the device.
    #[must_use]
    pub const fn mirrored(self) -> Self {
        Traffic { up: self.down, down: self.up }
    }
}

impl Add for Way {
    type Output = Way;

    fn add(self, other: Way) -> Way {
        Way { tlps: self.tlps.saturating_add(other.tlps), bytes: self.bytes.saturating_add(other.bytes) }
    }
}

impl Mul<u64> for Way {
    type Output = Way;

    fn mul(self, times: u64) -> Way {
        Way { tlps: self.tlps.saturating_mul(times), bytes: self.bytes.saturating_mul(times) }
    }
}

impl Add for Traffic {
    type Output = Traffic;

    fn add(self, other: Traffic) -> Traffic {
        Traffic { up: self.up + other.up, down: self.down + other.down }
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Traffic) {
        *self = *self + other;
    }
}

impl Mul<u64> for Traffic {
    type Output = Traffic;

    fn mul(self, times: u64) -> Traffic {
        Traffic { up: self.up * times, down: self.down * times }
    }
}

impl Sum for Traffic {
    fn sum<I: Iterator<Item = Traffic>>(all: I) -> Traffic {
        all.fold(Traffic::default(), Add::add)
    }
}
