//! Where the parts of a ring lie, how long they are and how they must be aligned.

use crate::memory::Access;
use crate::spec::ring::{AVAIL_ALIGN, DESC_ALIGN, MAX_QUEUE_SIZE, USED_ALIGN};
use crate::spec::{Feature, Features};

use super::RingError;

/// Where the front-end says a ring is. Guest-physical addresses, or IOVAs behind an IOMMU.
///
/// VIRTIO 1.3, 2.7 Split Virtqueues: descriptor table, available ring, used ring. 2.8 Packed Virtqueues: descriptor
/// ring, driver event suppression, device event suppression, in the same order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RingLayout {
    /// Entries.
    pub size: u16,
    /// Descriptor area.
    pub desc: u64,
    /// Driver area.
    pub avail: u64,
    /// Device area.
    pub used: u64,
}

/// Bytes of a split ring's or packed ring's descriptor area.
#[must_use]
pub const fn desc_len(size: u16) -> u64 {
    16 * size as u64
}

/// Bytes of a split ring's driver area: flags, idx, the ring, used_event (only with EVENT_IDX).
#[must_use]
pub fn avail_len(size: u16, features: Features) -> u64 {
    4 + 2 * u64::from(size) + if features.has(Feature::EventIdx) { 2 } else { 0 }
}

/// Bytes of a split ring's device area: flags, idx, the ring, avail_event (only with EVENT_IDX).
#[must_use]
pub fn used_len(size: u16, features: Features) -> u64 {
    4 + 8 * u64::from(size) + if features.has(Feature::EventIdx) { 2 } else { 0 }
}

/// A split ring's size is a power of two, at most 32768. VIRTIO 1.3, 2.7 Split Virtqueues.
///
/// # Errors
/// It is not.
pub fn check_split_size(size: u16) -> Result<(), RingError> {
    if size.is_power_of_two() && size <= MAX_QUEUE_SIZE {
        Ok(())
    } else {
        Err(RingError::BadSize { format: "split", size })
    }
}

/// A packed ring may have any size up to 32768. VIRTIO 1.3, 2.8.10.1 Structure Size and Alignment.
///
/// # Errors
/// It is 0 or more.
pub fn check_packed_size(size: u16) -> Result<(), RingError> {
    if (1..=MAX_QUEUE_SIZE).contains(&size) { Ok(()) } else { Err(RingError::BadSize { format: "packed", size }) }
}

impl RingLayout {
    /// What the three parts are called.
    pub const PARTS: [&'static str; 3] = ["descriptor area", "driver area", "device area"];

    /// The parts are apart from one another.
    ///
    /// # Errors
    /// Two share bytes.
    pub(super) fn check_apart(&self, features: Features) -> Result<(), RingError> {
        let parts = self.parts(features);
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            let ((addr, len, _), (other_addr, other_len, _)) = (parts[one], parts[other]);
            // What wraps is in no memory, and found when it is looked for.
            if addr < other_addr.saturating_add(other_len) && other_addr < addr.saturating_add(len) {
                return Err(RingError::PartsOverlap { first: Self::PARTS[one], second: Self::PARTS[other] });
            }
        }
        Ok(())
    }

    /// The three parts with their lengths, and what the device does with each: descriptor, driver and device area.
    #[must_use]
    pub fn parts(&self, features: Features) -> [(u64, u64, Access); 3] {
        let (desc, avail, used) = (self.desc, self.avail, self.used);
        let size = self.size;
        if features.has(Feature::RingPacked) {
            // The device writes used descriptors over available ones.
            return [(desc, desc_len(size), Access::Write), (avail, 4, Access::Read), (used, 4, Access::Write)];
        }
        [
            (desc, desc_len(size), Access::Read),
            (avail, avail_len(size, features), Access::Read),
            (used, used_len(size, features), Access::Write),
        ]
    }

    /// A packed ring of `size` entries laid out from `base` on. Returns the layout and the first address behind it.
    ///
    /// # Errors
    /// No packed ring has this size.
    pub fn packed_at(base: u64, size: u16) -> Result<(Self, u64), RingError> {
        check_packed_size(size)?;
        let desc = base.saturating_add(DESC_ALIGN - 1) & !(DESC_ALIGN - 1);
        let avail = desc.saturating_add(desc_len(size));
        let used = avail.saturating_add(4);
        Ok((RingLayout { size, desc, avail, used }, used.saturating_add(4)))
    }

    /// A split ring of `size` entries laid out from `base` on, as a driver would: the parts one behind the other, each
    /// aligned. Returns the layout and the first address behind it.
    ///
    /// # Errors
    /// No split ring has this size.
    pub fn split_at(base: u64, size: u16) -> Result<(Self, u64), RingError> {
        check_split_size(size)?;
        let event_idx = Features::of(&[Feature::EventIdx]);
        let place = |at: u64, align: u64| at.saturating_add(align - 1) & !(align - 1);
        let desc = place(base, DESC_ALIGN);
        let avail = place(desc.saturating_add(desc_len(size)), AVAIL_ALIGN);
        let used = place(avail.saturating_add(avail_len(size, event_idx)), USED_ALIGN);
        let end = used.saturating_add(used_len(size, event_idx));
        Ok((RingLayout { size, desc, avail, used }, end))
    }
}
