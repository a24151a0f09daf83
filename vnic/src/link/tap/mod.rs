//! A tap device of the host: frames go straight from guest memory into the host's network stack and back.
//!
//! Operation (Linux `Documentation/networking/tuntap.rst`, `drivers/net/tun.c`):
//! 1. `TUNSETIFF` with `IFF_VNET_HDR`: every frame carries a virtio-net header, so that partial checksums and large
//!    segments go through as they are. `TUNSETVNETHDRSZ`: it is as long as the one negotiated with the driver.
//! 2. `TUNSETOFFLOAD`: what the *driver* can receive (`guest_csum`, `guest_tso*`, `guest_uso*`) is what the kernel may hand
//!    us. Kernels before 6.2 know no USO; then it is not offered.
//! 3. A device of several queue pairs has a queue of the tap for each (`IFF_MULTI_QUEUE`); the kernel sends frames only to
//!    those whose receiveq is in use (`TUNSETQUEUE`), and always to the first.
//! 4. Transmit: header and guest memory as they are, the frames of a burst with one system call (`writes`); without
//!    io_uring, which some hosts forbid, each with a `writev`. The counter `transmit_calls` tells.
//! 5. Receive is one `readv` into the driver's buffers: nothing is copied on this side. Only where these cannot take the
//!    longest frame is the next one read into memory of the port, to see how long it is.
//!
//! Limits: a frame in more than 1023 pieces is refused; a larger MTU set while the device runs is seen at its next start.
//! Frames are received one by one: each read that is under way would tie up buffers for the longest frame there can be.

mod device;
mod queue;
mod writes;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counters::counters;
use super::{Completion, LinkCounters, LinkError, Port, Received, Transmitted};
use crate::net::features::with_requirements_met;
use crate::net::vectored::Scratch;
use crate::net::{Frame, ReceiveSpace, header};
use crate::spec::{Feature, Features};
pub use device::TapError;
use queue::{Shape, TapQueue};
use writes::{Added, Event, What, Writes};

/// The longest frame a tap gives: 64 KiB and an Ethernet header. VIRTIO 1.3, 5.1.6.3.1.
const MAX_RECEIVE: usize = 65_550;

/// `TUN_F_USO4` and `TUN_F_USO6` of `linux/if_tun.h`: both or none.
const TUN_F_USO: libc::c_uint = 0x20 | 0x40;

/// What a kernel without USO cannot do.
const USO: Features = Features::of(&[Feature::GuestUso4, Feature::GuestUso6, Feature::HostUso]);

/// Room beyond the MTU: Ethernet header and a VLAN tag.
const ETHERNET_ROOM: usize = 18;

/// How soon frames are offered again that the kernel had no memory, or the tap no room for.
const AGAIN: Duration = Duration::from_millis(1);

counters!(Count {
    Frames = "transmitted_frames",
    Bytes = "transmitted_bytes",
    Calls = "transmit_calls",
    Full = "transmit_full",
    Received = "received_frames",
    ReceivedBytes = "received_bytes",
    TooManyPieces = "dropped_too_many_pieces",
    Refused = "dropped_refused_by_kernel",
    Down = "dropped_tap_down",
    Ended = "dropped_at_end",
    NoRoom = "dropped_no_room",
    Failed = "failed_calls",
});

/// The queue pairs of a device that one worker serves: every so many'th.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Queue pairs of the device.
    pub pairs: usize,
    /// The worker's number.
    pub worker: usize,
    /// How many there are.
    pub workers: usize,
}

impl Share {
    /// How many pairs that is.
    const fn count(self) -> usize {
        self.pairs.saturating_sub(self.worker).div_ceil(self.workers)
    }

    /// Where among them `pair` is.
    const fn place(self, pair: usize) -> usize {
        pair / self.workers
    }
}

/// The port of a tap.
#[derive(Debug)]
pub struct Tap {
    name: String,
    share: Share,
    // In front of `queues`: their files are closed only when nothing is written to them any more.
    writes: Option<Writes>,
    queues: Vec<TapQueue>,
    shape: Shape,
    /// Does the kernel segment datagrams?
    uso: bool,
    scratch: Scratch,
    counters: Arc<LinkCounters>,
}

