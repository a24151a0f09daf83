//! The pump: a driver that does nothing but hand used descriptors back, so that the back-end is the limit.
//!
//! Operation: the ring is filled once with chains over buffers of their own. From then on each used chain is made
//! available again, unchanged, in one burst with whatever else was used meanwhile. No buffer is ever written, nothing is
//! looked at but the ids. Calls are declined; the back-end is kicked when it asks for it.
//!
//! This is no example of a driver: it trusts the device with everything. `vnic::ring`'s driver half does not.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_fixture::FrontEnd;
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use vnic::memory::testing::GuestRam;
use vnic::ring::RingLayout;
use vnic::spec::ring::{
    AVAIL_F_NO_INTERRUPT, DESC_F_AVAIL, DESC_F_NEXT, DESC_F_USED, PACKED_EVENT_DISABLE, USED_F_NO_NOTIFY,
};
use vnic::spec::{Feature, Features};

/// The ring's size, in descriptors.
pub(crate) const SIZE: u16 = 1024;
/// Where the buffers start; the rings lie below, and where somebody is to find one, a kernel.
pub(crate) const BUFFERS: u64 = 16 << 20;
/// A buffer's stride. Not a power of two, or all buffers would share a few sets of each cache.
pub(crate) const STRIDE: u64 = 2048 + 64 + 12;
/// Bytes of memory.
pub(crate) const RAM: u64 = 24 << 20;

/// What a chain looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes of the frame in each descriptor.
    pub(crate) segment: u32,
    /// Descriptors of a chain; the first has the virtio-net header besides.
    pub(crate) segments: u16,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.segments {
            1 => write!(f, "{} B", self.segment),
            segments => write!(f, "{segments} × {} B", self.segment),
        }
    }
}

/// What a run came to.
#[derive(Debug, Clone, Copy)]
struct Pumped {
    /// Chains that came back in a second.
    chains_per_second: f64,
    /// Share of the time in which nothing was used: the back-end was the limit.
    waited: f64,
}

/// [`run`] on CPU 1; says so where the pump was the limit. Chains per second.
pub(crate) fn on_cpu_1(
    socket: &Path,
    shape: Shape,
    features: Features,
    translations: Option<u64>,
    seconds: f64,
) -> Result<f64> {
    let pumped = crate::on_cpu_1(|| run(socket, shape, features, translations, seconds))?;
    if pumped.waited < 0.5 {
        eprintln!("    the pump waited only {:.0} % of the time: it is the limit", pumped.waited * 100.0);
    }
    Ok(pumped.chains_per_second)
}

/// Drives the back-end that listens on `socket` for `seconds`, after a fifth of a second to warm up. Behind an IOMMU
/// where it is said how many bytes one of its translations has.
fn run(socket: &Path, shape: Shape, features: Features, translations: Option<u64>, seconds: f64) -> Result<Pumped> {
    let mut pump = Pump::start(socket, &GuestRam::new(RAM)?, shape, features, translations)?;
    let mut count = |until: Instant| {
        let all = Count::default();
        pump.run(&all, |looks| looks % 256 == 0 && Instant::now() >= until).map(|()| all)
    };
    count(Instant::now() + Duration::from_millis(200))?;
    let start = Instant::now();
    let all = count(start + Duration::from_secs_f64(seconds))?;
    let took = start.elapsed().as_secs_f64();
    Ok(Pumped { chains_per_second: all.chains() as f64 / took, waited: all.waited().as_secs_f64() / took })
}

/// What a pump has done so far. Others may read along.
#[derive(Debug, Default)]
pub(crate) struct Count {
    chains: AtomicU64,
    waited_ns: AtomicU64,
}

impl Count {
    pub(crate) fn chains(&self) -> u64 {
        self.chains.load(Ordering::Relaxed)
    }

    /// How long there was nothing for it to do.
    fn waited(&self) -> Duration {
        Duration::from_nanos(self.waited_ns.load(Ordering::Relaxed))
    }
}

