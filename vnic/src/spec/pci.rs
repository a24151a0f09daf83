//! Virtio over PCI: offsets in the common configuration structure, in bytes. VIRTIO 1.3, 4.1.4.3 Common configuration structure
//! layout.

/// Which 32 of the device's features are shown.
pub const DEVICE_FEATURE_SELECT: usize = 0;
/// These, of the device.
pub const DEVICE_FEATURE: usize = 4;
/// Which 32 of the driver's features are shown.
pub const DRIVER_FEATURE_SELECT: usize = 8;
/// These, of the driver.
pub const DRIVER_FEATURE: usize = 12;
/// The MSI-X vector for changes of the configuration.
pub const CONFIG_MSIX_VECTOR: usize = 16;
/// Bits of [`status`](super::device::status).
pub const DEVICE_STATUS: usize = 20;
/// Which queue the following are of.
pub const QUEUE_SELECT: usize = 22;
/// Its size in descriptors.
pub const QUEUE_SIZE: usize = 24;
/// The MSI-X vector for its notifications.
pub const QUEUE_MSIX_VECTOR: usize = 26;
/// 1: it runs.
pub const QUEUE_ENABLE: usize = 28;
/// Where it is kicked, in units of the notifications' multiplier.
pub const QUEUE_NOTIFY_OFF: usize = 30;
/// The guest-physical address of its descriptors.
pub const QUEUE_DESC: usize = 32;
/// Of what the driver tells.
pub const QUEUE_DRIVER: usize = 40;
/// Of what the device tells.
pub const QUEUE_DEVICE: usize = 48;
/// 1: it is to be reset, or is being reset.
pub const QUEUE_RESET: usize = 58;
