//! The tests that boot guests, in one program: they share what they stand on, and run side by side where there are CPUs.
//!
//! `cargo test --workspace --test guests` runs all of them, `cargo test --workspace --test guests -- witnesses::` one file.

mod accounts;
mod attach;
mod comeback;
mod conformance;
mod disk;
mod dpdk;
mod firmware;
mod image;
mod introspection;
mod launcher;
mod lies;
mod migrate;
mod peer;
mod proxy;
mod qemu_args;
mod queues;
mod restart;
mod rng;
mod tap;
mod touches;
mod userspace;
mod witnesses;
