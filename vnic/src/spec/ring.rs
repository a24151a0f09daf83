//! Virtqueue layouts. VIRTIO 1.3, 2.7 Split Virtqueues and 2.8 Packed Virtqueues.
//!
//! All fields are little-endian, as are the only hosts this crate compiles for.

use std::mem::size_of;

/// Marks a buffer as continuing via the `next` field (`VIRTQ_DESC_F_NEXT`).
pub const DESC_F_NEXT: u16 = 1;
/// Marks a buffer as device-writable, otherwise device-readable (`VIRTQ_DESC_F_WRITE`).
pub const DESC_F_WRITE: u16 = 2;
/// The buffer contains a table of descriptors (`VIRTQ_DESC_F_INDIRECT`).
pub const DESC_F_INDIRECT: u16 = 4;
/// Packed rings: the driver's wrap counter (`VIRTQ_DESC_F_AVAIL`).
pub const DESC_F_AVAIL: u16 = 1 << 7;
/// Packed rings: the device's wrap counter (`VIRTQ_DESC_F_USED`).
pub const DESC_F_USED: u16 = 1 << 15;

/// The driver asks for no used-buffer notifications (`VIRTQ_AVAIL_F_NO_INTERRUPT`).
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// The device asks for no available-buffer notifications (`VIRTQ_USED_F_NO_NOTIFY`).
pub const USED_F_NO_NOTIFY: u16 = 1;

/// The largest queue size. VIRTIO 1.3, 2.7 Split Virtqueues; 2.8.10.1 for packed ones.
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// VIRTIO 1.3, 2.7.5 The Virtqueue Descriptor Table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Descriptor {
    /// Guest-physical address, or IOVA behind an IOMMU.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// `DESC_F_*`.
    pub flags: u16,
    /// The next descriptor's index, where `DESC_F_NEXT` is set.
    pub next: u16,
}
const _: () = assert!(size_of::<Descriptor>() == 16);

/// VIRTIO 1.3, 2.7.8 The Virtqueue Used Ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct UsedElem {
    /// The head of the chain.
    pub id: u32,
    /// Bytes written into the device-writable part.
    pub len: u32,
}
const _: () = assert!(size_of::<UsedElem>() == 8);

/// VIRTIO 1.3, 2.8.13 Virtqueue Format, packed descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct PackedDescriptor {
    /// Guest-physical address, or IOVA behind an IOMMU.
    pub addr: u64,
    /// Length in bytes; in a used descriptor, the bytes written.
    pub len: u32,
    /// Buffer id.
    pub id: u16,
    /// `DESC_F_*`.
    pub flags: u16,
}
const _: () = assert!(size_of::<PackedDescriptor>() == 16);

/// VIRTIO 1.3, 2.8.14 Event Suppression Structure Format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct PackedEvent {
    /// Descriptor ring change event offset (bits 0–14) and wrap counter (bit 15).
    pub off_wrap: u16,
    /// `PACKED_EVENT_*` (bits 0–1).
    pub flags: u16,
}
const _: () = assert!(size_of::<PackedEvent>() == 4);

/// Enable events (`RING_EVENT_FLAGS_ENABLE`).
pub const PACKED_EVENT_ENABLE: u16 = 0;
/// Disable events (`RING_EVENT_FLAGS_DISABLE`).
pub const PACKED_EVENT_DISABLE: u16 = 1;
/// Enable events for a specific descriptor (`RING_EVENT_FLAGS_DESC`).
pub const PACKED_EVENT_DESC: u16 = 2;

/// Alignment of a descriptor table or packed ring, bytes.
pub const DESC_ALIGN: u64 = 16;
/// Alignment of the available ring, bytes.
pub const AVAIL_ALIGN: u64 = 2;
/// Alignment of the used ring, bytes.
pub const USED_ALIGN: u64 = 4;
