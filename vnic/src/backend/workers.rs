//! The worker threads, seen from those who ask something of them.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;

use super::command::{Command, Notice, Notices, NotifierChange};
use super::data_path::DataPath;
use super::log::QueueLog;
use super::poller::PollMode;
use super::queue::Queue;
use super::shared::Shared;
use super::worker::Worker;
use crate::memory::Iova;
use crate::ring::Segments;
use crate::sandbox::{self, Role};
use crate::spec::Features;
use crate::vhost_user::DeviceError;

#[derive(Debug)]
struct Handle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    /// Taken when it is joined.
    thread: Mutex<Option<JoinHandle<()>>>,
    /// In place of the thread: [`PollMode::Asked`].
    #[cfg(fuzzing)]
    turn: Mutex<Option<Turn>>,
}

/// Has a worker do what there is to do.
#[cfg(fuzzing)]
struct Turn(Box<dyn FnMut() + Send>);

#[cfg(fuzzing)]
impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Turn")
    }
}

impl Handle {
    fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let _ = thread.map(JoinHandle::join);
    }

    #[cfg(fuzzing)]
    fn catch_up(&self) {
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Turn(turn)) = turn.as_mut() {
            turn();
        }
    }
}

/// A worker's thread has ended, and answers nothing any more. A notice says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker that would do it has died")]
pub struct WorkerDied;

/// What every worker of a device starts with, but for its data path.
#[derive(Debug)]
pub struct Plan<'p> {
    /// The device's shared state.
    pub shared: &'p Arc<Shared>,
    /// Whom to tell what happens.
    pub notices: &'p Notices,
    /// When it sleeps.
    pub poll: PollMode,
    /// The workers are pinned to these CPUs, in turn; those beyond are not pinned.
    pub cpus: &'p [usize],
}

/// All workers of a device.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
    /// Queues that one worker must have together.
    group: u16,
}

impl Workers {
    /// No workers yet. So many queues in a row belong together: they are one worker's, the next ones the next worker's.
    #[must_use]
    pub const fn new(group: u16) -> Self {
        Workers { handles: Vec::new(), group }
    }

