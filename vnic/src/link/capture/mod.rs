//! Every frame on record, in a pcapng file, each with the descriptors it was in.
//!
//! Place: the worker calls [`Capture::transmitted`] when the link has taken a frame and [`Capture::received`] when it has
//! filled one in, in both cases before the driver gets the chain back. Any link can be captured; none knows of it.
//!
//! Operation:
//! 1. The worker copies frame and descriptors into a record and queues it. This copy is the observer's own: it is not on
//!    the frame's way, and no figure of the device counts it.
//! 2. A thread of the capture's own writes the records, and flushes the file when no more come: a capture can be read
//!    while it grows, and an idle one wakes nobody.
//! 3. Where the disk is slower than the NIC for long, the worker waits, at most `PATIENCE` per frame; then the frame
//!    goes unrecorded, is counted, and the next record of that queue says so (`epb_dropcount`).
//!
//! Invariants: the queue holds at most `MAX_BYTES` and `MAX_RECORDS`. When the file cannot be written any more (disk
//! full), the capture ends, says so once and counts what it missed; the NIC goes on.
//!
//! Limits: frames to be segmented are recorded whole, with the partial checksum the driver gave them.

mod comment;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::LinkCounters;
use super::counters::counters;
use crate::net::{Frame, ReceiveSpace};
use crate::ring::Segments;

/// How long a frame waits for the disk.
const PATIENCE: Duration = Duration::from_millis(200);
/// Queued frames, bytes.
const MAX_BYTES: usize = 2 << 20;
/// Queued frames.
const MAX_RECORDS: usize = 2048;
/// Records kept to be used again, each with room for a frame.
const MAX_SPARE: usize = 16;

counters!(Count {
    Frames = "capture_frames",
    Bytes = "capture_bytes",
    Lost = "capture_lost_frames",
    Failed = "capture_failed",
});

/// The capture file could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the capture {}: {source}", path.display())]
pub struct CaptureError {
    /// The file.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

/// One frame as recorded.
#[derive(Debug, Default)]
struct Record {
    at: Duration,
    queue: String,
    to_driver: bool,
    comment: String,
    frame: Vec<u8>,
    /// Frames of any queue that went unrecorded just before.
    lost_before: u64,
}

#[derive(Debug, Default)]
struct State {
    records: VecDeque<Record>,
    bytes: usize,
    spare: Vec<Record>,
    /// Unrecorded since the last record.
    lost: u64,
    /// Nothing is written any more.
    ended: bool,
    /// The last handle is gone.
    closing: bool,
}

impl Record {
    /// What it counts for in the queue's bound.
    fn size(&self) -> usize {
        self.frame.len() + self.comment.len()
    }
}

impl State {
    /// Nothing is written any more: neither the `unwritten` records that were taken, nor those still queued.
    fn end(&mut self, unwritten: usize, shared: &Shared) {
        Count::Lost.add(&shared.counters, (unwritten + self.records.len()) as u64);
        *self = State { ended: true, closing: self.closing, ..State::default() };
        shared.room.notify_all();
    }

    fn is_full(&self) -> bool {
        self.bytes >= MAX_BYTES || self.records.len() >= MAX_RECORDS
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write, or the last handle is gone.
    work: Condvar,
    /// There is room again.
    room: Condvar,
    counters: Arc<LinkCounters>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that holds the lock leaves the state half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A capture that is open; each worker has a clone. The file is complete when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Capture {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Makes the file, or empties it.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn create(path: &Path) -> Result<Self, CaptureError> {
        let failed = |source| CaptureError { path: path.to_owned(), source };
        let file = File::create(path).map_err(failed)?;
        Capture::to(file, path).map_err(failed)
    }

    fn to<W: io::Write + Send + 'static>(file: W, path: &Path) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            room: Condvar::new(),
            counters: Count::fresh(),
        });
        let writer = writer::Writer::new(file)?;
        let (theirs, path) = (Arc::clone(&shared), path.to_owned());
        let thread = std::thread::Builder::new().name("capture".into()).spawn(move || writer.run(&theirs, &path))?;
        Ok(Capture { inner: Arc::new(Inner { shared, thread: Some(thread) }) })
    }

    /// Records a frame that the link has taken from the queue of this name.
    pub fn transmitted(&self, queue: &str, frame: &Frame<'_>) {
        let mut record = self.record(queue);
        record.to_driver = false;
        comment::of_transmitted(&mut record.comment, queue, frame);
        record.frame.resize(frame.len as usize, 0);
        frame.copy_to(&mut record.frame);
        self.queue(record);
    }

    /// Records a frame that the link has put into buffers of the queue of this name. `segments` is what their chains were
    /// popped into.
    pub fn received(&self, queue: &str, segments: &Segments, space: &ReceiveSpace<'_>) {
        let mut record = self.record(queue);
        record.to_driver = true;
        comment::of_received(&mut record.comment, queue, segments, space);
        for slice in space.frame() {
            let at = record.frame.len();
            record.frame.resize(at + slice.len(), 0);
            slice.copy_to(record.frame.get_mut(at..).unwrap_or_default());
        }
        self.queue(record);
    }

    /// What was recorded and what was lost.
    #[must_use]
    pub fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.inner.shared.counters)
    }

    /// An empty record, of now.
    fn record(&self, queue: &str) -> Record {
        let mut record = self.inner.shared.lock().spare.pop().unwrap_or_default();
        record.at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        record.queue.clear();
        record.queue.push_str(queue);
        record.comment.clear();
        record.frame.clear();
        record
    }

    fn queue(&self, mut record: Record) {
        let shared = &*self.inner.shared;
        let full = |state: &mut State| state.is_full() && !state.ended;
        let waited = shared.room.wait_timeout_while(shared.lock(), PATIENCE, full);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.ended || state.is_full() {
            state.lost += 1;
            // Under the lock, so that no two workers count at once.
            Count::Lost.add(&shared.counters, 1);
            return;
        }
        record.lost_before = std::mem::take(&mut state.lost);
        state.bytes += record.size();
        state.records.push_back(record);
        drop(state);
        shared.work.notify_one();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the capture's thread failed");
        }
    }
}
