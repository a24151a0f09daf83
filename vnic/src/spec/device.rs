//! Numbers of kinds of devices. VIRTIO 1.3, 5 Device Types.

/// A network card.
pub const NET: u32 = 1;
/// A disk.
pub const BLK: u32 = 2;
/// An entropy device.
pub const RNG: u32 = 4;
