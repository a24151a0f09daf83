//! A transmitted frame: the checked virtio-net header and the slices of guest memory that hold the rest.

use crate::memory::GuestSlice;
use crate::ring::Segments;
use crate::spec::net::NetHeader;

/// One frame from the driver, still in guest memory. Starts with the Ethernet header: the virtio-net header has been
/// taken off and checked.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// The virtio-net header, read once and checked against `len`.
    pub header: NetHeader,
    /// Length in bytes, Ethernet header to last payload byte.
    pub len: u32,
    segments: &'a Segments,
    first: u32,
    count: u32,
    skip: u32,
}
