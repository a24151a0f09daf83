//! Joins session, queues, link and observers; owns the threads.
//!
//! | file | |
//! |---|---|
//! | [`options`] | what `serve` is told |
//! | [`shared`] | what the threads share |
//! | [`queue`] | one queue at work |
//! | [`in_flight`] | its chains that the link has kept |
//! | `transmit`, `receive`, `hairpin` | one burst of a queue, or of a pair |
//! | [`worker`], [`workers`] | the data path's threads |
//! | [`device`] | the device as the session drives it |
//! | [`iommu`] | the IOTLB and whom to ask |
//! | [`labels`] | whose the guest's pages are |
//! | `observers` | tracer, capture, who else looks |
//! | [`serve()`] | the session thread |
//! | [`control`] | the control socket, with `status`, `trace`, `metrics` |

pub mod control;
pub mod device;
mod hairpin;
pub mod in_flight;
pub mod iommu;
pub mod labels;
mod metrics;
mod observers;
pub mod options;
mod poller;
pub mod queue;
mod receive;
pub mod serve;
pub mod shared;
mod status;
#[cfg(test)]
mod tests;
mod trace;
mod transmit;
pub mod worker;
pub mod workers;

pub use control::Extension;
pub use options::{Endpoint, Options, PollMode};
pub use serve::{ServeError, serve};
