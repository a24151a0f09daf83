//! The network card: virtio-net on the [engine](crate::backend), with a [link](crate::link) behind it.
//!
//! | file | |
//! |---|---|
//! | `data_path` | a pass over the queue pairs of a worker |
//! | `transmit`, `receive`, `hairpin` | one burst of a queue, or of a pair |
//! | `announce` | where a guest has moved to |
//! | `hardware` | a model of a card beside it: account and pace |
//! | `observers` | tracer, capture, who else looks |

mod announce;
mod arrivals;
mod data_path;
mod hairpin;
mod hardware;
mod labels;
mod observers;
mod receive;
#[cfg(test)]
pub(crate) mod tests;
mod transmit;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::backend::{DeviceModel, NamedCounters, Plan, Shared, Workers};
use crate::hardware::{Applied, Shapes};
use crate::link::capture::Labels;
use crate::link::{AnyPort, Capture, LinkCounters, Port};
use crate::observe::observer::Observer;
use crate::spec::{Features, device};
use data_path::{NicDataPath, Observe};
use hardware::{Accounting, Pace, TellShapes};
use observers::Observers;

/// Queues that one worker must have together: a pair.
pub const GROUP: u16 = 2;

/// The NIC as its driver finds it. Its configuration space and control queue are QEMU's.
#[derive(Debug, Clone, Copy)]
pub struct Nic {
    /// Features on offer.
    pub offered: Features,
    /// Queue pairs.
    pub queue_pairs: u16,
    /// The largest ring.
    pub queue_size: u16,
}

impl DeviceModel for Nic {
    fn name(&self) -> &'static str {
        "net"
    }

    fn device_id(&self) -> u32 {
        device::NET
    }

    fn offered(&self) -> Features {
        self.offered
    }

    fn queues(&self) -> u16 {
        self.queue_pairs.saturating_mul(2)
    }

    fn queue_name(&self, index: u16) -> String {
        queue_name(index)
    }

    fn max_queue_size(&self) -> u16 {
        self.queue_size
    }

    fn queue_num(&self) -> u64 {
        u64::from(self.queue_pairs)
    }

    fn announces(&self) -> bool {
        true
    }

    fn records_in_flight(&self) -> bool {
        true
    }
}

/// VIRTIO 1.3, 5.1.2 Virtqueues: odd indices transmit.
const fn is_transmitq(index: u16) -> bool {
    index % 2 == 1
}

/// `receiveqN` or `transmitqN`. VIRTIO 1.3, 5.1.2 Virtqueues.
#[must_use]
pub fn queue_name(index: u16) -> String {
    let role = if is_transmitq(index) { "transmitq" } else { "receiveq" };
    format!("{role}{}", index / 2)
}

impl NamedCounters for LinkCounters {
    fn read(&self) -> BTreeMap<String, u64> {
        self.to_map()
    }
}

/// What goes on beside the data path.
#[derive(Debug, Clone, Copy, Default)]
pub struct Beside<'a> {
    /// Every frame is written to this.
    pub capture: Option<&'a Capture>,
    /// The chains are accounted, or paced, by this model. Paced: by one worker.
    pub hardware: Option<&'a Applied>,
}

/// Labels for the capture of this device.
pub(crate) fn labels(shared: &Arc<Shared>) -> Box<dyn Labels> {
    Box::new(labels::CaptureLabels::new(shared.clone()))
}

/// Starts a worker per port; all write to one capture. Queue pair `p` belongs to worker `p % ports`, for good.
///
/// # Errors
/// A thread, an eventfd, a timer or an epoll instance is not to be had, or a CPU is not this process's.
pub fn start(ports: Vec<AnyPort>, beside: Beside<'_>, plan: &Plan<'_>) -> std::io::Result<Workers> {
    let mut workers = Workers::new(GROUP);
    for port in ports {
        // A worker of its own kind for each kind of link: its loop knows what it calls.
        match port {
            AnyPort::Peer(port) => add(&mut workers, *port, beside, plan),
            AnyPort::Tap(port) => add(&mut workers, *port, beside, plan),
            AnyPort::Stream(port) => add(&mut workers, *port, beside, plan),
            AnyPort::Sink(port) => add(&mut workers, port, beside, plan),
            AnyPort::CopyingSink(port) => add(&mut workers, port, beside, plan),
            AnyPort::Loopback(port) => add(&mut workers, port, beside, plan),
        }?;
    }
    Ok(workers)
}

/// Starts a worker on a port of any kind.
pub(crate) fn add<P: Port + 'static>(
    workers: &mut Workers,
    port: P,
    beside: Beside<'_>,
    plan: &Plan<'_>,
) -> std::io::Result<()> {
    let Beside { capture, hardware } = beside;
    let accounting = hardware.map(|_| Accounting::new());
    let observers = Observers { capture: capture.cloned(), accounting, ..Observers::default() };
    // An ideal card takes no time.
    let paced = hardware.filter(|applied| applied.pace).and_then(|applied| applied.model.hardware.as_ref());
    let pace = paced.map(Pace::new).transpose()?;
    workers.add(NicDataPath::new(port, plan.shared.clone(), observers, pace), plan)
}

/// The shapes of the chains that were looked at, of each of a NIC's queues by its name; none where they are not accounted.
#[must_use]
pub fn shapes(workers: &Workers) -> BTreeMap<String, Shapes> {
    workers.tell(|reply| Box::new(TellShapes(reply))).into_iter().flatten().collect()
}

/// Gives every worker of a NIC an observer of its own, or none; returns those that looked so far.
pub fn observe(workers: &Workers, observer: impl FnMut() -> Option<Box<dyn Observer>>) -> Vec<Box<dyn Observer>> {
    let mut observer = observer;
    let before = workers.tell(|reply| Box::new(Observe { observer: observer(), reply }));
    before.into_iter().flatten().collect()
}
