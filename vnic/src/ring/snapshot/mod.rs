//! Passive snapshots: what stands in a ring, whatever stands in it.
//!
//! Place: called from any thread while the device runs. Reads guest memory and nothing else: no device state, no lock,
//! and it writes nothing. Any content is an answer: what breaks the rules is said in words beside what could be read.
//!
//! Operation: the indices (of a packed ring: the device's position) are read, then the entries between them, then the indices again; if they moved, all is read
//! anew, a few times, and then [`RingSnapshot::consistent`] says that it did not work out. Chains are followed by the
//! same walk as the device's, so a fault reads as the device's error would.
//!
//! Limits: [`MAX_BUFFERS`] buffers in all. What is in flight is what lies between `used.idx` and `avail.idx`; where
//! chains come back out of order, the device may have returned a younger one in the place of an older one, which memory
//! alone does not show.

mod event_suppression;
mod notation;
mod packed;
mod split;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::memory::{Hint, Memory, MemoryError};
use crate::spec::ring::Descriptor;
use crate::spec::{Feature, Features};

use super::arena::Oddities;
use super::builder::{ChainTotals, Follower};
use super::{RingError, RingLayout};

pub use event_suppression::{EventSuppression, NotifyWhen};
pub use notation::{NotationError, write_buffers};

/// Buffers a snapshot shows: enough for a ring of 32768 with 8 buffers a chain, and a bound to what a hostile ring costs.
pub const MAX_BUFFERS: usize = 1 << 18;

/// How often a moving ring is read before the snapshot is called inconsistent.
const ATTEMPTS: usize = 4;

/// One consistent look at one ring. `Display` is the ring notation, `FromStr` reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RingSnapshot {
    /// The queue's name.
    pub queue: String,
    /// `split` or `packed`.
    pub format: String,
    /// Queue size.
    pub size: u16,
    /// Free-running available index as it stands in memory.
    pub avail_idx: u16,
    /// Free-running used index as it stands in memory.
    pub used_idx: u16,
    /// Chains available and not yet used.
    pub in_flight: u16,
    /// Did the ring hold still while it was read? If not, entries may be from different moments.
    pub consistent: bool,
    /// The chains in flight, oldest first.
    pub chains: Vec<ChainSnapshot>,
    /// What breaks the ring's rules, in words; empty when all is well.
    pub faults: Vec<String>,
}

/// One chain of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChainSnapshot {
    /// Slot in the available ring (packed: of the first descriptor).
    pub slot: u16,
    /// Head descriptor (packed: buffer id).
    pub head: u16,
    /// Are the buffers in an indirect table?
    pub indirect: bool,
    /// The buffers, in order.
    pub buffers: Vec<BufferSnapshot>,
    /// Why the chain could not be followed further.
    pub fault: Option<String>,
}

/// One descriptor of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BufferSnapshot {
    /// Device-writable?
    pub writable: bool,
    /// Guest-physical address, or IOVA behind an IOMMU, bytes.
    pub addr: u64,
    /// Length, bytes.
    pub len: u32,
    /// Behind an IOMMU: where its first byte is, guest-physical, as far as the device was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpa: Option<u64>,
    /// The file page it lies in, where a watched file's pages are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_page: Option<u64>,
    /// Whose memory it is, in words, where somebody has asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// The same for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Box<BufferOwner>>,
}

/// Whose memory a buffer is. What a kind does not have is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct BufferOwner {
    /// `file`, `anonymous`, `socket`, `other`, `unsettled`; `mixed`: its pages are not of one owner.
    pub kind: String,
    /// The file's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<Arc<str>>,
    /// Which page of the file its first is, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u64>,
    /// The program whose memory it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// Its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

impl BufferSnapshot {
    /// A device-readable buffer of which no more is known than where it is.
    #[must_use]
    pub const fn at(addr: u64, len: u32) -> Self {
        BufferSnapshot { writable: false, addr, len, gpa: None, file_page: None, label: None, owner: None }
    }

