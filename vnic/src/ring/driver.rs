//! The driver half of a ring, whatever its format.

use super::RingError;

/// A buffer that a driver offers to the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Where it is for the device: guest-physical address, or IOVA behind an IOMMU.
    pub addr: u64,
    /// Its length, bytes.
    pub len: u32,
    /// Is it for the device to write?
    pub writable: bool,
}

impl Buffer {
    /// A buffer for the device to read.
    #[must_use]
    pub const fn readable(addr: u64, len: u32) -> Self {
        Buffer { addr, len, writable: false }
    }

    /// A buffer for the device to write.
    #[must_use]
    pub const fn writable(addr: u64, len: u32) -> Self {
        Buffer { addr, len, writable: true }
    }
}

/// Where the descriptors of a chain go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Into the ring.
    Direct,
    /// Into a table of 16 bytes per buffer at this address, with one descriptor in the ring. The table belongs to the
    /// device until the chain comes back.
    Indirect(u64),
}

/// A chain that came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// What `add` called it.
    pub head: u16,
    /// Bytes the device says it wrote; never more than there was room for.
    pub written: u32,
}

/// What a driver does with a ring.
///
/// Place: one thread owns it. It trusts nothing the device can write: what it must remember it keeps outside the ring,
/// and whatever comes back is checked against that.
///
/// Operation: `add` chains, `publish` after a burst and kick the device if it says so; `pop_used` what came back.
/// Before sleeping, `enable_notifications`; if it says that something is there, go on instead.
pub trait DriverRing: Send {
    /// Puts a chain into the ring; the device sees it at the next `publish`. Returns its head.
    ///
    /// # Errors
    /// There is no room, or the chain is not one that a driver may offer.
    fn add(&mut self, buffers: &[Buffer], placement: Placement) -> Result<u16, RingError>;

    /// Lets the device see all added chains. Returns whether it wants a kick for them.
    fn publish(&mut self) -> bool;

    /// Takes the next chain that came back; `None`: there is none.
    ///
    /// # Errors
    /// The device broke the rules; the ring cannot be used any more.
    fn pop_used(&mut self) -> Result<Option<Used>, RingError>;

    /// Asks for a call when something comes back. Returns whether something did meanwhile: then no call may come.
    fn enable_notifications(&mut self) -> bool;

    /// Asks for no calls while the driver polls. A hint: some may come.
    fn disable_notifications(&mut self);

    /// Descriptors that can still be added.
    fn free(&self) -> u16;

    /// Chains added and not yet taken back.
    fn out(&self) -> u16;
}

/// Checks what VIRTIO 1.3, 2.7.4.2 and 2.7.5.1 ask of a chain, for either format.
pub(super) fn check_chain(buffers: &[Buffer]) -> Result<(), RingError> {
    let mut total = 0_u32;
    let mut writing = false;
    for (index, buffer) in buffers.iter().enumerate() {
        let index = index as u16;
        if writing && !buffer.writable {
            return Err(RingError::ReadableAfterWritable { head: 0, index });
        }
        writing |= buffer.writable;
        total = total.checked_add(buffer.len).ok_or(RingError::TotalTooLarge { head: 0, index, max: u32::MAX })?;
    }
    if buffers.is_empty() {
        return Err(RingError::EmptyChain);
    }
    Ok(())
}

/// Bytes the device may write.
pub(super) fn writable_len(buffers: &[Buffer]) -> u32 {
    buffers.iter().filter(|buffer| buffer.writable).fold(0, |sum, buffer| sum.wrapping_add(buffer.len))
}

/// A descriptor of an indirect table: its address and the rest of its 16 bytes.
pub(super) fn entry(addr: u64, rest: u64) -> [u8; 16] {
    (u128::from(addr) | u128::from(rest) << 64).to_le_bytes()
}
