//! The control socket's answers, from what passes.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::kind::DeviceKind;
use super::rings::{self, InKernel, Seen, SeenQueue};
use super::view::{About, Eyes, Peers};
use crate::attach::trace::{Followed, Found, OnDemand, Vm};
use crate::attach::turn::{Still, so_for, whose_turn};
use crate::backend::guest::{Labelled, labelled};
use crate::memory::Onlooker;
use crate::observe::protocol::{FeatureSets, ProxyStatus, QueueStatus, Reply, Request, Status};
use crate::ring::snapshot::RingSnapshot;
use crate::sandbox;
use crate::serve::control::Source;
use crate::serve::trace::Wanted;
use crate::serve::{Admitted, status, top};
use crate::spec::Feature;

/// What a client may ask of a session that passes.
#[derive(Debug)]
pub(super) struct Answers {
    eyes: Arc<Eyes>,
    in_kernel: InKernel,
    still: Mutex<Still>,
    tracing: OnDemand,
    locked_in: OnceLock<sandbox::Report>,
    me: Weak<Answers>,
}

impl Answers {
    pub(super) fn new(about: About) -> Arc<Answers> {
        let eyes = Arc::new(Eyes::new(about));
        Arc::new_cyclic(|me| Answers {
            eyes,
            in_kernel: InKernel::default(),
            still: Mutex::default(),
            tracing: OnDemand::default(),
            locked_in: OnceLock::new(),
            me: me.clone(),
        })
    }

    /// From now on says so, and what the process has given up.
    pub(super) fn locked_in(&self, report: sandbox::Report) {
        let _ = self.locked_in.set(report);
    }

    pub(super) fn eyes(&self) -> &Arc<Eyes> {
        &self.eyes
    }

    /// Another session: other rings, and another guest as it may be.
    pub(super) fn begin(&self) {
        self.eyes.forget(Peers::FrontEnd);
        self.in_kernel.forget();
        lock(&self.still).forget();
    }

    /// Looks whether the rings move: so that who asks later learns since when they do not.
    pub(super) fn glance(&self) {
        let Some(memory) = self.eyes.memory().filter(|memory| !memory.lost()) else { return };
        let kind = self.eyes.kind();
        let (packed, vrings) = {
            let said = &self.eyes.view().said;
            (said.negotiated.has(Feature::RingPacked), said.vrings.clone())
        };
        if packed {
            return;
        }
        for (index, vring) in vrings.iter().filter(|(_, vring)| vring.runs) {
            if let Some((avail, used)) = rings::indices_of(&memory, &vring.layout) {
                let name = super::kind::queue_name(kind, *index);
                lock(&self.still).seconds(&name, (avail, used, 0));
            }
        }
    }

    fn see(&self) -> Option<Seen> {
        rings::see(&self.eyes, &self.in_kernel)
    }

    fn onlooker(seen: &Seen) -> Option<Arc<Onlooker>> {
        Onlooker::new(&seen.guest.memory).ok().map(Arc::new)
    }

    fn status(&self) -> Status {
        let seen = self.see();
        let kind = self.eyes.kind();
        let onlooker = seen.as_ref().and_then(Answers::onlooker);
        let queues = seen.iter().flat_map(|seen| seen.queues.iter().map(move |queue| (seen, queue)));
        let queues = queues.map(|(seen, queue)| self.queue(seen, queue, onlooker.as_ref())).collect();
        let view = self.eyes.view();
        let said = &view.said;
        let (name, behind) = (kind.map_or("unknown", DeviceKind::name), said.negotiated.has(Feature::AccessPlatform));
        Status {
            device: name.to_owned(),
            devices: Vec::new(),
            socket: self.eyes.about.socket.clone(),
            pid: std::process::id(),
            link: String::new(),
            connected: view.peers != Peers::None,
            sessions: view.sessions,
            last_error: view.last_error.clone(),
            features: FeatureSets {
                offered: said.offered.names_for(name),
                withheld: Vec::new(),
                negotiated: said.negotiated.names_for(name),
            },
            protocol_features: said.protocol.names(),
            regions: status::regions(said.memory.as_deref()),
            migration: None,
            hardware: None,
            sandbox: self.locked_in.get().cloned(),
            iotlb: behind.then(|| status::translations(&self.eyes.iotlb, &self.eyes.iotlb)),
            proxy: Some(ProxyStatus {
                back_end: self.eyes.about.back_end.clone(),
                back_end_connected: view.peers == Peers::Both,
                kernel: seen.as_ref().map(|seen| match &seen.kernel {
                    Ok(kernel) => {
                        let driver = kernel
                            .device
                            .as_ref()
                            .and_then(|device| Some(format!(", {} ({})", device.driver.as_deref()?, device.name)));
                        format!("Linux {}{}", kernel.release, driver.unwrap_or_default())
                    }
                    Err(why) => why.clone(),
                }),
                counters: view.counts.named(),
            }),
            queues,
            idle_ns: 0,
            link_counters: BTreeMap::new(),
        }
    }

