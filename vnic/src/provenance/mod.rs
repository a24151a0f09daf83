//! From what the guest's frames come: how many bytes of TCP's and UDP's payload by flow, and by file, program or socket
//! buffers that the card has read them from.
//!
//! Place: beside the data path, wherever somebody asks: an [`Account`] is fed with [events](crate::observe::tracer::Event)
//! of transmit queues, and with labels for the pages of their buffers, by whoever has both. [`Report`] is what it shows.
//!
//! Invariants: an account has a bound, whatever a guest sends: [`MAX_FLOWS`] and [`MAX_SOURCES`] are listed, the rest is
//! summed up. Bytes of which nobody can say for sure whose they were when they were sent are unsettled, and no guess.
//!
//! Limits: what has been sent again is counted again. Of memory that a program sends itself (MSG_ZEROCOPY) nobody sees how
//! its content came to be there.

mod account;
mod frame;
mod report;
mod source;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use account::{Account, MAX_FLOW_SOURCES, MAX_FLOWS, MAX_SOURCES};
pub use frame::Attribution;
pub use report::{FlowReport, Others, Passed, Report, SourceReport, descriptors_per_mib};
pub(crate) use source::in_words;
pub use source::owner;
pub use source::{Source, SourceKind};
