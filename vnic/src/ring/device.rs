//! The device half of a ring, whatever its format.

use crate::memory::Memory;
use crate::spec::ring::PackedDescriptor;
use crate::spec::{Feature, Features};
use std::sync::Arc;

use super::packed::PackedDevice;
use super::split::SplitDevice;
use super::{Chain, ChainView, RingError, RingLayout, RingLog, Segments, SingleBufferBatch, Unmapped};

/// What a device does with a ring.
///
/// Place: the data path's thread owns it. No method blocks, allocates or makes a system call.
///
/// Operation: `pop` chains into an arena, look at their segments, `push_used` each of them once, and `publish` after a
/// burst; send a call if it says so. Before sleeping, `enable_notifications`; if it says that something is there, go
/// on instead. A chain that cannot be served yet goes back with `unpop`, or is kept and returned later: the order does
/// not matter to this trait.
///
/// Where every chain is looked at once and most are done with at that, `drain` does the first two steps for a whole
/// burst, with less work for each.
///
/// After an error the ring has not moved: whoever owns it stops the queue until the driver resets it.
pub trait DeviceRing: Send {
    /// Takes the next available chain and appends its segments to `into`; `None`: there is none.
    ///
    /// # Errors
    /// The chain, or the ring, breaks the rules. Nothing was taken, nothing appended.
    fn pop(&mut self, into: &mut Segments) -> Result<Option<Chain>, RingError>;

    /// Takes the next available chains as `pop` does, up to `limit` of them, and appends them to `chains`, as long as each is
    /// a single device-writable buffer: what a receiveq has, as a rule. The chain behind them, if there is one, is `pop`'s.
    /// Taken together, they are found sooner.
    ///
    /// # Errors
    /// The available index is out of bounds. Nothing was taken.
    fn pop_buffers(&mut self, into: &mut Segments, limit: u16, chains: &mut Vec<Chain>) -> Result<(), RingError>;

    /// Shows `visitor` up to `limit` available chains, one after the other, each in `into` alone, and does with them what it
    /// says. The driver sees what was done at the next `publish`.
    ///
    /// # Errors
    /// A chain, or the ring, breaks the rules. Nothing of it was taken; what the visitor saw before it counts.
    fn drain<V: Visitor>(&mut self, into: &mut Segments, limit: u16, visitor: &mut V) -> Result<DrainEnd, RingError>;

    /// The next `count` chains will be popped soon, as far as they are there: asks the CPU for their first descriptors.
    fn prefetch(&mut self, count: u16);

    /// Gives back the chains popped last, in the order they were popped: the next `pop` finds the first of them again.
    /// Until the driver adds more, [`enable_notifications`](DeviceRing::enable_notifications) does not count what was
    /// given back as available.
    ///
    /// # Errors
    /// They are not the chains popped last: an error of the caller.
    fn unpop(&mut self, chains: &[Chain]) -> Result<(), RingError>;

    /// Returns a chain to the driver with `written` bytes in its device-writable part. The driver sees it at the next
    /// `publish`.
    ///
    /// # Errors
    /// The chain is not in flight or has less room: an error of the caller.
    fn push_used(&mut self, chain: &Chain, written: u32) -> Result<(), RingError>;

    /// Lets the driver see all returned chains, with one store. Returns whether it wants a call for them.
    ///
    /// # Errors
    /// Split: [`RingError::UsedMoved`]. Someone else uses the ring; the driver sees none of them.
    fn publish(&mut self) -> Result<bool, RingError>;

    /// Asks for a kick when something becomes available. Returns whether something did meanwhile: then no kick may
    /// come, and the caller must look again.
    ///
    /// # Errors
    /// The available index is out of bounds.
    fn enable_notifications(&mut self) -> Result<bool, RingError>;

    /// Asks for no kicks while the device polls. A hint: some may come.
    fn disable_notifications(&mut self);

    /// Chains (packed rings: at least whether there is one) waiting to be popped.
    ///
    /// # Errors
    /// The available index is out of bounds.
    fn available(&mut self) -> Result<u16, RingError>;

    /// Where the ring stands, as GET_VRING_BASE answers it and `new` takes it. Split: the next available index.
    /// Packed: bits 0–15 the next descriptor to pop and its wrap counter, bits 16–31 the same of the next to use.
    fn base(&self) -> u32;

    /// Chains popped and not returned.
    fn in_flight(&self) -> u16;