/// Only the pump adds: no need for one step.
fn add(to: &AtomicU64, more: u64) {
    to.store(to.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

/// A driver and the session with its back-end.
pub(crate) struct Pump {
    ring: Box<dyn Ring>,
    front_end: FrontEnd,
}

impl Pump {
    /// Drives the back-end that listens on `socket`, with rings and buffers in this memory.
    pub(crate) fn start(
        socket: &Path,
        ram: &GuestRam,
        shape: Shape,
        features: Features,
        translations: Option<u64>,
    ) -> Result<Self> {
        let packed = features.has(Feature::RingPacked);
        let layout = |base| if packed { RingLayout::packed_at(base, SIZE) } else { RingLayout::split_at(base, SIZE) };
        let (receive, end) = layout(0x1000)?;
        let (transmit, _) = layout((end + 0xfff) & !0xfff)?;
        let raw = Raw::map(ram)?;
        let ring: Box<dyn Ring> = if packed {
            Box::new(Packed::new(raw, transmit, shape))
        } else {
            Box::new(Split::new(raw, transmit, shape))
        };
        let features = features.with(Feature::Version1);
        let front_end = FrontEnd::start(socket, ram, [receive, transmit], features, translations)?;
        front_end.kick.write(1)?;
        Ok(Pump { ring, front_end })
    }

    /// Goes on until it is told that it is over; asked after each look, with how many there were.
    pub(crate) fn run(&mut self, all: &Count, is_over: impl Fn(u64) -> bool) -> Result<()> {
        let (mut looks, mut since) = (0_u64, None::<Instant>);
        while !is_over(looks) {
            let Turned { used, kick } = self.ring.turn();
            looks += 1;
            if used == 0 {
                since.get_or_insert_with(Instant::now);
                std::hint::spin_loop();
            } else if let Some(since) = since.take() {
                add(&all.waited_ns, since.elapsed().as_nanos() as u64);
            }
            add(&all.chains, u64::from(used));
            if kick {
                self.front_end.kick.write(1)?;
            }
        }
        Ok(())
    }
}

/// One turn of the pump.
struct Turned {
    /// Chains that had been used, and are available again.
    used: u16,
    /// The back-end wants a kick for them.
    kick: bool,
}

trait Ring {
    fn turn(&mut self) -> Turned;
}

/// The memory as this process sees it.
#[derive(Clone, Copy)]
pub(crate) struct Raw(*mut u8);

impl Raw {
    /// Maps the file for the rest of the process's life.
    pub(crate) fn map(ram: &GuestRam) -> Result<Self> {
        let len = usize::try_from(RAM)?.try_into()?;
        let flags = MapFlags::MAP_SHARED | MapFlags::MAP_POPULATE;
        // SAFETY: a new mapping; it is shared with the back-end, and only atomics touch it.
        let at = unsafe { mmap(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags, ram.fd().as_fd(), 0) };
        Ok(Raw(at.context("mapping guest memory")?.as_ptr().cast()))
    }

    pub(crate) const fn as_ptr(&self) -> *mut u8 {
        self.0
    }

    #[inline(always)]
    pub(crate) fn u16(&self, at: u64) -> &AtomicU16 {
        // SAFETY: every caller computes `at` from a layout inside the RAM bytes that are mapped for good, aligned to 2.
        unsafe { AtomicU16::from_ptr(self.0.add(at as usize).cast()) }
    }

    #[inline(always)]
    fn u64(&self, at: u64) -> &AtomicU64 {
        // SAFETY: as above, aligned to 8.
        unsafe { AtomicU64::from_ptr(self.0.add(at as usize).cast()) }
    }

    /// Writes the chain that starts at descriptor `first`; its buffers are those of its descriptors' numbers.
    pub(crate) fn descriptor(&self, desc: u64, slot: u16, buffer: u16, rest: u64) {
        let at = desc + 16 * u64::from(slot);
        self.u64(at).store(BUFFERS + STRIDE * u64::from(buffer), Ordering::Relaxed);
        self.u64(at + 8).store(rest, Ordering::Release);
    }
}

/// Length of descriptor `at` of a chain.
fn length(shape: Shape, at: u16) -> u32 {
    shape.segment + if at == 0 { 12 } else { 0 }
}

struct Split {
    raw: Raw,
    at: RingLayout,
    next_used: u16,
    next_avail: u16,
}

impl Split {
    fn new(raw: Raw, at: RingLayout, shape: Shape) -> Self {
        let chains = SIZE / shape.segments;
        for slot in 0..chains * shape.segments {
            let part = slot % shape.segments;
            let (flags, next) = if part + 1 < shape.segments { (DESC_F_NEXT, slot + 1) } else { (0, 0) };
            let rest = u64::from(length(shape, part)) | u64::from(flags) << 32 | u64::from(next) << 48;
            raw.descriptor(at.desc, slot, slot, rest);
        }
        for chain in 0..chains {
            raw.u16(at.avail + 4 + 2 * u64::from(chain)).store(chain * shape.segments, Ordering::Relaxed);
        }
        raw.u16(at.avail).store(AVAIL_F_NO_INTERRUPT, Ordering::Relaxed);
        raw.u16(at.avail + 2).store(chains, Ordering::Release);
        Split { raw, at, next_used: 0, next_avail: chains }
    }
}

impl Ring for Split {
    #[inline]
    fn turn(&mut self) -> Turned {
        let Split { raw, at, .. } = *self;
        let used_idx = raw.u16(at.used + 2).load(Ordering::Acquire);
        let used = used_idx.wrapping_sub(self.next_used);
        if used == 0 {
            return Turned { used, kick: false };
        }
        while self.next_used != used_idx {
            let slot = u64::from(self.next_used % SIZE);
            let head = raw.u16(at.used + 4 + 8 * slot).load(Ordering::Relaxed);
            raw.u16(at.avail + 4 + 2 * u64::from(self.next_avail % SIZE)).store(head, Ordering::Relaxed);
            self.next_used = self.next_used.wrapping_add(1);
            self.next_avail = self.next_avail.wrapping_add(1);
        }
        raw.u16(at.avail + 2).store(self.next_avail, Ordering::Release);
        fence(Ordering::SeqCst);
        Turned { used, kick: raw.u16(at.used).load(Ordering::Relaxed) & USED_F_NO_NOTIFY == 0 }
    }
}

struct Packed {
    raw: Raw,
    at: RingLayout,
    shape: Shape,
    next_used: u16,
    used_wrap: bool,
    next_avail: u16,
    avail_wrap: bool,
    /// By slot: the buffer whose address stands there.
    buffers: Vec<u16>,
}

impl Packed {
    fn new(raw: Raw, at: RingLayout, shape: Shape) -> Self {
        raw.u16(at.avail + 2).store(PACKED_EVENT_DISABLE, Ordering::Relaxed);
        let buffers = vec![u16::MAX; usize::from(SIZE)];
        let mut ring =
            Packed { raw, at, shape, next_used: 0, used_wrap: true, next_avail: 0, avail_wrap: true, buffers };
        for chain in 0..SIZE / shape.segments {
            ring.give(chain * shape.segments);
        }
        ring
    }

    /// Makes the chain of buffer id `id` available. Its buffers are those numbered from `id` on.
    #[inline(always)]
    fn give(&mut self, id: u16) {
        let first = (self.next_avail, self.avail_wrap);
        for part in 0..self.shape.segments {
            if part > 0 {
                self.write(self.next_avail, self.avail_wrap, id, part);
            }
            self.next_avail += 1;
            if self.next_avail == SIZE {
                (self.next_avail, self.avail_wrap) = (0, !self.avail_wrap);
            }
        }
        // The first last: it makes the chain visible.
        self.write(first.0, first.1, id, 0);
    }

    #[inline(always)]
    fn write(&mut self, slot: u16, wrap: bool, id: u16, part: u16) {
        let next = if part + 1 < self.shape.segments { DESC_F_NEXT } else { 0 };
        let flags = next | if wrap { DESC_F_AVAIL } else { DESC_F_USED };
        let rest = u64::from(length(self.shape, part)) | u64::from(id) << 32 | u64::from(flags) << 48;
        let buffer = id + part;
        match self.buffers.get_mut(usize::from(slot)) {
            // A used descriptor leaves the address as it was.
            Some(before) if *before == buffer => {
                self.raw.u64(self.at.desc + 16 * u64::from(slot) + 8).store(rest, Ordering::Release);
            }
            before => {
                before.into_iter().for_each(|before| *before = buffer);
                self.raw.descriptor(self.at.desc, slot, buffer, rest);
            }
        }
    }
}

impl Ring for Packed {
    #[inline]
    fn turn(&mut self) -> Turned {
        let mut used = 0;
        while used < SIZE {
            let at = self.at.desc + 16 * u64::from(self.next_used);
            let rest = self.raw.u64(at + 8).load(Ordering::Acquire);
            let flags = (rest >> 48) as u16;
            if (flags & DESC_F_USED != 0) != self.used_wrap || (flags & DESC_F_AVAIL != 0) != self.used_wrap {
                break;
            }
            used += 1;
            self.next_used += self.shape.segments;
            if self.next_used >= SIZE {
                (self.next_used, self.used_wrap) = (self.next_used - SIZE, !self.used_wrap);
            }
            self.give((rest >> 32) as u16);
        }
        if used == 0 {
            return Turned { used, kick: false };
        }
        fence(Ordering::SeqCst);
        let flags = self.raw.u16(self.at.used + 2).load(Ordering::Relaxed);
        Turned { used, kick: flags & 3 != PACKED_EVENT_DISABLE }
    }
}
