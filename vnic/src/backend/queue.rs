//! One queue as its worker holds it: the ring, the notification files, its counters.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

pub(crate) mod taken;

use super::in_flight::InFlight;
use super::iommu::Iommu;
use super::log::QueueLog;
use super::record::Record;
use super::shared::{QueueShared, QueueState};
use crate::memory::iotlb::Waiting;
use crate::memory::{MemoryError, Miss};
use crate::ring::{Chain, Device, DeviceRing, Oddities, RingError, RingLayout, RingLog, Segments, Taken, Unmapped};
use crate::spec::Features;

/// Files of a queue. Each is the front-end's and may be anything, so none may block: see [`set_nonblocking`].
#[derive(Debug, Default)]
pub struct Notifiers {
    /// Available-buffer notifications, from the driver.
    pub kick: Option<Arc<OwnedFd>>,
    /// Used-buffer notifications, to the driver.
    pub call: Option<Arc<OwnedFd>>,
    /// Told when the ring stops.
    pub err: Option<Arc<OwnedFd>>,
}

/// Makes `fd` non-blocking, so that a front-end which hands over a full pipe cannot hang a worker.
pub fn set_nonblocking(fd: impl AsFd) -> nix::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
}

/// What became of a kick file that was readable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kick {
    /// The driver kicked.
    Rung,
    /// It had been read already.
    Quiet,
    /// The file can never be read again; waiting on it would only spin.
    Dead,
}

/// A queue at work.
#[derive(Debug)]
pub struct Queue {
    /// vhost-user index.
    pub index: u16,
    /// Where its ring is.
    pub layout: RingLayout,
    /// The device half of its ring.
    pub ring: Device,
    /// Where its chains' segments go.
    pub segments: Segments,
    /// Its files.
    pub notifiers: Notifiers,
    /// `SET_VRING_ENABLE`.
    pub enabled: bool,
    /// It was started disabled, and no `SET_VRING_ENABLE` has come since. Front-ends start first and enable then; of a driver
    /// that lost its device, frames wait in the ring meanwhile: they are not discarded before the front-end has said so.
    pub awaits_enable: bool,
    /// `vnic hold`.
    pub held: bool,
    /// Since when. It stays when the queue is let go, until whoever looks at its chains has taken notice.
    pub held_since: Option<Instant>,
    /// The ring stopped because of what the driver wrote.
    pub stopped: bool,
    /// It waits for something else than the driver; of a NIC's receiveq: for the driver, as a frame needs buffers.
    pub blocked: bool,
    /// The data path says when the driver is told of what was used ([`send_call`](Queue::send_call)): a modelled card may not interrupt
    /// as often as it likes.
    pub throttled: bool,
    /// The driver is still to be told.
    pub call_waits: bool,
    /// What the data path has kept.
    pub in_flight: InFlight,
    /// The same for the back-end that comes after this one, where the front-end keeps it.
    pub record: Option<Record>,
    /// What the one before had taken when it died, the first last.
    pub resumed: Vec<Taken>,
    /// Of those, what was taken again and has not gone back yet, the last one last.
    pub retaken: Vec<Taken>,
    /// This process has not had this queue before: another may have died with it.
    pub takes_over: bool,
    /// Most of its chains that may have had their effect, and gone back to nobody, when a process dies.
    pub repeats: u16,
    /// Behind an IOMMU: what it cannot go on without.
    pub waits: Option<Waiting>,
    /// It came while it was asked for: the queue is to be looked at again.
    pub again: bool,
    /// Whom to ask then.
    pub iommu: Arc<Iommu>,
    /// What was negotiated when it started; it does not change while a queue runs.
    pub features: Features,
    /// While a front-end copies the guest elsewhere: where what is written is marked.
    pub log: Option<QueueLog>,
    /// Its public face.
    pub shared: Arc<QueueShared>,
}

