//! One direction of a session: messages and file descriptors from one socket to the other, as they came.
//!
//! Operation: a message is gathered, sent on, and then handed to who looks on. One that is longer than any that is known passes in
//! pieces, of which only the header is handed on.
//!
//! Invariants: no byte beyond the current message is read, so that file descriptors stay with theirs, and they go out with its first
//! byte. What is held is bounded by [`ROOM`] bytes and [`MAX_FDS`] files; nothing is read before what is held has gone out.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;

use crate::spec::vhost_user::{HEADER_LEN, Header, MAX_FDS};
use crate::vhost_user::SessionError;
use crate::vhost_user::message::header;
use crate::vhost_user::socket::{Fault, Message, receive_into, send_some};

/// Bytes that are held at once.
const ROOM: usize = 4096;

/// What a step came to.
#[derive(Debug)]
pub(super) enum Step {
    /// There is no more to be read for now.
    Waiting,
    /// The one that is sent to does not read.
    Blocked,
    /// A message has gone out.
    Passed(Message),
    /// So has a long one, with this header.
    PassedLong(Header),
    /// The one that is read from is gone, between messages.
    Closed,
    /// The one that is sent to is gone.
    Refused,
}

/// One direction. See the [module](self).
#[derive(Debug)]
pub(super) struct Relay {
    held: Box<[u8; ROOM]>,
    filled: usize,
    sent: usize,
    header: Option<Header>,
    /// Bytes of the message that were not read yet; before its header is there, of the header.
    left: usize,
    /// Is what is held on its way out?
    goes_out: bool,
    /// Did a piece of the message go out before?
    is_long: bool,
    fds: Vec<OwnedFd>,
    /// Files that have gone out so far.
    pub(super) files: u64,
}

impl Relay {
    pub(super) fn new() -> Self {
        Relay {
            held: Box::new([0; ROOM]),
            filled: 0,
            sent: 0,
            header: None,
            left: HEADER_LEN,
            goes_out: false,
            is_long: false,
            fds: Vec::new(),
            files: 0,
        }
    }

    /// Does it wait for the other side to read?
    pub(super) fn is_blocked(&self) -> bool {
        self.goes_out
    }

    /// Goes on, at most to the end of a message. Never waits.
    ///
    /// # Errors
    /// What comes cannot be passed on: it is cut short, it has too many file descriptors, or a socket failed.
    pub(super) fn step(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<Step, SessionError> {
        loop {
            if self.goes_out {
                match self.send(to)? {
                    Some(step) => return Ok(step),
                    None if self.left > 0 => continue,
                    None => return Ok(self.end_of_message()),
                }
            }
            if let Some(step) = self.receive(from)? {
                return Ok(step);
            }
        }
    }

    /// Reads what is there, up to the end of a piece.
    fn receive(&mut self, from: BorrowedFd<'_>) -> Result<Option<Step>, SessionError> {
        let end = self.filled.saturating_add(self.left).min(ROOM);
        let room = self.held.get_mut(self.filled..end).unwrap_or_default();
        if !room.is_empty() {
            let begun = self.header.is_some() || self.filled > 0;
            match receive_into(from, room, &mut self.fds) {
                Ok(0) if !begun => return Ok(Some(Step::Closed)),
                Ok(0) => return Err(SessionError::CutShort { missing: self.left }),
                Ok(bytes) => {
                    self.filled += bytes;
                    self.left -= bytes;
                }
                Err(Fault::Truncated) => return Err(SessionError::TooManyFds { max: MAX_FDS }),
                Err(Fault::Io(error)) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return Ok(Some(Step::Waiting)),
                    io::ErrorKind::ConnectionReset if !begun => return Ok(Some(Step::Closed)),
                    _ => return Err(SessionError::Socket { action: "receive a message", source: error }),
                },
            }
            if self.fds.len() > MAX_FDS {
                return Err(SessionError::TooManyFds { max: MAX_FDS });
            }
        }
        if self.header.is_none()
            && self.left == 0
            && let Some(bytes) = self.held.first_chunk()
        {
            let header = header(*bytes);
            self.left = header.size as usize;
            self.header = Some(header);
        }
        self.goes_out = self.header.is_some() && (self.left == 0 || self.filled == ROOM);
        Ok(None)
    }

    /// Sends what is held. `None`: all of it has gone out.
    fn send(&mut self, to: BorrowedFd<'_>) -> Result<Option<Step>, SessionError> {
        while let Some(bytes) = self.held.get(self.sent..self.filled).filter(|bytes| !bytes.is_empty()) {
            let fds = if self.sent == 0 { self.fds.as_slice() } else { &[] };
            match send_some(to, bytes, fds) {
                Ok(sent) => {
                    if self.sent == 0 {
                        self.files += self.fds.len() as u64;
                    }
                    self.sent += sent;
                }
                Err(Errno::EAGAIN) => return Ok(Some(Step::Blocked)),
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(Some(Step::Refused)),
                Err(errno) => return Err(SessionError::Socket { action: "pass a message on", source: errno.into() }),
            }
        }
        self.goes_out = false;
        if self.left > 0 {
            self.is_long = true;
            (self.filled, self.sent) = (0, 0);
            self.fds.clear();
        }
        Ok(None)
    }

    fn end_of_message(&mut self) -> Step {
        let (header, fds) = (self.header.take().unwrap_or_default(), std::mem::take(&mut self.fds));
        let payload = self.held.get(HEADER_LEN..self.filled).filter(|_| !self.is_long);
        let step = match payload {
            Some(payload) => Step::Passed(Message { header, payload: payload.to_vec(), fds }),
            None => Step::PassedLong(header),
        };
        (self.filled, self.sent, self.left, self.is_long) = (0, 0, HEADER_LEN, false);
        step
    }
}
