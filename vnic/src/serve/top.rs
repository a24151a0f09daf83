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
use crate::introspect::{Kind, Label};
use crate::observe::protocol::Reply;
use crate::observe::tracer::{Event, Read, Reader, SAMPLES};
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
pub(super) struct Client {
    pub(super) stream: UnixStream,
    /// Counts among the clients for as long as it lives.
    pub(super) _admitted: Admitted,
    /// Between two reports.
    pub(super) every: Duration,
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
    shared: &'s Arc<Shared>,
    queues: Vec<Queue<'s>>,
    stamper: Option<Arc<EyesStamper>>,
    kernel: Option<String>,
    why: Option<String>,
    try_at: Instant,
    _following: Following<'s>,
}

/// Tells the client, until it goes away.
pub(super) fn follow(devices: &[Arc<Shared>], client: &mut Client) -> io::Result<()> {
    give_way();
    client.stream.set_write_timeout(Some(READ_WITHIN))?;
    let every = client.every.max(OFTEN);
    let mut devices: Vec<Device<'_>> = devices.iter().map(Device::new).collect();
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
    fn new(shared: &'s Arc<Shared>) -> Self {
        let transmits = shared.queues.iter().filter(|queue| queue.name.starts_with("transmitq"));
        let mut device = Device {
            shared,
            queues: Vec::new(),
            stamper: None,
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
        let memory = self.shared.view().memory.clone();
        let Some(memory) = memory else {
            (self.stamper, self.why) = (None, Some("no front-end has shared a guest's memory".to_owned()));
            return;
        };
        let failed = self.why.is_some();
        if failed && Instant::now() < self.try_at {
            return;
        }
        match self.shared.labels.want_stamps(&memory) {
            Ok(stamper) => {
                self.kernel = Some(stamper.release().to_owned());
                (self.stamper, self.why) = (Some(stamper), None);
            }
            Err(error) => {
                (self.stamper, self.why) = (None, Some(error.to_string()));
                self.try_at = Instant::now() + TRY_AGAIN;
            }
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
        let memory = self.shared.view().memory.clone().filter(|_| self.stamper.is_some());
        let looked = memory.map(|memory| {
            self.shared.labels.watch(&memory, |eyes| {
                for event in &events {
                    account.add(event, |buffer, stamp, labels| eyes.labels_of(buffer.gpa, buffer.len, stamp, labels));
                }
            })
        });
        if !matches!(looked, Some(Ok(()))) {
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
        seen_share: (all.bytes > 0).then(|| report.seen.bytes as f64 / all.bytes as f64),
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