    /// Starts another worker, which is on its CPU when this returns.
    ///
    /// # Errors
    /// A thread, an eventfd or an epoll instance is not to be had, or a CPU is not this process's.
    pub fn add<D: DataPath>(&mut self, data_path: D, plan: &Plan<'_>) -> std::io::Result<()> {
        let (commands, inbox): (Sender<Command>, Receiver<Command>) = channel();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (shared, notices) = (plan.shared.clone(), plan.notices.clone());
        let dying = notices.clone();
        let worker = Worker::new(data_path, inbox, wake.clone(), shared, notices, plan.poll)?;
        #[cfg(fuzzing)]
        if plan.poll == PollMode::Asked {
            let mut worker = worker;
            let turn = Mutex::new(Some(Turn(Box::new(move || worker.catch_up()))));
            self.handles.push(Handle { commands, wake, thread: Mutex::new(None), turn });
            return Ok(());
        }
        let (pinned, answer) = sync_channel(1);
        let (name, cpu) = (format!("worker{}", self.handles.len()), plan.cpus.get(self.handles.len()).copied());
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let outcome = begin(cpu);
            let ready = outcome.is_ok();
            let _ = pinned.send(outcome);
            if ready && let Err(panic) = catch_unwind(AssertUnwindSafe(|| worker.run())) {
                dying.send(Notice::Failed(format!("it panicked: {}", words(panic.as_ref()))));
            }
        })?;
        self.handles.push(Handle {
            commands,
            wake,
            thread: Mutex::new(Some(thread)),
            #[cfg(fuzzing)]
            turn: Mutex::default(),
        });
        // A thread that ended before it answered has panicked, and told so by a notice.
        answer.recv().unwrap_or(Ok(()))
    }

    /// Serves `queue` from now on.
    pub fn start_queue(&self, queue: Queue) {
        self.send(queue.index, Command::Start(Box::new(queue)));
    }

    /// Takes a queue away from its worker; returns once the worker no longer touches it.
    ///
    /// # Errors
    /// The worker has died.
    pub fn stop_queue(&self, index: u16) -> Result<Option<Queue>, WorkerDied> {
        Ok(self.ask(index, |reply| Command::Stop { index, reply })?.map(|queue| *queue))
    }

    /// Enables or disables a queue; returns once it is so.
    ///
    /// # Errors
    /// The worker has died.
    pub fn enable(&self, index: u16, on: bool) -> Result<(), WorkerDied> {
        self.ask(index, |reply| Command::Enable { index, on, reply })
    }

    /// Has a queue look for its buffers through `segments`; returns once it does.
    ///
    /// # Errors
    /// The worker has died.
    pub fn plug(&self, index: u16, segments: Segments) -> Result<(), WorkerDied> {
        self.ask(index, |reply| Command::Plug { index, segments: Box::new(segments), reply })
    }

    /// Gives a running queue another file.
    pub fn notify(&self, index: u16, file: NotifierChange) {
        self.send(index, Command::Notify { index, file });
    }

    /// Holds or releases a queue; false when it is not set up.
    #[must_use]
    pub fn hold(&self, index: u16, on: bool) -> bool {
        self.ask(index, |reply| Command::Hold { index, on, reply }).unwrap_or(false)
    }

    /// What a queue writes is logged, or no longer; returns once it is so.
    ///
    /// # Errors
    /// The worker has died.
    pub fn log(&self, index: u16, log: Option<QueueLog>) -> Result<(), WorkerDied> {
        self.ask(index, |reply| Command::Log { index, log, reply })
    }

    /// The guest has moved here: has the first worker say so.
    ///
    /// # Errors
    /// Nobody can be told, or the worker has died.
    pub fn announce(&self, mac: [u8; 6]) -> Result<(), DeviceError> {
        self.ask_worker(0, |reply| Command::Announce { mac, reply })?
    }

    /// Tells every worker what the driver accepted. If one of them refuses, all are told what was in force `before`.
    ///
    /// # Errors
    /// A link cannot do it, or a worker has died.
    pub fn negotiate(&self, features: Features, before: Features) -> Result<(), DeviceError> {
        let tell = |features| -> Result<(), DeviceError> {
            (0..self.handles.len())
                .try_for_each(|worker| self.ask_worker(worker, |reply| Command::Negotiated { features, reply })?)
        };
        tell(features).inspect_err(|_| {
            if let Err(error) = tell(before) {
                tracing::warn!(%error, "nor does the link take what was in force before");
            }
        })
    }

    /// Gives every data path a message of its own kind, with a way to answer. Returns the answers there were.
    pub fn tell<T>(&self, mut message: impl FnMut(SyncSender<T>) -> Box<dyn Any + Send>) -> Vec<T> {
        let answers = (0..self.handles.len()).map(|worker| {
            let (reply, answer) = sync_channel(1);
            self.send_to(worker, Command::Tell(message(reply)));
            answer
        });
        answers.filter_map(|answer| answer.recv().ok()).collect()
    }

    /// Translations came that queues may wait for.
    pub fn translated(&self) {
        (0..self.handles.len()).for_each(|worker| self.send_to(worker, Command::Translated));
    }

    /// Asks for what the chains of a held queue miss. Returns whether they miss nothing (any more).
    #[must_use]
    pub fn look_over(&self, index: u16) -> bool {
        self.ask(index, |reply| Command::LookOver { index, reply }).unwrap_or(true)
    }

    /// Translations are void; returns once no queue uses them any more.
    ///
    /// # Errors
    /// A worker has died.
    pub fn forget(&self, first: Iova, last: Iova) -> Result<(), WorkerDied> {
        (0..self.handles.len())
            .try_for_each(|worker| self.ask_worker(worker, |reply| Command::Forget { first, last, reply }))
    }

    /// Ends the workers, whoever else has them; returns once their threads are gone, and with them all they had open. What is
    /// asked of them from then on is not answered.
    pub fn end(&self) {
        for handle in &self.handles {
            let _ = handle.commands.send(Command::Quit);
            let _ = handle.wake.write(1);
            handle.join();
        }
    }

    /// Has those without a thread do what there is to do, as a driver's kick has the others.
    #[cfg(fuzzing)]
    pub fn catch_up(&self) {
        self.handles.iter().for_each(Handle::catch_up);
    }

    fn ask<T>(&self, index: u16, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, WorkerDied> {
        self.ask_worker(self.owner(index), command)
    }

    /// A worker answers after at most one pass over its queues.
    fn ask_worker<T>(&self, worker: usize, command: impl FnOnce(SyncSender<T>) -> Command) -> Result<T, WorkerDied> {
        let (reply, answer) = sync_channel(1);
        self.send_to(worker, command(reply));
        answer.recv().map_err(|_| {
            // Once its thread is gone, its last notice is there.
            self.handles.get(worker).into_iter().for_each(Handle::join);
            WorkerDied
        })
    }

    fn send(&self, index: u16, command: Command) {
        self.send_to(self.owner(index), command);
    }

    fn send_to(&self, worker: usize, command: Command) {
        if let Some(handle) = self.handles.get(worker) {
            // A worker that has ended has told so by a notice.
            let _ = handle.commands.send(command);
            let _ = handle.wake.write(1);
            #[cfg(fuzzing)]
            handle.catch_up();
        }
    }

    fn owner(&self, index: u16) -> usize {
        usize::from(index / self.group.max(1)) % self.handles.len().max(1)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.end();
    }
}

/// A worker's thread begins: on its CPU, and locked in.
fn begin(cpu: Option<usize>) -> std::io::Result<()> {
    if let Some(cpu) = cpu {
        let unusable = |error| std::io::Error::other(format!("CPU {cpu} cannot be used: {error}"));
        pin(cpu).map_err(unusable)?;
    }
    Ok(sandbox::enter(Role::Worker)?)
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it did not say why")
}
