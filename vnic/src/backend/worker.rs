//! The data path's thread: owns a [`DataPath`] and the queues it serves.
//!
//! Place: started through [`super::Workers`], which alone send it [`Command`]s. Everything a front-end may do to a running
//! queue arrives as a command, between two passes: so a stop or a change of memory is quiesced by being answered.
//!
//! Operation: commands, then one pass of the data path, again and again. After passes without progress, as many as
//! [`AdaptivePoller`] says, notifications are armed, and if that finds nothing new either, the worker sleeps until a kick, a
//! file of the data path, a command or the data path's next deadline. A queue without a kick file is polled: while there is
//! one, the worker stays awake, or sleeps for moments only. While it works, it looks at its files only now and then: what
//! they could tell, a pass finds by itself.
//!
//! Invariants: no lock, allocation or log line per chain; a syscall only to wait, to notify, and inside the data path.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;

use super::command::{Command, Notice, Notices, NotifierChange};
use super::data_path::{DataPath, Progress, Queues};
use super::in_flight::InFlight;
use super::poller::{AdaptivePoller, PollMode};
use super::queue::{Kick, Queue};
use super::shared::{QueueState, Shared};
use crate::ring::{self, DeviceRing};
use crate::spec::Feature;

/// How often the CPU pauses after a pass that found nothing, about half a microsecond: each look takes the line that the
/// driver is writing away from it.
const PAUSES: u32 = 8;

/// How long a worker that never polls sleeps at most while a queue has no kick file.
const POLLED: Duration = Duration::from_millis(1);

/// Passes between two looks at the files while there is work: a look is a system call.
const PASSES_PER_LOOK: u32 = 64;

const WAKE: u64 = u64::MAX;
const DATA_PATH: u64 = u64::MAX - 1;

/// The thread's own state.
#[derive(Debug)]
pub(super) struct Worker<D> {
    data_path: D,
    queues: Queues,
    epoll: Epoll,
    commands: Receiver<Command>,
    wake: Arc<EventFd>,
    shared: Arc<Shared>,
    notices: Notices,
    poller: AdaptivePoller,
    /// The queues are behind an IOMMU.
    translates: bool,
    lost_told: bool,
}

impl<D: DataPath> Worker<D> {
    /// A worker without queues.
    ///
    /// # Errors
    /// The kernel gives no epoll instance, or a file of the data path cannot be waited on.
    pub(super) fn new(
        data_path: D,
        commands: Receiver<Command>,
        wake: Arc<EventFd>,
        shared: Arc<Shared>,
        notices: Notices,
        poll: PollMode,
    ) -> std::io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(wake.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        for fd in data_path.files() {
            // Edge-triggered: a link that is readable while the driver has no buffers must not keep the worker awake.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            epoll.add(fd, EpollEvent::new(flags, DATA_PATH))?;
        }
        Ok(Worker {
            data_path,
            queues: Queues::new(),
            epoll,
            commands,
            wake,
            shared,
            notices,
            poller: AdaptivePoller::new(poll),
            translates: false,
            lost_told: false,
        })
    }

