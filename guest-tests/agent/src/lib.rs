//! What runs inside the guest.
//!
//! | module | one sentence |
//! |---|---|
//! | [`init`] | PID 1 |
//! | [`requests`] | the agent: does what the host asks over the virtio-serial port |
//! | [`methods`] | the ways to send a file over TCP or UDP, one file each, readable as the textbook's example |
//! | [`transfer`], [`conversation`] | one whole transfer: file, connection, pages, accounting; by and by with the host, its [`stage`] |
//! | [`connection`] | what a transfer goes over, and the receiver's receipt |
//! | [`accounting`] | what the kernel says of a transfer: system calls, page faults, switches, bytes copied |
//! | [`userspace`] | a transfer without the kernel: the NIC in the hands of a program |
//! | [`hazards`] | what can go wrong with a file that is sent without copying it, one file each |
//! | [`nic`], [`flows`] | the NIC's switches and queues; many connections at once |
//! | [`owned`] | pages whose owner is known, for who tells it from outside |
//! | [`sweep`] | what the kernel says that every page is used for |
//! | [`filesystems`], [`file`](mod@file), [`pages`], [`disk`], [`modules`], [`network`], [`buffer`], [`tls_records`], [`port`], [`size`] | what these stand on |

pub mod accounting;
pub mod buffer;
pub mod connection;
pub mod conversation;
pub mod disk;
pub mod file;
mod filesystems;
pub mod flows;
pub mod hazards;
pub mod init;
pub mod methods;
pub mod modules;
pub mod network;
pub mod nic;
pub mod owned;
pub mod pages;
pub mod port;
mod rehearsal;
pub mod requests;
pub mod size;
pub mod stage;
pub mod sweep;
pub mod tls_records;
pub mod transfer;
pub mod userspace;
mod waiting;