    /// Where it is in guest-physical memory, where that is known: without an IOMMU, at its address.
    #[must_use]
    pub fn gpa(&self, behind_iommu: bool) -> Option<u64> {
        if behind_iommu { self.gpa } else { Some(self.addr) }
    }
}

/// A snapshot of the split ring of `queue` at `layout`. Of a packed ring it can only say that it needs the device's
/// position: see [`take_packed`].
#[must_use]
pub fn take(queue: &str, layout: &RingLayout, memory: &Arc<Memory>, features: Features) -> RingSnapshot {
    if features.has(Feature::RingPacked) {
        let mut seen = RingSnapshot::empty(queue, "packed", layout.size);
        seen.faults.push("the device's position is not known: a packed ring cannot be read without it".to_owned());
        return seen;
    }
    settle(|| split::read(queue, layout, memory, features))
}

/// A snapshot of the packed ring of `queue` at `layout`. `base` says where the device stands, as
/// [`DeviceRing::base`](super::DeviceRing::base) does: a packed ring holds no indices, and what stands in slots that
/// were used is left over from chains that are gone. The device publishes it where the observer can load it.
///
/// In the snapshot, `avail_idx` is the slot behind the last available chain, `used_idx` the slot of the next used
/// descriptor.
#[must_use]
pub fn take_packed(
    queue: &str,
    layout: &RingLayout,
    memory: &Arc<Memory>,
    features: Features,
    base: impl Fn() -> u32,
) -> RingSnapshot {
    settle(|| packed::read(queue, layout, memory, features, &base))
}

/// Looks until the ring holds still, a few times.
fn settle(look: impl Fn() -> RingSnapshot) -> RingSnapshot {
    let mut last = look();
    for _ in 1..ATTEMPTS {
        if last.consistent {
            break;
        }
        last = look();
    }
    last
}

impl RingSnapshot {
    fn empty(queue: &str, format: &str, size: u16) -> Self {
        RingSnapshot {
            queue: queue.to_owned(),
            format: format.to_owned(),
            size,
            avail_idx: 0,
            used_idx: 0,
            in_flight: 0,
            consistent: true,
            chains: Vec::new(),
            faults: Vec::new(),
        }
    }
}

/// A chain while a snapshot follows it: the device's checks, and the buffers as they come.
struct Observer<'m> {
    memory: &'m Memory,
    totals: ChainTotals,
    buffers: Vec<BufferSnapshot>,
}

impl<'m> Observer<'m> {
    fn new(memory: &'m Memory, head: u16) -> Self {
        Observer { memory, totals: ChainTotals::new(head), buffers: Vec::new() }
    }

    fn finish(self, slot: u16, walked: Result<bool, RingError>, indirect: bool) -> ChainSnapshot {
        ChainSnapshot {
            slot,
            head: self.totals.head,
            indirect: *walked.as_ref().unwrap_or(&indirect),
            buffers: self.buffers,
            fault: walked.err().map(|error| error.to_string()),
        }
    }
}

impl<'m> Follower<'m> for Observer<'m> {
    fn buffer(&mut self, index: u16, desc: &Descriptor) -> Result<(), RingError> {
        let access = self.totals.take(index, desc)?;
        let head = self.totals.head;
        match self.memory.pieces(desc.addr, u64::from(desc.len), access) {
            // Behind an IOMMU: the device has had no use for it so far.
            Ok(_) | Err(MemoryError::Untranslated { .. }) => {}
            Err(source) => return Err(RingError::of_buffer(head, index, source)),
        }
        let writable = access == crate::memory::Access::Write;
        let gpa = self.memory.iotlb().and_then(|iotlb| iotlb.gpa_of(desc.addr)).map(|gpa| gpa.0);
        self.buffers.push(BufferSnapshot { writable, gpa, ..BufferSnapshot::at(desc.addr, desc.len) });
        Ok(())
    }

    fn descriptors(&self) -> u16 {
        self.totals.descriptors
    }

    fn oddities(&mut self) -> Option<&mut Oddities> {
        None
    }

    fn memory(&mut self, _addr: u64) -> (&'m Memory, Hint) {
        (self.memory, Hint::default())
    }
}
