//! What workers are asked, and what they say unasked.

use std::any::Any;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender};

use nix::sys::eventfd::EventFd;

use super::log::QueueLog;
use super::queue::Queue;
use crate::memory::Iova;
use crate::ring::Segments;
use crate::spec::Features;
use crate::vhost_user::DeviceError;

/// What the session and the control socket ask of a worker. Where there is a `reply`, the worker answers once it is
/// done and no longer touches what it gave up.
#[derive(Debug)]
pub enum Command {
    /// Serve this queue.
    Start(Box<Queue>),
    /// Give the queue back.
    Stop {
        /// Its index.
        index: u16,
        /// Gets it; `None` when there is none.
        reply: SyncSender<Option<Box<Queue>>>,
    },
    /// `SET_VRING_ENABLE`.
    Enable {
        /// The queue's index.
        index: u16,
        /// On or off.
        on: bool,
        /// Told when it is so.
        reply: SyncSender<()>,
    },
    /// Other files for a queue.
    Notify {
        /// The queue's index.
        index: u16,
        /// Which one, and the new one.
        file: NotifierChange,
    },
    /// What a queue writes is logged, or no longer.
    Log {
        /// The queue's index.
        index: u16,
        /// Where.
        log: Option<QueueLog>,
        /// Told when it is so.
        reply: SyncSender<()>,
    },
    /// The guest has moved here: say so to whoever is behind the device.
    Announce {
        /// Its hardware address.
        mac: [u8; 6],
        /// Told how that went.
        reply: SyncSender<Result<(), DeviceError>>,
    },
    /// The driver accepted these features.
    Negotiated {
        /// The features.
        features: Features,
        /// Gets the data path's answer.
        reply: SyncSender<Result<(), DeviceError>>,
    },
    /// `vnic hold` and `vnic release`.
    Hold {
        /// The queue's index.
        index: u16,
        /// Hold or let go.
        on: bool,
        /// Told when it is so; false when there is no such queue.
        reply: SyncSender<bool>,
    },
    /// A message for the data path.
    Tell(Box<dyn Any + Send>),
    /// Translations came that queues may wait for.
    Translated,
    /// Ask for what the chains of a held queue miss.
    LookOver {
        /// The queue's index.
        index: u16,
        /// Told whether they miss nothing.
        reply: SyncSender<bool>,
    },
    /// The guest has more memory than before; the old is where it was.
    Plug {
        /// The queue's index.
        index: u16,
        /// An arena over all of it.
        segments: Box<Segments>,
        /// Told when it is in use.
        reply: SyncSender<()>,
    },
    /// Translations are void.
    Forget {
        /// The first address.
        first: Iova,
        /// The last one.
        last: Iova,
        /// Told when no queue uses them any more.
        reply: SyncSender<()>,
    },
    /// End the thread.
    Quit,
}

/// A new notification file for a running queue.
#[derive(Debug)]
pub enum NotifierChange {
    /// `SET_VRING_KICK`.
    Kick(Option<Arc<OwnedFd>>),
    /// `SET_VRING_CALL`.
    Call(Option<Arc<OwnedFd>>),
    /// `SET_VRING_ERR`.
    Err(Option<Arc<OwnedFd>>),
}

/// What a worker tells the session thread unasked.
#[derive(Debug)]
pub enum Notice {
    /// A file under the guest's memory was truncated: the session must end.
    MemoryLost,
    /// The worker cannot go on.
    Failed(String),
}

/// The other end of a worker's notices: a channel, and an eventfd that wakes the session thread.
#[derive(Debug, Clone)]
pub struct Notices {
    /// The channel.
    pub channel: Sender<Notice>,
    /// The eventfd.
    pub wake: Arc<EventFd>,
}

impl Notices {
    /// Tells the session's thread.
    pub(super) fn send(&self, notice: Notice) {
        // Without a session thread there is nobody left to tell.
        let _ = self.channel.send(notice);
        let _ = self.wake.write(1);
    }
}