impl Tap {
    /// Attaches to the tap of this name; a privileged user's is made if there is none.
    ///
    /// # Errors
    /// In one sentence, with what to do.
    pub fn open(name: &str, share: Share) -> Result<Self, TapError> {
        let files = device::attach(name, share.pairs, share.count())?;
        let writes = Writes::new().inspect_err(|error| {
            tracing::warn!(%error, "no io_uring on this host: tap {name} takes a system call per frame");
        });
        let mut tap = Tap {
            name: name.to_owned(),
            share,
            writes: writes.ok(),
            queues: files.into_iter().map(TapQueue::new).collect(),
            shape: Shape { header_len: 0, largest: MAX_RECEIVE },
            uso: false,
            scratch: Scratch::default(),
            counters: Count::fresh(),
        };
        // Not even a kernel that knows it has it without checksums.
        tap.uso = tap.set_offloads(libc::TUN_F_CSUM | TUN_F_USO).is_ok();
        let offload = tap.offload(Features::NONE);
        offload.map_err(|(action, source)| TapError::Io { name: name.to_owned(), action, source })?;
        for pair in 0..share.pairs {
            tap.set_receiving(pair, false);
        }
        if share.worker == 0 && !device::is_up(name) {
            tracing::warn!("tap {name} is down: frames are dropped until `ip link set {name} up`");
        }
        Ok(tap)
    }

    /// The queue of a pair, if this port has it.
    fn queue(&self, pair: usize) -> Option<&TapQueue> {
        self.queues.get(self.share.place(pair)).filter(|_| pair % self.share.workers == self.share.worker)
    }

    /// Sets header length and offloads by what the driver can receive.
    fn offload(&mut self, features: Features) -> Result<(), (&'static str, io::Error)> {
        let header_len = header::header_len(features);
        if let Some(writes) = self.writes.as_mut().filter(|_| header_len != self.shape.header_len) {
            // What waits has a header that the kernel would misread from now on.
            writes.give_up();
        }
        // The whole tap's, so one of its queues is enough.
        if let Some(queue) = self.queues.first() {
            device::set_header_len(queue.file(), header_len)?;
        }
        let offloads = [
            (Feature::GuestCsum, libc::TUN_F_CSUM),
            (Feature::GuestTso4, libc::TUN_F_TSO4),
            (Feature::GuestTso6, libc::TUN_F_TSO6),
            (Feature::GuestEcn, libc::TUN_F_TSO_ECN),
        ];
        let features = with_requirements_met(features);
        let flags = offloads.iter().filter(|(feature, _)| features.has(*feature)).fold(0, |sum, (_, flag)| sum | flag);
        let uso = self.uso && features.has(Feature::GuestUso4) && features.has(Feature::GuestUso6);
        self.set_offloads(if uso { flags | TUN_F_USO } else { flags })?;
        let segmented = uso || features.has(Feature::GuestTso4) || features.has(Feature::GuestTso6);
        let mtu = || device::mtu(&self.name).unwrap_or(1500);
        self.shape = Shape { header_len, largest: if segmented { MAX_RECEIVE } else { mtu() + ETHERNET_ROOM } };
        // What was read ahead has the old header, and offloads the driver may not take.
        self.queues.iter_mut().for_each(TapQueue::forget);
        Ok(())
    }

    fn set_offloads(&self, flags: libc::c_uint) -> Result<(), (&'static str, io::Error)> {
        self.queues.first().map_or(Ok(()), |queue| device::set_offloads(queue.file(), flags))
    }

    /// Counts a frame that was written, or why it was not.
    fn written(&self, bytes: u32, result: io::Result<()>) -> Result<(), LinkError> {
        let Err(error) = result else {
            // A tap takes a frame whole or not at all.
            Count::Frames.add(&self.counters, 1);
            Count::Bytes.add(&self.counters, u64::from(bytes));
            return Ok(());
        };
        let (count, reason) = match error.raw_os_error() {
            Some(libc::E2BIG) => (Count::TooManyPieces, "in more pieces than one system call takes"),
            Some(libc::EINVAL) => (Count::Refused, "the kernel does not accept its header"),
            Some(libc::EIO) => (Count::Down, "the tap is down"),
            Some(libc::ECANCELED) => (Count::Ended, "the device was reset before the tap had room"),
            _ => {
                Count::Failed.add(&self.counters, 1);
                return Err(LinkError::Io { action: "write to the tap", source: error });
            }
        };
        count.add(&self.counters, 1);
        Err(LinkError::Refused { bytes, reason })
    }
}

impl Port for Tap {
    const KEEPS: u16 = writes::MOST;

