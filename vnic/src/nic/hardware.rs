//! A model of hardware beside the data path: what the chains would cost it, and when it would be done with them.
//!
//! Account: chains are summed up as they pass. That costs more than many a frame, so no more than [`PIECES_PER_SECOND`] are
//! looked at: what a guest's kernel sends, all of it as a rule; of a driver that sends a million frames a second, whole runs of them
//! now and then. Who reads the account is told how many chains it rests on.
//!
//! Pace: a frame goes out when the modelled card begins with its chain, which is when it is done with the one before; the chain
//! stays in the ring until the card is done with it, and only then goes back. So the ring fills as the card's would, and the
//! driver feels it. Until then the worker sleeps, and a timer wakes it. A frame for the driver waits until the card is done with
//! the ones before it; one that comes straight back (loopback) begins when the card has brought the one before. The driver is told
//! of a queue's used buffers no sooner than the card's throttle (`itr`) allows after the last time. Limits: one worker; a chain that a
//! link keeps comes back when the link is done with it, and the next waits for the card; interrupts for so many chains at a time
//! (the 82599's 32) are in the account alone, as the card's driver would wait for ever for the last of them without a throttle.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use crate::backend::{QueueShared, Queues};
use crate::hardware::{Direction, Engine, Fold, Hardware, Kind, Shapes};
use crate::memory::GuestSlice;
use crate::net::Frame;

/// Most pieces that are looked at in a second, on average: about 2 % of a CPU's time.
const PIECES_PER_SECOND: u64 = 200_000;
/// Most that are looked at in a row. When they are used up, nothing is looked at until there are as many again: a pass that may look
/// at one chain takes the slow way for all its chains.
const MOST_AT_ONCE: u64 = PIECES_PER_SECOND / 50;

/// The shapes of the chains of one worker's queues, by the queue's name.
pub(super) type ShapesByQueue = BTreeMap<String, Shapes>;

/// Say what the chains were so far.
pub(super) struct TellShapes(pub(super) SyncSender<ShapesByQueue>);

/// Sums up the chains of one worker.
#[derive(Debug)]
pub(super) struct Accounting {
    folds: Vec<(Arc<QueueShared>, Fold)>,
    /// Pieces that may still be looked at.
    left: u64,
    /// They were not used up since there were [`MOST_AT_ONCE`].
    looks: bool,
    refilled: Instant,
}

impl Accounting {
    pub(super) fn new() -> Self {
        Accounting { folds: Vec::new(), left: MOST_AT_ONCE, looks: true, refilled: Instant::now() }
    }

    /// There are these queues from now on, or they are others: takes memory for those that are new.
    pub(super) fn have(&mut self, queue: &Arc<QueueShared>) {
        if !self.folds.iter().any(|(known, _)| Arc::ptr_eq(known, queue)) {
            self.folds.push((queue.clone(), Fold::default()));
        }
    }

    /// A pass begins.
    pub(super) fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.refilled);
        let more = (passed.as_nanos() * u128::from(PIECES_PER_SECOND) / 1_000_000_000) as u64;
        if more > 0 {
            self.left = self.left.saturating_add(more).min(MOST_AT_ONCE);
            self.looks |= self.left == MOST_AT_ONCE;
            self.refilled = now;
        }
    }

    /// May the next chains be looked at?
    pub(super) fn looks(&self) -> bool {
        self.looks
    }

    pub(super) fn add(&mut self, queue: &QueueShared, kind: Kind, pieces: impl Iterator<Item = (u64, u64)>) {
        if !self.looks {
            return;
        }
        let found = self.folds.iter_mut().find(|(known, _)| std::ptr::eq(known.as_ref(), queue));
        if let Some((_, fold)) = found {
            let mut count = 0;
            fold.add(kind, pieces.inspect(|_| count += 1));
            self.left = self.left.saturating_sub(count);
            self.looks = self.left > 0;
        }
    }

    pub(super) fn shapes(&self) -> ShapesByQueue {
        self.folds.iter().map(|(queue, fold)| (queue.name.clone(), fold.shapes())).collect()
    }
}

/// The driver's address and the length of each piece.
pub(super) fn pieces_of<'a>(slices: impl Iterator<Item = GuestSlice<'a>>) -> impl Iterator<Item = (u64, u64)> {
    slices.map(|slice| (slice.addr(), slice.len() as u64))
}

/// How the card has to move a frame.
pub(super) fn kind(frame: &Frame<'_>) -> Kind {
    let header = &frame.header;
    let segment = if header.gso_type == 0 { 0 } else { header.gso_size };
    Kind { indirect: frame.chain().indirect, segment, headers: header.hdr_len.into() }
}

/// What a card is about with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// It begins: the frame is to go out now.
    Begins,
    /// The frame has gone out, and the chain stays where it is.
    Goes,
    /// It is done: the chain goes back. So many bytes of it were read, and copied once more.
    Done { read: u32, copied: u32 },
}

/// The chain that a card works on.
#[derive(Debug)]
struct WorksOn {
    /// Where it is in the ring; `None`: the link has it.
    place: Option<u16>,
    done: Duration,
    read: u32,
    copied: u32,
}

/// A queue that is paced.
#[derive(Debug, Default)]
struct Turn {
    works_on: Option<WorksOn>,
    /// There was nothing in it when it was looked at last.
    was_empty: bool,
    /// Since when there is something in it.
    since: Duration,
    /// The card does not interrupt for it before.
    quiet_until: Duration,
    /// It is to interrupt then.
    call_waits: bool,
}

