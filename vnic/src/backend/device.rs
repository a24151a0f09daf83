//! A device as its session drives it: what it is comes from its [model](DeviceModel), and the front-end's requests become
//! commands for its workers.
//!
//! Place: lives on the session thread. Invariants: memory is replaced only while no worker has a queue, and a request is
//! answered only after the workers did what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::command::NotifierChange;
use super::in_flight::InFlight;
use super::log::QueueLog;
use super::model::DeviceModel;
use super::queue::{Notifiers, Queue, set_nonblocking};
use super::record::Records;
use super::shared::Shared;
use super::workers::Workers;
use crate::memory::iotlb::Updated;
use crate::memory::{IotlbEntry, Iova, Memory, SharedArea};
use crate::ring::{self, DeviceRing, RingError, RingLayout, Segments, Unmapped};
use crate::spec::vhost_user::{Inflight, ProtocolFeature, ProtocolFeatures};
use crate::spec::{Feature, Features};
use crate::vhost_user::{BackendChannel, Device, DeviceError, Log, QueueSetup, VringBase};

/// Room for segments before an arena has to grow: a 64 KiB frame of single pages, and some.
const SEGMENTS: usize = 128;

/// Regions the device can hold, one for each memory slot of a guest with many DIMMs.
const MEM_SLOTS: u64 = 64;

/// The device end of a session.
pub struct Backend {
    model: Box<dyn DeviceModel>,
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    memory: Arc<Memory>,
    /// The same as rings and arenas see it: behind the guest's IOMMU, or not.
    reached: Arc<Memory>,
    features: Features,
    /// Where what is in flight is recorded.
    records: Option<Records>,
    /// Where what is written into the guest is marked, and whom to tell; and by queue, where else its ring is.
    log: Option<QueueLog>,
    ring_logs: BTreeMap<u16, u64>,
    /// The queues that this process has had so far.
    had: BTreeSet<u16>,
}

impl Backend {
    /// A device without memory or queues.
    #[must_use]
    pub fn new(model: impl DeviceModel + 'static, shared: Arc<Shared>, workers: Arc<Workers>) -> Self {
        Backend::boxed(Box::new(model), shared, workers)
    }

    /// The same of a model of any kind.
    #[must_use]
    pub fn boxed(model: Box<dyn DeviceModel>, shared: Arc<Shared>, workers: Arc<Workers>) -> Self {
        let memory = Arc::new(Memory::empty());
        Backend {
            model,
            shared,
            workers,
            reached: memory.clone(),
            memory,
            features: Features::NONE,
            records: None,
            log: None,
            ring_logs: BTreeMap::new(),
            had: BTreeSet::new(),
        }
    }

    /// Do the driver's addresses go through an IOMMU?
    fn translates(&self) -> bool {
        self.features.has(Feature::AccessPlatform)
    }

    /// `memory` as rings and arenas are to see it.
    fn reached(&self, memory: &Arc<Memory>) -> Arc<Memory> {
        match self.translates() {
            true => Arc::new(memory.behind(self.shared.iommu.iotlb.clone())),
            false => memory.clone(),
        }
    }

    /// The device half of a ring; behind an IOMMU its worker looks for it.
    fn ring(&self, layout: RingLayout, memory: &Arc<Memory>, base: u32) -> Result<ring::Device, RingError> {
        match self.translates() {
            true => Ok(ring::Device::Unmapped(Unmapped { base, size: layout.size })),
            false => ring::Device::new(layout, memory.clone(), self.features, base),
        }
    }

    /// Takes the queues to other memory, where no translation holds: all of them, or none.
    fn move_queues(&self, reached: &Arc<Memory>) -> Result<(), DeviceError> {
        let stopped = self.running().into_iter().map(|index| self.workers.stop_queue(index));
        let mut stopped: Vec<Queue> = stopped.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        let rings = stopped.iter().map(|queue| {
            let ring = self.ring(queue.layout, reached, queue.ring.base());
            ring.map_err(|error| format!("{}: {error}", queue.shared.name).into())
        });
        let rings: Result<Vec<_>, DeviceError> = rings.collect();
        let outcome = rings.map(|rings| {
            for (queue, ring) in stopped.iter_mut().zip(rings) {
                queue.ring = ring;
                queue.segments = Segments::new(reached.clone(), SEGMENTS);
                queue.waits = None;
            }
            self.shared.iommu.clear();
        });
        stopped.into_iter().for_each(|queue| self.workers.start_queue(queue));
        outcome
    }

