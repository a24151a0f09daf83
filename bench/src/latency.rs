//! One chain at a time, there and back: how long from the kick to the call.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use guest_fixture::FrontEnd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vnic::memory::testing::GuestRam;
use vnic::ring::RingLayout;
use vnic::spec::ring::USED_F_NO_NOTIFY;
use vnic::spec::{Feature, Features};

use crate::outcome::percentile;
use crate::pump::{RAM, Raw};

const SIZE: u16 = 256;

/// A session over which chains go one by one.
pub(crate) struct Pings {
    _ram: GuestRam,
    front_end: FrontEnd,
    raw: Raw,
    ring: RingLayout,
    next: u16,
}

impl Pings {
    /// Connects to the back-end on `socket`. Its transmitq has one chain: a virtio-net header and a frame of 64 bytes.
    pub(crate) fn open(socket: &Path) -> Result<Self> {
        let ram = GuestRam::new(RAM)?;
        let (receive, end) = RingLayout::split_at(0x1000, SIZE)?;
        let (ring, _) = RingLayout::split_at((end + 0xfff) & !0xfff, SIZE)?;
        let raw = Raw::map(&ram)?;
        raw.descriptor(ring.desc, 0, 0, 12 + 64);
        let front_end = FrontEnd::start(socket, &ram, [receive, ring], Features::of(&[Feature::Version1]), None)?;
        front_end.kick.write(1)?;
        Ok(Pings { _ram: ram, front_end, raw, ring, next: 0 })
    }

    /// Median and 99th percentile of `count` chains, microseconds, after a hundred to warm up.
    pub(crate) fn measure(&mut self, count: usize) -> Result<[f64; 2]> {
        for _ in 0..100 {
            self.ping()?;
        }
        let took: Result<Vec<f64>> = (0..count).map(|_| Ok(self.ping()?.as_secs_f64() * 1e6)).collect();
        let took = took?;
        Ok([percentile(&took, 0.5), percentile(&took, 0.99)])
    }

    /// Makes the chain available, kicks if that is asked for, and sleeps until the call.
    fn ping(&mut self) -> Result<Duration> {
        let (raw, ring) = (self.raw, self.ring);
        let start = Instant::now();
        raw.u16(ring.avail + 4 + 2 * u64::from(self.next % SIZE)).store(0, Ordering::Relaxed);
        self.next = self.next.wrapping_add(1);
        raw.u16(ring.avail + 2).store(self.next, Ordering::Release);
        fence(Ordering::SeqCst);
        if raw.u16(ring.used).load(Ordering::Relaxed) & USED_F_NO_NOTIFY == 0 {
            self.front_end.kick.write(1)?;
        }
        loop {
            let mut fds = [PollFd::new(self.front_end.call.as_fd(), PollFlags::POLLIN)];
            ensure!(poll(&mut fds, PollTimeout::from(2000_u16))? > 0, "no call within 2 s");
            self.front_end.call.read()?;
            // A call too many is no answer.
            if raw.u16(ring.used + 2).load(Ordering::Acquire) == self.next {
                return Ok(start.elapsed());
            }
        }
    }
}
