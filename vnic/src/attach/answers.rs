//! The control socket's answers for a VM that is looked into: as far as they can be had from outside.
//!
//! Operation: each answer is a look of its own, at devices and rings as they are now. Since when a ring stands still is known
//! from the looks before.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::devices::{Device, Queue};
use super::ram::Ram;
use super::rings::{self, Look};
use super::trace::{Followed, Found, OnDemand, Vm};
use super::turn::{Still, so_for, whose_turn};
use super::{AttachError, Attached};
use crate::backend::guest::{Labelled, labelled};
use crate::observe::protocol::{FeatureSets, QueueStatus, RegionStatus, Reply, Request, RingSnapshot, Status};
use crate::sandbox;
use crate::serve::Admitted;
use crate::serve::control::Source;
use crate::serve::top;
use crate::serve::trace::Wanted;
use crate::spec::Features;
use crate::spec::device::NET;

/// What a client may ask of a VM that is looked into.
#[derive(Debug)]
pub struct Answers {
    state: Mutex<State>,
    tracing: OnDemand,
    locked_in: OnceLock<sandbox::Report>,
    me: Weak<Answers>,
}

#[derive(Debug)]
struct State {
    attached: Attached,
    /// Why the devices were not to be had when they were last looked up.
    trouble: Option<String>,
    still: Still,
}

impl Answers {
    /// Answers by these eyes.
    #[must_use]
    pub fn new(attached: Attached) -> Arc<Answers> {
        let state = Mutex::new(State { attached, trouble: None, still: Still::default() });
        Arc::new_cyclic(|me| Answers {
            state,
            tracing: OnDemand::default(),
            locked_in: OnceLock::new(),
            me: me.clone(),
        })
    }

    /// From now on says so, and what the process has given up.
    pub(super) fn locked_in(&self, report: sandbox::Report) {
        let _ = self.locked_in.set(report);
    }

    /// What those follow who follow the rings.
    fn followed(&self) -> Followed<Ram> {
        let devices = self.state().devices().map_err(|error| error.to_string())?;
        let me: Weak<dyn Vm<Ram>> = self.me.clone();
        Ok((me, devices))
    }

