//! Split rings: the device half and the driver half. VIRTIO 1.3, 2.7 Split Virtqueues.

pub mod device;
#[cfg(test)]
mod differential;
pub mod driver;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;

pub use device::SplitDevice;
pub use driver::SplitDriver;

/// Does the other side want to hear that an index went from `old` to `new`, having asked for `event`?
/// VIRTIO 1.3, 2.7.10 Available Buffer Notification Suppression (`vring_need_event`): right across wraps.
#[must_use]
pub const fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
