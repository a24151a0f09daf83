//! `vnic life`: what has happened to the guest's pages, recorded from the start, where that is wanted.
//!
//! Place: a thread beside the data path. It follows every queue as a trace does, and adds what it reads to a [`Log`]; whoever
//! asks reads there.
//!
//! Operation: while it follows, the workers record every chain, frames with stamps. Events of all queues are put in the order of
//! their time, looked up and recorded. What the workers had no room for is counted in the log.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::client::give_way;
use super::trace::Following;
use crate::backend::guest::{Guest, Served};
use crate::backend::{QueueShared, Shared};
use crate::life::Log;
use crate::observe::tracer::{Event, Read, Reader};

/// Between two looks, and while nothing passes.
const PAUSE: Duration = Duration::from_millis(20);
const IDLE: Duration = Duration::from_millis(100);
/// Events taken from a queue before the others have their turn.
const BATCH: usize = 512;

/// How long whoever asks waits until the log is up to date.
const UP_TO_DATE: Duration = Duration::from_secs(2);

/// The log, shared by who records and who asks.
#[derive(Debug, Clone, Default)]
pub(crate) struct Lives(Arc<Recorded>);

#[derive(Debug, Default)]
struct Recorded {
    log: Mutex<Log>,
    /// How often all that had happened was added.
    passes: Mutex<u64>,
    passed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lives {
    /// To be read as it is: what has just happened may not be in it yet.
    pub(super) fn log(&self) -> MutexGuard<'_, Log> {
        lock(&self.0.log)
    }

    /// To be read: with all in it that had happened when this was called, if the recorder keeps up.
    pub(super) fn up_to_date(&self) -> MutexGuard<'_, Log> {
        let passes = lock(&self.0.passes);
        // The pass that is under way may have begun before.
        let wanted = *passes + 2;
        let _ = self.0.passed.wait_timeout_while(passes, UP_TO_DATE, |passes| *passes < wanted);
        lock(&self.0.log)
    }

    /// Records what these devices do, as long as anybody else has the log.
    pub(super) fn record(&self, devices: &[Arc<Shared>]) {
        give_way();
        let mut recorders: Vec<Recorder<'_>> = devices.iter().map(|shared| Recorder::new(shared)).collect();
        let mut passed_at = Instant::now();
        while Arc::strong_count(&self.0) > 1 {
            if self.advance(&mut recorders) {
                passed_at = Instant::now();
            }
            *lock(&self.0.passes) += 1;
            self.0.passed.notify_all();
            thread::sleep(if passed_at.elapsed() > IDLE { IDLE } else { PAUSE });
        }
    }

    /// Adds what has happened. Returns whether there was anything.
    fn advance(&self, recorders: &mut [Recorder<'_>]) -> bool {
        let mut batch: Vec<(usize, Arc<str>, Box<Event>)> = Vec::new();
        let mut missed = 0;
        for (device, recorder) in recorders.iter_mut().enumerate() {
            recorder.read(&mut missed, |queue, event| batch.push((device, queue.clone(), event)));
        }
        batch.sort_by_key(|(_, _, event)| event.at_ns);
        let any = !batch.is_empty();
        // One device's events after the other's: each has eyes of its own on the guest. Of those that lie between, the log learns in
        // their order.
        for run in batch.chunk_by(|(one, ..), (other, ..)| one == other) {
            if let Some(recorder) = run.first().and_then(|(device, ..)| recorders.get_mut(*device)) {
                recorder.add(run, &self.0.log);
            }
        }
        if missed > 0 {
            lock(&self.0.log).miss(missed);
        }
        any
    }
}

/// A device that is followed.
struct Recorder<'s> {
    queues: Vec<(Arc<str>, Reader<'s>)>,
    /// Of a device that sends frames: of these there are stamps.
    guest: Option<Box<dyn Guest + 's>>,
    _following: Following<'s>,
}

impl<'s> Recorder<'s> {
    fn new(shared: &'s Shared) -> Self {
        let queue = |queue: &'s Arc<QueueShared>| (Arc::from(queue.name.as_str()), queue.events.reader());
        let queues = shared.queues.iter().map(queue).collect();
        let sends = shared.queues.iter().any(|queue| queue.is_transmitq());
        Recorder { queues, guest: sends.then(|| Served::boxed(shared)), _following: Following::all(shared) }
    }

    fn read(&mut self, missed: &mut u64, mut take: impl FnMut(&Arc<str>, Box<Event>)) {
        for (name, reader) in &mut self.queues {
            for read in std::iter::from_fn(|| reader.read()).take(BATCH) {
                match read {
                    Read::Event(event) => take(name, event),
                    Read::Lost(events) => *missed += events,
                }
            }
        }
    }

    fn add(&mut self, run: &[(usize, Arc<str>, Box<Event>)], log: &Mutex<Log>) {
        let looked = self.guest.as_mut().and_then(|guest| {
            // Without a kernel there is nothing to be said: the next one may be there soon.
            let _ = guest.open();
            guest.look(&mut |label| {
                for (_, queue, event) in run {
                    lock(log).record(queue, event, |buffer, stamp, labels| match stamp {
                        // Nobody looked when it was read; whose it is now is no answer.
                        0 => {}
                        stamp => label(buffer, stamp, labels),
                    });
                }
            })
        });
        if looked.is_none() {
            run.iter().for_each(|(_, queue, event)| lock(log).record(queue, event, |_, _, _| {}));
        }
    }
}