    /// Did the process end?
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.state().attached.ram().process().has_ended()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Vm<Ram> for Answers {
    fn look_up(&self) -> Option<Found<Ram>> {
        let mut state = self.state();
        let devices = state.devices().ok()?;
        Some(Found { ram: state.attached.shared_ram(), eyes: Some(state.attached.eyes().more()), devices })
    }

    fn kernel(&self) -> Result<String, String> {
        let state = self.state();
        state.trouble.clone().map_or_else(|| Ok(state.attached.release().to_owned()), Err)
    }

    fn look(&self, show: &mut dyn FnMut(Labelled<'_>)) {
        labelled(self.state().attached.eyes(), show);
    }
}

impl Source for Answers {
    fn answer(&self, request: Request) -> Reply {
        let mut state = self.state();
        if let Err(error) = state.attached.refresh() {
            return Reply::Error { message: error.to_string() };
        }
        let reply = match request {
            Request::Status => state.status().map(|status| {
                let sandbox = self.locked_in.get().cloned();
                Reply::Status(Box::new(Status { sandbox, ..status }))
            }),
            Request::Rings { queue } => state.rings(queue.as_deref()).map(|rings| Reply::Rings { rings }),
            Request::Page { addresses } => {
                let (labels, flags) = (state.attached.labels(&addresses), state.attached.flags(&addresses));
                Ok(Reply::Page { labels, flags, last_uses: Vec::new() })
            }
            Request::Life(_) => {
                let message = "what happens to pages is recorded by `vnic serve --life` only".to_owned();
                return Reply::Error { message };
            }
            Request::Hold { .. }
            | Request::Release { .. }
            | Request::Ping { .. }
            | Request::Trace { .. }
            | Request::Top { .. } => Err(AttachError::OnlyLooks),
        };
        reply.unwrap_or_else(|error| Reply::Error { message: error.to_string() })
    }

    fn trace(&self, stream: UnixStream, admitted: Admitted, wanted: Wanted) {
        self.tracing.trace(self.followed(), stream, admitted, wanted);
    }

    fn top(&self, client: top::Client) {
        self.tracing.top(self.followed(), client);
    }
}

impl State {
    /// The devices there are now. Why not, if not, is remembered.
    fn devices(&mut self) -> Result<Vec<Device>, AttachError> {
        let found = self.attached.refresh().and_then(|()| self.attached.devices());
        self.trouble = match &found {
            Ok(devices) => translated(devices),
            Err(error) => Some(error.to_string()),
        };
        found
    }

    fn status(&mut self) -> Result<Status, AttachError> {
        let devices = self.attached.devices()?;
        let mut queues = Vec::new();
        for device in &devices {
            for queue in &device.queues {
                let look = self.attached.look(queue, device)?;
                let mut status = self.queue(queue, &look);
                if let Some(waits) = status.waits.as_mut().filter(|_| device.behind_iommu()) {
                    waits.push_str("; behind the guest's IOMMU: its addresses are no guest-physical ones");
                }
                queues.push(status);
            }
        }
        let process = self.attached.ram().process();
        let regions = self.attached.ram().regions().map(|region| RegionStatus {
            gpa: region.gpa,
            size: region.size,
            user_addr: region.address,
            offset: region.offset,
        });
        let negotiated = devices.iter().flat_map(features);
        Ok(Status {
            device: "vm".to_owned(),
            devices: Vec::new(),
            socket: format!("process {} ({}), Linux {}", process.pid(), process.name(), self.attached.release()),
            pid: std::process::id(),
            link: words(&devices),
            connected: true,
            sessions: 1,
            last_error: devices.iter().find_map(|device| Some(format!("{}: {}", device.name, device.fault.as_ref()?))),
            features: FeatureSets { offered: Vec::new(), withheld: Vec::new(), negotiated: negotiated.collect() },
            protocol_features: Vec::new(),
            regions: regions.collect(),
            sandbox: None,
            hardware: None,
            proxy: None,
            migration: None,
            iotlb: None,
            queues,
            idle_ns: 0,
            link_counters: BTreeMap::new(),
        })
    }

    fn queue(&mut self, queue: &Queue, look: &Look) -> QueueStatus {
        let ring = &look.ring;
        let stands = (ring.avail_idx, ring.used_idx, queue.last_used);
        let uncollected = if queue.packed.is_none() { ring.used_idx.wrapping_sub(queue.last_used) } else { 0 };
        let turn = whose_turn(queue, ring.in_flight, uncollected) + &so_for(self.still.seconds(&queue.name, stands));
        // A console's ports that nobody opened, say: there is nothing to tell.
        let unused = stands == (0, 0, 0);
        let state = if queue.broken {
            "stopped"
        } else if unused {
            "unused"
        } else {
            "running"
        };
        let counters = [
            ("avail_idx", ring.avail_idx.into()),
            ("used_idx", ring.used_idx.into()),
            ("in_flight", ring.in_flight.into()),
            ("uncollected", uncollected.into()),
            ("not_kicked", queue.added.into()),
            ("free_descriptors", if unused { 0 } else { queue.free.into() }),
        ];
        QueueStatus {
            queue: queue.name.clone(),
            state: state.to_owned(),
            waits: (!unused).then_some(turn),
            error: ring.faults.first().cloned().or_else(|| queue.broken.then(|| "its driver gave it up".to_owned())),
            size: queue.layout.size,
            event_suppression: look.event_suppression.filter(|_| !unused),
            counters: counters.into_iter().map(|(name, count): (&str, u64)| (name.to_owned(), count)).collect(),
        }
    }

    fn rings(&mut self, only: Option<&str>) -> Result<Vec<RingSnapshot>, AttachError> {
        let devices = self.attached.devices()?;
        let all = devices.iter().flat_map(|device| device.queues.iter().map(move |queue| (device, queue)));
        let wanted = all.filter(|(_, queue)| only.is_none_or(|only| only == queue.name));
        let rings: Vec<_> = wanted
            .map(|(device, queue)| Ok(self.attached.look(queue, device)?.ring))
            .collect::<Result<_, AttachError>>()?;
        match only {
            Some(name) if rings.is_empty() => {
                let names = devices.iter().map(|device| some_of(device.queues.iter().map(|queue| queue.name.as_str())));
                let names = names.collect::<Vec<_>>().join(", ");
                Err(AttachError::NoQueue { name: name.to_owned(), names })
            }
            _ => Ok(rings),
        }
    }
}

/// The names of a device's queues, the first of them where there are many: a console has two for each of its ports.
fn some_of<'n>(names: impl ExactSizeIterator<Item = &'n str>) -> String {
    let more = names.len().saturating_sub(NAMED);
    let text = names.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{text} and {more} more") } else { text }
}

/// Queues of a device that are named to who asks for one that is not there.
const NAMED: usize = 6;

/// Why no frame can be followed, where every NIC is behind the guest's IOMMU.
fn translated(devices: &[Device]) -> Option<String> {
    let mut nics = devices.iter().filter(|device| device.kind == NET).peekable();
    (nics.peek().is_some() && nics.all(Device::behind_iommu)).then(|| format!("the guest's NICs are {IOMMU}"))
}

/// Behind the name of a device whose features have `access_platform`.
const IOMMU: &str = "behind its IOMMU (access_platform): where their addresses lead cannot be said from outside, so that no trace follows them";

/// What a device's driver negotiated, by name; what only devices of another kind than a NIC have, by number.
fn features(device: &Device) -> Vec<String> {
    /// VIRTIO 1.3, 6 Reserved Feature Bits: from here on, bits mean the same for all devices.
    const OF_ALL: std::ops::Range<u32> = 24..50;
    let of = |bit: u32| Features(device.features.0 & 1 << bit).names();
    let name = |bit: u32| {
        let own = device.kind != NET && !OF_ALL.contains(&bit) && device.features.0 >> bit & 1 == 1;
        if own { vec![format!("bit {bit}")] } else { of(bit) }
    };
    (0..64).flat_map(name).map(|name| format!("{}.{name}", device.name)).collect()
}

/// The devices in words.
fn words(devices: &[Device]) -> String {
    let one = |device: &Device| {
        let driver = device.driver.as_deref().unwrap_or("no driver");
        format!("{} = {driver} on {}", device.name, device.parent)
    };
    devices.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl Attached {
    fn look(&self, queue: &Queue, device: &Device) -> Result<Look, AttachError> {
        let shadow = rings::shadow(self.ram()).map_err(AttachError::Host)?;
        rings::look(self.ram(), &shadow, queue, device.features, self.position(queue)).map_err(AttachError::Host)
    }
}
