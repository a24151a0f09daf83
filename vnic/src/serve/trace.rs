//! `vnic trace`: follows the event rings, for all clients that ask, on one thread.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::client::{Admitted, give_way, send};
use crate::backend::guest::Guest;
use crate::backend::{QueueShared, Shared};
use crate::blk;
use crate::memory::FilePages;
use crate::net::parse::Summary;
use crate::observe::protocol::{BufferSnapshot, ChainEvent, Headers, NetHeaderStatus, Reply, TraceEvent};
use crate::observe::tracer::{Event, EventHeader, Read, Reader};
use crate::provenance::{in_words, owner};
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
    pub(super) fn all(shared: &'s Shared) -> Self {
        Following::of(&shared.tracers, || shared.make_room_for_events())
    }

    /// Samples of what transmitqs carry.
    pub(super) fn samples(shared: &'s Shared) -> Self {
        Following::of(&shared.samplers, || shared.make_room_for_samples())
    }

    fn of(counter: &'s AtomicU32, make_room: impl Fn()) -> Self {
        // Before anyone records, so that nothing is dropped for want of it; and once more for a queue that was set up in
        // between: the view's lock has either this thread see the queue, or the one that sets it up see that there is a trace.
        make_room();
        counter.fetch_add(1, Ordering::Relaxed);
        make_room();
        Following(counter)
    }
}

impl Drop for Following<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Who knows the guest of a device.
pub(crate) type GuestOf<'g, 's> = &'g dyn Fn(&'s Shared) -> Box<dyn Guest + 's>;

/// Someone who asked for a trace.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    /// Counts among the clients for as long as it lives.
    pub(crate) _admitted: Option<Admitted>,
}

/// What it asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) client: Client,
    pub(crate) wanted: Wanted,
}

/// What is told of a chain beside the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// Whose memory the buffers are.
    pub labels: bool,
    /// The frame's headers.
    pub headers: bool,
}

/// The chains only.
impl From<Client> for Asked {
    fn from(client: Client) -> Self {
        Asked { client, wanted: Wanted::default() }
    }
}

/// A client, and how far it has read.
struct Follower<'s> {
    client: Client,
    /// Who has stamps taken, where labels are wanted, by device.
    labels: Option<Vec<Box<dyn Guest + 's>>>,
    /// Wants the frames' headers.
    headers: bool,
    /// By device.
    readers: Vec<Vec<(&'s QueueShared, Reader<'s>)>>,
    /// What its socket had no room for yet. Meanwhile it reads no more: what is overwritten by then is counted as lost.
    unsent: Vec<u8>,
    _following: Vec<Following<'s>>,
}

/// What is the same for all of a device's events of a moment.
struct Moment<'s> {
    shared: &'s Shared,
    pages: Option<Arc<FilePages>>,
    behind_iommu: bool,
}

impl<'s> Moment<'s> {
    fn of(shared: &'s Shared) -> Self {
        let view = shared.view();
        let behind_iommu = view.negotiated.has(Feature::AccessPlatform);
        Moment { shared, pages: view.pages.clone(), behind_iommu }
    }
}

