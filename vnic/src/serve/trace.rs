//! `vnic trace`: follows the event rings, for all clients that ask, on one thread.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::backend::{QueueShared, Shared};
use crate::memory::FilePages;
use crate::net::parse::Summary;
use crate::observe::protocol::{BufferSnapshot, ChainEvent, Reply, TraceEvent};
use crate::observe::tracer::{Event, Read, Reader};
use crate::spec::Feature;

/// How long a follower that is up to date waits before it looks again, milliseconds. The data path does not tell it:
/// that would be a syscall per packet.
const LOOK_AGAIN_MS: u16 = 20;
/// Events taken from one queue before the others have their turn.
const BATCH: usize = 512;

/// Workers record while one of these lives.
#[derive(Debug)]
pub(super) struct Following<'s>(&'s AtomicU32);

impl<'s> Following<'s> {
    /// All events.
    fn all(shared: &'s Shared) -> Self {
        Following::of(shared, &shared.tracers)
    }

    /// Samples of them will do.
    pub(super) fn samples(shared: &'s Shared) -> Self {
        Following::of(shared, &shared.samplers)
    }

    fn of(shared: &'s Shared, counter: &'s AtomicU32) -> Self {
        // Before anyone records, so that nothing is dropped for want of it; and once more for a queue that was set up in
        // between: the view's lock has either this thread see the queue, or the one that sets it up see that there is a trace.
        shared.make_room_for_events();
        counter.fetch_add(1, Ordering::Relaxed);
        shared.make_room_for_events();
        Following(counter)
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A client counts as one until this is dropped.
#[derive(Debug)]
pub struct Admitted(pub(super) Arc<AtomicUsize>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Someone who asked for a trace.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    /// Counts among the clients for as long as it lives.
    pub(crate) _admitted: Option<Admitted>,
}

/// A client, and how far it has read.
struct Follower<'s> {
    client: Client,
    /// By device.
    readers: Vec<Vec<(&'s QueueShared, Reader<'s>)>>,
    /// What its socket had no room for yet. Meanwhile it reads no more: what is overwritten by then is counted as lost.
    unsent: Vec<u8>,
    _following: Vec<Following<'s>>,
}

/// What is the same for all of a device's events of a moment.
struct Moment {
    pages: Option<Arc<FilePages>>,
    behind_iommu: bool,
}

impl<'s> Follower<'s> {
    /// From now on, every chain; the client is told so.
    fn new(client: Client, devices: &'s [Arc<Shared>]) -> io::Result<Self> {
        let readers = |shared: &'s Arc<Shared>| {
            shared.queues.iter().map(|queue| (queue.as_ref(), queue.events.reader())).collect()
        };
        let readers = devices.iter().map(readers).collect();
        let following = devices.iter().map(|shared| Following::all(shared)).collect();
        client.stream.set_nonblocking(true)?;
        let mut follower = Follower { client, readers, unsent: Vec::new(), _following: following };
        follower.say(&Reply::Done)?;
        Ok(follower)
    }

    fn say(&mut self, line: &impl serde::Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.unsent, line)?;
        self.unsent.push(b'\n');
        Ok(())
    }

    /// Sends what has happened since, as far as the client takes it. Returns whether there was anything.
    fn advance(&mut self, moments: &[Moment]) -> io::Result<bool> {
        if self.unsent.is_empty() {
            self.read(moments)?;
        }
        let any = !self.unsent.is_empty();
        while !self.unsent.is_empty() {
            match self.client.stream.write(&self.unsent) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // It is not this client's turn.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(any)
    }

    /// Reads a batch of each queue, and puts the events in the order of their time.
    fn read(&mut self, moments: &[Moment]) -> io::Result<()> {
        let mut batch: Vec<(u64, TraceEvent)> = Vec::new();
        let queues = self.readers.iter_mut().zip(moments);
        for ((queue, reader), moment) in queues.flat_map(|(queues, moment)| queues.iter_mut().map(move |q| (q, moment)))
        {
            for _ in 0..BATCH {
                let Some(read) = reader.read() else { break };
                // A gap is told where the queue's next event stands.
                let at = batch.last().map_or(0, |(at, _)| *at);
                batch.push(match read {
                    Read::Event(event) => (event.at_ns, TraceEvent::Chain(describe(&queue.name, &event, moment))),
                    Read::Lost(events) => {
                        queue.trace_lost.fetch_add(events, Ordering::Relaxed);
                        (at, TraceEvent::Lost { queue: queue.name.clone(), events })
                    }
                });
            }
        }
        batch.sort_by_key(|(at, _)| *at);
        batch.iter().try_for_each(|(_, event)| self.say(event))
    }
}

