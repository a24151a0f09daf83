//! A disk's driver without a VM: the crate `virtio-driver`, which knows nothing of our device.
//!
//! Operation: so many requests are made available; each that is used is made available again, for another place of the disk, with
//! the others that were used meanwhile. It polls, declines calls, and kicks when the device asks for it, by event index.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use virtio_driver::{QueueNotifier, VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};
use vnic::memory::testing::GuestRam;

use super::Work;
use crate::pump::{RAM, Raw};

/// Descriptors of a ring: each of 128 requests takes three.
const SIZE: u16 = 512;
/// Features of a disk: `FLUSH`, without which each write would have to be on the disk before it is done, and `MQ`.
const FLUSH: u64 = 1 << 9;
const MQ: u64 = 1 << 12;

/// Drives the disk that is served at `socket` for `seconds`, after a fifth of a second to warm up. Requests per second.
pub(super) fn run(socket: &Path, work: Work, capacity: u64, seconds: f64) -> Result<f64> {
    let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
    let socket = socket.to_str().context("a path in UTF-8")?;
    let vhost = VhostUser::new(socket, features.bits() | FLUSH | MQ).context("the session with the disk")?;
    // Before what points into it, which must end first.
    let ram = GuestRam::new(RAM)?;
    let buffers = Raw::map(&ram)?;
    let mut vhost: Box<VirtioBlkTransport> = Box::new(vhost);
    let queues = VirtioBlkQueue::setup_queues(vhost.as_mut(), usize::from(work.queues), SIZE)?;
    vhost.map_mem_region(buffers.as_ptr() as usize, usize::try_from(RAM)?, ram.fd().as_raw_fd(), 0)?;
    let mut streams = Vec::new();
    for (at, queue) in queues.into_iter().enumerate() {
        let share = capacity / u64::from(work.queues);
        let first = u64::try_from(at)?;
        let requests = first * u64::from(work.depth);
        let mut stream = Stream {
            queue,
            notifier: vhost.get_submission_notifier(at),
            work,
            buffers,
            requests,
            places: Places { random: work.is_random(), first: first * share, share, state: first + 1 },
        };
        stream.queue.set_used_notif_enabled(false);
        (0..work.depth).try_for_each(|request| stream.start(request))?;
        stream.kick()?;
        streams.push(stream);
    }
    let mut count = |until: Instant| -> Result<u64> {
        let (mut requests, mut looks) = (0, 0_u64);
        loop {
            for stream in &mut streams {
                requests += stream.turn()?;
            }
            looks += 1;
            if looks.is_multiple_of(64) && Instant::now() >= until {
                return Ok(requests);
            }
        }
    };
    count(Instant::now() + Duration::from_millis(200))?;
    let start = Instant::now();
    let requests = count(start + Duration::from_secs_f64(seconds))?;
    Ok(requests as f64 / start.elapsed().as_secs_f64())
}

/// One queue, with its requests.
struct Stream {
    queue: VirtioBlkQueue<'static, u16>,
    notifier: Box<dyn QueueNotifier>,
    work: Work,
    buffers: Raw,
    /// The number of its first request, among all queues'.
    requests: u64,
    places: Places,
}

impl Stream {
    /// Makes a request available, for the next place.
    fn start(&mut self, request: u16) -> Result<()> {
        let (block, offset) = (self.work.block as usize, self.places.next(u64::from(self.work.block)));
        let at = (self.requests as usize + usize::from(request)) * block;
        ensure!(at + block <= RAM as usize, "the buffers do not fit");
        let buffer = self.buffers.as_ptr().wrapping_add(at);
        // SAFETY: the buffer lies in memory that is mapped for good, which nobody borrows.
        unsafe {
            match self.work.writes {
                true => self.queue.write_raw(offset, buffer, block, request)?,
                false => self.queue.read_raw(offset, buffer, block, request)?,
            }
        }
        Ok(())
    }

    /// Starts again what was used. Returns how many those were.
    fn turn(&mut self) -> Result<u64> {
        let mut used = 0;
        while let Some(completion) = self.queue.completions().next() {
            ensure!(completion.ret == 0, "a request failed: {}", completion.ret);
            self.start(completion.context)?;
            used += 1;
        }
        if used > 0 {
            self.kick()?;
        } else {
            std::hint::spin_loop();
        }
        Ok(used)
    }

    fn kick(&mut self) -> Result<()> {
        if self.queue.avail_notif_needed() {
            self.notifier.notify()?;
        }
        Ok(())
    }
}

/// The places on the disk that a queue asks for.
struct Places {
    random: bool,
    /// Of its part.
    first: u64,
    /// Bytes of its part.
    share: u64,
    state: u64,
}

impl Places {
    fn next(&mut self, block: u64) -> u64 {
        let blocks = self.share / block;
        if self.random {
            // Marsaglia's xorshift.
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
        } else {
            self.state += 1;
        }
        self.first + self.state % blocks * block
    }
}
