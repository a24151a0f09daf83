//! A UNIX socket to a program that speaks QEMU's `-netdev stream` framing: each frame behind its length, four bytes,
//! big-endian. `passt` is such a program, and is started here.
//!
//! Place: one connection for all queue pairs, so one worker. What the driver left to the device (a partial checksum, a frame
//! of many segments) is done here, while the frame is copied out of the guest's memory: the framing has no place for a
//! virtio-net header, and without CSUM and TSO on offer a Linux guest has no scatter-gather.
//!
//! Operation:
//! 1. A frame is gathered into the send buffer, its checksum completed there while it is in the cache. One of many segments
//!    goes whole if the far end takes such frames (passt does, up to [`WHOLE_LIMIT`]); else it is [cut](super::segmentation).
//! 2. What the burst has gathered is written with one system call. A far end that is slow fills the buffer, and the ring waits.
//! 3. Frames to the driver are read many at a time, and go to the pair their flow was sent on ([`super::steering`]).
//! 4. A far end that is gone is dialled again by a [thread](connector) of its own. Meanwhile frames are dropped and counted, as
//!    by a card whose cable is out.
//! 5. What passt leaves out of a TCP [handshake] is said here, and what it drops is sent to it [again](unacknowledged). One that somebody else
//!    has started may know connections that this process does not: what it has of them is [asked for](older).
//!
//! Limits: with several pairs, a frame whose receiveq has no buffers waits, and those behind it wait too.

mod connector;
mod handshake;
mod older;
pub mod passt;
mod payload;
mod receive;
mod send;
pub mod starter;
#[cfg(test)]
mod tests;
mod unacknowledged;

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use self::connector::{Connector, Dial, Mac};
use self::handshake::Handshakes;
use self::older::Older;
use self::passt::{Network, Passt};
use self::payload::Payload;
use self::receive::ReceiveBuffer;
use self::send::{PREFIX, SendBuffer};
use self::starter::Starter;
use self::unacknowledged::Unacknowledged;
use super::counters::counters;
use super::segmentation::{MAX_HEADERS, Segmentation};
use super::steering::Steering;
use super::{LinkCounters, LinkError, Port, Received, Transmitted};
use crate::net::{Frame, ReceiveSpace, checksum};
use crate::sandbox::Role;
use crate::spec::net::{GSO_NONE, HDR_F_NEEDS_CSUM, NetHeader};

/// The longest frame that passt takes, bytes (its `ETH_MAX_MTU`): longer ones end its connection.
const WHOLE_LIMIT: u32 = 65_535;

/// Bytes that can be sent to passt again: more than a guest has on the way with Linux' own limits.
const KEPT: usize = 4 << 20;

counters!(Count {
    Frames = "transmitted_frames",
    Bytes = "transmitted_bytes",
    Segmented = "segmented_frames",
    Full = "full",
    Unsegmentable = "dropped_unsegmentable",
    NotConnected = "dropped_not_connected",
    Lost = "dropped_at_disconnect",
    Received = "received_frames",
    Acknowledged = "handshakes_acknowledged",
    Again = "sent_again",
    Asked = "acknowledgements_asked_for",
    ReceivedBytes = "received_bytes",
    NoRoom = "dropped_no_room",
    Disconnected = "disconnected",
});

/// What the far end takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FarEnd {
    /// TCP frames of many segments: passt, which ends every connection itself.
    SuperFrames,
    /// Nothing that a wire would not carry.
    Segments,
}

/// A connected UNIX socket of somebody who listens.
#[derive(Debug)]
struct Connect(PathBuf);

impl Dial for Connect {
    const ROLE: Role = Role::Connector;

    fn dial(&mut self, _guest: Mac) -> io::Result<UnixStream> {
        UnixStream::connect(&self.0)
    }
}

