//! `vnic life`: what has happened to the guest's pages, recorded from the start, where that is wanted.
//!
//! Place: a thread beside the data path. It follows every queue as a trace does, and adds what it reads to a [`Log`]; whoever
//! asks reads there.
//!
//! Operation: while it follows, the workers record every chain, frames with stamps. Events of all queues are put in the order of
//! their time, looked up and recorded. What the workers had no room for is counted in the log.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::client::give_way;
use super::trace::Following;
use crate::backend::guest::{Guest, Served};
use crate::backend::{QueueShared, Shared};
use crate::life::Log;
use crate::link::capture::{Buffer, Labels, Whose};
use crate::observe::tracer::{Event, Read, Reader};
use crate::provenance::SourceKind;

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

    /// Labels for a capture of a device that started then: whose the pages were, and what a device had put into them before.
    pub(super) fn labels(self, whose: Box<dyn Labels>, started: Instant) -> Box<dyn Labels> {
        let started = unix_time().saturating_sub(started.elapsed());
        Box::new(CaptureLabels { whose, lives: self, started, seen: Mutex::default() })
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

/// Now, since the Unix epoch.
fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What a capture says of a frame's buffers: beside whose they are, what had filled their first pages.
#[derive(Debug)]
struct CaptureLabels {
    whose: Box<dyn Labels>,
    lives: Lives,
    /// When the device started, since the Unix epoch, as frames have their times.
    started: Duration,
    /// All that had happened until then is in the log.
    seen: Mutex<Duration>,
}

impl CaptureLabels {
    /// With all in it that had happened at that time.
    fn log_at(&self, at: Duration) -> MutexGuard<'_, Log> {
        let mut seen = lock(&self.seen);
        if at < *seen {
            return self.lives.log();
        }
        let now = unix_time();
        let log = self.lives.up_to_date();
        *seen = now;
        log
    }
}

impl Labels for CaptureLabels {
    fn label(&self, at: Duration, buffers: &[Buffer], labels: &mut Vec<Option<Whose>>) {
        let first = labels.len();
        self.whose.label(at, buffers, labels);
        labels.resize(first + buffers.len(), None);
        let log = self.log_at(at);
        let at_ns = at.saturating_sub(self.started).as_nanos() as u64;
        for (buffer, label) in buffers.iter().zip(labels.iter_mut().skip(first)) {
            let Some(filled) = log.filled_before(buffer.gpa, at_ns) else { continue };
            *label = Some(match label.take() {
                Some(whose) => Whose { words: format!("{}, {filled}", whose.words), ..whose },
                None => Whose { words: filled.to_string(), kind: SourceKind::Unsettled },
            });
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::life::tests::fill;

    /// Knows the first buffer's owner only.
    #[derive(Debug)]
    struct Knows;

    impl Labels for Knows {
        fn label(&self, _at: Duration, buffers: &[Buffer], labels: &mut Vec<Option<Whose>>) {
            let whose = || Whose { words: "/a page 0".to_owned(), kind: SourceKind::File };
            labels.extend(buffers.iter().enumerate().map(|(at, _)| (at == 0).then(whose)));
        }
    }

    #[test]
    fn a_captures_labels_say_what_had_filled_the_page_before_the_frame() {
        let (lives, started) = (Lives::default(), Duration::from_secs(1000));
        for at_ns in [50, 900] {
            lives.log().record(&"requestq0".into(), &fill(at_ns, 0x10_0000), |_, _, _| {});
        }
        // Nobody records: what is there is all.
        let labels = CaptureLabels { whose: Box::new(Knows), lives, started, seen: Mutex::new(Duration::MAX) };
        let said = |after_ns| {
            let mut said = vec![None];
            let buffers = [0x10_1000, 0x10_0000, 0x77_0000].map(Buffer::at_gpa);
            labels.label(started + Duration::from_nanos(after_ns), &buffers, &mut said);
            said.drain(1..).map(|whose| whose.map(|whose| whose.words)).collect::<Vec<_>>()
        };
        let some = |words: &str| Some(words.to_owned());
        assert_eq!(said(49), [some("/a page 0"), None, None]);
        let expected = ["/a page 0, filled from sector 108 by requestq0 #0", "filled from sector 100 by requestq0 #0"];
        assert_eq!(said(60), [some(expected[0]), some(expected[1]), None]);
    }
}