    /// The ring's size.
    fn size(&self) -> u16;
}

/// What becomes of a chain that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It is done with and goes back to the driver, nothing written.
    Return,
    /// It is in flight until `push_used`.
    Retain,
    /// It was not taken: it stays in the ring, and so does all behind it.
    Leave,
}

/// Who looks at the chains of a burst.
pub trait Visitor {
    /// Does it read what is in the buffers, beyond a header? Then their second cache line is asked for as well: enough for
    /// short frames, while of long ones the CPU foresees the rest by itself.
    const READS: bool;

    /// Are single-buffer chains to be shown in batches? If not, every chain is shown to `visit`. Asked once a burst.
    fn takes_batches(&self) -> bool;

    /// Looks at chains that are a single device-readable buffer each, as most are that a busy driver sends. Returns how many
    /// of them, from the first on, are done with and go back to the driver. The one behind them is followed anew and shown to
    /// `visit`, and what is behind that to `visit_batch` again. Worth `#[inline(always)]`: with its counts in locals, it is
    /// the loop.
    fn visit_batch(&mut self, batch: SingleBufferBatch<'_>) -> usize;

    /// Looks at any chain.
    fn visit(&mut self, chain: ChainView<'_>) -> Disposition;
}

/// Why a burst ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainEnd {
    /// No more chains are available.
    Empty,
    /// There were as many as were asked for; perhaps there are more.
    Limit,
    /// A chain was left.
    Left,
}

/// The device half of a ring in the negotiated format.
#[derive(Debug)]
pub enum Device {
    /// VIRTIO 1.3, 2.7 Split Virtqueues.
    Split(SplitDevice),
    /// VIRTIO 1.3, 2.8 Packed Virtqueues.
    Packed(PackedDevice),
    /// Behind an IOMMU: not within reach at the moment.
    Unmapped(Unmapped),
}

impl Device {
    /// The device half of the ring at `layout`, going on from `base`.
    ///
    /// # Errors
    /// Size or base cannot be, or a part of the ring is not guest memory.
    pub fn new(layout: RingLayout, memory: Arc<Memory>, features: Features, base: u32) -> Result<Self, RingError> {
        if features.has(Feature::RingPacked) {
            return Ok(Device::Packed(PackedDevice::new(layout, memory, features, base)?));
        }
        Ok(Device::Split(SplitDevice::new(layout, memory, features, base)?))
    }

    /// What it writes into the ring from now on is logged, or no longer. What it may have written before is marked.
    pub fn set_log(&mut self, log: Option<RingLog>) {
        let log = log.map(Box::new);
        if let Some(log) = &log {
            log.all();
        }
        match self {
            Device::Split(ring) => ring.log = log,
            Device::Packed(ring) => ring.log = log,
            Device::Unmapped(_) => {}
        }
    }

    /// Has a file shrunk under pages that the ring alone has mapped? As [`GuestRegions::lost`](crate::memory::GuestRegions::lost).
    #[must_use]
    pub fn lost(&self) -> bool {
        match self {
            Device::Split(ring) => ring.lost(),
            Device::Packed(ring) => ring.lost(),
            Device::Unmapped(_) => false,
        }
    }

    /// Is `used.idx` not where this device left it? [`RingError::UsedMoved`], of a split ring.
    #[must_use]
    pub fn moved(&self) -> Option<RingError> {
        match self {
            Device::Split(ring) => ring.moved(),
            Device::Packed(_) | Device::Unmapped(_) => None,
        }
    }
}

/// A chain that a back-end before this one took and never used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Split: the index of the first descriptor. Packed: the buffer id.
    pub head: u16,
    /// Packed: its descriptors as they were, since others may stand in their place by now.
    pub descriptors: Vec<PackedDescriptor>,
}

/// Going on behind a back-end that died. See [`backend::record`](crate::backend::record).
impl Device {
    /// Where the next used chain goes: split, the free-running index; packed, slot and wrap counter as in a base.
    #[must_use]
    pub fn used_position(&self) -> u16 {
        match self {
            Device::Split(ring) => ring.used_position(),
            Device::Packed(ring) => ring.used_position(),
            Device::Unmapped(_) => 0,
        }
    }

    /// Of a ring that others have used before: chains that are available.
    #[must_use]
    pub fn left_behind(&mut self) -> u16 {
        match self {
            Device::Split(ring) if ring.used_position() == 0 => 0,
            Device::Split(ring) => ring.available().unwrap_or(0),
            Device::Packed(ring) => ring.left_behind(),
            Device::Unmapped(_) => 0,
        }
    }