    /// The log of one queue.
    fn log_of(&self, index: u16) -> Option<QueueLog> {
        // Behind an IOMMU the front-end's word for where the ring is would be an IOVA.
        let ring = self.ring_logs.get(&index).copied().filter(|_| !self.translates());
        self.log.clone().map(|log| QueueLog { ring, ..log })
    }

    /// The queues that are set up.
    fn running(&self) -> Vec<u16> {
        self.shared.view().rings.keys().copied().collect()
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend").field("device", &self.model.name()).finish_non_exhaustive()
    }
}

impl Device for Backend {
    fn offered(&self) -> Features {
        self.model.offered()
    }

    fn protocol_features(&self) -> ProtocolFeatures {
        let always = ProtocolFeatures::of(&[
            ProtocolFeature::Mq,
            ProtocolFeature::ReplyAck,
            ProtocolFeature::ConfigureMemSlots,
            ProtocolFeature::ResetDevice,
            ProtocolFeature::Status,
        ]);
        let with_config = match self.model.config() {
            Some(_) => always.with(ProtocolFeature::Config),
            None => always,
        };
        let with_config = match self.model.records_in_flight() {
            true => with_config.with(ProtocolFeature::InflightShmfd),
            false => with_config,
        };
        let with_config = match self.model.announces() {
            true => with_config.with(ProtocolFeature::Rarp),
            false => with_config,
        };
        let with_config = match self.offered().has(Feature::LogAll) {
            true => with_config.with(ProtocolFeature::LogShmfd),
            false => with_config,
        };
        // The channel is for what a device behind an IOMMU asks.
        match self.offered().has(Feature::AccessPlatform) {
            true => with_config.with(ProtocolFeature::BackendReq),
            false => with_config,
        }
    }

    fn vrings(&self) -> u16 {
        self.model.queues()
    }

    fn queue_num(&self) -> u64 {
        self.model.queue_num()
    }

    fn max_mem_slots(&self) -> u64 {
        MEM_SLOTS
    }

    fn max_queue_size(&self) -> u16 {
        self.model.max_queue_size()
    }

    fn set_features(&mut self, features: Features) -> Result<(), DeviceError> {
        self.workers.negotiate(features, self.features)?;
        self.features = features;
        self.reached = self.reached(&self.memory);
        self.shared.view().negotiated = features;
        self.shared.labels.forget();
        Ok(())
    }

    fn set_memory(&mut self, memory: Arc<Memory>) -> Result<(), DeviceError> {
        let reached = self.reached(&memory);
        if memory.extends(&self.memory) {
            // Rings, frames in flight and translations stay where they are.
            for index in self.running() {
                self.workers.plug(index, Segments::new(reached.clone(), SEGMENTS))?;
            }
        } else {
            self.move_queues(&reached)?;
        }
        self.reached = reached;
        self.shared.view().memory = (!memory.regions().is_empty()).then(|| memory.clone());
        self.memory = memory;
        self.shared.labels.forget();
        Ok(())
    }

