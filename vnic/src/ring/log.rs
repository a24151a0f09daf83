//! What of a ring the device writes, in the log of dirty pages.
//!
//! Place: held by the device half, while there is a log. The half marks what it has written once it is published, or at once where
//! the driver need not be told: the areas for event suppression.
//!
//! The log is by guest-physical address. Behind an IOMMU a ring's pages may be scattered, so each part is a list of pieces.

use std::sync::Arc;

use crate::memory::{Access, DirtyLog, Memory, MemoryError};
use crate::spec::{Feature, Features};

use super::RingLayout;

/// Where a ring's used part is logged beside where it lies: `log_guest_addr` of `SET_VRING_ADDR` with `VHOST_VRING_F_LOG`.
pub type LogAddress = Option<u64>;

/// A ring's part that the device writes.
#[derive(Debug)]
struct Part {
    /// Guest-physical address and length of each piece, in order.
    pieces: Vec<(u64, u64)>,
    also: LogAddress,
}

/// The log of one ring.
#[derive(Debug)]
pub struct RingLog {
    log: Arc<DirtyLog>,
    /// Packed: the descriptor ring.
    descriptors: Option<Part>,
    /// The used ring; packed: the device's event suppression.
    used: Part,
}

impl RingLog {
    /// The log of the ring at `layout` in `memory`.
    ///
    /// # Errors
    /// A part is out of reach.
    pub fn new(
        log: &Arc<DirtyLog>,
        memory: &Memory,
        layout: &RingLayout,
        features: Features,
        also: LogAddress,
    ) -> Result<Self, MemoryError> {
        let [desc, _, used] = layout.parts(features);
        let part = |(addr, len, _), also| -> Result<Part, MemoryError> {
            let pieces = memory.pieces(addr, len, Access::Write)?;
            let place =
                |piece: crate::memory::GuestSlice<'_>| Some((memory.gpa_at(piece.as_ptr())?.0, piece.len() as u64));
            let pieces = pieces.map(place).collect::<Option<_>>();
            Ok(Part { pieces: pieces.ok_or(MemoryError::Unmapped { addr, len })?, also })
        };
        let descriptors = features.has(Feature::RingPacked).then(|| part(desc, None)).transpose()?;
        Ok(RingLog { log: Arc::clone(log), descriptors, used: part(used, also)? })
    }

    /// Bytes of the used ring, or of the device's event suppression, have been written.
    pub(super) fn used(&self, offset: u64, len: u64) {
        self.mark(&self.used, offset, len);
    }

    /// Descriptors of a packed ring have been written: `count` slots from `slot` on, round the end of the ring.
    pub(super) fn slots(&self, slot: u16, count: u16, size: u16) {
        if let Some(part) = &self.descriptors {
            run(slot, count, size, |slot, count| self.mark(part, 16 * slot, 16 * count));
        }
    }

    /// Elements of a split ring's used ring have been written, and the index.
    pub(super) fn elements(&self, slot: u16, count: u16, size: u16) {
        run(slot, count, size, |slot, count| self.mark(&self.used, 4 + 8 * slot, 8 * count));
        self.used(2, 2);
    }

    /// A split ring's word for kicks has been written: the flags, or with EVENT_IDX the index behind the elements.
    pub(super) fn notifications(&self, size: u16, event_idx: bool) {
        self.used(if event_idx { 4 + 8 * u64::from(size) } else { 0 }, 2);
    }

    /// All of it that the device may ever have written.
    pub fn all(&self) {
        for part in self.descriptors.iter().chain([&self.used]) {
            self.mark(part, 0, part.pieces.iter().map(|(_, len)| len).sum());
        }
    }

    fn mark(&self, part: &Part, offset: u64, len: u64) {
        if let Some(also) = part.also {
            self.log.mark(also.saturating_add(offset), len);
        }
        let (mut skip, mut left) = (offset, len);
        for (gpa, len) in &part.pieces {
            if skip < *len {
                let here = left.min(len - skip);
                self.log.mark(gpa + skip, here);
                left -= here;
            }
            skip = skip.saturating_sub(*len);
        }
    }
}

/// Calls `mark` with start and length of each stretch.
fn run(slot: u16, count: u16, size: u16, mark: impl Fn(u64, u64)) {
    let (slot, count, size) = (u64::from(slot), u64::from(count.min(size)), u64::from(size));
    let here = count.min(size - slot.min(size));
    mark(slot, here);
    mark(0, count - here);
}