/// Holds the chains of one worker back until the modelled card is done with them.
#[derive(Debug)]
pub(super) struct Pace {
    engine: Engine,
    /// The shortest time between two interrupts.
    itr: Duration,
    epoch: Instant,
    now: Duration,
    turns: BTreeMap<u16, Turn>,
    /// When the card is done with the last frame for the driver.
    received: Duration,
    /// A frame for the driver waits for that.
    receive_waits: bool,
    timer: TimerFd,
    /// What the timer is set to.
    set: Option<Duration>,
}

impl Pace {
    /// # Errors
    /// The kernel has no timer.
    pub(super) fn new(hardware: &Hardware) -> std::io::Result<Self> {
        let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
        Ok(Pace {
            engine: Engine::new(hardware),
            itr: hardware.itr,
            epoch: Instant::now(),
            now: Duration::ZERO,
            turns: BTreeMap::new(),
            received: Duration::ZERO,
            receive_waits: false,
            timer: TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?,
            set: None,
        })
    }

    /// The file that wakes the worker.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// There is this queue, from its first chain on.
    pub(super) fn have(&mut self, index: u16) {
        let quiet_until = self.turns.get(&index).map_or(Duration::ZERO, |turn| turn.quiet_until);
        self.turns.insert(index, Turn { was_empty: true, quiet_until, ..Turn::default() });
    }

    /// A pass begins.
    pub(super) fn pass(&mut self, now: Instant) {
        self.now = now.saturating_duration_since(self.epoch);
        self.receive_waits = false;
    }

    /// A pass ends: tells the drivers of these queues what they are to be told, and may be.
    pub(super) fn interrupt(&mut self, queues: &mut Queues) {
        if self.itr.is_zero() {
            return;
        }
        for (index, turn) in &mut self.turns {
            let Some(queue) = queues.get_mut(index) else {
                turn.call_waits = false;
                continue;
            };
            queue.throttled = true;
            if turn.quiet_until <= self.now && queue.send_call() {
                turn.quiet_until = self.now + self.itr;
            }
            turn.call_waits = queue.call_waits;
        }
    }

    /// This chain is the next of the queue's: what the card is about with it.
    pub(super) fn work(&mut self, index: u16, frame: &Frame<'_>) -> Work {
        let Some(turn) = self.turns.get_mut(&index) else { return Work::Begins };
        match &turn.works_on {
            Some(on) if on.done > self.now => Work::Goes,
            Some(on) if on.place == Some(frame.chain().idx) => {
                let (read, copied) = (on.read, on.copied);
                turn.works_on = None;
                Work::Done { read, copied }
            }
            _ => Work::Begins,
        }
    }

    /// The frame has gone out: when the card will be done with it is known from now on.
    pub(super) fn begun(&mut self, index: u16, frame: &Frame<'_>, read: u32, copied: u32) {
        let Some(turn) = self.turns.get_mut(&index) else { return };
        if std::mem::take(&mut turn.was_empty) {
            turn.since = self.now;
        }
        let pieces = pieces_of(frame.segments());
        let done = self.engine.chain(Direction::Transmit, kind(frame), pieces, turn.since);
        turn.works_on = Some(WorksOn { place: Some(frame.chain().idx), done, read, copied });
    }

    /// The link has kept that chain: it is not in the ring any more.
    pub(super) fn kept(&mut self, index: u16) {
        if let Some(on) = self.turns.get_mut(&index).and_then(|turn| turn.works_on.as_mut()) {
            on.place = None;
        }
    }

    /// Where in the ring the chain of a queue is whose frame has gone out and that the card works on.
    pub(super) fn place(&self, index: u16) -> Option<u16> {
        self.turns.get(&index).and_then(|turn| turn.works_on.as_ref()?.place)
    }

    /// All that the driver has given has been looked at.
    pub(super) fn found_empty(&mut self, index: u16) {
        if let Some(turn) = self.turns.get_mut(&index) {
            turn.was_empty = true;
        }
    }

    /// May the driver get the next frame?
    pub(super) fn may_receive(&mut self) -> bool {
        self.receive_waits = self.received > self.now;
        !self.receive_waits
    }

    /// It got one, with these pieces.
    pub(super) fn received(&mut self, pieces: impl Iterator<Item = (u64, u64)>) {
        self.received = self.engine.chain(Direction::Receive, Kind::default(), pieces, self.now);
    }

    /// Is there something that the card is not done with?
    pub(super) fn works(&self) -> bool {
        self.due().is_some()
    }

    fn due(&self) -> Option<Duration> {
        let sends = self.turns.values().filter_map(|turn| Some(turn.works_on.as_ref()?.done));
        let calls = self.turns.values().filter(|turn| turn.call_waits).map(|turn| turn.quiet_until);
        sends.chain(calls).chain(self.receive_waits.then_some(self.received)).filter(|done| *done > self.now).min()
    }

    /// The worker goes to sleep: has the timer wake it when the card is done with something.
    pub(super) fn set_timer(&mut self) {
        let due = self.due();
        if due == self.set && due.is_none_or(|due| due > self.now) {
            return;
        }
        // A time that has passed meanwhile wakes it at once; 0 would be none.
        let left = due.map(|due| due.saturating_sub(self.epoch.elapsed()).max(Duration::from_nanos(1)));
        let outcome = match left {
            Some(left) => self.timer.set(Expiration::OneShot(TimeSpec::from(left)), TimerSetTimeFlags::empty()),
            None => self.timer.unset(),
        };
        if let Err(error) = outcome {
            // Cannot be, of a timer that is there; without it the worker looks when something else wakes it.
            tracing::warn!(%error, "the timer cannot be set");
        }
        self.set = due;
    }
}