    fn start_queue(&mut self, index: u16, setup: QueueSetup) -> Result<(), DeviceError> {
        let shared = self.shared.queues.get(usize::from(index)).ok_or("no such queue")?.clone();
        let layout = RingLayout {
            size: setup.size,
            desc: setup.addresses.descriptors,
            avail: setup.addresses.driver,
            used: setup.addresses.device,
        };
        for fd in [&setup.kick, &setup.call, &setup.err].into_iter().flatten() {
            set_nonblocking(fd.as_ref())?;
        }
        let queue = Queue {
            index,
            layout,
            ring: self.ring(layout, &self.reached, setup.base.0)?,
            segments: Segments::new(self.reached.clone(), SEGMENTS),
            notifiers: Notifiers { kick: setup.kick, call: setup.call, err: setup.err },
            enabled: setup.enabled,
            awaits_enable: !setup.enabled,
            held: false,
            held_since: None,
            stopped: false,
            blocked: false,
            in_flight: InFlight::default(),
            record: match &self.records {
                Some(records) => records.of(index, setup.size, self.features)?,
                None => None,
            },
            throttled: false,
            call_waits: false,
            resumed: Vec::new(),
            retaken: Vec::new(),
            takes_over: self.had.insert(index),
            repeats: 0,
            waits: None,
            again: false,
            iommu: self.shared.iommu.clone(),
            features: self.features,
            log: self.log_of(index),
            shared: shared.clone(),
        };
        if queue.ring.base() != setup.base.0 {
            let (ring, asked) = (queue.ring.base(), setup.base.0);
            tracing::warn!(queue = %shared.name, "goes on at {ring}, as its used ring has it, and not at {asked}");
        }
        shared.set_error(None);
        self.shared.view().rings.insert(index, layout);
        if self.shared.traced() {
            self.shared.make_room_for_events();
        }
        if self.shared.sampled() {
            self.shared.make_room_for_samples();
        }
        self.workers.start_queue(queue);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<VringBase, DeviceError> {
        self.shared.view().rings.remove(&index);
        let queue = self.workers.stop_queue(index)?.ok_or("no such queue")?;
        if self.running().is_empty() {
            // A front-end without STATUS has no other way to say that a driver is gone, and with it what it had mapped.
            self.shared.iommu.clear();
        }
        Ok(VringBase(queue.ring.base()))
    }

    fn set_enabled(&mut self, index: u16, enabled: bool) -> Result<(), DeviceError> {
        Ok(self.workers.enable(index, enabled)?)
    }

    fn set_kick(&mut self, index: u16, kick: Option<Arc<OwnedFd>>) -> Result<(), DeviceError> {
        if let Some(kick) = &kick {
            set_nonblocking(kick.as_ref())?;
        }
        self.workers.notify(index, NotifierChange::Kick(kick));
        Ok(())
    }

    fn set_call(&mut self, index: u16, call: Option<Arc<OwnedFd>>) {
        self.workers.notify(index, NotifierChange::Call(usable(call)));
    }

    fn set_err(&mut self, index: u16, err: Option<Arc<OwnedFd>>) {
        self.workers.notify(index, NotifierChange::Err(usable(err)));
    }

    fn reset(&mut self) {
        for index in self.running() {
            let _ = self.stop_queue(index);
        }
        self.features = Features::NONE;
        self.reached = self.memory.clone();
        self.shared.iommu.clear();
        self.shared.view().negotiated = Features::NONE;
    }

    fn config(&self) -> Vec<u8> {
        self.model.config().unwrap_or_default()
    }

    fn set_config(&mut self, offset: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.model.set_config(offset, bytes)
    }

    fn in_flight_area(&mut self, queues: u16, size: u16) -> Result<(OwnedFd, u64), DeviceError> {
        let len = Records::len_for(queues, size, self.features);
        Ok((SharedArea::file(len)?, len))
    }

    fn set_in_flight_area(&mut self, area: Option<(OwnedFd, Inflight)>) -> Result<(), DeviceError> {
        self.records = match area {
            Some((file, told)) => Some(Records::open(file, &told)?),
            None => None,
        };
        Ok(())
    }

    fn set_log(&mut self, log: Option<Log>) -> Result<(), DeviceError> {
        if let Some(told) = log.as_ref().and_then(|log| log.told.as_ref()) {
            set_nonblocking(told.as_ref())?;
        }
        self.log = log.map(|Log { pages, told }| QueueLog { pages, ring: None, told });
        self.shared.view().log = self.log.as_ref().map(|log| Arc::clone(&log.pages));
        for index in self.running() {
            self.workers.log(index, self.log_of(index))?;
        }
        Ok(())
    }

    fn set_ring_log(&mut self, index: u16, at: Option<u64>) -> Result<(), DeviceError> {
        let before = match at {
            Some(at) => self.ring_logs.insert(index, at),
            None => self.ring_logs.remove(&index),
        };
        if before != at && self.log.is_some() && self.running().contains(&index) {
            self.workers.log(index, self.log_of(index))?;
        }
        Ok(())
    }

    fn send_rarp(&mut self, mac: [u8; 6]) -> Result<(), DeviceError> {
        self.workers.announce(mac)
    }

    fn set_backend_channel(&mut self, channel: Option<BackendChannel>) -> Result<(), DeviceError> {
        self.shared.iommu.set_channel(channel);
        Ok(())
    }

    fn iotlb_update(&mut self, entry: IotlbEntry) -> Result<(), DeviceError> {
        let Updated { replaced, awaited } = self.shared.iommu.update(&entry);
        if replaced {
            self.workers.forget(entry.iova, Iova(entry.iova.0.saturating_add(entry.size.saturating_sub(1))))?;
        } else if awaited {
            self.workers.translated();
        }
        Ok(())
    }

    fn iotlb_invalidate(&mut self, first: Iova, last: Iova) -> Result<(), DeviceError> {
        self.shared.iommu.invalidate(first, last);
        Ok(self.workers.forget(first, last)?)
    }
}

/// A file that cannot be made non-blocking is not written to at all: it could hang the worker.
fn usable(fd: Option<Arc<OwnedFd>>) -> Option<Arc<OwnedFd>> {
    fd.filter(|fd| set_nonblocking(fd.as_ref()).is_ok())
}
