//! A stream socket that carries messages and file descriptors.
//!
//! Place: the session owns one [`Connection`]. It never blocks: a front-end that sends half a message and stalls only has
//! that half waiting in a buffer.
//!
//! Invariants: every file descriptor that arrives is an [`OwnedFd`] from the moment it is seen, close-on-exec, and dies with
//! its message; no byte beyond the current message is read, so that file descriptors cannot end up with the wrong one; what
//! is buffered is bounded by one message.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::error::SessionError;
use super::message::parse_header;
use crate::spec::vhost_user::{HEADER_LEN, Header, MAX_FDS, MAX_PAYLOAD};

/// A message as it came: framed, not yet understood.
#[derive(Debug)]
pub struct Message {
    /// Its header, which has passed [`parse_header`].
    pub header: Header,
    /// As many bytes as the header says.
    pub payload: Vec<u8>,
    /// The file descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// What is there to be read.
#[derive(Debug)]
pub enum Received {
    /// A whole message.
    Message(Message),
    /// Not yet a whole message.
    Incomplete,
    /// The other side is gone, between messages.
    Closed,
}

/// One end of a vhost-user socket.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    buffer: [u8; HEADER_LEN + MAX_PAYLOAD],
    filled: usize,
    header: Option<Header>,
    fds: Vec<OwnedFd>,
}

impl Connection {
    /// A connection over a connected Unix stream socket. It need not be non-blocking.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Connection { socket, buffer: [0; HEADER_LEN + MAX_PAYLOAD], filled: 0, header: None, fds: Vec::new() }
    }

    /// Reads what is there, up to the end of one message, without waiting.
    ///
    /// # Errors
    /// The stream cannot be followed any further. All file descriptors of the broken message are closed.
    pub fn receive(&mut self) -> Result<Received, SessionError> {
        let received = self.advance();
        if received.is_err() {
            self.fds.clear();
        }
        received
    }

    fn advance(&mut self) -> Result<Received, SessionError> {
        loop {
            let wanted = HEADER_LEN + self.header.map_or(0, |header| header.size as usize);
            if self.filled == wanted {
                match self.header.take() {
                    Some(header) => {
                        let payload = self.buffer.get(HEADER_LEN..wanted).unwrap_or_default().to_vec();
                        self.filled = 0;
                        return Ok(Received::Message(Message { header, payload, fds: std::mem::take(&mut self.fds) }));
                    }
                    None => {
                        let mut bytes = [0; HEADER_LEN];
                        bytes.iter_mut().zip(&self.buffer).for_each(|(to, from)| *to = *from);
                        self.header = Some(parse_header(bytes)?);
                        continue;
                    }
                }
            }
            let room = self.buffer.get_mut(self.filled..wanted).unwrap_or_default();
            match receive_into(self.socket.as_fd(), room, &mut self.fds) {
                Ok(0) if self.filled == 0 => return Ok(Received::Closed),
                Ok(0) => return Err(SessionError::CutShort { missing: wanted - self.filled }),
                Ok(bytes) => self.filled += bytes,
                Err(Fault::Truncated) => return Err(SessionError::TooManyFds { max: MAX_FDS }),
                Err(Fault::Io(error)) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => return Ok(Received::Incomplete),
                    io::ErrorKind::ConnectionReset if self.filled == 0 => return Ok(Received::Closed),
                    _ => return Err(SessionError::Socket { action: "receive a message", source: error }),
                },
            }
            if self.fds.len() > MAX_FDS {
                return Err(SessionError::TooManyFds { max: MAX_FDS });
            }
        }
    }

    /// Sends one message, whole or not at all, without waiting.
    ///
    /// # Errors
    /// The other side does not read, or is gone.
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SessionError> {
        send_on(self.socket.as_fd(), bytes, fds)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

pub(super) fn send_on(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SessionError> {
    match send_some(socket, bytes, fds) {
        Ok(sent) if sent == bytes.len() => Ok(()),
        // A part of a message would be followed by the start of the next: nobody could read on.
        Ok(_) | Err(Errno::EAGAIN) => Err(SessionError::ReplyBlocked),
        Err(errno) => Err(SessionError::Socket { action: "send a message", source: errno.into() }),
    }
}

/// Sends as much as there is room for, without waiting; the file descriptors go with the first byte.
pub(crate) fn send_some(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[impl AsRawFd]) -> Result<usize, Errno> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &[io::IoSlice::new(bytes)], control, flags, None) {
            Err(Errno::EINTR) => {}
            sent => return sent,
        }
    }
}

pub(crate) enum Fault {
    /// More file descriptors were sent than there was room for.
    Truncated,
    Io(io::Error),
}

/// Room for the control message of [`MAX_FDS`] file descriptors, aligned as `cmsghdr` must be.
#[repr(C, align(8))]
struct ControlBuffer([u8; 128]);

const CONTROL_LEN: usize = {
    // SAFETY: pure arithmetic.
    let len = unsafe { libc::CMSG_SPACE((MAX_FDS * size_of::<RawFd>()) as u32) } as usize;
    assert!(len <= size_of::<ControlBuffer>() && align_of::<libc::cmsghdr>() <= align_of::<ControlBuffer>());
    len
};

/// One `recvmsg` without waiting: bytes to `room`, file descriptors behind `fds`. They are taken over even if the call is
/// then found to be faulty, so that none is left open. `nix` cannot do this: of a truncated control message it hands out
/// nothing, and what the kernel had installed leaks.
pub(crate) fn receive_into(socket: BorrowedFd<'_>, room: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, Fault> {
    let mut control = ControlBuffer([0; 128]);
    let mut iov = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len() };
    // SAFETY: all-zero is a valid `msghdr`.
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = &raw mut iov;
    msg.msg_iovlen = 1;
    msg.msg_control = control.0.as_mut_ptr().cast();
    msg.msg_controllen = CONTROL_LEN as _;
    // SAFETY: `msg` points at `iov`, which describes `room`, and at `CONTROL_LEN` bytes of `control`, both of which are
    // borrowed mutably here and outlive the call.
    let received =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut msg, libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC) };
    let Ok(received) = usize::try_from(received) else {
        return Err(Fault::Io(io::Error::last_os_error()));
    };
    // SAFETY: the kernel filled `msg`; it set `msg_controllen` to what it wrote of `control`.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const msg) };
    while !header.is_null() {
        // SAFETY: `CMSG_FIRSTHDR` and `CMSG_NXTHDR` return headers that lie wholly in what the kernel wrote.
        let cmsg = unsafe { header.read() };
        if cmsg.cmsg_level == libc::SOL_SOCKET && cmsg.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: pure arithmetic on a length.
            let head = unsafe { libc::CMSG_LEN(0) } as usize;
            let count = (cmsg.cmsg_len as usize).saturating_sub(head) / size_of::<RawFd>();
            // SAFETY: `header` is a valid header, its data follows it.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            for at in 0..count {
                // SAFETY: `cmsg_len` covers `count` descriptors, which the kernel has just installed for this process
                // and which nobody else knows of.
                fds.push(unsafe { OwnedFd::from_raw_fd(data.add(at).read_unaligned()) });
            }
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(&raw const msg, header) };
    }
    if msg.msg_flags & libc::MSG_CTRUNC != 0 {
        return Err(Fault::Truncated);
    }
    Ok(received)
}
