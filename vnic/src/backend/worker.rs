//! The data path's thread: owns a port of the link and the queues it serves.
//!
//! Place: started by [`super::device::NicDevice`], which alone sends it [`Command`]s. Everything a front-end may do to a
//! running queue arrives as a command, between two passes: so a stop or a change of memory is quiesced by being answered.
//!
//! Operation, one pass:
//! 1. The port does what is due ([`Port::poll`]).
//! 2. Every live transmitq hands a burst to the port; the port works on it.
//! 3. Every live receiveq takes a burst from the port. (With a hairpin port, 2 and 3 are one for each
//!    pair.)
//! 4. Commands.
//!
//! A port may keep frames beyond the burst ([`Transmitted::Kept`](crate::link::Transmitted::Kept)) and say later, in any
//! order, that it is done with them; their buffers go back then. Whoever takes a queue away has the port end that first.
//!
//! After passes without progress, as many as [`AdaptivePoller`] says, notifications are armed, and if that finds nothing new
//! either, the worker sleeps until a kick, a readable link, a command or the port's next deadline. While it works, it
//! looks at its files only now and then: what they could tell, a pass finds by itself.
//!
//! Invariants: a queue gets at most [`BURST`] chains a pass, so that an endless producer starves neither other queues
//! nor commands. No lock, allocation or log line per packet; a syscall only to wait, to notify, and inside a port.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, SyncSender};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

use super::in_flight::InFlight;
pub use super::observers::ObserverPass;
use super::observers::Observers;
use super::options::PollMode;
use super::poller::AdaptivePoller;
use super::queue::{Kick, Queue};
use super::shared::{QueueState, Shared};
use super::{hairpin, receive, transmit};
use crate::link::{Completion, LinkError, Port};
use crate::memory::Iova;
use crate::observe::observer::Observer;
use crate::ring::{DeviceRing, Segments};
use crate::spec::{Feature, Features};

/// Most frames of one queue in one pass.
pub const BURST: u16 = 256;

/// How often the CPU pauses after a pass that found nothing, about half a microsecond: each look takes the line that the
/// driver is writing away from it.
const PAUSES: u32 = 8;

/// How long a worker that never polls sleeps at most while a queue has no kick file.
const POLLED: Duration = Duration::from_millis(1);

/// Passes between two looks at the files while there is work: a look is a system call.
const PASSES_PER_LOOK: u32 = 64;

/// What a burst came to.
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
    /// The driver accepted these features.
    Negotiated {
        /// The features.
        features: Features,
        /// Gets the link's answer.
        reply: SyncSender<Result<(), LinkError>>,
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
    /// Have transmitted frames looked at, or no longer; who looked so far comes back.
    Observe {
        /// The new one.
        observer: Option<Box<dyn Observer>>,
        /// Gets the old one.
        reply: SyncSender<Option<Box<dyn Observer>>>,
    },
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
    pub(super) fn send(&self, notice: Notice) {
        // Without a session thread there is nobody left to tell.
        let _ = self.channel.send(notice);
        let _ = self.wake.write(1);
    }
}

const WAKE: u64 = u64::MAX;
const PORT: u64 = u64::MAX - 1;

/// The thread's own state.
#[derive(Debug)]
pub struct Worker<P> {
    port: P,
    queues: BTreeMap<u16, Box<Queue>>,
    features: Features,
    epoll: Epoll,
    commands: Receiver<Command>,
    wake: Arc<EventFd>,
    shared: Arc<Shared>,
    observers: Observers,
    notices: Notices,
    poller: AdaptivePoller,
    scratch: receive::Scratch,
    look_ahead: hairpin::LookAhead,
    lost_told: bool,
}

impl<P: Port> Worker<P> {
    /// A worker without queues.
    ///
    /// # Errors
    /// The kernel gives no epoll instance, or a file of the port cannot be waited on.
    pub fn new(
        port: P,
        commands: Receiver<Command>,
        wake: Arc<EventFd>,
        shared: Arc<Shared>,
        observers: Observers,
        notices: Notices,
        poll: PollMode,
    ) -> std::io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(wake.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        for fd in port.readable_fds() {
            // Edge-triggered: a link that is readable while the driver has no buffers must not keep the worker awake.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            epoll.add(fd, EpollEvent::new(flags, PORT))?;
        }
        Ok(Worker {
            port,
            queues: BTreeMap::new(),
            features: Features::NONE,
            epoll,
            commands,
            wake,
            shared,
            observers,
            notices,
            poller: AdaptivePoller::new(poll),
            scratch: receive::Scratch::default(),
            look_ahead: hairpin::LookAhead::default(),
            lost_told: false,
        })
    }

