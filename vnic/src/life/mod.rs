//! What has happened to a page of the guest: which device read or wrote it, by which chain, when, and whose it was then.
//!
//! Place: beside the data path: a [`Log`] is fed with [events](crate::observe::tracer::Event) and labels, as an
//! [`Account`](crate::provenance::Account) is, by whoever follows the devices' queues.
//!
//! Operation: a chain gives a [`Step`] for each page of its buffers, in the order of the bytes. Steps of one page are linked,
//! so that its life is told without a search; a file's life is that of all pages that were the file's when a device had them.
//!
//! Invariants: a log has a bound ([`MAX_STEPS`]), whatever a guest does: the oldest steps make room, and are counted. What was
//! missed on the way here is counted too ([`Log::miss`]): a life with gaps says so.

mod log;
mod step;
#[cfg(test)]
pub(crate) mod tests;

pub use log::{Filled, Log, MAX_STEPS};
pub use step::{Life, Owner, Segment, Step, Use};