impl Queue {
    /// May chains be taken from it?
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.enabled && self.is_ready()
    }

    /// Could chains be taken from it if it were enabled?
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.stopped && !self.held && self.waits.is_none()
    }

    /// Has the guest's memory under it been taken back? Then what is read is not what the driver wrote.
    #[must_use]
    pub fn lost(&self) -> bool {
        self.segments.memory().lost() || self.ring.lost() || self.log.as_ref().is_some_and(|log| log.pages.lost())
    }

    /// Is it in use, though its buffers may be held?
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.enabled && !self.stopped
    }

    /// Publishes its state for the CLI.
    pub fn show_state(&self) {
        self.show_base();
        let waits = self.waits.as_ref().and_then(Waiting::first);
        self.shared.set_waits_for(waits);
        self.shared.set_state(match (self.stopped, self.enabled, self.held) {
            (true, _, _) => QueueState::Stopped,
            (_, false, _) => QueueState::Disabled,
            (_, _, true) => QueueState::Held,
            _ if waits.is_some() => QueueState::Waiting,
            _ => QueueState::Running,
        });
    }

    /// Stops the ring because of a driver fault: counted, shown, and told through the err file. Only a new start of the
    /// queue, after the driver reset it, makes it go on.
    pub fn stop(&mut self, name: &'static str, error: &dyn std::fmt::Display) {
        self.stopped = true;
        self.shared.counters.count_error(name);
        self.shared.set_error(Some(error.to_string()));
        self.show_state();
        tracing::warn!(queue = %self.shared.name, %error, "ring stopped");
        if let Some(err) = &self.notifiers.err {
            signal(err.as_fd());
        }
    }

    /// As [`Queue::stop`], for a fault of the ring itself. A missing translation is none: the queue waits for it.
    #[cold]
    pub fn stop_ring(&mut self, error: &RingError) {
        if self.lost() {
            // Zeroes stand where the ring was. That is the front-end's doing, and the session ends for it.
            self.stopped = true;
            return self.show_state();
        }
        // Where someone else goes on with the ring, the driver has reused what this device read.
        let moved = self.ring.moved();
        let error = moved.as_ref().unwrap_or(error);
        match error.memory() {
            Some(MemoryError::Untranslated { addr, access }) => {
                let misses = match self.segments.missing() {
                    [] => &[Miss { iova: *addr, access: *access }],
                    misses => misses,
                };
                self.waits = self.iommu.ask(misses);
                self.again = self.waits.is_none();
                return self.show_state();
            }
            Some(MemoryError::Forbidden { addr, access }) => self.iommu.tell_forbidden(*addr, *access),
            _ => {}
        }
        self.stop(error.name(), error);
    }

    /// Translations have come or gone: goes on if all are there that the queue waits for, or else asks for what nobody
    /// asks for any more.
    pub fn look_again(&mut self) {
        let Some(waiting) = &mut self.waits else { return };
        if self.iommu.is_over(waiting) {
            self.waits = None;
            self.map_ring();
        }
        self.show_state();
    }

    /// The translations of the addresses from `first` to `last`, both included, are void: nothing of them is used once this
    /// returns. No chain is in flight.
    pub fn forget(&mut self, first: u64, last: u64) {
        self.segments.forget(first, last);
        let lies_there = |(addr, len, _)| addr <= last && first <= u64::saturating_add(addr, len);
        if self.layout.parts(self.features).into_iter().any(lies_there) {
            self.unmap_ring();
        }
        self.look_again();
        self.map_ring();
    }

    /// Held, and behind an IOMMU: asks for what the next of its chains misses. Returns whether all are translated, or never
    /// will be. Each stays in the ring.
    pub fn look_over(&mut self) -> bool {
        if !self.held || self.stopped || !self.enabled {
            return true;
        }
        let mut chains = Vec::new();
        while self.waits.is_none() {
            // One at a time: only that it can be followed is of interest.
            self.segments.clear();
            match self.ring.pop(&mut self.segments) {
                Ok(Some(chain)) => chains.push(chain),
                Err(error) if error.is_miss() => self.stop_ring(&error),
                // What is wrong with a chain is said when it is the device's turn to take it.
                Ok(None) | Err(_) => break,
            }
        }
        self.unpop(&chains);
        self.segments.clear();
        self.waits.is_none()
    }

    /// Gives up the pointers into the ring.
    fn unmap_ring(&mut self) {
        self.ring = Device::Unmapped(Unmapped { base: self.ring.base(), size: self.layout.size });
    }

    /// Brings an unmapped ring within reach, or waits for what that takes.
    pub fn map_ring(&mut self) {
        let features = self.features;
        let Device::Unmapped(Unmapped { base, .. }) = self.ring else { return };
        if self.waits.is_some() || self.stopped {
            return;
        }
        let memory = Arc::clone(self.segments.memory());
        let mut misses = Vec::new();
        for (part, (addr, len, access)) in RingLayout::PARTS.into_iter().zip(self.layout.parts(features)) {
            if let Err(source) = memory.misses(addr, len, access, &mut misses) {
                return self.stop_ring(&RingError::RingUnmapped { part, source });
            }
        }
        if !misses.is_empty() {
            self.waits = self.iommu.ask(&misses);
            if self.waits.is_some() {
                return self.show_state();
            }
        }
        match Device::new(self.layout, memory, features, base) {
            Ok(ring) => {
                self.ring = ring;
                self.log_ring();
                self.recover();
                // What was returned last may never have been announced.
                self.ring_call();
            }
            Err(error) => self.stop_ring(&error),
        }
    }

    /// What is written is logged from now on, or no longer. No chain is in flight that was started without a log and is written to.
    pub fn set_log(&mut self, log: Option<QueueLog>) {
        self.in_flight.set_log(log.clone());
        self.log = log;
        self.log_ring();
    }

    /// The same for the ring, which is within reach since a moment.
    pub fn log_ring(&mut self) {
        let log = self.log.as_ref().filter(|_| !matches!(self.ring, Device::Unmapped(_)));
        let ring =
            log.map(|log| RingLog::new(&log.pages, self.segments.memory(), &self.layout, self.features, log.ring));
        match ring.transpose() {
            Ok(ring) => self.ring.set_log(ring),
            // A ring that is used and not logged would be lost on the way.
            Err(source) => self.stop_ring(&RingError::RingUnmapped { part: "device area", source }),
        }
    }

    /// These chains were not used, and yet something may have been written into them.
    pub fn spoiled(&self, chains: &[Chain]) {
        if let Some(log) = &self.log {
            chains.iter().for_each(|chain| log.wrote(self.segments.view(*chain), chain.writable_len));
        }
    }

    /// Returns a chain with `written` bytes in it: see [`complete`].
    pub fn complete(&mut self, chain: &Chain, written: u32) {
        taken::cross_off(&mut self.record, &mut self.retaken, chain);
        let Queue { ring, segments, log, .. } = self;
        if let Err(error) = complete(ring, segments, log.as_ref(), chain, written) {
            self.stop_ring(&error);
        }
    }

    /// Returns the chains in flight that the data path is done with.
    pub fn return_completed(&mut self) {
        let completed = self.in_flight.take_completed();
        for (chain, written) in &completed {
            taken::cross_off(&mut self.record, &mut self.retaken, chain);
            // What was written into it is logged since it was complete: its segments are gone.
            if let Err(error) = self.ring.push_used(chain, *written) {
                self.stop_ring(&error);
            }
        }
        if !completed.is_empty() {
            self.publish();
        }
        self.in_flight.give_back(completed);
    }

    /// Says where the ring stands, for those who look at it.
    fn show_base(&self) {
        self.shared.base.store(self.ring.base(), Ordering::Relaxed);
    }

    /// Publishes what was used; notifies the driver if it asked for that.
    pub fn publish(&mut self) {
        if let Some(record) = &mut self.record {
            record.publishing();
        }
        let wanted = match self.ring.publish() {
            Ok(wanted) => wanted,
            Err(_) if self.stopped => return,
            Err(error) => return self.stop_ring(&error),
        };
        if let Some(record) = &mut self.record {
            record.published();
        }
        if let Some(log) = &self.log {
            log.tell();
        }
        self.show_base();
        self.shared.counters.bursts.add(1);
        let Oddities { long_chains, unknown_flags } = self.segments.take_oddities();
        if long_chains | unknown_flags != 0 {
            self.shared.counters.long_chains.add(long_chains);
            self.shared.counters.unknown_flags.add(unknown_flags);
        }
        match (&self.notifiers.call, wanted) {
            (Some(_), true) if self.throttled && !self.call_waits => self.call_waits = true,
            (Some(call), true) if !self.throttled => {
                signal(call.as_fd());
                self.shared.counters.calls.add(1);
            }
            _ => self.shared.counters.calls_suppressed.add(1),
        }
    }

    /// Notifies the driver of what it is still to be told of. Returns whether there was anything.
    pub fn send_call(&mut self) -> bool {
        let waited = std::mem::take(&mut self.call_waits);
        if waited {
            self.ring_call();
            self.shared.counters.calls.add(1);
        }
        waited
    }

    /// Notifies the driver whether it asked for it or not: a call too many is harmless, one too few hangs it.
    pub fn ring_call(&self) {
        if let Some(call) = &self.notifiers.call {
            signal(call.as_fd());
        }
    }

    /// Reads the kick file.
    pub fn take_kick(&self) -> Kick {
        let Some(kick) = &self.notifiers.kick else {
            return Kick::Quiet;
        };
        match nix::unistd::read(kick, &mut [0; 8]) {
            Ok(1..) => {
                self.shared.counters.kicks.add(1);
                Kick::Rung
            }
            Ok(_) => Kick::Dead,
            Err(Errno::EAGAIN | Errno::EINTR) => Kick::Quiet,
            Err(_) => Kick::Dead,
        }
    }
}

/// The one way in which a chain goes back to its driver; the driver sees it at the next [`publish`](Queue::publish). (Those
/// that a [drain](DeviceRing::drain) returns go back inside the ring: nothing was written into them.)
///
/// What was written lies in the first `written` bytes of its writable part, in `segments`: those pages are marked in the log. (Chains
/// that were [in flight](InFlight) have no segments any more: theirs are marked when they are complete. The record of what is in
/// flight is kept by queues whose chains are [popped](Queue::pop) one by one.)
///
/// # Errors
/// The chain is not in flight, or has less room: an error of the caller.
#[inline(always)]
pub fn complete(
    ring: &mut Device,
    segments: &Segments,
    log: Option<&QueueLog>,
    chain: &Chain,
    written: u32,
) -> Result<(), RingError> {
    if let Some(log) = log {
        log.wrote(segments.view(*chain), written);
    }
    ring.push_used(chain, written)
}

/// Adds one to an eventfd. A full one already means "notified"; anything else the front-end put there is its own loss.
/// A pipe that nobody reads is an error here and no signal: a program that Rust starts ignores `SIGPIPE`.
pub(super) fn signal(fd: BorrowedFd<'_>) {
    let _ = nix::unistd::write(fd, &1u64.to_ne_bytes());
}