    /// Serves until told to quit.
    pub fn run(mut self) {
        let mut passes: u32 = 0;
        while self.take_commands() {
            let now = Instant::now();
            let awake = if self.pass(now) {
                let idle = self.poller.work(now);
                if !idle.is_zero() {
                    self.shared.idle_ns.fetch_add(idle.as_nanos() as u64, Ordering::Relaxed);
                }
                true
            } else {
                (0..PAUSES).for_each(|_| std::hint::spin_loop());
                self.poller.look_again(now) || (self.poller.polls() && self.is_polled()) || self.arm()
            };
            passes = passes.wrapping_add(1);
            if awake && !passes.is_multiple_of(PASSES_PER_LOOK) {
                continue;
            }
            if let Err(error) = self.wait(!awake) {
                self.notices.send(Notice::Failed(format!("waiting for events: {error}")));
                return;
            }
        }
    }

    /// One pass over port and queues. Returns whether anything was done.
    fn pass(&mut self, now: Instant) -> bool {
        self.port.poll(now);
        let completed = self.complete();
        let mut best = if P::HAIRPIN { self.hairpin() } else { self.both_ways() };
        for queue in self.queues.values_mut().filter(|queue| is_discarding(queue)) {
            queue.ring.disable_notifications();
            best = best.max(transmit::discard(queue));
            queue.blocked = false;
        }
        let completed = completed | self.complete();
        if self.features.has(Feature::AccessPlatform) {
            best = best.max(self.behind_iommu());
        }
        if !self.lost_told && self.queues.values().any(|queue| queue.lost()) {
            self.lost_told = true;
            self.notices.send(Notice::MemoryLost);
        }
        completed || best >= Progress::Some
    }

    /// Returns the buffers of kept frames that the port is done with. Returns whether there were any.
    fn complete(&mut self) -> bool {
        let mut any = false;
        if P::KEEPS == 0 {
            return any;
        }
        while let Some(Completion { pair, ticket, read, copied }) = self.port.completed() {
            any = true;
            if let Some(queue) = u16::try_from(2 * pair + 1).ok().and_then(|index| self.queues.get_mut(&index)) {
                queue.complete(ticket, read, copied);
            }
        }
        if any {
            self.queues.values_mut().filter(|queue| !queue.held).for_each(|queue| queue.return_completed());
        }
        any
    }

    /// Has the port end what it has of a queue, and returns the buffers: after that nobody touches them.
    fn quiesce(&mut self, index: u16) {
        if P::KEEPS == 0 || !is_transmitq(index) {
            return;
        }
        self.port.quiesce(usize::from(index / 2));
        self.complete();
        if let Some(queue) = self.queues.get_mut(&index) {
            debug_assert_eq!(queue.in_flight.len(), 0, "{}: the port still has frames", queue.shared.name);
            queue.return_completed();
        }
    }

    /// Behind an IOMMU, after a pass: counts, and says whether a queue is to be looked at again.
    fn behind_iommu(&mut self) -> Progress {
        let hits = self.queues.values().map(|queue| queue.segments.take_hits()).sum();
        if hits > 0 {
            self.shared.iommu.iotlb.counters.hits.fetch_add(hits, Ordering::Relaxed);
        }
        let again = self.queues.values_mut().fold(false, |any, queue| std::mem::take(&mut queue.again) | any);
        if again { Progress::More } else { Progress::Idle }
    }

    /// Every queue has its turn with the port.
    fn both_ways(&mut self) -> Progress {
        let mut observers = self.observers.look(&self.shared);
        let mut best = Progress::Idle;
        for queue in self.queues.values_mut().filter(|queue| is_transmitq(queue.index) && queue.is_live()) {
            queue.ring.disable_notifications();
            let (pair, in_flight) = (usize::from(queue.index / 2), std::mem::take(&mut queue.in_flight));
            let mut link = transmit::LinkTransmit { port: &mut self.port, pair, in_flight };
            let progress = transmit::burst(queue, &mut link, self.features, &mut observers);
            queue.in_flight = link.in_flight;
            queue.blocked = progress == Progress::Blocked;
            best = best.max(progress);
        }
        if P::KEEPS > 0 {
            self.port.flush();
        }
        if best > Progress::Idle {
            self.port.poll(Instant::now());
        }
        for queue in self.queues.values_mut().filter(|queue| !is_transmitq(queue.index) && queue.is_live()) {
            queue.ring.disable_notifications();
            let pair = usize::from(queue.index / 2);
            let progress =
                receive::burst(queue, &mut self.port, pair, self.features, &mut self.scratch, &mut observers);
            queue.blocked = progress == Progress::Blocked;
            if queue.stopped {
                tell(&mut self.port, queue.index, false);
            }
            best = best.max(progress);
        }
        best
    }