    /// Serves until told to quit.
    pub(super) fn run(mut self) {
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
                let looks = self.poller.look_again(now) && !self.data_path.rests();
                looks || (self.poller.polls() && self.is_polled()) || self.arm()
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

    /// Does what there is to do, and waits for nothing. A guest that always has more is left after some passes.
    #[cfg(fuzzing)]
    pub(super) fn catch_up(&mut self) {
        for _ in 0..PASSES_PER_LOOK {
            self.take_commands();
            self.wait(false).expect("an epoll instance");
            if !self.pass(Instant::now()) && !self.arm() {
                return;
            }
        }
    }

    /// One pass of the data path. Returns whether anything was done.
    fn pass(&mut self, now: Instant) -> bool {
        let mut progress = self.data_path.pass(&mut self.queues, now);
        if self.translates {
            progress = progress.max(self.behind_iommu());
        }
        if !self.lost_told && self.queues.values().any(|queue| queue.lost()) {
            self.lost_told = true;
            self.notices.send(Notice::MemoryLost);
        }
        progress >= Progress::Some
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

    /// Asks the driver for kicks where one would help. Returns whether something came in the meantime.
    fn arm(&mut self) -> bool {
        let mut more = false;
        for queue in self.queues.values_mut() {
            if self.data_path.wants_kicks(queue) {
                match queue.ring.enable_notifications() {
                    Ok(found) => more |= found,
                    Err(error) => {
                        queue.stop_ring(&error);
                        self.data_path.set_in_use(queue.index, false);
                    }
                }
            }
        }
        more
    }

    /// Is there a queue that would be helped by a kick, and whose driver will never send one?
    fn is_polled(&self) -> bool {
        self.queues.values().any(|queue| queue.notifiers.kick.is_none() && self.data_path.wants_kicks(queue))
    }

    /// Waits for something to do (`sleep`), or only looks.
    fn wait(&mut self, sleep: bool) -> nix::Result<()> {
        let timeout = if !sleep {
            EpollTimeout::ZERO
        } else {
            let polled = self.is_polled().then_some(POLLED);
            match self.data_path.deadline(Instant::now()).into_iter().chain(polled).min() {
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
                DATA_PATH => {}
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
            self.data_path.set_in_use(index, false);
        }
    }

    /// Carries out what was asked. Returns whether to go on.
    fn take_commands(&mut self) -> bool {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Start(queue) => self.start(queue),
                Command::Stop { index, reply } => {
                    self.data_path.quiesce(&mut self.queues, index);
                    let queue = self.queues.remove(&index);
                    if let Some(queue) = &queue {
                        self.unwatch_kick(queue);
                        queue.shared.set_waits_for(None);
                        queue.shared.set_state(QueueState::Off);
                    }
                    self.tell_in_use(index);
                    answer(&reply, queue);
                }
                Command::Enable { index, on, reply } => {
                    if !on {
                        self.data_path.quiesce(&mut self.queues, index);
                    }
                    if let Some(queue) = self.queues.get_mut(&index) {
                        queue.enabled = on;
                        queue.awaits_enable = false;
                        queue.show_state();
                    }
                    self.tell_in_use(index);
                    answer(&reply, ());
                }
                Command::Notify { index, file } => self.change_notifier(index, file),
                Command::Log { index, log, reply } => {
                    if log.is_some() && self.queues.get(&index).is_some_and(|queue| queue.in_flight.writes()) {
                        // Where those are written to was not kept.
                        self.data_path.quiesce(&mut self.queues, index);
                    }
                    if let Some(queue) = self.queues.get_mut(&index) {
                        queue.set_log(log);
                    }
                    answer(&reply, ());
                }
                Command::Announce { mac, reply } => answer(&reply, self.data_path.announce(mac)),
                Command::Negotiated { features, reply } => answer(&reply, self.data_path.negotiated(features)),
                Command::Hold { index, on, reply } => {
                    let found = self.queues.get_mut(&index).map(|queue| {
                        if on && !queue.held {
                            queue.held_since = Some(Instant::now());
                        }
                        queue.held = on;
                        if !on {
                            queue.return_completed();
                        }
                        queue.show_state();
                    });
                    answer(&reply, found.is_some());
                }
                Command::Tell(message) => self.data_path.told(message),
                Command::Plug { index, segments, reply } => {
                    if let Some(queue) = self.queues.get_mut(&index) {
                        queue.segments = *segments;
                    }
                    answer(&reply, ());
                }
                Command::Translated => self.queues.values_mut().for_each(|queue| queue.look_again()),
                Command::LookOver { index, reply } => {
                    answer(&reply, self.queues.get_mut(&index).is_none_or(|queue| queue.look_over()));
                }
                Command::Forget { first, last, reply } => {
                    let touched = self.queues.values().filter(|queue| queue.in_flight.touches(first.0, last.0));
                    let touched: Vec<u16> = touched.map(|queue| queue.index).collect();
                    touched.into_iter().for_each(|index| self.data_path.quiesce(&mut self.queues, index));
                    self.queues.values_mut().for_each(|queue| queue.forget(first.0, last.0));
                    answer(&reply, ());
                }
                Command::Quit => return false,
            }
        }
        true
    }

    fn start(&mut self, mut queue: Box<Queue>) {
        let index = queue.index;
        queue.in_flight = InFlight::new(self.data_path.keeps(index));
        queue.repeats = self.data_path.repeats(index);
        let log = queue.log.take();
        queue.set_log(log);
        queue.show_state();
        self.lost_told = false;
        self.translates = queue.features.has(Feature::AccessPlatform);
        self.watch_kick(&mut queue);
        // What a back-end before us returned may never have been announced.
        queue.ring_call();
        match queue.ring {
            ring::Device::Unmapped(_) => queue.map_ring(),
            _ => queue.recover(),
        }
        self.queues.insert(index, queue);
        self.tell_in_use(index);
    }

    /// Tells the data path whether a queue is in use.
    fn tell_in_use(&mut self, index: u16) {
        let on = self.queues.get(&index).is_some_and(|queue| queue.is_in_use());
        self.data_path.set_in_use(index, on);
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

/// An asker that has gone away needs no answer.
fn answer<T>(reply: &SyncSender<T>, value: T) {
    let _ = reply.send(value);
}
