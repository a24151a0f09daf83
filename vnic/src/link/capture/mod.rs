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
//! 3. The worker never waits for the disk. Where that is slower than the NIC for long, or hangs, frames go unrecorded:
//!    they are counted, the next record of the same queue says how many are missing before it (`epb_dropcount`), and the
//!    end of the file how many in all (`isb_ifdrop`, Wireshark's "dropped packets").
//!
//! Whose memory the buffers of transmitted frames are, who knows it says when their records are written ([`Labels`]): by
//! stamps that the worker took while the device had them.
//!
//! Invariants: what waits for the disk is at most `MAX_BYTES` in `MAX_RECORDS`. When the file cannot be written any more
//! (disk full), the capture ends, says so once and counts what it missed; the NIC goes on. The end of the process waits for
//! a disk only as long as something is written.
//!
//! Limits: frames to be segmented are recorded whole, with the partial checksum the driver gave them.

mod comment;
mod option;
mod packet;
#[cfg(test)]
mod tests;
mod verdict;
mod writer;

use std::collections::VecDeque;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::LinkCounters;
use super::counters::counters;
use crate::net::{Frame, ReceiveSpace};
use crate::provenance::SourceKind;
use crate::ring::{Segment, Segments};
use crate::sandbox::{self, Role};
pub use packet::Buffer;
use packet::Packet;

/// How long the end waits for a disk that writes nothing.
const HANGS: Duration = Duration::from_secs(2);
/// Frames that wait for the disk, bytes.
const MAX_BYTES: usize = 8 << 20;
/// Frames that wait for the disk.
const MAX_RECORDS: usize = 8192;
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
    /// Of a frame that came straight back, the queue that it came in by.
    looped: String,
    packet: Packet,
    frame: Vec<u8>,
    /// Frames of the same queue that went unrecorded just before.
    lost_before: u64,
}

/// Frames of a queue that went unrecorded.
#[derive(Debug, Clone, Default)]
struct Lost {
    queue: String,
    in_all: u64,
    since_last_record: u64,
}

#[derive(Debug, Default)]
struct State {
    records: VecDeque<Record>,
    /// Of `records`, and of those that are being written.
    bytes: usize,
    /// Records that were ever queued.
    queued: u64,
    spare: Vec<Record>,
    /// By queue.
    lost: Vec<Lost>,
    /// Nothing is written any more.
    ended: bool,
    /// The last handle is gone.
    closing: bool,
}

impl Record {
    /// What it counts for in the queue's bound.
    fn size(&self) -> usize {
        self.frame.len() + self.packet.size()
    }
}

impl State {
    /// Nothing is written any more: what was queued, and is not written, never will be. Returns how many frames that are.
    fn end(&mut self, counters: &LinkCounters) -> u64 {
        let missing = self.queued.saturating_sub(counters.get("capture_frames"));
        Count::Lost.add(counters, missing);
        *self = State { ended: true, closing: self.closing, ..State::default() };
        missing
    }

    fn is_full(&self) -> bool {
        self.bytes >= MAX_BYTES || self.records.len() >= MAX_RECORDS
    }

    /// A frame of this queue goes unrecorded.
    fn lose(&mut self, queue: &str) {
        let at = self.lost.iter().position(|lost| lost.queue == queue).unwrap_or_else(|| {
            self.lost.push(Lost { queue: queue.to_owned(), ..Lost::default() });
            self.lost.len() - 1
        });
        if let Some(lost) = self.lost.get_mut(at) {
            lost.in_all += 1;
            lost.since_last_record += 1;
        }
    }
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write, or the last handle is gone.
    work: Condvar,
    /// The thread has ended.
    done: Condvar,
    counters: Arc<LinkCounters>,
    labels: OnceLock<Box<dyn Labels>>,
}

/// Knows whose memory buffers are.
pub trait Labels: Debug + Send + Sync {
    /// Adds, for each of these in their order, whose it was when it was stamped, of a frame that was recorded at this time since the
    /// Unix epoch. On the capture's thread, which may wait.
    fn label(&self, at: Duration, buffers: &[Buffer], labels: &mut Vec<Option<Whose>>);
}

