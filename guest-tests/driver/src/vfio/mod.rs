//! VFIO: a PCI device in the hands of a program, fenced in by the IOMMU.
//!
//! Operation:
//! 1. [`bind::take`] takes the device away from its kernel driver and gives it to `vfio-pci`, by sysfs.
//! 2. [`Device::open`] opens container, group and device, and lets the device be bus master.
//! 3. [`Device::bar`] maps a BAR: from then on a register is a memory access, and no system call.
//! 4. [`dma`] lets the device reach memory of the program: [`DmaBuffer`] for reading and writing, [`DmaMap`] of a file's
//!    pages for reading. What is not mapped the device cannot reach, whatever stands in a descriptor.
//! 5. [`bind::give_back`] returns the device to the kernel.
//!
//! Invariants: a [`DmaMap`] borrows what it maps and the device's container, and unmaps when dropped. Even a leaked one is
//! harmless: the kernel keeps the pages pinned until the container is closed.
//!
//! | file | |
//! |---|---|
//! | [`bind`] | who drives the device: sysfs |
//! | [`device`] | container, group, device; configuration space; interrupts |
//! | [`bar`] | a BAR's registers |
//! | [`dma`] | what the device may reach |
//! | [`space`] | which I/O virtual addresses are free |
//! | [`VfioFault`] | what can go wrong, by the name of the ioctl, and what to do |
//!
//! `vfio-ioctls` knows containers, groups, devices and interrupts. What it lacks (read-only maps, BARs as memory, the
//! IOVA ranges) is here, over `vfio-bindings` and `nix`.

pub mod bar;
pub mod bind;
pub mod device;
pub mod dma;
mod error;
pub mod space;

pub use bar::{Bar, Registers};
pub use bind::PciAddress;
pub use device::{Device, Interrupts};
pub use dma::{DmaBuffer, DmaMap, DmaSlice};
pub use error::VfioFault;
