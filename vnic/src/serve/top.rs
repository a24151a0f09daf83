//! `vnic top` and `vnic verdict`: from what the frames come that the guest sends, for one client.
//!
//! Place: a thread of its own for each client, beside the data path, for as long as it stays.
//!
//! Operation:
//! 1. While it is there, the workers put stamps on the events that they record: what the pages of a frame were while the device
//!    had them ([`Stamper`](crate::introspect::Stamper)).
//! 2. It reads the events of the transmit queues, looks the pages up, and adds them to its [`Account`].
//! 3. Then it pauses, by what those events have cost the workers: no more than [`SHARE`] of their time. What comes by
//!    meanwhile and has no room in the rings is counted, and the account says how much of all it has seen.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::control::send;
use super::trace::{Admitted, Following, give_way};
use crate::backend::labels::EyesStamper;
use crate::backend::{QueueShared, Shared};
use crate::introspect::{GuestPhysical, Introspection, Kind, Label};
use crate::observe::protocol::Reply;
use crate::observe::tracer::{Event, EventBuffer, Read, Reader, SAMPLES};
use crate::provenance::{Account, Passed, Report};

/// Of a worker's time, what its events may cost: one part of this many.
const SHARE: u32 = 100;
/// What an event costs the worker that records it, about, and each page that it takes a stamp of.
const EVENT: Duration = Duration::from_nanos(400);
const PAGE: Duration = Duration::from_nanos(150);
/// The shortest pause.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a client may take to read a report.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// How long until a guest that could not be looked into is tried again.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// Reports come no more often.
const OFTEN: Duration = Duration::from_millis(100);

/// Who asked.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    /// Counts among the clients for as long as it lives.
    pub(crate) _admitted: Admitted,
    /// Between two reports.
    pub(crate) every: Duration,
}

/// Labels for the pages of a buffer that has this stamp.
pub(crate) type Labelled<'l> = &'l mut dyn FnMut(&EventBuffer, u64, &mut Vec<Label>);

/// Whoever knows the guest of a device.
pub(crate) trait Guest {
    /// Has stamps taken of what is sent from now on, as long as it lives. Returns the kernel's release.
    ///
    /// # Errors
    /// The guest cannot be looked into: why, and how long until it is worth another try.
    fn open(&mut self) -> Result<String, (String, Duration)>;

    /// Shows who labels pages. `None`: nobody can at the moment.
    fn look(&mut self, show: &mut dyn FnMut(Labelled<'_>)) -> Option<()>;
}

/// A device that is served has its front-end's memory.
struct Served<'s> {
    shared: &'s Shared,
    stamper: Option<Arc<EyesStamper>>,
}

impl Guest for Served<'_> {
    fn open(&mut self) -> Result<String, (String, Duration)> {
        self.stamper = None;
        let memory = self.shared.view().memory.clone();
        let nobody = || ("no front-end has shared a guest's memory".to_owned(), Duration::ZERO);
        let stamper = self.shared.labels.want_stamps(&memory.ok_or_else(nobody)?);
        let stamper = stamper.map_err(|error| (error.to_string(), TRY_AGAIN))?;
        Ok(self.stamper.insert(stamper).release().to_owned())
    }

    fn look(&mut self, show: &mut dyn FnMut(Labelled<'_>)) -> Option<()> {
        let memory = self.shared.view().memory.clone().filter(|_| self.stamper.is_some())?;
        self.shared.labels.watch(&memory, |eyes| labelled(eyes, show)).ok()
    }
}

/// Shows these eyes.
pub(crate) fn labelled<M: GuestPhysical>(eyes: &mut Introspection<M>, show: &mut dyn FnMut(Labelled<'_>)) {
    show(&mut |buffer, stamp, labels| eyes.labels_of(buffer.gpa, buffer.len, stamp, labels));
}

/// A transmit queue, and how far it was read.
struct Queue<'s> {
    shared: &'s QueueShared,
    reader: Reader<'s>,
    /// What had passed when the client came.
    before: Passed,
}

/// A device that is followed.
struct Device<'s> {
    guest: Box<dyn Guest + 's>,
    queues: Vec<Queue<'s>>,
    kernel: Option<String>,
    why: Option<String>,
    try_at: Instant,
    _following: Following<'s>,
}

/// Tells the client of devices that are served, until it goes away.
pub(super) fn follow(devices: &[Arc<Shared>], client: &mut Client) -> io::Result<()> {
    follow_with(devices, |shared| Box::new(Served { shared, stamper: None }), client)
}

