//! The engine that a virtual card does without: what chains of descriptors would cost a card of hardware.
//!
//! A virtio NIC gathers for nothing and at once. A card on a bus reads descriptors before it can read what they point at, asks
//! for memory in requests of limited size, gets it in completions, says what it is done with, and interrupts. Here is what
//! each of these costs, by a published model, so that ways of sending can be compared by what they would ask of a bus.
//!
//! Place: no I/O, no clock, no memory of a guest's. Chains are summed up by [`Fold`]; the [`Shapes`] it gives are all a
//! [`Model`] needs for an [`Account`].
//!
//! | file | |
//! |---|---|
//! | [`bus`] | bandwidth, and what a transfer costs |
//! | [`traffic`] | TLPs and bytes in both directions |
//! | [`model`] | cards: a bus, an engine, a driver |
//! | `parse` | a model in words |
//! | [`shapes`] | what is to be known of chains |
//! | [`account`] | what they cost |
//! | [`engine`] | when a card would be done with them |
//! | `figures` | that, as it stands in a record |
//!
//! # Formulas
//!
//! Units: bytes and TLPs are counts; rates are Gb/s (10⁹ bits); times are seconds. *Down* is towards the device, *up* towards
//! the host.
//!
//! | what | up | down |
//! |---|---|---|
//! | the device reads a piece of n bytes | ⌈n / MRRS⌉ × 24 | n + ⌈n / MPS⌉ × 20 |
//! | the device writes n bytes | n + ⌈n / MPS⌉ × 24 | |
//! | the host writes a register (doorbell) | | 4 + 24 |
//! | the host reads a register (head) | 4 + 20 | 24 |
//! | an interrupt's message | 4 + 24 | |
//!
//! Descriptors are read `fetch` at a time and written back `writeback` at a time, 16 bytes each. A direction of the bus is busy
//! for bytes × 8 / usable rate ([`Bus::usable_gbit_per_s`]); an IO-TLB for misses × the time of one; the port for
//! (frame + 24) × 8 / line rate. In a row of chains without end all work at the same time, so that the one that is busy longest
//! limits the rate ([`Account::limit`]).
//!
//! # Sources
//!
//! - Neugebauer et al., "Understanding PCIe performance for end host networking", SIGCOMM 2018, and its model
//!   `pcie-bench/pcie-model` (`pcie.py`, `mem_bw.py`, `simple_nic.py`, `niantic.py`). A test reproduces its figures, as published
//!   and put right.
//! - PCI Express Base Specification 5.0, 2.6.1.2 and 3.6.3.1: intervals of acknowledgements and flow control.
//! - What cards take: Linux' and DPDK's drivers; see [`Hardware`].
//!
//! # Limits
//!
//! Pieces are taken to be aligned. Doorbells, fetches and write-backs come in full batches, as they do where there is always more
//! to send. The latency of a round trip is in no rate: a card has many under way. What a virtual card has in front of a frame (the
//! virtio-net header) a card of hardware does not read; it has a descriptor more where it is to segment. An indirect table is no
//! cost here: such a card has none, its driver writes the descriptors into the ring.

pub mod account;
pub mod bus;
pub mod engine;
mod figures;
pub mod model;
mod parse;
#[cfg(test)]
mod published;
pub mod shapes;
pub mod traffic;

pub use account::{Account, Direction, Limit, Parts};
pub use bus::Bus;
pub use engine::Engine;
pub use figures::Figures;
pub use model::{Hardware, Model};
pub use parse::{Applied, BadModel, PRESETS};
pub use shapes::{Fold, Kind, Reuse, Shapes};
pub use traffic::{Traffic, Way};
