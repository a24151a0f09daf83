//! What a worker drives: the part of a device that moves data.
//!
//! Place: a device of each kind implements [`DataPath`], once; a worker owns one and calls it from its own thread only. The
//! worker has the queues, their files and the front-end's commands; the data path decides what is done with the chains.
//! Each kind has a worker of its own (`Worker<D>`), so that its loop knows what it calls.
//!
//! How to write one: [`crate::rng`] is the smallest there is.

use std::any::Any;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::queue::Queue;
use crate::spec::Features;
use crate::vhost_user::DeviceError;

/// Most chains of one queue in one pass: so an endless producer starves neither other queues nor commands.
pub const BURST: u16 = 256;

/// The queues of a worker, by vhost-user index.
pub type Queues = BTreeMap<u16, Box<Queue>>;

/// What a pass, or a burst of it, came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// There was nothing.
    Idle,
    /// There is something, and no room for it.
    Blocked,
    /// Something was done, and nothing is left.
    Some,
    /// Something was done, and more is waiting.
    More,
}

/// See the [module](self).
pub trait DataPath: Send + 'static {
    /// Serves `queues` for one pass: of each that [is live](Queue::is_live), up to [`BURST`] chains. Takes no lock, allocates
    /// nothing and logs nothing per chain, and bounds how many bytes it moves.
    fn pass(&mut self, queues: &mut Queues, now: Instant) -> Progress;

    /// Would a kick of the driver help this queue? Asked before the worker sleeps.
    fn wants_kicks(&self, queue: &Queue) -> bool {
        queue.is_live() && !queue.blocked
    }

    /// Most chains of this queue that are [in flight](super::in_flight) beyond a pass.
    fn keeps(&self, index: u16) -> u16 {
        let _ = index;
        0
    }

    /// Most chains of this queue that the world may have seen the effect of, and the driver no answer to, when this process dies.
    /// Taken again by another, they have it twice. 0: that does no harm.
    fn repeats(&self, index: u16) -> u16 {
        let _ = index;
        0
    }

    /// Ends what is in flight of a queue, and returns its chains: after that nobody touches their buffers.
    fn quiesce(&mut self, queues: &mut Queues, index: u16) {
        let _ = (queues, index);
    }

    /// A queue is in use from now on (enabled, and not broken), or no longer.
    fn set_in_use(&mut self, index: u16, on: bool) {
        let _ = (index, on);
    }

    /// What the driver accepted, before any queue starts.
    ///
    /// # Errors
    /// The device cannot do what the driver was promised.
    fn negotiated(&mut self, features: Features) -> Result<(), DeviceError> {
        let _ = features;
        Ok(())
    }

    /// The guest has moved here: tells whoever is behind the device that this hardware address is to be found here now.
    ///
    /// # Errors
    /// Nobody can be told.
    fn announce(&mut self, mac: [u8; 6]) -> Result<(), DeviceError> {
        let _ = mac;
        Err("this device announces nobody".into())
    }

    /// Would another [`pass`](DataPath::pass) find nothing to do before something happens, or one of its files wakes the worker?
    /// Then it sleeps at once, and does not look again for a while first. Asked after a pass that did nothing.
    fn rests(&self) -> bool {
        false
    }

    /// Files that wake a sleeping worker. The same ones for the data path's whole life.
    fn files(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// When [`pass`](DataPath::pass) must be called again though nothing happens; `None`: not at all.
    fn deadline(&mut self, now: Instant) -> Option<Duration> {
        let _ = now;
        None
    }

    /// A message that only data paths of this kind understand, between two passes.
    fn told(&mut self, message: Box<dyn Any + Send>) {
        drop(message);
    }
}