    fn queue(&self, seen: &Seen, queue: &SeenQueue, onlooker: Option<&Arc<Onlooker>>) -> QueueStatus {
        let SeenQueue { vring, queue: known, has_books } = queue;
        let state = match (vring.runs, vring.enabled) {
            (false, _) => "off",
            (true, false) => "disabled",
            (true, true) if known.broken => "stopped",
            (true, true) => "running",
        };
        let mut status = QueueStatus {
            queue: known.name.clone(),
            state: state.to_owned(),
            waits: None,
            error: None,
            size: vring.layout.size,
            event_suppression: None,
            counters: BTreeMap::new(),
        };
        if !vring.runs {
            return status;
        }
        let ring = seen.ring(queue, onlooker);
        let wants = seen.event_suppression(queue);
        let stands = (ring.avail_idx, ring.used_idx, 0);
        let books = *has_books && known.packed.is_none();
        let uncollected = if books { ring.used_idx.wrapping_sub(known.last_used) } else { 0 };
        let mut counters = vec![
            ("avail_idx", u64::from(ring.avail_idx)),
            ("used_idx", ring.used_idx.into()),
            ("in_flight", ring.in_flight.into()),
        ];
        if *has_books {
            counters.push(("uncollected", uncollected.into()));
            counters.push(("not_kicked", known.added.into()));
        }
        let turn = whose_turn(known, ring.in_flight, uncollected);
        let still = lock(&self.still).seconds(&known.name, stands);
        status.waits = Some(turn + &rings::notifications(queue, &ring, wants, still) + &so_for(still));
        status.error = ring.faults.first().cloned();
        status.event_suppression = wants;
        status.counters = counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
        status
    }

    fn rings(&self, only: Option<&str>) -> Result<Vec<RingSnapshot>, String> {
        let seen = self.see().ok_or_else(|| self.nothing())?;
        let onlooker = Answers::onlooker(&seen);
        let wanted = seen.running().filter(|queue| only.is_none_or(|only| only == queue.queue.name));
        let rings: Vec<_> = wanted.map(|queue| seen.ring(queue, onlooker.as_ref())).collect();
        match only {
            Some(name) if rings.is_empty() => {
                let names: Vec<&str> = seen.running().map(|queue| queue.queue.name.as_str()).collect();
                Err(format!("there is no queue `{name}`; this session has {}", names.join(", ")))
            }
            _ => Ok(rings),
        }
    }

    /// Why there is nothing to be seen.
    fn nothing(&self) -> String {
        match self.eyes.view().peers {
            Peers::None => "no front-end is connected".to_owned(),
            Peers::FrontEnd => {
                format!("the front-end waits for the back-end: nobody listens at {}", self.eyes.about.back_end)
            }
            Peers::Both => "no ring is set up: no driver uses the device at the moment".to_owned(),
        }
    }

    fn pages(&self, addresses: &[u64]) -> Result<Reply, String> {
        let guest = self.eyes.guest_memory().ok_or_else(|| self.nothing())?;
        let looked = self.eyes.labels.look_closely(&guest, addresses);
        let (labels, flags) = looked.map_err(|error| error.to_string())?;
        Ok(Reply::Page { labels, flags, last_uses: Vec::new() })
    }

    /// What those follow who follow the rings: the queues that there are now.
    fn followed(&self) -> Followed<Onlooker> {
        let seen = self.see().ok_or_else(|| self.nothing())?;
        if seen.features.has(Feature::AccessPlatform) {
            return Err("the driver's addresses go through the guest's IOMMU: no trace follows them through a proxy; `rings` and `status` do".to_owned());
        }
        let me: Weak<dyn Vm<Onlooker>> = self.me.clone();
        Ok((me, vec![seen.device(self.eyes.kind())]))
    }
}

impl Vm<Onlooker> for Answers {
    fn look_up(&self) -> Option<Found<Onlooker>> {
        let seen = self.see()?;
        let devices = vec![seen.device(self.eyes.kind())];
        let eyes = seen.kernel.is_ok().then(|| self.eyes.labels.watch(&seen.guest, |eyes| eyes.more()).ok()).flatten();
        let ram = match &eyes {
            Some(eyes) => eyes.memory().clone(),
            None => Answers::onlooker(&seen)?,
        };
        Some(Found { ram, eyes, devices })
    }

    fn kernel(&self) -> Result<String, String> {
        self.see().ok_or_else(|| self.nothing())?.kernel.map(|kernel| kernel.release)
    }

    fn look(&self, show: &mut dyn FnMut(Labelled<'_>)) {
        if let Some(guest) = self.eyes.guest_memory() {
            // Without a kernel there is nothing to be said.
            let _ = self.eyes.labels.watch(&guest, |eyes| labelled(eyes, show));
        }
    }
}

impl Source for Answers {
    fn answer(&self, request: Request) -> Reply {
        let only_looks = "`vnic proxy` only looks: it holds and sends nothing";
        let reply = match request {
            Request::Status => Ok(Reply::Status(Box::new(self.status()))),
            Request::Rings { queue } => self.rings(queue.as_deref()).map(|rings| Reply::Rings { rings }),
            Request::Page { addresses } => self.pages(&addresses),
            Request::Life(_) => Err("what happens to pages is recorded by `vnic serve --life` only".to_owned()),
            Request::Hold { .. }
            | Request::Release { .. }
            | Request::Ping { .. }
            | Request::Trace { .. }
            | Request::Top { .. } => Err(only_looks.to_owned()),
        };
        reply.unwrap_or_else(|message| Reply::Error { message })
    }

    fn trace(&self, stream: UnixStream, admitted: Admitted, wanted: Wanted) {
        self.tracing.trace(self.followed(), stream, admitted, wanted);
    }

    fn top(&self, client: top::Client) {
        self.tracing.top(self.followed(), client);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
