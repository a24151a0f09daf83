//! The virtual NIC as a library: what both ends of a ring must agree on, and the device end.
//!
//! Each module may use only what stands above it in this list:
//!
//! | module | one sentence |
//! |---|---|
//! | [`spec`] | constants and layouts of VIRTIO and vhost-user |
//! | [`memory`] | guest regions, checked address translation; the only place with raw guest pointers besides the ring's pointer layer |
//! | [`ring`] | virtqueues: device half, driver half, snapshots |
//! | [`datagram`] | a file in datagrams, as the peer's UDP service takes it |
//! | [`net`] | virtio-net: features, the packet header, transmit and receive queues |
//! | [`link`] | where frames go: peer, tap, sink, loopback, capture |
//! | [`vhost_user`] | the vhost-user protocol: message, socket, session |
//! | [`observe`] | counters, tracer, observers of frames, the control socket's protocol |
//! | [`introspect`] | whose memory a page is: a look into the structures of the guest's kernel |
//! | [`backend`] | the engine for devices of any kind: joins session and queues, owns the workers |
//! | [`nic`] | the network card: the engine's first device |
//! | [`rng`] | an entropy device: its smallest |
//! | [`serve`] | the process: options, threads, control socket |
//!
//! [`net`] and [`vhost_user`] do not know each other; [`nic`] joins them through [`backend`], which knows no network.

#[cfg(target_endian = "big")]
compile_error!("rings are little-endian and so is every host this is written for");

#[cfg(feature = "device")]
pub mod backend;
pub mod datagram;
#[cfg(all(test, feature = "device"))]
mod holes;
#[cfg(feature = "device")]
pub mod introspect;
#[cfg(feature = "device")]
pub mod link;
pub mod memory;
#[cfg(feature = "device")]
pub mod net;
#[cfg(feature = "device")]
pub mod nic;
#[cfg(feature = "device")]
pub mod observe;
pub mod ring;
#[cfg(feature = "device")]
pub mod rng;
#[cfg(feature = "device")]
pub mod serve;
pub mod spec;
#[cfg(feature = "device")]
pub mod vhost_user;
