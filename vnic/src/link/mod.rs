//! Where frames go, and come from.
//!
//! Place: a worker owns one [`Port`] and the queue pairs it serves; it calls the port from its own thread only. A port
//! never touches a ring. The worker's loop, each time:
//!
//! 1. [`Port::poll`], once, with the time.
//! 2. Transmit: each chain as a [`Frame`] to [`Port::transmit`]. On [`Transmitted::Full`] it keeps the chain and goes on.
//! 3. Receive: while [`Port::pending`] says `Some(n)` and the receiveq has room for `n`, [`Port::receive`].
//!    For a [hairpin](Port::HAIRPIN) port, 2 and 3 are one: [`Port::hairpin`].
//! 4. Sleep until a ring is kicked, one of [`Port::readable_fds`] is readable (asked only while the receiveq has room: a
//!    file stays readable until it is read), one of [`Port::writable_fds`] is writable
//!    (asked only after `Full`), or [`Port::deadline`] has passed.
//!
//! | link | |
//! |---|---|
//! | [`peer`] | a TCP/IP endpoint in this process: needs no privilege |
//! | [`tap`] | a network device of the host |
//! | [`stream`] | a UNIX socket to `passt`, or to any program that speaks its framing |
//! | [`sink`] | frames vanish |
//! | [`loopback`] | frames come back |
//! | [`capture`] | any of them, on record |

pub mod capture;
pub mod counters;
pub mod kind;
pub mod loopback;
pub mod peer;
mod port;
mod segmentation;
pub mod sink;
mod steering;
pub mod stream;
pub mod tap;
#[cfg(test)]
pub(crate) mod testing;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use capture::Capture;
pub use counters::LinkCounters;
pub use kind::{LinkKind, ParseLinkError};
pub use port::{AnyPort, OpenError, open, open_share};
pub use tap::Share;

use crate::net::{Frame, ReceiveSpace};
use crate::spec::Features;

/// What became of a frame that was offered to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transmitted {
    /// The port has taken it; its buffers can go back to the driver.
    Taken {
        /// Bytes read out of guest memory: the DMA copy.
        read: u32,
        /// Bytes copied once more before the frame left the NIC.
        copied: u32,
    },
    /// The port will read the frame's buffers later; they stay with it until [`Port::completed`] names this ticket, which is
    /// less than [`Port::KEEPS`] and no other kept frame's of the pair.
    Kept {
        /// The port's name for it.
        ticket: u16,
    },
    /// No room: offer the same frame again after [`Port::poll`] or [`Port::receive`]. Nothing was read, nothing is lost.
    Full,
}

/// A kept frame that the port is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The pair it was sent on.
    pub pair: usize,
    /// As [`Transmitted::Kept`] named it.
    pub ticket: u16,
    /// Bytes read out of guest memory. `None`: the frame is lost; the port has counted it by reason.
    pub read: Option<u32>,
    /// Bytes copied once more before the frame leaves the NIC.
    pub copied: u32,
}

/// What a port put into the driver's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// One frame, `bytes` long without the virtio-net header.
    Frame {
        /// The frame's length.
        bytes: u32,
    },
    /// There was none after all.
    Nothing,
}

/// A host-side failure of a link. The frame is lost and counted; the device lives on.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A system call on the link's file failed.
    #[error("{action}: {source}")]
    Io {
        /// What was tried, with the link's name.
        action: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The frame cannot be sent on this link, or does not fit into the driver's buffers.
    #[error("frame of {bytes} bytes refused: {reason}")]
    Refused {
        /// The frame's length.
        bytes: u32,
        /// Why.
        reason: &'static str,
    },
}

/// The end of a link that one worker owns. `pair` is a queue pair's number.
pub trait Port: Send {
    /// Do all frames come back on the receiveq of the pair they were sent on? Then [`hairpin`](Port::hairpin) is called for each,
    /// and neither `transmit` nor `receive`.
    const HAIRPIN: bool = false;

    /// Most frames of a pair that are kept at a time; 0: every frame is done with when `transmit` returns. One that keeps
    /// frames holds [their memory](Frame::memory) as well, and lets go of both before it is dropped.
    const KEEPS: u16 = 0;

    /// Does [`transmit`](Port::transmit) read the frames itself, and at once? Then they are asked for from memory beforehand.
    const READS: bool = false;

