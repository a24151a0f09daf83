//! The guest's image: an initramfs with PID 1, busybox, the transfer programs and the kernel's modules.

pub mod archive;
pub mod host_files;
mod initramfs;
pub mod modules;

pub use initramfs::Initramfs;
