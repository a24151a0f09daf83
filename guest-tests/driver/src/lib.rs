//! A virtio network card driven by a program: no kernel between it and the device.
//!
//! This is meant to be read from top to bottom, with VIRTIO 1.3 at hand:
//!
//! | file | |
//! |---|---|
//! | [`pci`] | where on PCI a virtio device keeps its registers |
//! | [`virtio`] | bringing up a virtio device: the specification's eight steps |
//! | [`queue`] | a virtqueue in memory that the device can reach |
//! | [`nic`] | the network card: frames out, frames in |
//! | [`udp`] | as much of IPv4 as it takes to send datagrams: ARP, and an answer to pings |
//!
//! `examples/frame.rs` sends a frame and receives one, in a hundred lines.
//!
//! Place: over [`vfio`], and over the driver half of [`vnic::ring`], which the tests of the device run too.
//!
//! Invariants: the device is not trusted. What it says is checked where it is read: a queue that is too large, a used
//! element for a chain that it does not have, more bytes written than there was room for, each is an error. What it can
//! reach is in the IOMMU's hands, not in its own.
//!
//! Limits: one pair of queues, no offloads, no control queue: a frame is what goes into a packet of Ethernet.

pub mod mapping;
pub mod nic;
pub mod pci;
pub mod queue;
pub mod udp;
pub mod vfio;
pub mod virtio;

mod error;

pub use error::DriverError;
pub use nic::{Completion, Nic, Options, RingFormat};