    /// Every pair has its turn: what its transmitq holds goes to its receiveq.
    fn hairpin(&mut self) -> Progress {
        let mut observers = self.observers.look(&self.shared);
        let mut best = Progress::Idle;
        let mut queues = self.queues.values_mut().peekable();
        while let Some(queue) = queues.next() {
            if is_transmitq(queue.index) {
                // One without a receiveq: nothing can be done for it.
                queue.blocked = true;
                continue;
            }
            let Some(transmitq) = queues.next_if(|next| next.index == queue.index + 1) else { continue };
            transmitq.blocked = !queue.is_live();
            if transmitq.blocked || !transmitq.is_live() {
                continue;
            }
            transmitq.ring.disable_notifications();
            queue.ring.disable_notifications();
            let [sent, received] =
                hairpin::burst(transmitq, queue, &mut self.port, self.features, &mut self.look_ahead, &mut observers);
            transmitq.blocked = sent == Progress::Blocked;
            queue.blocked = received == Progress::Blocked;
            best = best.max(sent).max(received);
        }
        best
    }

    /// Asks the driver for kicks where one would help. Returns whether something came in the meantime.
    fn arm(&mut self) -> bool {
        let mut more = false;
        for queue in self.queues.values_mut() {
            if wants_kicks(queue) {
                match queue.ring.enable_notifications() {
                    Ok(found) => more |= found,
                    Err(error) => {
                        queue.stop_ring(&error);
                        tell(&mut self.port, queue.index, false);
                    }
                }
            }
        }
        more
    }

    /// Is there a queue that would be helped by a kick, and whose driver will never send one?
    fn is_polled(&self) -> bool {
        self.queues.values().any(|queue| queue.notifiers.kick.is_none() && wants_kicks(queue))
    }

