//! What workers, the session and the control socket share.
//!
//! Place: the session thread writes the [`View`], the control threads read it; workers touch only the [`QueueShared`]s,
//! which hold atomics. Invariant: the data path takes no lock of this file; the two it can reach (a queue's last error,
//! a counter's named happenings) are taken when a ring stops or a frame is lost, and held for moments only.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::iommu::Iommu;
use super::labels::{GuestMemory, Labels};
use crate::hardware::Applied;
use crate::memory::iotlb::PAGE;
use crate::memory::{Access, DirtyLog, FilePages, Memory, Miss};
use crate::observe::counters::QueueCounters;
use crate::observe::tracer::EventRing;
use crate::ring::RingLayout;
use crate::spec::Features;

/// A queue's state, as the CLI names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum QueueState {
    /// Not set up.
    Off = 0,
    /// Set up, not enabled.
    Disabled = 1,
    /// At work.
    Running = 2,
    /// At work, but its buffers are held.
    Held = 3,
    /// Stopped because of what the driver wrote.
    Stopped = 4,
    /// Waits for translations of the guest's IOMMU.
    Waiting = 5,
}

impl QueueState {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            QueueState::Off => "off",
            QueueState::Disabled => "disabled",
            QueueState::Running => "running",
            QueueState::Held => "held",
            QueueState::Stopped => "stopped",
            QueueState::Waiting => "waiting",
        }
    }

    const fn from_u8(value: u8) -> Self {
        match value {
            1 => QueueState::Disabled,
            2 => QueueState::Running,
            3 => QueueState::Held,
            4 => QueueState::Stopped,
            5 => QueueState::Waiting,
            _ => QueueState::Off,
        }
    }
}

/// In a queue's word for the page it waits for: there is one.
const WAITS: u64 = 2;

/// The face of one queue to everyone but its worker.
#[derive(Debug)]
pub struct QueueShared {
    /// `receiveq0`, `transmitq0`, …
    pub name: String,
    /// What happened on it.
    pub counters: QueueCounters,
    /// Its events, while someone traces.
    pub events: EventRing,
    /// Some of its events, while someone is content with samples. Of transmitqs only.
    pub samples: EventRing,
    /// Events that had no room, or were overwritten before a follower had read them; each follower counts its own.
    pub trace_lost: AtomicU64,
    /// Where the ring stands, as `DeviceRing::base` says it: of a packed ring nobody could tell from memory.
    pub base: AtomicU32,
    state: AtomicU8,
    /// The page whose translation it waits for, with `WAITS` and, lowest, whether to write; 0: none.
    waits_for: AtomicU64,
    error: Mutex<Option<String>>,
}

impl QueueShared {
    /// A queue of this name, one of so many, not set up.
    #[must_use]
    pub fn new(name: String, of: usize) -> Self {
        QueueShared {
            name,
            counters: QueueCounters::default(),
            events: EventRing::default(),
            samples: EventRing::for_samples(of),
            trace_lost: AtomicU64::new(0),
            base: AtomicU32::new(0),
            state: AtomicU8::new(QueueState::Off as u8),
            waits_for: AtomicU64::new(0),
            error: Mutex::new(None),
        }
    }

    /// Is it a transmitq? From outside, the device's name stands before the queue's.
    #[must_use]
    pub fn is_transmitq(&self) -> bool {
        self.name.rsplit(['.', '/']).next().is_some_and(|name| name.starts_with("transmitq"))
    }

    /// All that is counted of it, by name.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let mut all = self.counters.snapshot();
        all.insert("trace_lost".to_owned(), self.trace_lost.load(Ordering::Relaxed));
        all
    }

    /// Its state now.
    #[must_use]
    pub fn state(&self) -> QueueState {
        QueueState::from_u8(self.state.load(Ordering::Relaxed))
    }

    /// Says its state. A new start forgets why it stopped before.
    pub fn set_state(&self, state: QueueState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    /// Says why it stopped, or forgets it.
    pub fn set_error(&self, error: Option<String>) {
        *lock(&self.error) = error;
    }

    /// Says which translation it waits for, or none.
    pub fn set_waits_for(&self, miss: Option<Miss>) {
        // Shown to the page: below, there is room for what for.
        let word = miss.map_or(0, |miss| miss.iova & !(PAGE - 1) | WAITS | u64::from(miss.access == Access::Write));
        self.waits_for.store(word, Ordering::Relaxed);
    }

    /// The page whose translation it waits for, and what for.
    #[must_use]
    pub fn waits_for(&self) -> Option<Miss> {
        let word = self.waits_for.load(Ordering::Relaxed);
        let access = if word & 1 == 0 { Access::Read } else { Access::Write };
        (word & WAITS != 0).then_some(Miss { iova: word & !(PAGE - 1), access })
    }

    /// Why it stopped.
    #[must_use]
    pub fn error(&self) -> Option<String> {
        lock(&self.error).clone()
    }
}

/// Counters that a device has beside those of its queues, readable from any thread.
pub trait NamedCounters: fmt::Debug + Send + Sync {
    /// All of them, by name.
    fn read(&self) -> BTreeMap<String, u64>;
}

