//! The control socket: answers those who look, without disturbing what they look at.
//!
//! Place: beside the data path, on a fixed set of threads that are there from the beginning. Each takes a client and talks
//! with it to its end; those who trace are all followed by one thread ([`trace`]). Limits: [`MAX_CLIENTS`] at a time; a
//! further one is told so.

use std::fmt;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use serde_json::Value;

pub use socket::{ControlSocket, MAX_CLIENTS, Server};

use super::client::{Admitted, send};
use super::life::Lives;
use super::top::Keeping;
use super::trace::Wanted;
use super::{hardware, metrics, status, top, trace};
use crate::backend::labels::{Eyes, GuestMemory};
use crate::backend::{QueueState, Shared, Workers};
use crate::introspect::{Label, Stamped, Stamper};
use crate::life::Step;
use crate::link::peer::Pinger;
use crate::memory::Onlooker;
use crate::observe::protocol::{LifeOf, Reply, Request, RingSnapshot, Status};
use crate::sandbox;
use crate::spec::Feature;

/// How long the guest's IOMMU has for the translations of what a held queue was given; a fuzzer's guest has none that answers.
const TRANSLATED: Duration = Duration::from_secs(if cfg!(fuzzing) { 0 } else { 2 });
/// How long between two looks for them.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What a program adds to the control socket of the devices that it serves.
pub trait Extension: fmt::Debug + Send + Sync {
    /// The answer to a request that the device does not know, a JSON object like [`Reply`]; `None` if it is not one of the
    /// extension's either.
    fn answer(&self, request: &Value, device: &Control) -> Option<Value>;
}

/// Who has the answers: devices that are served, or a VM that is looked into.
pub trait Source: fmt::Debug + Send + Sync {
    /// The answer to a request; `Trace` and `Top` are none of them.
    fn answer(&self, request: Request) -> Reply;

    /// Tells the client of every chain from now on, with what is wanted of it. It is one for as long as `admitted` lives.
    fn trace(&self, stream: UnixStream, admitted: Admitted, wanted: Wanted);

    /// Tells the client again and again from what the frames come that the guest sends.
    fn top(&self, mut client: top::Client) {
        let message = "there is no account of what is sent here".to_owned();
        let _ = send(&mut client.stream, &Reply::Error { message });
    }

    /// The answer to what is none of [`Request`].
    fn extended(&self, _request: &Value) -> Option<Value> {
        None
    }

    /// All counters, in Prometheus text form: of a device of somebody else's, what `status` has.
    fn metrics(&self) -> String {
        match self.answer(Request::Status) {
            Reply::Status(status) => metrics::of_status(&status),
            _ => String::new(),
        }
    }
}

/// A device that can be looked at.
#[derive(Debug, Clone)]
pub struct Device {
    /// What it shares.
    pub shared: Arc<Shared>,
    /// Its workers.
    pub workers: Arc<Workers>,
    /// Has the link's peer ping the guest, where there is one.
    pub pinger: Option<Pinger>,
}

/// What the threads work on.
#[derive(Debug)]
pub struct Control {
    devices: Vec<Device>,
    extension: Option<Arc<dyn Extension>>,
    keeping: Keeping,
    lives: Option<Lives>,
    locked_in: Option<sandbox::Report>,
}

/// What is served, with the thread that follows the event rings.
#[derive(Debug)]
struct Served {
    control: Control,
    tracing: Sender<trace::Asked>,
    keeper: top::Kept,
}

impl Source for Served {
    fn answer(&self, request: Request) -> Reply {
        self.control.answer(request)
    }

    fn trace(&self, stream: UnixStream, admitted: Admitted, wanted: Wanted) {
        let client = trace::Client { stream, _admitted: Some(admitted) };
        // Nobody is left to hear that the thread is gone.
        let _ = self.tracing.send(trace::Asked { client, wanted });
    }

    fn top(&self, client: top::Client) {
        self.keeper.teller().tell(client);
    }

    fn extended(&self, request: &Value) -> Option<Value> {
        self.control.extension.as_ref()?.answer(request, &self.control)
    }

