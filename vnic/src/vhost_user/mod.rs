//! The vhost-user protocol: message (bytes ↔ types, no I/O), socket (messages with fds), session (one method per
//! request).

pub mod device;

pub use device::{Device, DeviceError, PackedIndex, QueueSetup, RingAddresses, VringBase};
