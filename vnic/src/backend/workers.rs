//! The worker threads, seen from those who ask something of them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;

use super::eyes::EyesState;
use super::options::PollMode;
use super::queue::Queue;
use super::shared::Shared;
use super::worker::{Command, Notices, NotifierChange, Worker};
use crate::link::{AnyPort, Capture, LinkError, Port};
use crate::observe::flow::FlowWatch;
use crate::spec::Features;

#[derive(Debug)]
struct Handle {
    commands: Sender<Command>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

/// What a worker starts with, but for its port.
struct Plan {
    name: String,
    cpu: Option<usize>,
    inbox: Receiver<Command>,
    wake: Arc<EventFd>,
    eyes: EyesState,
    poll: PollMode,
}

impl Plan {
    /// Starts the thread, which says first whether it is on its CPU.
    fn start<P: Port + 'static>(
        self,
        port: P,
        shared: &Arc<Shared>,
        notices: &Notices,
    ) -> std::io::Result<(JoinHandle<()>, Receiver<nix::Result<()>>)> {
        let Plan { name, cpu, inbox, wake, eyes, poll } = self;
        let worker = Worker::new(port, inbox, wake, shared.clone(), eyes, notices.clone(), poll)?;
        let (pinned, answer) = sync_channel(1);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let outcome = cpu.map_or(Ok(()), pin);
            let ready = outcome.is_ok();
            let _ = pinned.send(outcome);
            if ready {
                worker.run();
            }
        })?;
        Ok((thread, answer))
    }
}

/// All workers. Queue pair `p` belongs to worker `p % count`, for good.
#[derive(Debug)]
pub struct Workers {
    handles: Vec<Handle>,
}

impl Workers {
    /// Starts a worker per port, pinned to `cpus` in turn where there are any; all write to one `capture`.
    ///
    /// # Errors
    /// A thread, an eventfd or an epoll instance is not to be had, or a CPU is not this process's.
    pub fn start(
        ports: Vec<AnyPort>,
        shared: &Arc<Shared>,
        notices: &Notices,
        poll: PollMode,
        cpus: &[usize],
        capture: Option<&Capture>,
    ) -> std::io::Result<Self> {
        let mut workers = Workers { handles: Vec::with_capacity(ports.len()) };
        for (number, port) in ports.into_iter().enumerate() {
            let (commands, inbox): (Sender<Command>, Receiver<Command>) = channel();
            let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
            let eyes = EyesState { capture: capture.cloned(), ..EyesState::default() };
            let cpu = cpus.get(number).copied();
            let plan = Plan { name: format!("worker{number}"), cpu, inbox, wake: wake.clone(), eyes, poll };
            // A worker of its own kind for each kind of link: its loop knows what it calls.
            let (thread, answer) = match port {
                AnyPort::Peer(port) => plan.start(*port, shared, notices),
                AnyPort::Tap(port) => plan.start(port, shared, notices),
                AnyPort::Sink(port) => plan.start(port, shared, notices),
                AnyPort::CopyingSink(port) => plan.start(port, shared, notices),
                AnyPort::Loopback(port) => plan.start(port, shared, notices),
            }?;
            workers.handles.push(Handle { commands, wake, thread: Some(thread) });
            if let (Ok(Err(error)), Some(cpu)) = (answer.recv(), cpu) {
                let reason = format!("CPU {cpu} cannot be used: {error}");
                return Err(std::io::Error::other(reason));
            }
        }
        Ok(workers)
    }

    /// Serves `queue` from now on.
    pub fn start_queue(&self, queue: Queue) {
        self.send(queue.index, Command::Start(Box::new(queue)));
    }

    /// Takes a queue away from its worker; returns once the worker no longer touches it.
    #[must_use]
    pub fn stop_queue(&self, index: u16) -> Option<Queue> {
        self.ask(index, |reply| Command::Stop { index, reply }).flatten().map(|queue| *queue)
    }

    /// Enables or disables a queue; returns once it is so.
    pub fn enable(&self, index: u16, on: bool) {
        self.ask(index, |reply| Command::Enable { index, on, reply });
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

    /// Tells every worker what the driver accepted.
    ///
    /// # Errors
    /// A link cannot do it.
    pub fn negotiated(&self, features: Features) -> Result<(), LinkError> {
        (0..self.handles.len())
            .filter_map(|worker| self.ask_worker(worker, |reply| Command::Negotiated { features, reply }))
            .collect()
    }

    /// Puts a watch on a flow in every worker, made by `make`; returns the watches that were there.
    pub fn watch(&self, make: impl Fn() -> Option<FlowWatch>) -> Vec<FlowWatch> {
        (0..self.handles.len())
            .filter_map(|worker| {
                self.ask_worker(worker, |reply| Command::Watch { watch: make().map(Box::new), reply }).flatten()
            })
            .map(|watch| *watch)
            .collect()
    }

    fn ask<T>(&self, index: u16, command: impl FnOnce(SyncSender<T>) -> Command) -> Option<T> {
        self.ask_worker(self.owner(index), command)
    }

    /// A worker answers after at most one pass over its queues; `None` if its thread has ended.
    fn ask_worker<T>(&self, worker: usize, command: impl FnOnce(SyncSender<T>) -> Command) -> Option<T> {
        let (reply, answer) = sync_channel(1);
        self.send_to(worker, command(reply));
        answer.recv().ok()
    }

    fn send(&self, index: u16, command: Command) {
        self.send_to(self.owner(index), command);
    }

    fn send_to(&self, worker: usize, command: Command) {
        if let Some(handle) = self.handles.get(worker) {
            // A worker that has ended has told so by a notice.
            let _ = handle.commands.send(command);
            let _ = handle.wake.write(1);
        }
    }

    fn owner(&self, index: u16) -> usize {
        usize::from(index / 2) % self.handles.len().max(1)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for handle in &mut self.handles {
            let _ = handle.commands.send(Command::Quit);
            let _ = handle.wake.write(1);
            if let Some(thread) = handle.thread.take() {
                let _ = thread.join();
            }
        }
    }
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)
}
