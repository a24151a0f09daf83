//! What a session drives: the device behind the protocol.
//!
//! Place: a device type implements [`Device`]; the session calls it from the thread that handles messages, one call at a
//! time, and knows nothing of virtio-net.
//!
//! Invariants the session keeps:
//! - `index` is below [`Device::vrings`] in every call.
//! - `start_queue` is called only for a stopped queue, with memory and features set before; the ring lies in the memory
//!   last given, wholly and with each part in one region (with `ACCESS_PLATFORM`: unchecked, the device has the IOTLB); its size
//!   is no power of two only where `RING_PACKED` is negotiated.
//! - `set_memory` is called only with memory in which every running ring is still at its addresses.
//! - `set_features` with another set than before is called only while no queue runs, and never with `LOG_ALL`: that is `set_log`.
//! - A log reaches to the end of the memory last given, and of that to come; `set_log` may be called at any time.
//! - At the session's end (disconnect or error) every running queue is stopped, then come `reset` and `set_memory` with no
//!   memory at all, so that a guest that is gone frees its RAM.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::channel::BackendChannel;
use super::error::DeviceError;
use crate::memory::{DirtyLog, IotlbEntry, Iova, Memory};
use crate::spec::Features;
use crate::spec::vhost_user::{Inflight, ProtocolFeatures};

/// Where a vring goes on: `SET_VRING_BASE` and `GET_VRING_BASE`. "Vring base index"…
/// split: the next available index; packed: both indices with their wrap counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VringBase(pub u32);

impl VringBase {
    /// A split ring that goes on at this free-running available index.
    #[must_use]
    pub const fn split(avail_idx: u16) -> Self {
        VringBase(avail_idx as u32)
    }

    /// A packed ring that goes on at these slots.
    #[must_use]
    pub const fn packed(avail: PackedIndex, used: PackedIndex) -> Self {
        VringBase(avail.to_bits() as u32 | (used.to_bits() as u32) << 16)
    }

    /// Split: the free-running available index.
    #[must_use]
    pub const fn avail_idx(self) -> u16 {
        self.0 as u16
    }

    /// Packed: where the next available descriptor is expected.
    #[must_use]
    pub const fn packed_avail(self) -> PackedIndex {
        PackedIndex::from_bits(self.0 as u16)
    }

    /// Packed: where the next used descriptor goes.
    #[must_use]
    pub const fn packed_used(self) -> PackedIndex {
        PackedIndex::from_bits((self.0 >> 16) as u16)
    }
}

/// A slot of a packed ring with its wrap counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackedIndex {
    /// The slot, 15 bits.
    pub slot: u16,
    /// The wrap counter.
    pub wrap: bool,
}

impl PackedIndex {
    const fn to_bits(self) -> u16 {
        self.slot & 0x7fff | (self.wrap as u16) << 15
    }

    const fn from_bits(bits: u16) -> Self {
        PackedIndex { slot: bits & 0x7fff, wrap: bits >> 15 == 1 }
    }
}

/// Where the three parts of a ring are: guest-physical addresses, or IOVAs where `ACCESS_PLATFORM` is negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table; packed: the descriptor ring.
    pub descriptors: u64,
    /// Available ring; packed: driver event suppression structure.
    pub driver: u64,
    /// Used ring; packed: device event suppression structure.
    pub device: u64,
}

/// Where what is written into the guest is marked.
#[derive(Debug, Clone)]
pub struct Log {
    /// The pages.
    pub pages: Arc<DirtyLog>,
    /// To be written when something was logged (`SET_LOG_FD`).
    pub told: Option<Arc<OwnedFd>>,
}

/// All that a queue needs to start. The files are shared with the session, which keeps `call` and `err` for the next start.
#[derive(Debug, Clone)]
pub struct QueueSetup {
    /// Descriptors in the ring.
    pub size: u16,
    /// Where the ring is.
    pub addresses: RingAddresses,
    /// Where it goes on.
    pub base: VringBase,
    /// May it pass data yet? While not, its rings are to be left alone.
    pub enabled: bool,
    /// Readable when buffers are available; `None`: the device must poll.
    pub kick: Option<Arc<OwnedFd>>,
    /// To be written when buffers were used; `None`: nobody wants to know.
    pub call: Option<Arc<OwnedFd>>,
    /// To be written when the ring is broken.
    pub err: Option<Arc<OwnedFd>>,
}

/// A vhost-user device as its session sees it.
///
/// A refused call must leave the device as it was.
#[expect(clippy::missing_errors_doc, reason = "the errors are the device's own; the session only carries them")]
pub trait Device {
    /// The virtio features on offer, `PROTOCOL_FEATURES` among them.
    fn offered(&self) -> Features;

