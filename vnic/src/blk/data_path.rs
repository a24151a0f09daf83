//! A pass over the request queues of a disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::image::Image;
use super::request::{Bounds, Malformed, Request, parse};
use crate::backend::{BURST, DataPath, Progress, Queue, Queues};
use crate::memory::transfer::{Direction, Transfer};
use crate::ring::{ChainView, DeviceRing};
use crate::spec::blk::{HEADER_LEN, S_IOERR, S_OK};

/// Most bytes moved in one pass over a queue: so the others, and the session, have their turn.
const BYTES_PER_PASS: u64 = 8 << 20;

/// See the [module](self).
#[derive(Debug)]
pub struct BlkDataPath {
    image: Arc<Image>,
    writeback: Arc<AtomicBool>,
    transfer: Transfer,
}

/// What became of a chain.
struct Outcome {
    /// What the device wrote into the driver's buffers.
    written: u32,
    /// Data that were moved.
    bytes: u64,
}

impl BlkDataPath {
    pub(super) fn new(image: Arc<Image>, writeback: Arc<AtomicBool>) -> Self {
        BlkDataPath { image, writeback, transfer: Transfer::default() }
    }

    /// Serves one queue. Returns how it went on.
    fn burst(&mut self, queue: &mut Queue) -> Progress {
        queue.ring.disable_notifications();
        let (mut chains, mut moved) = (0, 0);
        while chains < BURST && moved < BYTES_PER_PASS {
            queue.segments.clear();
            match queue.ring.pop(&mut queue.segments) {
                Ok(Some(chain)) => {
                    let Outcome { written, bytes } = self.serve(queue.segments.view(chain), queue);
                    moved += bytes;
                    chains += 1;
                    queue.shared.counters.chains.add(1);
                    queue.shared.counters.descriptors.add(u64::from(chain.descriptors));
                    queue.shared.counters.bytes.add(bytes);
                    queue.complete(&chain, written);
                }
                Ok(None) => break,
                Err(error) => {
                    queue.stop_ring(&error);
                    break;
                }
            }
        }
        if chains > 0 {
            queue.publish();
        }
        match chains {
            0 => Progress::Idle,
            _ if chains == BURST || moved >= BYTES_PER_PASS => Progress::More,
            _ => Progress::Some,
        }
    }

    fn serve(&mut self, chain: ChainView<'_>, queue: &Queue) -> Outcome {
        let bounds = Bounds { bytes: self.image.bytes(), read_only: self.image.is_read_only() };
        let (status, bytes) = match parse(chain, bounds) {
            Ok(request) => match self.carry_out(chain, request) {
                Ok(bytes) => (S_OK, bytes),
                Err(_) => {
                    queue.shared.counters.count_drop("io_error");
                    (S_IOERR, 0)
                }
            },
            Err(malformed) => {
                queue.shared.counters.count_drop(malformed.name());
                if malformed == Malformed::NoStatus {
                    return Outcome { written: 0, bytes: 0 };
                }
                (malformed.status(), 0)
            }
        };
        chain.write_writable(u64::from(chain.chain.writable_len) - 1, &[status]);
        Outcome { written: chain.chain.writable_len, bytes }
    }

    /// Returns how many bytes of data were moved.
    fn carry_out(&mut self, chain: ChainView<'_>, request: Request) -> io::Result<u64> {
        let file = self.image.file();
        match request {
            Request::Read { offset, len } => {
                chain.gather_writable(&mut self.transfer);
                self.transfer.run(file, Direction::FromFile, offset)?;
                Ok(len)
            }
            Request::Write { offset, len } => {
                chain.gather_readable(HEADER_LEN, &mut self.transfer);
                let back = self.writeback.load(Ordering::Relaxed);
                let direction = if back { Direction::ToFile } else { Direction::ToDisk };
                self.transfer.run(file, direction, offset)?;
                Ok(len)
            }
            Request::Flush => {
                file.sync_data()?;
                Ok(0)
            }
            Request::GetId => {
                let room = u64::from(chain.chain.writable_len) - 1;
                let serial = self.image.serial();
                let serial = serial.get(..serial.len().min(room as usize)).unwrap_or_default();
                chain.write_writable(0, serial);
                Ok(0)
            }
        }
    }
}

impl DataPath for BlkDataPath {
    fn pass(&mut self, queues: &mut Queues, _now: Instant) -> Progress {
        let live = queues.values_mut().filter(|queue| queue.is_live());
        live.map(|queue| self.burst(queue)).max().unwrap_or(Progress::Idle)
    }
}