    /// Takes a frame from the driver, or says `Full`.
    ///
    /// # Errors
    /// The frame is lost; the port has counted it by reason.
    fn transmit(&mut self, pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        let _ = (pair, frame);
        Ok(Transmitted::Full)
    }

    /// A burst has ended: starts what was kept in it.
    fn flush(&mut self) {}

    /// The next kept frame that is done with, in whatever order. One of `readable_fds` says when there may be one.
    fn completed(&mut self) -> Option<Completion> {
        None
    }

    /// The buffers of `pair` are about to go: makes sure that none is read any more, without waiting for room on the link.
    /// `completed` then names each kept frame of the pair. None is lost for that: one for which the link has no room yet
    /// is copied, and sent when it has. Other pairs' frames are left alone.
    fn quiesce(&mut self, pair: usize) {
        let _ = pair;
    }

    /// In a burst, `transmit` has taken so many frames, of so many bytes together. For ports that count no frame singly.
    fn transmitted(&mut self, frames: u64, bytes: u64) {
        let _ = (frames, bytes);
    }

    /// Puts a frame of the driver straight into its buffers, of which `space` has enough, or as many as there will ever
    /// be: then the frame is lost and counted.
    ///
    /// # Errors
    /// The frame is lost, nothing is in `space`; the port has counted it by reason.
    fn hairpin(&mut self, frame: &Frame<'_>, space: &mut ReceiveSpace<'_>) -> Result<(), LinkError> {
        let _ = space;
        Err(LinkError::Refused { bytes: frame.len, reason: "the link is no hairpin" })
    }

    /// Room needed for the next frame to the driver, bytes without virtio-net header; `None`: there is none. A port
    /// that cannot know the size says the largest.
    fn pending(&mut self, pair: usize) -> Option<usize> {
        let _ = pair;
        None
    }

    /// The driver's buffers hold less than [`pending`](Port::pending) asked for: finds out how long the next frame really
    /// is, where `pending` only said the largest. True: ask `pending` again.
    fn measure(&mut self, pair: usize) -> bool {
        let _ = pair;
        false
    }

    /// Puts the next frame into the driver's buffers. Called only after `pending` said `Some(n)`, with room for `n`, or
    /// with as much room as the driver's buffers will ever have: then the frame is lost and counted.
    ///
    /// # Errors
    /// The frame is lost; the port has counted it by reason.
    fn receive(&mut self, pair: usize, space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        let _ = (pair, space);
        Ok(Received::Nothing)
    }

    /// Sends a frame of the device's own, which says where the guest is. Where nobody could learn from it, it goes nowhere.
    ///
    /// # Errors
    /// The link does not take it.
    fn announce(&mut self, frame: &[u8]) -> Result<(), LinkError> {
        let _ = frame;
        Ok(())
    }

    /// The driver has the receiveq of `pair` in use from now on (enabled, and not broken), or no longer: a link that
    /// chooses the pair chooses among those in use.
    fn set_receiving(&mut self, pair: usize, on: bool) {
        let _ = (pair, on);
    }

    /// Does what is due by `now`: protocol timers, answers. `now` is the port's clock until the next call.
    fn poll(&mut self, now: Instant);

    /// When `poll` must be called again though nothing happens; `None`: not at all.
    fn deadline(&mut self, now: Instant) -> Option<Duration> {
        let _ = now;
        None
    }

    /// Files whose readability means there may be frames for the driver. The same ones for the port's whole life.
    fn readable_fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// Files whose writability is waited for because `transmit` said `Full`; empty where `poll` alone makes room.
    fn writable_fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// What ends when the guest moves to another host, and which link would do better; `None`: nothing does.
    fn stays(&self) -> Option<&'static str> {
        None
    }

    /// Features that must not be offered, because the link or its host cannot do them.
    fn lacks(&self) -> Features {
        Features::NONE
    }

    /// The features the driver accepted, at each start of the device; a tap sets its offloads by them.
    ///
    /// # Errors
    /// The link cannot do what the driver was promised.
    fn negotiated(&mut self, features: Features) -> Result<(), LinkError> {
        let _ = features;
        Ok(())
    }

    /// Frames and bytes by direction, drops by reason: readable from any thread while the port works.
    fn counters(&self) -> Arc<LinkCounters>;
}
