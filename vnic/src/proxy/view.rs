//! What is known of a session that passes: who is there, what was agreed on, where memory and rings are.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::kind::{self, DeviceKind};
use crate::backend::labels::{GuestMemory, Labels};
use crate::memory::{Iotlb, Memory};
use crate::ring::RingLayout;
use crate::spec::vhost_user::ProtocolFeatures;
use crate::spec::{Feature, Features};

/// What does not change while `proxy` runs.
#[derive(Debug)]
pub(super) struct About {
    pub(super) socket: String,
    pub(super) back_end: String,
    /// What kind of device it is, if somebody has said so.
    pub(super) device: Option<DeviceKind>,
}

/// Who is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Peers {
    /// Nobody.
    #[default]
    None,
    /// A front-end; the back-end is not there yet.
    FrontEnd,
    /// Both.
    Both,
}

/// What has passed so far, in all sessions.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) front_end_messages: u64,
    pub(super) back_end_messages: u64,
    pub(super) files: u64,
    /// Messages that were passed on without being understood.
    pub(super) not_understood: u64,
    /// Requests that the back-end refused.
    pub(super) refused: u64,
}

impl Counts {
    pub(super) fn named(&self) -> BTreeMap<String, u64> {
        let Counts { front_end_messages, back_end_messages, files, not_understood, refused } = *self;
        let all = [
            ("front_end_messages", front_end_messages),
            ("back_end_messages", back_end_messages),
            ("files", files),
            ("not_understood", not_understood),
            ("refused", refused),
        ];
        all.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
    }
}

/// A vring.
#[derive(Debug, Clone)]
pub(super) struct Vring {
    pub(super) layout: RingLayout,
    pub(super) enabled: bool,
    /// Has the back-end it, as far as the front-end has said?
    pub(super) runs: bool,
    pub(super) kick: Option<Arc<OwnedFd>>,
    pub(super) call: Option<Arc<OwnedFd>>,
}

/// What both sides have said in a session.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) offered: Features,
    pub(super) negotiated: Features,
    pub(super) protocol_offered: ProtocolFeatures,
    pub(super) protocol: ProtocolFeatures,
    /// Does the front-end read the configuration space?
    pub(super) reads_config: bool,
    pub(super) memory: Option<Arc<Memory>>,
    pub(super) vrings: BTreeMap<u16, Vring>,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) peers: Peers,
    pub(super) sessions: u64,
    pub(super) last_error: Option<String>,
    pub(super) counts: Counts,
    pub(super) said: Said,
}

/// The view, and what it takes to look by it.
#[derive(Debug)]
pub(super) struct Eyes {
    pub(super) about: About,
    view: Mutex<View>,
    /// The translations that passed.
    pub(super) iotlb: Arc<Iotlb>,
    /// Whose the guest's pages are.
    pub(super) labels: Labels,
}

impl Eyes {
    pub(super) fn new(about: About) -> Self {
        let (view, iotlb) = (Mutex::default(), Arc::new(Iotlb::for_observers()));
        Eyes { about, view, iotlb, labels: Labels::default() }
    }

    /// Held for moments: messages wait for it.
    pub(super) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts it where `vnic status` and the log show it.
    pub(super) fn note(&self, what: String) {
        tracing::warn!("{what}");
        self.view().last_error = Some(what);
    }

    /// A session begins, or is over: nothing is known.
    pub(super) fn forget(&self, peers: Peers) {
        let said = {
            let mut view = self.view();
            view.peers = peers;
            std::mem::take(&mut view.said)
        };
        self.iotlb.clear();
        self.labels.forget();
        // Unmaps memory: not while somebody waits for the view.
        drop(said);
    }

    /// What kind of device it is, if that is known.
    pub(super) fn kind(&self) -> Option<DeviceKind> {
        self.about.device.or_else(|| {
            let Said { offered, protocol_offered, reads_config, .. } = self.view().said;
            kind::told(offered, protocol_offered, reads_config)
        })
    }

    /// The guest's memory as the driver's addresses have it. `None`: nobody has shared any.
    pub(super) fn memory(&self) -> Option<Arc<Memory>> {
        let view = self.view();
        let memory = view.said.memory.clone()?;
        let behind = view.said.negotiated.has(Feature::AccessPlatform);
        Some(if behind { Arc::new(memory.behind(self.iotlb.clone())) } else { memory })
    }

    /// The same, for [`Labels`].
    pub(super) fn guest_memory(&self) -> Option<GuestMemory> {
        self.labels.memory(|| self.memory())
    }
}

/// Where the kernel says what is in a file of this process's.
pub(super) const NOTIFICATIONS: &str = "/proc/self/fdinfo";

/// How much was written into an event file that nobody has read yet. `None`: it is none, or the host does not say.
pub(super) fn unread(file: &OwnedFd) -> Option<u64> {
    let mut about = String::new();
    // Not asked how long it is: that would be a call that a process that is locked in may not make.
    File::open(format!("{NOTIFICATIONS}/{}", file.as_raw_fd())).ok()?.take(4096).read_to_string(&mut about).ok()?;
    let count = about.lines().find_map(|line| line.strip_prefix("eventfd-count:"))?;
    u64::from_str_radix(count.trim(), 16).ok()
}