    fn metrics(&self) -> String {
        let parts = self.control.devices.iter().map(Device::parts);
        let costs: Vec<_> = parts.filter_map(|(shared, workers)| hardware::status(shared, workers)).collect();
        metrics::text(&self.control.shared(), &costs)
    }
}

impl Control {
    /// To be looked at: these devices. What the control socket does not know, the extension may.
    #[must_use]
    pub fn new(devices: Vec<Device>, extension: Option<Arc<dyn Extension>>) -> Self {
        Control { devices, extension, keeping: Keeping::default(), lives: None, locked_in: None }
    }

    /// Has accounts of what is sent kept, for `vnic top`.
    #[must_use]
    pub fn keeping(self, keeping: Keeping) -> Self {
        Control { keeping, ..self }
    }

    /// Has it recorded in here what happens to the guest's pages, for `vnic life`.
    #[must_use]
    pub(super) fn recording(self, lives: Option<Lives>) -> Self {
        Control { lives, ..self }
    }

    /// Says so, and what the process has given up.
    #[must_use]
    pub fn locked_in(self, report: sandbox::Report) -> Self {
        Control { locked_in: Some(report), ..self }
    }

    fn answer(&self, request: Request) -> Reply {
        match request {
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Rings { queue } => self.rings(queue.as_deref()),
            Request::Hold { queue } => self.hold(&queue, true),
            Request::Release { queue } => self.hold(&queue, false),
            Request::Ping { to } => self.ping(to),
            Request::Page { addresses } => self.pages(&addresses).unwrap_or_else(|message| Reply::Error { message }),
            Request::Life(of) => self.life(&of),
            Request::Trace { .. } | Request::Top { .. } => Reply::Done,
        }
    }

    fn status(&self) -> Status {
        let device = |device: &Device| {
            let (shared, workers) = device.parts();
            let sandbox = self.locked_in.clone();
            Status { hardware: hardware::status(shared, workers), sandbox, ..status::device(shared) }
        };
        status::joined(self.devices.iter().map(device).collect())
    }

    /// The state of every device.
    fn shared(&self) -> Vec<&Shared> {
        self.devices.iter().map(|device| device.shared.as_ref()).collect()
    }

    /// The queue of this name, and the device that has it.
    fn find(&self, name: &str) -> Option<(&Device, u16)> {
        self.devices.iter().find_map(|device| Some((device, device.shared.index_of(name)?)))
    }

    fn rings(&self, queue: Option<&str>) -> Reply {
        let Some(name) = queue else {
            let rings = self.devices.iter().flat_map(|device| status::rings(&device.shared, None));
            return Reply::Rings { rings: rings.collect() };
        };
        let Some((device, index)) = self.find(name) else { return Reply::Error { message: self.no_queue(name) } };
        device.look_over(index);
        Reply::Rings { rings: status::rings(&device.shared, Some(index)) }
    }

    fn ping(&self, to: IpAddr) -> Reply {
        let Some(pinger) = self.devices.iter().find_map(|device| device.pinger.as_ref()) else {
            let links = self.devices.iter().map(|device| device.shared.about.link.as_str());
            let link = links.into_iter().find(|link| !link.is_empty()).unwrap_or("of this device");
            return Reply::Error { message: format!("the link {link} pings nobody: only peer does") };
        };
        match pinger.ping(to) {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Error { message: error.to_string() },
        }
    }

    /// Whose the pages of buffers are that were given stamps, by the guest kernel's own structures: of each, a label for each page
    /// or one for all. See [`Introspection::labels_of`](crate::introspect::Introspection::labels_of).
    ///
    /// # Errors
    /// There is no kernel that can be looked into: a sentence.
    pub fn labels_of(&self, buffers: &[Stamped]) -> Result<Vec<Vec<Label>>, String> {
        let (shared, guest) = self.guest()?;
        let labels = |eyes: &mut Eyes| {
            let mut sitting = eyes.sit();
            let mut of_one = |buffer: &Stamped| {
                let mut labels = Vec::new();
                sitting.labels_of(buffer.gpa, buffer.len, buffer.stamp, &mut labels);
                labels
            };
            buffers.iter().map(&mut of_one).collect()
        };
        shared.labels.watch(&guest, labels).map_err(|error| error.to_string())
    }

