//! Constants and `#[repr(C)]` layouts of VIRTIO and vhost-user, with size asserts.

pub mod blk;
pub mod device;
pub mod features;
mod names;
pub mod net;
pub mod pci;
pub mod ring;
pub mod vhost_user;

pub use features::{Feature, Features};