/// The port. See the module.
#[derive(Debug)]
pub struct Stream {
    far_end: FarEnd,
    socket: Option<UnixStream>,
    /// Of the socket there is and of the connector: the worker waits on this one file.
    events: Epoll,
    connector: Connector,
    send: SendBuffer,
    receive: ReceiveBuffer,
    handshakes: Handshakes,
    /// Of a far end that drops what it has taken.
    unacknowledged: Option<Unacknowledged>,
    /// Of a passt that was there before this process.
    older: Option<Older>,
    /// Nothing more is to be read before the next `poll`.
    drained: bool,
    steering: Steering,
    /// Where the driver's last frame came from: a new far end has to be told.
    guest: Mac,
    /// The clock, as of the last `poll`.
    now: Instant,
    counters: Arc<LinkCounters>,
}

impl Stream {
    /// Connects to whoever listens at `path`.
    ///
    /// # Errors
    /// Nobody does.
    pub fn connect(path: &Path, pairs: usize) -> io::Result<Self> {
        Stream::open(format!("stream:{}", path.display()), Connect(path.to_owned()), FarEnd::Segments, pairs)
    }

    /// Starts passt, or has it started.
    ///
    /// # Errors
    /// It is not installed, or does not come up: then its own words say why.
    pub fn passt(network: &Network, pairs: usize) -> io::Result<Self> {
        let Network { publish, starter } = network;
        match starter {
            Some(program) => {
                let starter = Starter::start(program.as_os_str(), publish)?;
                Stream::open("passt".to_owned(), starter, FarEnd::SuperFrames, pairs)
            }
            None => Stream::open("passt".to_owned(), Passt::new(publish), FarEnd::SuperFrames, pairs),
        }
    }

    fn open(name: String, mut dial: impl Dial, far_end: FarEnd, pairs: usize) -> io::Result<Self> {
        let socket = dial.dial(SOMEBODY)?;
        let events = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let connector = Connector::start(name, dial)?;
        events.add(connector.wake_fd(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0))?;
        let mut stream = Stream {
            far_end,
            socket: None,
            events,
            connector,
            send: SendBuffer::keeping(if far_end == FarEnd::SuperFrames { KEPT } else { 0 }),
            receive: ReceiveBuffer::new(),
            handshakes: Handshakes::default(),
            unacknowledged: (far_end == FarEnd::SuperFrames).then(Unacknowledged::new),
            older: (far_end == FarEnd::Segments && older::is_passt(&socket)).then(Older::new),
            drained: false,
            steering: Steering::new(pairs.max(1)),
            guest: SOMEBODY,
            now: Instant::now(),
            counters: Count::fresh(),
        };
        stream.connected(socket)?;
        Ok(stream)
    }