    /// Waits for something to do (`sleep`), or only looks.
    fn wait(&mut self, sleep: bool) -> nix::Result<()> {
        let timeout = if !sleep {
            EpollTimeout::ZERO
        } else {
            let polled = self.is_polled().then_some(POLLED);
            match self.port.deadline(Instant::now()).into_iter().chain(polled).min() {
                // Rounded up: waking before the deadline would only spin.
                Some(left) => EpollTimeout::try_from(left.as_micros().div_ceil(1000).min(60_000) as u32)
                    .unwrap_or(EpollTimeout::ZERO),
                None => EpollTimeout::NONE,
            }
        };
        let mut events = [EpollEvent::empty(); 32];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error),
        };
        for event in events.iter().take(count) {
            match event.data() {
                WAKE => drop(self.wake.read()),
                PORT => {}
                index => self.kicked(index as u16),
            }
        }
        Ok(())
    }

    fn kicked(&mut self, index: u16) {
        let Some(queue) = self.queues.get_mut(&index) else { return };
        if queue.take_kick() == Kick::Dead {
            if let Some(kick) = queue.notifiers.kick.take() {
                let _ = self.epoll.delete(kick);
            }
            queue.stop("kick_file", &"the kick file cannot be read");
            tell(&mut self.port, index, false);
        }
    }

    /// Carries out what was asked. Returns whether to go on.
    fn take_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Start(queue) => self.start(queue),
                Command::Stop { index, reply } => {
                    self.quiesce(index);
                    let queue = self.queues.remove(&index);
                    if let Some(queue) = &queue {
                        self.unwatch_kick(queue);
                        queue.shared.set_waits_for(None);
                        queue.shared.set_state(QueueState::Off);
                    }
                    self.tell_port(index);
                    answer(&reply, queue);
                }
                Command::Enable { index, on, reply } => {
                    if !on {
                        self.quiesce(index);
                    }
                    if let Some(queue) = self.queues.get_mut(&index) {
                        queue.enabled = on;
                        queue.show_state();
                    }
                    self.tell_port(index);
                    answer(&reply, ());
                }
                Command::Notify { index, file } => self.change_notifier(index, file),
                Command::Negotiated { features, reply } => {
                    self.features = features;
                    answer(&reply, self.port.negotiated(features));
                }
                Command::Hold { index, on, reply } => {
                    let found = self.queues.get_mut(&index).map(|queue| {
                        queue.held = on;
                        if !on {
                            queue.return_completed();
                        }
                        queue.show_state();
                    });
                    answer(&reply, found.is_some());
                }
                Command::Observe { observer, reply } => {
                    answer(&reply, std::mem::replace(&mut self.observers.other, observer));
                }
                Command::Plug { index, segments, reply } => {
                    if let Some(queue) = self.queues.get_mut(&index) {
                        queue.segments = *segments;
                    }
                    answer(&reply, ());
                }
                Command::Translated => {
                    let features = self.features;
                    self.queues.values_mut().for_each(|queue| queue.look_again(features));
                }
                Command::LookOver { index, reply } => {
                    answer(&reply, self.queues.get_mut(&index).is_none_or(|queue| queue.look_over()));
                }
                Command::Forget { first, last, reply } => {
                    let features = self.features;
                    let touched = self.queues.values().filter(|queue| queue.in_flight.touches(first.0, last.0));
                    let touched: Vec<u16> = touched.map(|queue| queue.index).collect();
                    touched.into_iter().for_each(|index| self.quiesce(index));
                    self.queues.values_mut().for_each(|queue| queue.forget(first.0, last.0, features));
                    answer(&reply, ());
                }
                Command::Quit => return false,
            }
        }
        true
    }

    fn start(&mut self, mut queue: Box<Queue>) {
        if P::KEEPS > 0 && is_transmitq(queue.index) {
            queue.in_flight = InFlight::new(P::KEEPS);
        }
        queue.show_state();
        self.lost_told = false;
        self.watch_kick(&mut queue);
        // What a back-end before us returned may never have been announced.
        queue.ring_call();
        queue.map_ring(self.features);
        let index = queue.index;
        self.queues.insert(index, queue);
        self.tell_port(index);
    }

    /// Tells the port whether a queue is in use.
    fn tell_port(&mut self, index: u16) {
        let on = self.queues.get(&index).is_some_and(|queue| queue.is_in_use());
        tell(&mut self.port, index, on);
    }

    fn watch_kick(&self, queue: &mut Queue) {
        if let Some(kick) = &queue.notifiers.kick {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::from(queue.index));
            if let Err(error) = self.epoll.add(kick, event) {
                queue.stop("kick_file", &format!("the kick file cannot be waited on: {error}"));
            }
        }
    }

    fn unwatch_kick(&self, queue: &Queue) {
        if let Some(kick) = &queue.notifiers.kick {
            // It may be gone already, after `Kick::Dead`.
            let _ = self.epoll.delete(kick);
        }
    }

    fn change_notifier(&mut self, index: u16, file: NotifierChange) {
        let Some(mut queue) = self.queues.remove(&index) else { return };
        match file {
            NotifierChange::Kick(kick) => {
                self.unwatch_kick(&queue);
                queue.notifiers.kick = kick;
                self.watch_kick(&mut queue);
            }
            NotifierChange::Call(call) => {
                queue.notifiers.call = call;
                // The driver may be waiting for a notification that went to the old file.
                queue.ring_call();
            }
            NotifierChange::Err(err) => queue.notifiers.err = err,
        }
        self.queues.insert(index, queue);
    }
}

/// VIRTIO 1.3, 5.1.2 Virtqueues: odd indices transmit.
const fn is_transmitq(index: u16) -> bool {
    index % 2 == 1
}

/// Is it to be emptied, and nothing of it sent?
fn is_discarding(queue: &Queue) -> bool {
    is_transmitq(queue.index) && !queue.enabled && queue.is_ready()
}

/// Would new chains help? A transmitq unless the link is full, a receiveq only if frames wait.
fn wants_kicks(queue: &Queue) -> bool {
    (queue.is_live() || is_discarding(queue)) && is_transmitq(queue.index) != queue.blocked
}

/// Tells the port whether a queue is in use, if it is one that the port fills.
fn tell(port: &mut impl Port, index: u16, in_use: bool) {
    if !is_transmitq(index) {
        port.set_receiving(usize::from(index / 2), in_use);
    }
}

/// An asker that has gone away needs no answer.
fn answer<T>(reply: &SyncSender<T>, value: T) {
    let _ = reply.send(value);
}
