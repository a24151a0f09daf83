//! An entropy device: virtio-rng. VIRTIO 1.3, 5.4 Entropy Device.
//!
//! Also the shortest example of a device on this crate's [engine](crate::backend): a [`DataPath`] that fills what the driver
//! offers, and a [`DeviceModel`] that says what the device is. See `examples/zero.rs` for one outside of the crate.
//!
//! Operation: the driver makes writable buffers available on the only queue; each comes back with random bytes of the host.
//! "The device MUST place one or more random bytes into the buffer, but it MAY use less than the entire buffer length": so
//! a pass gives [`BYTES_PER_PASS`] at most, whatever the driver asks for.

use std::fs::File;
use std::io::{self, Read};
use std::time::Instant;

use crate::backend::{BURST, DataPath, DeviceModel, Progress, Queue, Queues};
use crate::ring::{Chain, DeviceRing};
use crate::spec::{Feature, Features, device};

#[cfg(test)]
mod tests;

/// Most random bytes in one pass over a queue.
pub const BYTES_PER_PASS: u32 = 64 << 10;

/// Bytes that are fetched at a time.
const PIECE: usize = 4096;

/// What is on offer: any ring format, nothing of its own.
const OFFERED: Features = Features::of(&[
    Feature::ProtocolFeatures,
    Feature::Version1,
    Feature::LogAll,
    Feature::IndirectDesc,
    Feature::EventIdx,
    Feature::RingPacked,
    Feature::InOrder,
    Feature::AccessPlatform,
]);

/// The device as its driver finds it.
#[derive(Debug, Clone, Copy)]
pub struct Rng {
    /// The largest ring.
    pub queue_size: u16,
}

impl DeviceModel for Rng {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn device_id(&self) -> u32 {
        device::RNG
    }

    fn offered(&self) -> Features {
        OFFERED
    }

    fn queues(&self) -> u16 {
        1
    }

    fn queue_name(&self, _index: u16) -> String {
        "requestq".to_owned()
    }

    fn max_queue_size(&self) -> u16 {
        self.queue_size
    }
}

/// Fills the driver's buffers.
#[derive(Debug)]
pub struct RngDataPath<S = File> {
    source: S,
    piece: [u8; PIECE],
}

impl RngDataPath {
    /// A data path with the host's random bytes.
    ///
    /// # Errors
    /// The host has none.
    pub fn open() -> io::Result<Self> {
        Ok(RngDataPath { source: File::open("/dev/urandom")?, piece: [0; PIECE] })
    }
}

impl<S: Read + Send + 'static> RngDataPath<S> {
    /// Serves one queue. Returns how it went on.
    fn burst(&mut self, queue: &mut Queue) -> Progress {
        queue.ring.disable_notifications();
        let (mut chains, mut left) = (0, BYTES_PER_PASS);
        while chains < BURST && left > 0 {
            queue.segments.clear();
            match queue.ring.pop(&mut queue.segments) {
                Ok(Some(chain)) => {
                    let written = self.fill(queue, &chain, left);
                    left -= written;
                    chains += 1;
                    queue.shared.counters.chains.add(1);
                    queue.shared.counters.descriptors.add(u64::from(chain.descriptors));
                    queue.shared.counters.bytes.add(u64::from(written));
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
            _ if chains == BURST || left == 0 => Progress::More,
            _ => Progress::Some,
        }
    }

    /// Writes up to `most` bytes into a chain. Returns how many; one that is no request goes back empty, and is counted.
    fn fill(&mut self, queue: &Queue, chain: &Chain, most: u32) -> u32 {
        let drop = |reason| queue.shared.counters.count_drop(reason);
        if chain.readable_len > 0 {
            // VIRTIO 1.3, 5.4.6.1: "The driver MUST NOT place driver-readable buffers into the queue."
            drop("readable_buffers");
            return 0;
        }
        if chain.writable_len == 0 {
            drop("empty_request");
            return 0;
        }
        let mut written = 0;
        for mut slice in queue.segments.view(*chain).writable() {
            while !slice.is_empty() && written < most {
                let count = slice.len().min(PIECE).min((most - written) as usize);
                let piece = self.piece.get_mut(..count).unwrap_or_default();
                if self.source.read_exact(piece).is_err() {
                    drop("no_entropy");
                    return written;
                }
                slice.copy_from(piece);
                slice = slice.advanced(count);
                written += count as u32;
            }
        }
        written
    }
}

impl<S: Read + Send + 'static> DataPath for RngDataPath<S> {
    fn pass(&mut self, queues: &mut Queues, _now: Instant) -> Progress {
        let live = queues.values_mut().filter(|queue| queue.is_live());
        live.map(|queue| self.burst(queue)).max().unwrap_or(Progress::Idle)
    }
}