impl<'s> Follower<'s> {
    /// From now on, every chain; the client is told so.
    fn new(asked: Asked, devices: &'s [Arc<Shared>], guest: GuestOf<'_, 's>) -> io::Result<Self> {
        let Asked { client, wanted: Wanted { labels, headers } } = asked;
        // Before anything is recorded: from then on all of it has stamps.
        let stamps = |shared: &'s Arc<Shared>| {
            let mut guest = guest(shared);
            guest.open()?;
            Ok(guest)
        };
        let labels = match labels.then(|| devices.iter().map(stamps).collect::<Result<Vec<_>, String>>()) {
            None => None,
            Some(Ok(guests)) => Some(guests),
            Some(Err(message)) => {
                let mut stream = client.stream;
                send(&mut stream, &Reply::Error { message })?;
                return Err(io::ErrorKind::Unsupported.into());
            }
        };
        let readers = |shared: &'s Arc<Shared>| {
            shared.queues.iter().map(|queue| (queue.as_ref(), queue.events.reader())).collect()
        };
        let readers = devices.iter().map(readers).collect();
        let following = devices.iter().map(|shared| Following::all(shared)).collect();
        client.stream.set_nonblocking(true)?;
        let mut follower = Follower { client, labels, headers, readers, unsent: Vec::new(), _following: following };
        follower.say(&Reply::Done)?;
        Ok(follower)
    }

    fn say(&mut self, line: &impl serde::Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.unsent, line)?;
        self.unsent.push(b'\n');
        Ok(())
    }

    /// Sends what has happened since, as far as the client takes it. Returns whether there was anything.
    fn advance(&mut self, moments: &[Moment<'_>]) -> io::Result<bool> {
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
    fn read(&mut self, moments: &[Moment<'_>]) -> io::Result<()> {
        let mut batch: Vec<(u64, TraceEvent)> = Vec::new();
        for (device, (queues, moment)) in self.readers.iter_mut().zip(moments).enumerate() {
            let (first, mut events) = (batch.len(), Vec::new());
            for (queue, reader) in queues {
                for _ in 0..BATCH {
                    let Some(read) = reader.read() else { break };
                    // A gap is told where the queue's next event stands.
                    let at = batch.last().map_or(0, |(at, _)| *at);
                    batch.push(match read {
                        Read::Event(event) => {
                            let mut described = describe(&queue.name, &event, moment);
                            described.headers = if self.headers { headers(&event) } else { None };
                            let described = TraceEvent::Chain(described);
                            events.push(event);
                            (events.last().map_or(0, |event| event.at_ns), described)
                        }
                        Read::Lost(events) => {
                            queue.trace_lost.fetch_add(events, Ordering::Relaxed);
                            (at, TraceEvent::Lost { queue: queue.name.clone(), events })
                        }
                    });
                }
            }
            if let Some(guest) = self.labels.as_mut().and_then(|labels| labels.get_mut(device)) {
                let chains = batch.iter_mut().skip(first).filter_map(|(_, event)| match event {
                    TraceEvent::Chain(chain) => Some(chain),
                    TraceEvent::Lost { .. } => None,
                });
                label(chains.zip(&events), guest.as_mut());
            }
        }
        batch.sort_by_key(|(at, _)| *at);
        batch.iter().try_for_each(|(_, event)| self.say(event))
    }
}

/// Follows the event rings for all clients that come, each until it goes away or says something. Ends when none can come.
/// `guest` knows the guest of each device.
pub(crate) fn serve<'s>(devices: &'s [Arc<Shared>], clients: &Receiver<Asked>, guest: GuestOf<'_, 's>) {
    give_way();
    let mut followers: Vec<Follower<'_>> = Vec::new();
    loop {
        if followers.is_empty() {
            let Ok(client) = clients.recv() else { return };
            followers.extend(Follower::new(client, devices, guest));
        }
        followers.extend(clients.try_iter().flat_map(|client| Follower::new(client, devices, guest)));
        let moments: Vec<Moment<'_>> = devices.iter().map(|shared| Moment::of(shared)).collect();
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

fn describe(queue: &str, event: &Event, moment: &Moment<'_>) -> ChainEvent {
    let buffers = event.buffers().iter().map(|buffer| BufferSnapshot {
        writable: buffer.writable,
        addr: buffer.addr,
        len: buffer.len,
        // Without an IOMMU the two are the same, and one is enough.
        gpa: moment.behind_iommu.then_some(buffer.gpa),
        file_page: moment.pages.as_ref().and_then(|pages| pages.page_at(buffer.gpa)),
        label: None,
        owner: None,
    });
    ChainEvent {
        at_ns: event.at_ns,
        available_ns: event.available_ns,
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
            head if moment.shared.about.device == "blk" => blk::summary(head, event.frame_len),
            head => Summary::new(head, event.frame_len, event.gso_size).to_string(),
        },
        headers: None,
    }
}

/// The headers that the event has.
fn headers(event: &Event) -> Option<Headers> {
    let digits = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let net = |header: EventHeader| {
        let EventHeader { flags, gso_type, hdr_len, csum_start, csum_offset } = header;
        NetHeaderStatus { flags, gso_type, hdr_len, gso_size: event.gso_size, csum_start, csum_offset }
    };
    match event.head() {
        [] => None,
        head => Some(Headers { net: event.net_header.map(net), frame_len: event.frame_len, bytes: digits(head) }),
    }
}

/// Says whose memory the buffers are that the device has read, by the stamps of their events.
fn label<'c>(chains: impl Iterator<Item = (&'c mut ChainEvent, &'c Box<Event>)>, guest: &mut dyn Guest) {
    // Without a kernel there is nothing to be said: the next one may be there soon.
    let _ = guest.open();
    let mut chains = Some(chains);
    guest.look(&mut |label| {
        let Some(chains) = chains.take() else { return };
        for (chain, event) in chains {
            let buffers = event.buffers().iter().zip(event.stamps);
            for (shown, (buffer, stamp)) in
                chain.buffers.iter_mut().zip(buffers).filter(|(_, (buffer, _))| !buffer.writable)
            {
                let mut labels = Vec::new();
                label(buffer, stamp, &mut labels);
                shown.label = in_words(&labels);
                shown.owner = owner(&labels);
            }
        }
    });
}