    fn transmit(&mut self, pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        let bytes = frame.len;
        let header = frame.header.to_bytes();
        let header = header.get(..self.shape.header_len).unwrap_or(&header);
        let Some(queue) = self.queues.get(self.share.place(pair)) else {
            return Err(LinkError::Refused { bytes, reason: "no such queue pair" });
        };
        if let Some(writes) = &mut self.writes {
            match writes.add(queue.file(), pair, header, frame) {
                Added::Ticket(ticket) => return Ok(Transmitted::Kept { ticket }),
                Added::Full => {
                    Count::Full.add(&self.counters, 1);
                    return Ok(Transmitted::Full);
                }
                // By itself, behind those before it.
                Added::TooManyPieces => self.flush(),
            }
        }
        let Some(queue) = self.queues.get(self.share.place(pair)) else { return Ok(Transmitted::Full) };
        Count::Calls.add(&self.counters, 1);
        match frame.write_to(queue.file(), header, &mut self.scratch) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Count::Full.add(&self.counters, 1);
                Ok(Transmitted::Full)
            }
            result => {
                self.written(bytes, result.map(drop))?;
                Ok(Transmitted::Taken { read: bytes, copied: 0 })
            }
        }
    }

    fn flush(&mut self) {
        if let Some(writes) = &mut self.writes
            && writes.is_waiting()
        {
            Count::Calls.add(&self.counters, 1);
            writes.submit();
        }
    }

    fn completed(&mut self) -> Option<Completion> {
        loop {
            let Event { ticket, pair, bytes, what } = self.writes.as_mut()?.next()?;
            let (read, copied) = match what {
                What::Written(result) => (self.written(bytes, result).ok().map(|()| bytes), 0),
                What::Copied => (Some(bytes), bytes),
                What::CopyWritten(result) => {
                    // The driver has its buffers back: whatever became of the frame is counted, and that is all.
                    let _ = self.written(bytes, result);
                    continue;
                }
            };
            return Some(Completion { pair, ticket, read, copied });
        }
    }

    fn quiesce(&mut self, pair: usize) {
        if let Some(writes) = &mut self.writes {
            writes.quiesce(pair);
        }
    }

    fn pending(&mut self, pair: usize) -> Option<usize> {
        self.queue(pair)?.pending(self.shape)
    }

    fn measure(&mut self, pair: usize) -> bool {
        let (shape, counters) = (self.shape, &self.counters);
        self.queues.get_mut(self.share.place(pair)).is_some_and(|queue| queue.measure(shape, counters))
    }

    fn receive(&mut self, pair: usize, space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        let Some(queue) = self.queues.get_mut(self.share.place(pair)) else { return Ok(Received::Nothing) };
        queue.receive(self.shape, space, &mut self.scratch, &self.counters)
    }

    fn announce(&mut self, frame: &[u8]) -> Result<(), LinkError> {
        let Some(queue) = self.queues.first() else { return Ok(()) };
        let mut bytes = vec![0; self.shape.header_len];
        bytes.extend_from_slice(frame);
        let result = nix::unistd::write(queue.file(), &bytes).map(drop).map_err(io::Error::from);
        // A frame's length is 32 bits.
        self.written(frame.len() as u32, result)
    }

    fn set_receiving(&mut self, pair: usize, on: bool) {
        // A tap without any queue would drop what it is given; the first keeps it for a driver that comes.
        if pair != 0
            && let Some(queue) = self.queue(pair)
        {
            queue.set_receiving(on);
        }
    }

    fn poll(&mut self, _now: Instant) {
        self.queues.iter_mut().for_each(|queue| queue.drained = false);
        self.flush();
    }

    fn deadline(&mut self, _now: Instant) -> Option<Duration> {
        self.writes.as_mut().is_some_and(Writes::is_waiting).then_some(AGAIN)
    }

    fn readable_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.queues.iter().map(TapQueue::file).chain(self.writes.as_ref().map(Writes::file)).collect()
    }

    fn writable_fds(&self) -> Vec<BorrowedFd<'_>> {
        self.queues.iter().map(TapQueue::file).collect()
    }

    fn lacks(&self) -> Features {
        if self.uso || self.queues.is_empty() { Features::NONE } else { USO }
    }

    fn negotiated(&mut self, features: Features) -> Result<(), LinkError> {
        self.offload(features).map_err(|(action, source)| LinkError::Io { action, source })
    }

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.counters)
    }
}

#[cfg(test)]
pub(crate) mod tests;