    fn connected(&mut self, socket: UnixStream) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.events.add(socket.as_fd(), EpollEvent::new(flags, 1))?;
        self.socket = Some(socket);
        Ok(())
    }

    /// The far end is gone, or might as well be: asks for another.
    #[cold]
    fn disconnect(&mut self, why: &dyn std::fmt::Display) {
        tracing::warn!(%why, "the link's far end is gone");
        // Closed, it leaves `events` by itself.
        self.socket = None;
        self.receive.clear();
        self.handshakes.clear();
        if let Some(unacknowledged) = &mut self.unacknowledged {
            unacknowledged.clear();
        }
        self.older = self.older.take().map(|_| Older::new());
        Count::Lost.add(&self.counters, self.send.clear());
        Count::Disconnected.add(&self.counters, 1);
        self.connector.request(self.guest);
    }

    /// Writes what was gathered, as far as the socket takes it.
    fn write(&mut self) {
        let Some(socket) = self.socket.as_ref().filter(|_| !self.send.is_empty()) else { return };
        if let Err(error) = self.send.write(socket.as_fd()) {
            self.disconnect(&error);
        }
    }

    /// Reads until there is a whole frame for the driver, or nothing more to read.
    fn fill(&mut self) {
        while let Some(socket) = &self.socket
            && !self.drained
        {
            match self.receive.frame() {
                Ok(Some(_)) => return,
                Ok(None) => {}
                Err(error) => return self.disconnect(&error),
            }
            match self.receive.read(socket) {
                Ok(0) => self.disconnect(&"closed"),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.drained = true,
                Err(error) => self.disconnect(&error),
            }
        }
    }

    /// Is there room for so many bytes, perhaps once what is there has been written?
    fn makes_room(&mut self, len: usize) -> bool {
        if !self.send.has_room(len) {
            self.write();
        }
        self.send.has_room(len)
    }

    /// How a frame of many segments is to be cut; `None`: it goes as it is.
    fn segmentation(&self, frame: &Frame<'_>) -> Result<Option<Segmentation>, LinkError> {
        let takes_it = match self.far_end {
            // passt wants datagrams one by one: a merged one would arrive as one.
            FarEnd::SuperFrames => frame.header.csum_offset == TCP_CHECKSUM && frame.len <= WHOLE_LIMIT,
            FarEnd::Segments => false,
        };
        if frame.header.gso_type == GSO_NONE || takes_it {
            return Ok(None);
        }
        let mut start = [0; MAX_HEADERS];
        let cut = Segmentation::new(frame.peek(&mut start), frame.len as usize, frame.header);
        match cut.filter(|cut| cut.framed_len(PREFIX) <= send::UNWRITTEN) {
            Some(cut) => Ok(Some(cut)),
            None => {
                Count::Unsegmentable.add(&self.counters, 1);
                Err(LinkError::Refused { bytes: frame.len, reason: "it cannot be cut into the segments it is made of" })
            }
        }
    }

    /// Gathers a frame as it is.
    fn gather_whole(&mut self, pair: usize, frame: &Frame<'_>) {
        let (place, bytes) = self.send.frame(frame.len as usize);
        frame.copy_to(bytes);
        let NetHeader { flags, csum_start, csum_offset, .. } = frame.header;
        if flags & HDR_F_NEEDS_CSUM != 0 {
            let within = checksum::complete(bytes, csum_start, csum_offset);
            debug_assert!(within, "the header was checked against the frame's length");
        }
        self.guest = source(bytes).unwrap_or(self.guest);
        self.steering.note(bytes, pair);
        if self.far_end == FarEnd::SuperFrames && self.handshakes.note(bytes) {
            Count::Acknowledged.add(&self.counters, 1);
        }
        if let Some(unacknowledged) = &mut self.unacknowledged {
            unacknowledged.sent(bytes, place, self.now);
        }
        let question = self.older.as_mut().and_then(|older| older.ask(bytes));
        self.ask(question);
    }

    /// Sends this, where there is room for it.
    fn ask(&mut self, question: Option<Vec<u8>>) {
        if let Some(question) = question
            && self.send.has_room(PREFIX + question.len())
        {
            self.send.frame(question.len()).1.copy_from_slice(&question);
            Count::Asked.add(&self.counters, 1);
        }
    }

    /// Gathers a frame piece by piece.
    fn gather_cut(&mut self, pair: usize, frame: &Frame<'_>, cut: &Segmentation) {
        let headers_len = cut.headers_len();
        let mut payload = Payload::new(frame.segments(), headers_len);
        let mut question = None;
        for (at, place) in cut.places().enumerate() {
            let (_, piece) = self.send.frame(place.len());
            payload.copy_to(piece.get_mut(headers_len..).unwrap_or_default());
            cut.finish(at, piece);
            if at == 0 {
                self.guest = source(piece).unwrap_or(self.guest);
                self.steering.note(piece, pair);
                question = self.older.as_mut().and_then(|older| older.ask(piece));
            }
        }
        self.ask(question);
        Count::Segmented.add(&self.counters, 1);
    }
}

/// The next frame for the driver.
fn next<'a>(handshakes: &'a Handshakes, receive: &'a ReceiveBuffer) -> Option<&'a [u8]> {
    handshakes.frame().or_else(|| receive.frame().ok().flatten())
}

/// A locally administered address, for a guest that has not sent anything yet.
const SOMEBODY: Mac = [0x52, 0x55, 10, 0, 2, 15];

/// Where TCP's checksum stands in its header.
const TCP_CHECKSUM: u16 = 16;

/// A frame's source address.
fn source(frame: &[u8]) -> Option<Mac> {
    frame.get(6..)?.first_chunk().copied()
}

