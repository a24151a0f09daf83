//! What all virtio devices have: kinds (VIRTIO 1.3, 5 Device Types) and a status.

/// A network card.
pub const NET: u32 = 1;
/// A disk.
pub const BLK: u32 = 2;
/// An entropy device.
pub const RNG: u32 = 4;

/// Bits of the device status. VIRTIO 1.3, 2.1 Device Status Field.
pub mod status {
    /// The driver noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The driver knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Feature negotiation is complete.
    pub const FEATURES_OK: u8 = 8;
    /// The device needs a reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver gave up.
    pub const FAILED: u8 = 128;
}
