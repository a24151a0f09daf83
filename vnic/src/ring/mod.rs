//! Virtqueues: layout arithmetic, the device half, the driver half, snapshots.

mod chain;

pub use chain::{Chain, Segment, Segments};