/// Tells the client, until it goes away. `guest` knows the guest of a device.
pub(crate) fn follow_with<'s>(
    devices: &'s [Arc<Shared>],
    guest: impl Fn(&'s Shared) -> Box<dyn Guest + 's>,
    client: &mut Client,
) -> io::Result<()> {
    give_way();
    client.stream.set_write_timeout(Some(READ_WITHIN))?;
    let every = client.every.max(OFTEN);
    let mut devices: Vec<Device<'_>> = devices.iter().map(|shared| Device::new(shared, guest(shared))).collect();
    let mut account = Account::default();
    let start = Instant::now();
    let mut next = start + every;
    send(&mut client.stream, &Reply::Done)?;
    loop {
        let cost: Duration = devices.iter_mut().map(|device| device.advance(&mut account)).sum();
        let pause = PAUSE.max(cost * SHARE);
        let now = Instant::now();
        if now >= next {
            let report = report(&account, &devices, start.elapsed());
            send(&mut client.stream, &Reply::Top(Box::new(report)))?;
            next = now + every;
        }
        // What it has to say is that it goes.
        if readable(&client.stream, pause.min(next.saturating_duration_since(now)).max(PAUSE)) {
            return Ok(());
        }
    }
}

impl<'s> Device<'s> {
    fn new(shared: &'s Shared, guest: Box<dyn Guest + 's>) -> Self {
        // From outside, the device's name stands before the queue's.
        let is_transmitq = |name: &str| name.rsplit('.').next().is_some_and(|name| name.starts_with("transmitq"));
        let transmits = shared.queues.iter().filter(|queue| is_transmitq(&queue.name));
        let mut device = Device {
            guest,
            queues: Vec::new(),
            kernel: None,
            why: None,
            try_at: Instant::now(),
            _following: Following::samples(shared),
        };
        // First the stamps: what is sent from then on can be told.
        device.open();
        device.queues = transmits.map(|queue| Queue::new(queue)).collect();
        device
    }

    /// Has the workers take stamps, of the kernel that runs now.
    fn open(&mut self) {
        if self.why.is_some() && Instant::now() < self.try_at {
            return;
        }
        match self.guest.open() {
            Ok(kernel) => (self.kernel, self.why) = (Some(kernel), None),
            Err((why, wait)) => (self.why, self.try_at) = (Some(why), Instant::now() + wait),
        }
    }

    /// Adds what has happened. Returns what it has cost the workers.
    fn advance(&mut self, account: &mut Account) -> Duration {
        self.open();
        let events: Vec<Event> = self.queues.iter_mut().flat_map(Queue::read).collect();
        let pages =
            |event: &Event| -> u64 { event.buffers().iter().map(|buffer| u64::from(buffer.len >> 12) + 1).sum() };
        let cost = events.iter().map(|event| EVENT + PAGE * pages(event).min(100) as u32).sum();
        if events.is_empty() {
            return cost;
        }
        let mut add_all = |label: Labelled<'_>| {
            events.iter().for_each(|event| account.add(event, |buffer, stamp, labels| label(buffer, stamp, labels)));
        };
        if self.guest.look(&mut add_all).is_none() {
            for event in &events {
                account.add(event, |buffer, _, labels| labels.push(Label::of(buffer.gpa, Kind::Unsettled)));
            }
        }
        cost
    }
}

impl<'s> Queue<'s> {
    fn new(shared: &'s QueueShared) -> Self {
        Queue { shared, reader: shared.events.reader(), before: passed(shared) }
    }

    /// What there is, but no more than the ring holds.
    fn read(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < SAMPLES as usize {
            match self.reader.read() {
                Some(Read::Event(event)) => events.push(*event),
                Some(Read::Lost(lost)) => {
                    self.shared.trace_lost.fetch_add(lost, Ordering::Relaxed);
                }
                None => break,
            }
        }
        events
    }
}

fn passed(queue: &QueueShared) -> Passed {
    Passed { frames: queue.counters.chains.get(), bytes: queue.counters.bytes.get() }
}

fn report(account: &Account, devices: &[Device<'_>], since: Duration) -> Report {
    let mut all = Passed::default();
    for queue in devices.iter().flat_map(|device| &device.queues) {
        let now = passed(queue.shared);
        all.frames += now.frames.saturating_sub(queue.before.frames);
        all.bytes += now.bytes.saturating_sub(queue.before.bytes);
    }
    let report = account.report();
    // A burst is counted at its end: what was seen of it before may be more.
    all = Passed { frames: all.frames.max(report.seen.frames), bytes: all.bytes.max(report.seen.bytes) };
    Report {
        seconds: since.as_secs_f64(),
        kernel: devices.iter().find_map(|device| device.kernel.clone()),
        why: devices.iter().find_map(|device| device.why.clone()),
        seen_share: report.seen.share_of(all),
        passed: all,
        ..report
    }
}

/// Waits. Has the client said something, or gone?
fn readable(stream: &UnixStream, pause: Duration) -> bool {
    let mut files = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    let said = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
    let _ = poll(&mut files, PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX));
    files.iter().any(|file| file.revents().is_some_and(|events| events.intersects(said)))
}
