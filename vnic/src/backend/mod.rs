//! Joins session, queues, link and observers; owns the threads.
//!
//! | file | |
//! |---|---|
//! | [`options`] | what `serve` is told |
//! | [`shared`] | what the threads share |
//! | [`queue`] | one queue at work |
//! | [`flights`] | what the link has kept of it |
//! | `transmit`, `receive`, `turn` | one burst of a queue, or of a pair |
//! | [`worker`], [`workers`] | the data path's threads |
//! | [`device`] | the device as the session drives it |
//! | [`iommu`] | the IOTLB and whom to ask |
//! | `eyes` | what looks on: tracer, watched flow, capture |
//! | [`serve()`] | the session thread |
//! | [`control`] | the control socket, with `status`, `trace`, `metrics` |

pub mod control;
pub mod device;
mod eyes;
pub mod flights;
pub mod iommu;
mod metrics;
pub mod options;
mod patience;
pub mod queue;
mod receive;
pub mod serve;
pub mod shared;
mod status;
#[cfg(test)]
mod tests;
mod trace;
mod transmit;
mod turn;
pub mod worker;
pub mod workers;

pub use options::{Endpoint, Options, PollMode};
pub use serve::{ServeError, serve};