/// Whose memory a buffer was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Whose {
    /// In words.
    #[serde(rename = "label")]
    pub words: String,
    /// What kind of memory; `Unsettled` where it is not one kind.
    #[serde(rename = "source")]
    pub kind: SourceKind,
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
            done: Condvar::new(),
            counters: Count::fresh(),
            labels: OnceLock::new(),
        });
        let writer = writer::Writer::new(file)?;
        let (theirs, path) = (Arc::clone(&shared), path.to_owned());
        let thread = std::thread::Builder::new().name("capture".into()).spawn(move || {
            if sandbox::enters(Role::Writer) {
                writer.run(&theirs, &path);
            }
            theirs.lock().ended = true;
            theirs.done.notify_all();
        })?;
        Ok(Capture { inner: Arc::new(Inner { shared, thread: Some(thread) }) })
    }

    /// From now on, comments say whose memory the buffers of transmitted frames are.
    pub fn label_by(&self, labels: Box<dyn Labels>) {
        // There is one at most: who opens a capture says it.
        let _ = self.inner.shared.labels.set(labels);
    }

    /// Does anybody know whose memory buffers are?
    #[must_use]
    pub fn is_labelled(&self) -> bool {
        self.inner.shared.labels.get().is_some()
    }

    /// Records a frame that the link has taken from the queue of this name. Where it [is labelled](Capture::is_labelled), `stamp` is
    /// asked for where a buffer of so many bytes is, guest-physical, and for its stamp. A frame that came straight back, it was `looped`:
    /// into which queue's buffers. So it is on record once, and looks like no retransmission.
    pub fn transmitted(
        &self,
        queue: &str,
        frame: &Frame<'_>,
        looped: Option<(&str, &Segments, &ReceiveSpace<'_>)>,
        mut stamp: impl FnMut(&Segment, u32) -> (u64, u64),
    ) {
        let Some(mut record) = self.record(queue) else { return };
        record.to_driver = false;
        let labelled = self.is_labelled();
        record.packet.sent(frame, |segment, len| if labelled { stamp(segment, len) } else { (segment.addr, 0) });
        if let Some((queue, segments, space)) = looped {
            record.looped.push_str(queue);
            record.packet.received(segments, space);
        }
        record.frame.resize(frame.len as usize, 0);
        frame.copy_to(&mut record.frame);
        self.queue(record);
    }

    /// Records a frame that the link has put into buffers of the queue of this name. `segments` is what their chains were
    /// popped into.
    pub fn received(&self, queue: &str, segments: &Segments, space: &ReceiveSpace<'_>) {
        let Some(mut record) = self.record(queue) else { return };
        record.to_driver = true;
        record.packet.received(segments, space);
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

    /// An empty record, of now; `None`: there is no room for it, and that is counted.
    fn record(&self, queue: &str) -> Option<Record> {
        let shared = &*self.inner.shared;
        let mut state = shared.lock();
        if state.ended || state.is_full() {
            state.lose(queue);
            // Under the lock, so that no two workers count at once.
            Count::Lost.add(&shared.counters, 1);
            return None;
        }
        let mut record = state.spare.pop().unwrap_or_default();
        let lost = state.lost.iter_mut().find(|lost| lost.queue == queue);
        record.lost_before = lost.map_or(0, |lost| std::mem::take(&mut lost.since_last_record));
        drop(state);
        record.at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        record.queue.clear();
        record.queue.push_str(queue);
        record.looped.clear();
        record.packet.clear();
        record.frame.clear();
        Some(record)
    }

    fn queue(&self, record: Record) {
        let shared = &*self.inner.shared;
        let mut state = shared.lock();
        state.queued += 1;
        state.bytes += record.size();
        state.records.push_back(record);
        drop(state);
        shared.work.notify_one();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let shared = &*self.shared;
        let mut state = shared.lock();
        state.closing = true;
        shared.work.notify_one();
        let written = || shared.counters.get("capture_frames");
        let mut before = None;
        while !state.ended && before != Some(written()) {
            before = Some(written());
            let waited = shared.done.wait_timeout_while(state, HANGS, |state| !state.ended);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let Some(thread) = self.thread.take() else { return };
        if state.ended || thread.is_finished() {
            drop(state);
            if thread.join().is_err() {
                tracing::error!("the capture's thread failed");
            }
            return;
        }
        // What it is writing may yet be written: the thread is left to itself.
        let missing = state.end(&shared.counters);
        tracing::error!(missing, "the capture's file takes no more: it ends without the last frames");
    }
}