    /// Packed: does a used descriptor stand at this position?
    #[must_use]
    pub fn is_used_at(&self, position: u16) -> bool {
        matches!(self, Device::Packed(ring) if ring.is_used_at(position))
    }

    /// Packed: the descriptors of a chain that was popped and not returned, as they stand in the ring now.
    pub fn descriptors_of(&self, chain: &Chain) -> impl Iterator<Item = PackedDescriptor> {
        let chain = *chain;
        let ring = if let Device::Packed(ring) = self { Some(ring) } else { None };
        (0..chain.slots).map_while(move |at| Some(ring?.descriptor(chain.idx, at)))
    }

    /// Nothing was popped here yet. The chains of `taken` are in flight already: the ring goes on behind them. Where the next used one
    /// goes is said by the split ring itself, of a packed one by `used`.
    ///
    /// # Errors
    /// The ring cannot stand there.
    pub fn resume(&mut self, used: Option<u16>, taken: &[Taken]) -> Result<(), RingError> {
        match self {
            Device::Split(ring) => ring.resume(taken.len()),
            Device::Packed(ring) => {
                let slots = taken.iter().map(|taken| taken.descriptors.len()).sum();
                used.map_or(Ok(()), |used| ring.resume(used, slots))
            }
            Device::Unmapped(_) => Ok(()),
        }
    }

    /// A chain that was taken again stays with those to be taken.
    ///
    /// # Errors
    /// It was not.
    pub fn unretake(&mut self, head: u16) -> Result<(), RingError> {
        let was = match self {
            Device::Split(ring) => ring.unretake(head),
            Device::Packed(ring) => ring.unretake(head),
            Device::Unmapped(_) => false,
        };
        if was { Ok(()) } else { Err(RingError::NotInFlight { head }) }
    }

    /// Follows one of the chains that the ring was [resumed](Device::resume) behind, as `pop` would have.
    ///
    /// # Errors
    /// It breaks the rules, or is in flight twice.
    pub fn retake(&mut self, into: &mut Segments, taken: &Taken) -> Result<Chain, RingError> {
        match self {
            Device::Split(ring) => ring.retake(into, taken.head),
            Device::Packed(ring) => ring.retake(into, taken),
            Device::Unmapped(_) => Err(RingError::NotInFlight { head: taken.head }),
        }
    }
}

macro_rules! forward {
    ($($(#[$attr:meta])* fn $name:ident(&$($mutability:ident)? $(, $arg:ident: $type:ty)*) -> $ret:ty;)*) => {
        impl DeviceRing for Device {
            $($(#[$attr])* #[inline(always)] fn $name(&$($mutability)? self $(, $arg: $type)*) -> $ret {
                match self {
                    Device::Split(ring) => ring.$name($($arg),*),
                    Device::Packed(ring) => ring.$name($($arg),*),
                    Device::Unmapped(ring) => ring.$name($($arg),*),
                }
            })*

            #[inline]
            fn drain<V: Visitor>(
                &mut self,
                into: &mut Segments,
                limit: u16,
                visitor: &mut V,
            ) -> Result<DrainEnd, RingError> {
                match self {
                    Device::Split(ring) => ring.drain(into, limit, visitor),
                    Device::Packed(ring) => ring.drain(into, limit, visitor),
                    Device::Unmapped(ring) => ring.drain(into, limit, visitor),
                }
            }
        }
    };
}
forward! {
    fn pop(&mut, into: &mut Segments) -> Result<Option<Chain>, RingError>;
    fn pop_buffers(&mut, into: &mut Segments, limit: u16, chains: &mut Vec<Chain>) -> Result<(), RingError>;
    fn prefetch(&mut, count: u16) -> ();
    fn unpop(&mut, chains: &[Chain]) -> Result<(), RingError>;
    fn push_used(&mut, chain: &Chain, written: u32) -> Result<(), RingError>;
    fn publish(&mut) -> Result<bool, RingError>;
    fn enable_notifications(&mut) -> Result<bool, RingError>;
    fn disable_notifications(&mut) -> ();
    fn available(&mut) -> Result<u16, RingError>;
    fn base(&) -> u32;
    fn in_flight(&) -> u16;
    fn size(&) -> u16;
}