    /// What takes the stamps of buffers, of the kernel that runs now: for an observer.
    ///
    /// # Errors
    /// No guest, or none whose kernel can be looked into: a sentence.
    pub fn stamper(&self) -> Result<Arc<Stamper<Arc<Onlooker>>>, String> {
        let (shared, guest) = self.guest()?;
        shared.labels.want_stamps(&guest).map(|(_, stamper)| stamper)
    }

    /// The first device that knows its guest's memory: devices of one process are one guest's, as a rule.
    fn guest(&self) -> Result<(Arc<Shared>, GuestMemory), String> {
        let known = |device: &Device| Some((device.shared.clone(), device.shared.guest_memory()?));
        self.devices.iter().find_map(known).ok_or_else(|| "no front-end has shared a guest's memory".to_owned())
    }

    fn pages(&self, addresses: &[u64]) -> Result<Reply, String> {
        let (shared, guest) = self.guest()?;
        let looked = shared.labels.look_closely(&guest, addresses);
        let (labels, flags) = looked.map_err(|error| error.to_string())?;
        Ok(Reply::Page { labels, flags, last_uses: self.last_uses(addresses) })
    }

    /// When a device last had these pages, and what for, as far as that is recorded.
    fn last_uses(&self, addresses: &[u64]) -> Vec<Option<Step>> {
        let Some(lives) = &self.lives else { return Vec::new() };
        let log = lives.log();
        addresses.iter().map(|gpa| log.last_of(*gpa).cloned()).collect()
    }

    fn life(&self, of: &LifeOf) -> Reply {
        let Some(lives) = &self.lives else {
            let message = "what happens to pages is not recorded here: start `vnic serve --life`".to_owned();
            return Reply::Error { message };
        };
        let log = lives.up_to_date();
        Reply::Life(Box::new(match of {
            LifeOf::Page { gpa } => log.of_page(*gpa),
            LifeOf::File { path } => log.of_file(path),
            LifeOf::Pages { addresses } => log.of_pages(addresses),
        }))
    }

    fn hold(&self, name: &str, on: bool) -> Reply {
        match self.find(name) {
            Some((device, index)) if device.workers.hold(index, on) => Reply::Done,
            Some(_) => Reply::Error { message: not_set_up(name) },
            None => Reply::Error { message: self.no_queue(name) },
        }
    }

    /// What stands in a queue's ring. Behind an IOMMU, of a held one: with the translations of what it was given, as far as they
    /// come.
    ///
    /// # Errors
    /// There is no such queue, or no driver uses it: a sentence.
    pub fn ring(&self, name: &str) -> Result<RingSnapshot, String> {
        let (device, index) = self.find(name).ok_or_else(|| self.no_queue(name))?;
        device.look_over(index);
        status::rings(&device.shared, Some(index)).into_iter().next().ok_or_else(|| not_set_up(name))
    }

    fn no_queue(&self, name: &str) -> String {
        let queues = self.devices.iter().flat_map(|device| &device.shared.queues);
        let names: Vec<&str> = queues.map(|queue| queue.name.as_str()).collect();
        format!("there is no queue `{name}`; this device has {}", names.join(", "))
    }
}

impl Device {
    fn parts(&self) -> (&Shared, &Workers) {
        (&self.shared, &self.workers)
    }

    /// Behind an IOMMU: has the translations fetched of what a held queue was given, as far as they come.
    fn look_over(&self, index: u16) {
        let held = self.shared.queues.get(usize::from(index)).is_some_and(|queue| queue.state() == QueueState::Held);
        if !held || !self.shared.view().negotiated.has(Feature::AccessPlatform) {
            return;
        }
        let deadline = Instant::now() + TRANSLATED;
        while !self.workers.look_over(index) && Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

fn not_set_up(name: &str) -> String {
    format!("{name} is not set up: no driver uses it at the moment")
}

mod observers;
mod socket;
#[cfg(test)]
mod tests;
