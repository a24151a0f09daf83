//! A virtual network card you can see into, as a library: both ends of a virtqueue, an engine for vhost-user devices of any kind,
//! and the network card that is its first.
//!
//! The `vnic` command is a thin layer over it. A guest and its front-end (QEMU) are trusted nowhere here: what they wrote is
//! read once and checked, and what is wrong is an error with a name.
//!
//! # Where to begin
//!
//! - **What stands in a ring?** [`ring::snapshot`] looks at a live one without touching it, and has the notation that tests and
//!   outputs share:
//!
//!   ```
//!   use vnic::ring::RingSnapshot;
//!
//!   let ring: RingSnapshot = "transmitq0 split size=256 avail.idx=7 used.idx=6 in-flight=1
//!       [6] head 12: R 0x1f000+78 -> R 0x20000+4096 (page 17)".parse()?;
//!   // The first buffer holds headers, the second is a page of a file: nobody copied it.
//!   assert_eq!(ring.chains[0].buffers[1].file_page, Some(17));
//!   # Ok::<(), vnic::ring::snapshot::NotationError>(())
//!   ```
//! - **How does a chain get from one side to the other?** [`ring`] has the driver's half and the device's, split and packed, tested
//!   against each other.
//! - **How is a device written?** [`backend`] says what it has to bring: a [`DeviceModel`](backend::DeviceModel), what it is, and a
//!   [`DataPath`](backend::DataPath), what it does with its chains. [`rng`] is the smallest one, whole in a page or two.
//! - **How does a frame leave the guest?** [`nic`] takes its chain from the transmitq, [`net`] reads its header, a [`link`] has it
//!   next; [`vhost_user`] has said where the rings are.
//! - **How does one look on?** [`observe`] has counters, tracer and the control socket's protocol; [`introspect`] says whose
//!   memory a page is.
//!
//! # The modules
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
//! | [`sandbox`] | what the process gives up once everything is open |
//! | [`link`] | where frames go: peer, tap, sink, loopback, capture |
//! | [`vhost_user`] | the vhost-user protocol: message, socket, session |
//! | [`observe`] | counters, tracer, observers of frames, the control socket's protocol |
//! | [`introspect`] | whose memory a page is: a look into the structures of the guest's kernel |
//! | [`hardware`] | what chains would cost a card on a real bus, by a published model |
//! | [`provenance`] | from what the guest's frames come: bytes by flow and by file |
//! | [`life`] | what has happened to a page: by which chains devices read and wrote it, when, and whose it was |
//! | [`backend`] | the engine for devices of any kind: joins session and queues, owns the workers |
//! | [`nic`] | the network card: the engine's first device |
//! | [`rng`] | an entropy device: its smallest |
//! | [`blk`] | a disk: a file of the host's, straight into the guest's pages |
//! | [`serve`] | the process: options, threads, control socket |
//! | [`attach`] | a VM that runs already, looked into through its VMM's process |
//! | [`proxy`] | any front-end and any back-end, looked at from between |
//!
//! [`net`] and [`vhost_user`] do not know each other; [`nic`] joins them through [`backend`], which knows no network.
//!
//! # What always holds
//!
//! - Malformed is not empty. A bad chain stops its queue with a [`RingError`](ring::RingError) that names head and value; other queues
//!   live on, and a driver's reset recovers the queue.
//! - Nothing that a guest or a front-end writes reaches a panic, and nothing is read twice around a check.
//! - Looking is passive: it writes no guest memory, and takes no lock that the data path waits for.
//! - Per packet the data path allocates nothing, locks nothing, logs nothing and makes no system call.
//!
//! # Features
//!
//! `device` is the device's end, and on by default. Without it there is what a driver needs: `spec`, `memory` and `ring`, and
//! what a record's reader needs: `hardware`.

#[cfg(target_endian = "big")]
compile_error!("rings are little-endian and so is every host this is written for");

#[cfg(feature = "device")]
pub mod attach;
#[cfg(feature = "device")]
pub mod backend;
#[cfg(feature = "device")]
pub mod blk;
pub mod datagram;
pub mod hardware;
#[cfg(all(test, feature = "device"))]
mod holes;
#[cfg(feature = "device")]
pub mod introspect;
#[cfg(feature = "device")]
pub mod life;
#[cfg(feature = "device")]
pub mod link;
pub mod memory;
#[cfg(feature = "device")]
pub mod net;
#[cfg(feature = "device")]
pub mod nic;
#[cfg(feature = "device")]
pub mod observe;
#[cfg(feature = "device")]
pub mod provenance;
#[cfg(feature = "device")]
pub mod proxy;
pub mod ring;
#[cfg(feature = "device")]
pub mod rng;
#[cfg(feature = "device")]
pub mod sandbox;
#[cfg(feature = "device")]
pub mod serve;
pub mod spec;
#[cfg(feature = "device")]
pub mod vhost_user;