/// Follows the event rings for all clients that come, each until it goes away or says something. Ends when none can come.
pub(crate) fn serve(devices: &[Arc<Shared>], clients: &Receiver<Client>) {
    give_way();
    let mut followers: Vec<Follower<'_>> = Vec::new();
    loop {
        if followers.is_empty() {
            let Ok(client) = clients.recv() else { return };
            followers.extend(Follower::new(client, devices));
        }
        followers.extend(clients.try_iter().flat_map(|client| Follower::new(client, devices)));
        let moment = |shared: &Arc<Shared>| {
            let view = shared.view();
            Moment { pages: view.pages.clone(), behind_iommu: view.negotiated.has(Feature::AccessPlatform) }
        };
        let moments: Vec<Moment> = devices.iter().map(moment).collect();
        let mut idle = true;
        followers.retain_mut(|follower| match follower.advance(&moments) {
            Ok(any) => {
                idle &= !any;
                true
            }
            Err(_) => false,
        });
        if idle {
            let gone = wait(&followers);
            let mut gone = gone.into_iter();
            followers.retain(|_| !gone.next().unwrap_or(false));
        }
    }
}

/// Makes this thread the nicest there is: a trace loses events rather than take a worker's CPU.
pub(crate) fn give_way() {
    // SAFETY: the call takes three numbers; on Linux 0 is the calling thread, which does nothing else.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } < 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "a trace that takes its share of the CPUs");
    }
}

/// Waits a moment, or until a client has room again. Says of each whether it has closed, or said something (which ends a
/// trace as well).
fn wait(followers: &[Follower<'_>]) -> Vec<bool> {
    let watch = |follower: &'_ Follower<'_>| {
        if follower.unsent.is_empty() { PollFlags::POLLIN } else { PollFlags::POLLIN | PollFlags::POLLOUT }
    };
    let mut fds: Vec<PollFd<'_>> =
        followers.iter().map(|follower| PollFd::new(follower.client.stream.as_fd(), watch(follower))).collect();
    // However it ends, the files say what there is.
    let _ = poll(&mut fds, PollTimeout::from(LOOK_AGAIN_MS));
    let said = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
    fds.iter().map(|fd| fd.revents().is_some_and(|events| events.intersects(said))).collect()
}

fn describe(queue: &str, event: &Event, moment: &Moment) -> ChainEvent {
    let buffers = event.buffers().iter().map(|buffer| BufferSnapshot {
        writable: buffer.writable,
        addr: buffer.addr,
        len: buffer.len,
        // Without an IOMMU the two are the same, and one is enough.
        gpa: moment.behind_iommu.then_some(buffer.gpa),
        file_page: moment.pages.as_ref().and_then(|pages| pages.page_at(buffer.gpa)),
    });
    ChainEvent {
        at_ns: event.at_ns,
        queue: queue.to_owned(),
        head: event.head,
        idx: event.idx,
        indirect: event.indirect,
        buffers: buffers.collect(),
        descriptors: event.descriptors,
        written: event.written,
        // Of what is no frame, or the rest of one, there is nothing to say.
        summary: match event.head() {
            [] => String::new(),
            head => Summary::new(head, event.frame_len, event.gso_size).to_string(),
        },
    }
}