    /// The protocol features on offer. The session adds none and answers for all of them, so a device offers what it
    /// implements below.
    fn protocol_features(&self) -> ProtocolFeatures;

    /// How many vrings there are: indices from 0.
    fn vrings(&self) -> u16;

    /// The answer to `GET_QUEUE_NUM`, in the unit of the device type (net: queue pairs).
    fn queue_num(&self) -> u64;

    /// Memory regions the device can hold.
    fn max_mem_slots(&self) -> u64;

    /// The largest ring of any queue.
    fn max_queue_size(&self) -> u16;

    /// These features are negotiated; a subset of `offered`.
    fn set_features(&mut self, features: Features) -> Result<(), DeviceError>;

    /// The guest's memory from now on; translations into the old one are void. Returns only when nothing uses the old memory any
    /// more: the front-end takes it away once the request is acknowledged.
    fn set_memory(&mut self, memory: Arc<Memory>) -> Result<(), DeviceError>;

    /// Starts a queue.
    fn start_queue(&mut self, index: u16, setup: QueueSetup) -> Result<(), DeviceError>;

    /// Stops a running queue and says where it stands. Returns only when nothing touches the ring any more, with every buffer
    /// taken from it also returned to it.
    fn stop_queue(&mut self, index: u16) -> Result<VringBase, DeviceError>;

    /// A running queue may pass data from now on, or may not.
    fn set_enabled(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError>;

    /// Another kick file for a running queue.
    fn set_kick(&mut self, index: u16, kick: Option<Arc<OwnedFd>>) -> Result<(), DeviceError>;

    /// Another call file for a running queue. A call that may have been lost in between is to be made up for on the new one.
    fn set_call(&mut self, index: u16, call: Option<Arc<OwnedFd>>);

    /// Another err file for a running queue.
    fn set_err(&mut self, index: u16, err: Option<Arc<OwnedFd>>);

    /// Forgets the negotiated features and all translations, as after a device reset. No queue runs. Memory stays until
    /// `set_memory`.
    fn reset(&mut self);

    /// The driver's device status changed (`STATUS`); 0 comes as `reset` before this.
    fn set_status(&mut self, _status: u8) {}

    /// The MTU the guest was told (`NET_MTU`).
    fn set_mtu(&mut self, mtu: u16) -> Result<(), DeviceError> {
        Err(format!("this device has no MTU to set to {mtu}").into())
    }

    /// The configuration space (`CONFIG`).
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The driver writes into the configuration space, at most to its end (`CONFIG`).
    fn set_config(&mut self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        Err(format!("this device has no configuration space to set {} bytes in at {offset}", bytes.len()).into())
    }

    /// The guest moved here: announce this MAC (`RARP`).
    fn send_rarp(&mut self, _mac: [u8; 6]) -> Result<(), DeviceError> {
        Err("this device announces nobody".into())
    }

    /// A new area where so many queues of this size record what is in flight, and its length (`INFLIGHT_SHMFD`). The front-end keeps it.
    fn in_flight_area(&mut self, queues: u16, size: u16) -> Result<(OwnedFd, u64), DeviceError> {
        Err(format!("this device records nothing of {queues} queues of {size}").into())
    }

    /// Record it there from now on, and go on with what is there already; no more, once the session ends. Queues take note of it when
    /// they start.
    fn set_in_flight_area(&mut self, _area: Option<(OwnedFd, Inflight)>) -> Result<(), DeviceError> {
        Err("this device records nothing".into())
    }

    /// What is written into the guest is marked here from now on (`LOG_ALL`), or not at all. Returns only when every running queue does
    /// so: what was written before is on the front-end's account, or in the log before this one.
    fn set_log(&mut self, _log: Option<Log>) -> Result<(), DeviceError> {
        Err("this device logs nothing".into())
    }

    /// A queue's used ring is logged as if it lay here (`VHOST_VRING_F_LOG`), beside where it does lie; or there alone.
    fn set_ring_log(&mut self, _index: u16, _at: Option<u64>) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Where to ask for translations (`BACKEND_REQ`); nowhere any more once the session ends.
    fn set_backend_channel(&mut self, _channel: Option<BackendChannel>) -> Result<(), DeviceError> {
        Err("this device asks nothing".into())
    }

    /// A translation from now on (`ACCESS_PLATFORM`); it replaces what overlaps it.
    fn iotlb_update(&mut self, _entry: IotlbEntry) -> Result<(), DeviceError> {
        Err("this device has no IOTLB".into())
    }

    /// Translations from `first` to `last`, both included, are void. Returns only when nothing uses them any more.
    fn iotlb_invalidate(&mut self, _first: Iova, _last: Iova) -> Result<(), DeviceError> {
        Err("this device has no IOTLB".into())
    }
}
