//! `vnic trace`: follows the event rings for one client.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::shared::Shared;
use crate::net::parse::Summary;
use crate::observe::flow::FilePages;
use crate::observe::protocol::{BufferSnapshot, ChainEvent, TraceEvent};
use crate::observe::tracer::{Event, Read};
use crate::spec::Feature;

/// How long a follower that is up to date waits before it looks again, milliseconds. The data path does not tell it:
/// that would be a syscall per packet.
const LOOK_AGAIN_MS: u16 = 20;
/// Events taken from one queue before the others have their turn.
const BATCH: usize = 512;

/// Workers record while one of these lives.
struct Tracing<'s>(&'s Shared);

impl<'s> Tracing<'s> {
    fn new(shared: &'s Shared) -> Self {
        shared.tracers.fetch_add(1, Ordering::Relaxed);
        Tracing(shared)
    }
}

impl Drop for Tracing<'_> {
    fn drop(&mut self) {
        self.0.tracers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends events until the client goes away.
pub(super) fn follow(stream: &mut UnixStream, shared: &Shared) -> std::io::Result<()> {
    let mut readers: Vec<_> = shared.queues.iter().map(|queue| (queue, queue.events.reader())).collect();
    // Before anyone records, so that nothing is dropped for want of it; and once more for a queue that was set up in between:
    // the view's lock has either this thread see the queue, or the one that sets it up see that there is a trace.
    shared.make_room_for_events();
    let _tracing = Tracing::new(shared);
    shared.make_room_for_events();
    give_way();
    let mut batch: Vec<(u64, TraceEvent)> = Vec::new();
    loop {
        let (pages, behind_iommu) = {
            let view = shared.view();
            (view.pages.clone(), view.negotiated.has(Feature::AccessPlatform))
        };
        for (queue, reader) in &mut readers {
            for _ in 0..BATCH {
                let Some(read) = reader.read() else { break };
                // A gap is told where the queue's next event stands.
                let at = batch.last().map_or(0, |(at, _)| *at);
                batch.push(match read {
                    Read::Event(event) => {
                        (event.at_ns, TraceEvent::Chain(describe(&queue.name, &event, pages.as_ref(), behind_iommu)))
                    }
                    Read::Lost(events) => {
                        queue.trace_lost.fetch_add(events, Ordering::Relaxed);
                        (at, TraceEvent::Lost { queue: queue.name.clone(), events })
                    }
                });
            }
        }
        if batch.is_empty() {
            if is_closed(stream)? {
                return Ok(());
            }
            continue;
        }
        batch.sort_by_key(|(at, _)| *at);
        let mut lines = Vec::new();
        for (_, event) in batch.drain(..) {
            serde_json::to_writer(&mut lines, &event)?;
            lines.push(b'\n');
        }
        stream.write_all(&lines)?;
    }
}

/// Makes this thread the nicest there is: a trace loses events rather than take a worker's CPU.
fn give_way() {
    // SAFETY: the call takes three numbers; on Linux 0 is the calling thread, which serves this one client.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 19) } < 0 {
        tracing::debug!(error = %std::io::Error::last_os_error(), "a trace that takes its share of the CPUs");
    }
}

/// Waits a moment; has the client closed, or said something (which ends a trace as well)?
fn is_closed(stream: &UnixStream) -> std::io::Result<bool> {
    let mut fds = [PollFd::new(stream.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(LOOK_AGAIN_MS)) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn describe(queue: &str, event: &Event, pages: Option<&Arc<FilePages>>, behind_iommu: bool) -> ChainEvent {
    let buffers = event.buffers().iter().map(|buffer| BufferSnapshot {
        writable: buffer.writable,
        addr: buffer.addr,
        len: buffer.len,
        // Without an IOMMU the two are the same, and one is enough.
        gpa: behind_iommu.then_some(buffer.gpa),
        file_page: pages.and_then(|pages| pages.page_at(buffer.gpa)),
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
        summary: Summary::new(event.head(), event.frame_len, event.gso_size).to_string(),
    }
}
