//! A pass over the request queues of a disk.
//!
//! Operation, one pass:
//! 1. What the kernel is done with goes back to the driver, in the order in which it is done.
//! 2. Every live queue hands over a burst of requests: each is checked, and started by io_uring, or answered at once.
//! 3. All that was started goes to the kernel with one system call.
//!
//! Without io_uring, and for buffers that lie as the disk does not take them, a request is carried out here and now.
//!
//! Whoever takes a queue away, or memory, waits for the requests that are under way: nothing calls them back.

use std::any::Any;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Disk;
use super::engine::Engine;
use super::request::{Bounds, Malformed, Request, check, read_header};
use super::trace::Tracing;
use super::watch::Watching;
use crate::backend::{BURST, DataPath, Progress, Queue, QueueShared, Queues, Shared};
use crate::memory::transfer::{Direction, MOST_UNDER_WAY, Operation, Transfer};
use crate::ring::{ChainView, DeviceRing};
use crate::spec::Features;
use crate::spec::blk::{BlkFeature, HEADER_LEN, S_IOERR, S_OK, S_UNSUPP, T_IN};
use crate::vhost_user::DeviceError;

/// Most bytes moved here and now in one pass over a queue: so the others, and the session, have their turn.
const BYTES_PER_PASS: u64 = 8 << 20;

/// See the [module](self).
#[derive(Debug)]
pub struct BlkDataPath {
    disk: Arc<Disk>,
    engine: Engine,
    /// Described for the next request.
    transfer: Transfer,
    /// By ticket.
    under_way: Box<[Asked]>,
    tracing: Tracing,
    watching: Watching,
    /// The driver may not count on flushes: what it writes is to be on the disk at once.
    no_flushes: bool,
    /// How long the image is, if a write has asked in this pass.
    image_len: Option<u64>,
}

/// A request, as it is answered.
#[derive(Debug, Clone, Copy)]
struct Asked {
    queue: u16,
    request: Request,
    /// What the driver is told that the device wrote.
    written: u32,
}

/// What became of a chain.
enum Taken {
    /// It is answered: so many bytes were written into it.
    Answered(u32),
    /// It is under way, with this ticket.
    UnderWay(u16),
}

impl BlkDataPath {
    pub(super) fn new(disk: Arc<Disk>, shared: Arc<Shared>, engine: Engine) -> Self {
        let nothing = Asked { queue: 0, request: Request::Flush, written: 0 };
        BlkDataPath {
            disk,
            engine,
            transfer: Transfer::default(),
            under_way: vec![nothing; usize::from(MOST_UNDER_WAY)].into(),
            tracing: Tracing::new(shared),
            watching: Watching::new(),
            no_flushes: false,
            image_len: None,
        }
    }

    /// Serves one queue. Returns how it went on.
    fn burst(&mut self, queue: &mut Queue) -> Progress {
        queue.ring.disable_notifications();
        let (mut chains, mut answered, mut moved) = (0, 0, 0);
        let ended = loop {
            if chains == BURST || moved >= BYTES_PER_PASS {
                break Progress::More;
            }
            if !self.engine.has_room() {
                break Progress::Blocked;
            }
            queue.segments.clear();
            let chain = match queue.pop() {
                Ok(Some(chain)) => chain,
                Ok(None) => break Progress::Some,
                Err(error) => {
                    queue.stop_ring(&error);
                    break Progress::Some;
                }
            };
            chains += 1;
            queue.shared.counters.descriptors.add(u64::from(chain.descriptors));
            let view = queue.segments.view(chain);
            match self.take(queue.index, view, &queue.shared, &mut moved) {
                Taken::Answered(written) => {
                    answered += 1;
                    queue.complete(&chain, written);
                }
                Taken::UnderWay(ticket) => queue.in_flight.start(ticket, view),
            }
        };
        queue.shared.counters.chains.add(u64::from(chains));
        if answered > 0 {
            queue.publish();
        }
        queue.blocked = ended == Progress::Blocked;
        match (chains, ended) {
            // There was nothing, or it could not be followed.
            (0, Progress::Some) => Progress::Idle,
            (_, ended) => ended,
        }
    }

    /// Takes a request. `moved` grows by what was moved here and now.
    fn take(&mut self, queue: u16, chain: ChainView<'_>, shared: &QueueShared, moved: &mut u64) -> Taken {
        let header = read_header(chain);
        self.tracing.take(chain, header.ok(), shared);
        let asked = header.and_then(|header| check(chain, header, self.bounds(header.kind)));
        let request = match asked {
            Ok(request) => request,
            Err(malformed) => {
                shared.counters.count_drop(malformed.name());
                if malformed == Malformed::NoStatus {
                    self.tracing.answered(shared, 0, None);
                    return Taken::Answered(0);
                }
                return self.answer(chain, shared, malformed.status());
            }
        };
        let Some(operation) = self.operation(chain, request) else {
            chain.gather_status(&mut self.transfer);
            chain.write_writable(0, self.disk.serial_for(chain.chain.writable_len - 1));
            self.disk.counters.count(request);
            return self.answer(chain, shared, S_OK);
        };
        self.watching.take(chain, request);
        let written = chain.chain.writable_len;
        if self.disk.image.takes(&self.transfer)
            && let Some(ticket) = self.engine.start(operation, &mut self.transfer)
        {
            if let Some(asked) = self.under_way.get_mut(usize::from(ticket)) {
                *asked = Asked { queue, request, written };
            }
            self.tracing.under_way(ticket);
            self.watching.under_way(ticket);
            return Taken::UnderWay(ticket);
        }
        let result = self.disk.image.run(operation, &mut self.transfer, &shared.counters.device_copied_bytes);
        *moved += request.bytes();
        let status = self.ended(request, result, shared);
        if status == S_OK {
            self.watching.answered(request);
        }
        self.answer(chain, shared, status)
    }