impl Port for Stream {
    fn stays(&self) -> Option<&'static str> {
        match self.far_end {
            FarEnd::SuperFrames => Some("connections through passt end: it knows of them here (tap moves)"),
            FarEnd::Segments => None,
        }
    }

    fn announce(&mut self, frame: &[u8]) -> Result<(), LinkError> {
        if self.socket.is_none() || !self.makes_room(PREFIX + frame.len()) {
            // A frame's length is 32 bits.
            return Err(LinkError::Refused { bytes: frame.len() as u32, reason: "the far end does not take it now" });
        }
        self.send.frame(frame.len()).1.copy_from_slice(frame);
        self.guest = source(frame).unwrap_or(self.guest);
        self.write();
        Ok(())
    }

    const READS: bool = true;

    fn transmit(&mut self, pair: usize, frame: &Frame<'_>) -> Result<Transmitted, LinkError> {
        if self.socket.is_none() {
            Count::NotConnected.add(&self.counters, 1);
            return Err(LinkError::Refused { bytes: frame.len, reason: "the link's far end is gone" });
        }
        let cut = self.segmentation(frame)?;
        let len = cut.as_ref().map_or(PREFIX + frame.len as usize, |cut| cut.framed_len(PREFIX));
        if !self.makes_room(len) {
            Count::Full.add(&self.counters, 1);
            return Ok(Transmitted::Full);
        }
        match &cut {
            None => self.gather_whole(pair, frame),
            Some(cut) => self.gather_cut(pair, frame, cut),
        }
        Count::Frames.add(&self.counters, 1);
        Count::Bytes.add(&self.counters, u64::from(frame.len));
        // Each byte is read once, by a CPU, into the host's memory: a copy as well.
        Ok(Transmitted::Taken { read: frame.len, copied: frame.len })
    }

    fn pending(&mut self, pair: usize) -> Option<usize> {
        if self.handshakes.frame().is_none() {
            self.fill();
        }
        let frame = next(&self.handshakes, &self.receive)?;
        (self.steering.pair(frame) == pair).then_some(frame.len())
    }

    fn receive(&mut self, _pair: usize, space: &mut ReceiveSpace<'_>) -> Result<Received, LinkError> {
        let Some(frame) = next(&self.handshakes, &self.receive) else { return Ok(Received::Nothing) };
        // A frame's length is 32 bits. Its checksum is the far end's, and for the guest to look at.
        let bytes = frame.len() as u32;
        if let Some(unacknowledged) = &mut self.unacknowledged {
            unacknowledged.came(frame, self.now);
        }
        let written = space.write(NetHeader::default(), &[frame]);
        match self.handshakes.frame() {
            Some(_) => self.handshakes.take(),
            None => self.receive.take(),
        }
        if written.is_err() {
            Count::NoRoom.add(&self.counters, 1);
            return Err(LinkError::Refused { bytes, reason: "longer than the driver's buffers" });
        }
        Count::Received.add(&self.counters, 1);
        Count::ReceivedBytes.add(&self.counters, u64::from(bytes));
        Ok(Received::Frame { bytes })
    }

    fn set_receiving(&mut self, pair: usize, on: bool) {
        self.steering.set_receiving(pair, on);
    }

    fn poll(&mut self, now: Instant) {
        self.now = now;
        if self.socket.is_none()
            && let Some(socket) = self.connector.socket()
            && let Err(error) = self.connected(socket)
        {
            self.disconnect(&error);
        }
        if self.drained || !self.send.is_empty() {
            // Taken note of before the socket is tried again: what comes after that is a new event.
            let _ = self.events.wait(&mut [EpollEvent::empty(); 2], EpollTimeout::ZERO);
        }
        // A socket that takes no more is silence enough.
        if let Some(unacknowledged) = self.unacknowledged.as_mut().filter(|_| self.send.is_empty()) {
            let again = unacknowledged.say_again(&mut self.send, now);
            Count::Again.add(&self.counters, again);
        }
        self.write();
        self.drained = false;
    }

    fn deadline(&mut self, now: Instant) -> Option<Duration> {
        let due = self.unacknowledged.as_ref().filter(|_| self.send.is_empty())?.due()?;
        Some(due.saturating_duration_since(now))
    }

    fn readable_fds(&self) -> Vec<BorrowedFd<'_>> {
        vec![self.events.0.as_fd()]
    }

    fn counters(&self) -> Arc<LinkCounters> {
        Arc::clone(&self.counters)
    }
}
