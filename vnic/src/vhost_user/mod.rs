//! The vhost-user back-end protocol, over `nix`.
//!
//! | file | |
//! |---|---|
//! | [`message`] | bytes ↔ types, every size checked; no I/O |
//! | [`socket`] | messages with file descriptors, never waiting |
//! | [`session`] | one method per request |
//! | [`channel`] | what the device asks the front-end |
//! | [`listen`] | where a session's socket comes from |
//! | [`device`] | what a session drives, as a trait |
//! | [`SessionError`] | what a front-end can get wrong |

pub mod channel;
pub mod device;
mod error;
pub mod listen;
pub mod message;
pub mod session;
pub mod socket;

pub use channel::BackendChannel;
pub use device::{Device, Log, PackedIndex, QueueSetup, RingAddresses, VringBase};
pub use error::{DeviceError, SessionError};
pub use session::{Handled, Session, State};

#[cfg(test)]
mod tests;