    /// Tells the driver at once.
    fn answer(&mut self, chain: ChainView<'_>, shared: &QueueShared, status: u8) -> Taken {
        chain.gather_status(&mut self.transfer);
        self.transfer.finish(status);
        let written = chain.chain.writable_len;
        self.tracing.answered(shared, written, Some(status));
        Taken::Answered(written)
    }

    /// What is to be done for it; the transfer is described. `None`: nothing that takes the disk.
    fn operation(&mut self, chain: ChainView<'_>, request: Request) -> Option<Operation> {
        match request {
            Request::Read { offset, .. } => {
                chain.gather_writable(&mut self.transfer);
                Some(Operation::Move { direction: Direction::FromFile, offset })
            }
            Request::Write { offset, .. } => {
                chain.gather_readable(HEADER_LEN, &mut self.transfer);
                let back = !self.no_flushes && self.disk.writeback.load(Ordering::Relaxed);
                let direction = if back { Direction::ToFile } else { Direction::ToDisk };
                Some(Operation::Move { direction, offset })
            }
            Request::Flush => {
                chain.gather_status(&mut self.transfer);
                Some(Operation::Sync)
            }
            Request::Discard { offset, len } | Request::WriteZeroes { offset, len, .. } => {
                chain.gather_status(&mut self.transfer);
                Some(Operation::Allocate { mode: request.mode(), offset, len })
            }
            Request::GetId => None,
        }
    }

    /// The disk as it is now for a request of this kind: a write past the end of an image that has shrunk would make it longer again.
    /// A read finds the end by itself, and saves the system call.
    fn bounds(&mut self, kind: u32) -> Bounds {
        let image = &self.disk.image;
        let there = match kind {
            T_IN => image.bytes(),
            _ => *self.image_len.get_or_insert_with(|| image.len_now()),
        };
        Bounds { bytes: image.bytes(), there, read_only: image.is_read_only() }
    }

    /// The file is done with a request: counts it, and says what the driver is told.
    fn ended(&self, request: Request, result: io::Result<()>, shared: &QueueShared) -> u8 {
        let result = match (request, result) {
            (Request::WriteZeroes { offset, len, .. }, Err(error)) if cannot(&error) => {
                self.disk.image.write_zeroes(offset, len)
            }
            (_, result) => result,
        };
        match result {
            Ok(()) => {
                shared.counters.bytes.add(request.bytes());
                self.disk.counters.count(request);
                S_OK
            }
            Err(error) if matches!(request, Request::Discard { .. }) && cannot(&error) => S_UNSUPP,
            Err(_) => {
                shared.counters.count_drop("io_error");
                S_IOERR
            }
        }
    }

    /// Returns what the kernel is done with. Returns whether there was anything.
    fn complete(&mut self, queues: &mut Queues) -> bool {
        let mut any = false;
        while let Some((ticket, result)) = self.engine.next_done() {
            any = true;
            let Some(&Asked { queue, request, written }) = self.under_way.get(usize::from(ticket)) else { continue };
            let Some(queue) = queues.get_mut(&queue) else {
                debug_assert!(false, "a queue was taken away with a request under way");
                self.engine.finish(ticket, S_IOERR);
                continue;
            };
            let status = self.ended(request, result, &queue.shared);
            self.engine.finish(ticket, status);
            if status == S_OK {
                self.watching.completed(ticket, request);
            }
            self.tracing.completed(ticket, &queue.shared, written, status);
            queue.in_flight.complete(ticket, written);
        }
        if any {
            for queue in queues.values_mut() {
                queue.blocked = false;
                if !queue.held {
                    queue.return_completed();
                }
            }
        }
        any
    }
}

/// Is it that the file cannot do this at all?
fn cannot(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV))
}

impl DataPath for BlkDataPath {
    fn pass(&mut self, queues: &mut Queues, now: Instant) -> Progress {
        self.tracing.begin(now);
        self.image_len = None;
        let any = self.complete(queues);
        let live = queues.values_mut().filter(|queue| queue.is_live());
        let best = live.map(|queue| self.burst(queue)).max().unwrap_or(Progress::Idle);
        self.engine.submit();
        // What lies in the host's memory is there when the call returns.
        let any = self.complete(queues) | any;
        if any { best.max(Progress::Some) } else { best }
    }

    fn keeps(&self, _index: u16) -> u16 {
        MOST_UNDER_WAY
    }

    fn quiesce(&mut self, queues: &mut Queues, index: u16) {
        while queues.get(&index).is_some_and(|queue| !queue.in_flight.is_empty()) {
            self.engine.wait();
            self.complete(queues);
        }
        if let Some(queue) = queues.get_mut(&index) {
            queue.return_completed();
        }
    }

    fn negotiated(&mut self, features: Features) -> Result<(), DeviceError> {
        // VIRTIO 1.3, 5.2.6.2: without flushes, what is said to be written must be on the disk.
        self.no_flushes = features.0 & BlkFeature::Flush.mask() == 0;
        self.disk.writeback.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn told(&mut self, message: Box<dyn Any + Send>) {
        self.watching.told(message);
    }

    fn files(&self) -> Vec<BorrowedFd<'_>> {
        self.engine.files()
    }
}
