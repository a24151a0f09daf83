//! Virtqueues: layout arithmetic, the device half, the driver half, snapshots.
//!
//! | file | |
//! |---|---|
//! | [`layout`] | where the parts of a ring lie, their length and alignment |
//! | [`device`] | the device half as a trait, over both formats |
//! | [`driver`] | the driver half as a trait |
//! | [`split`] | split rings: device half, driver half |
//! | [`snapshot`] | what stands in a ring, passively; the ring notation |
//! | [`packed`] | packed rings: device half, driver half |
//! | `engine` | what the device halves of both formats do alike |
//! | `fast_path`, `walk` | following a chain: the usual ones, and any |
//! | [`log`] | what of a ring the device writes, in the log of dirty pages |
//! | `unmapped` | a ring out of reach, behind an IOMMU |
//! | `chain`, `arena` | what is found: chains, and where their segments are |
//! | `builder` | the checks of each descriptor on the way |
//! | `pointers` | the only file with raw pointers into a ring |
//! | [`RingError`] | what a driver can get wrong, with stable names |

#[cfg(test)]
mod ambush;
mod arena;
mod batch;
mod builder;
mod chain;
pub mod device;
pub mod driver;
mod engine;
mod error;
mod fast_path;
#[cfg(test)]
mod fixture;
#[cfg(test)]
mod handover;
mod heads;
pub mod layout;
pub mod log;
pub mod packed;
mod pointers;
mod slots;
pub mod snapshot;
pub mod split;
#[cfg(test)]
mod tests;
mod unmapped;
mod walk;

pub use arena::{MAX_SEGMENTS, Oddities, Segments};
pub use chain::{Chain, ChainView, Segment, SingleBufferBatch};
pub use device::{Device, DeviceRing, Disposition, DrainEnd, Taken, Visitor};
pub use driver::{Buffer, DriverRing, Placement, Used};
pub use error::RingError;
pub use layout::{RingLayout, check_packed_size, check_split_size};
pub use log::{LogAddress, RingLog};
pub use packed::{PackedDevice, PackedDriver};
#[cfg(any(test, fuzzing))]
pub use pointers::watched::{Touch, interrupted};
pub use snapshot::{BufferSnapshot, ChainSnapshot, RingSnapshot};
pub use split::{SplitDevice, SplitDriver};
pub use unmapped::Unmapped;
pub use walk::{MAX_INDIRECT_ENTRIES, MIN_CHAIN_LIMIT, check_table_len};