/// What the session knows, for the control socket.
#[derive(Debug, Default)]
pub struct View {
    /// Is a front-end connected?
    pub connected: bool,
    /// Front-ends served so far.
    pub sessions: u64,
    /// How the last session ended, where it ended badly.
    pub last_error: Option<String>,
    /// Features the driver accepted.
    pub negotiated: Features,
    /// Protocol features the front-end accepted, by name.
    pub protocol_features: Vec<String>,
    /// Guest memory.
    pub memory: Option<Arc<Memory>>,
    /// Ring layouts of the queues that are set up, by vhost-user index.
    pub rings: BTreeMap<u16, RingLayout>,
    /// While the front-end copies the guest elsewhere: the pages that the device has written.
    pub log: Option<Arc<DirtyLog>>,
    /// The pages of a file that is looked at.
    pub pages: Option<Arc<FilePages>>,
}

/// What does not change while `serve` runs.
#[derive(Debug, Default)]
pub struct About {
    /// The kind of device: `net`, `rng`.
    pub device: &'static str,
    /// The vhost-user socket.
    pub socket: String,
    /// What is behind it: a NIC's link as given, a disk's image; of another device nothing.
    pub link: String,
    /// What ends behind it when the guest moves to another host.
    pub stays: Option<&'static str>,
    /// Features the device offers.
    pub offered: Features,
    /// What `--withhold` took away, with what depends on it.
    pub withheld: Features,
    /// The model of hardware that a NIC's chains are accounted or paced by.
    pub hardware: Option<Applied>,
}

/// All that is shared.
#[derive(Debug)]
pub struct Shared {
    /// What does not change.
    pub about: About,
    /// When `serve` started: the tracer's epoch.
    pub started: Instant,
    /// One per queue that can exist.
    pub queues: Vec<Arc<QueueShared>>,
    /// How many clients trace at the moment: workers record events while it is not 0.
    pub tracers: AtomicU32,
    /// How many are content with samples of what transmitqs carry.
    pub samplers: AtomicU32,
    /// Nanoseconds in which workers had nothing to do, asleep or looking, all of them together; up to the last work they found.
    pub idle_ns: AtomicU64,
    /// The guest's IOMMU, where there is one.
    pub iommu: Arc<Iommu>,
    /// Whose the guest's pages are.
    pub labels: Labels,
    counters: Vec<Arc<dyn NamedCounters>>,
    view: Mutex<View>,
}

impl Shared {
    /// For queues of these names, none set up, and these counters beside theirs.
    #[must_use]
    pub fn new(about: About, queues: impl IntoIterator<Item = String>, counters: Vec<Arc<dyn NamedCounters>>) -> Self {
        let names: Vec<String> = queues.into_iter().collect();
        let of = names.len();
        Shared {
            about,
            started: Instant::now(),
            queues: names.into_iter().map(|name| Arc::new(QueueShared::new(name, of))).collect(),
            tracers: AtomicU32::new(0),
            samplers: AtomicU32::new(0),
            idle_ns: AtomicU64::new(0),
            iommu: Arc::new(Iommu::new()),
            labels: Labels::default(),
            counters,
            view: Mutex::new(View::default()),
        }
    }

    /// The session's view. Never called by a worker.
    pub fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.view)
    }

    /// The guest's memory, for [`Labels`].
    pub(crate) fn guest_memory(&self) -> Option<GuestMemory> {
        self.labels.memory(|| self.view().memory.clone())
    }

    /// Does anyone trace?
    #[must_use]
    pub fn traced(&self) -> bool {
        self.tracers.load(Ordering::Relaxed) != 0
    }

    /// Is anyone content with samples?
    #[must_use]
    pub fn sampled(&self) -> bool {
        self.samplers.load(Ordering::Relaxed) != 0
    }

    /// Makes room for events of the queues that are set up: a device of many pairs has many that never are.
    pub fn make_room_for_events(&self) {
        self.set_up().for_each(|queue| queue.events.make_room());
    }

    /// Makes room for samples of them.
    pub fn make_room_for_samples(&self) {
        self.set_up().filter(|queue| queue.is_transmitq()).for_each(|queue| queue.samples.make_room());
    }

    fn set_up(&self) -> impl Iterator<Item = &Arc<QueueShared>> {
        let set_up: Vec<u16> = self.view().rings.keys().copied().collect();
        set_up.into_iter().filter_map(|index| self.queues.get(usize::from(index)))
    }

    /// The counters beside the queues', those of one name together.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<String, u64> {
        let mut sum: BTreeMap<String, u64> = BTreeMap::new();
        for (name, count) in self.counters.iter().flat_map(|counters| counters.read()) {
            *sum.entry(name).or_default() += count;
        }
        sum
    }

    /// Index of the queue of this name.
    #[must_use]
    pub fn index_of(&self, name: &str) -> Option<u16> {
        self.queues.iter().position(|queue| queue.name == name).and_then(|at| u16::try_from(at).ok())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
