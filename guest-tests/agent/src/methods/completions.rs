//! `MSG_ZEROCOPY`: sending from the program's own pages, and the kernel's word on when they are free again.
//!
//! Operation (Documentation/networking/msg_zerocopy.rst):
//! 1. `SO_ZEROCOPY` is set on the socket once.
//! 2. Each `send` with `MSG_ZEROCOPY` gets the next number, from 0. The kernel holds on to the pages: until further
//!    notice the program must not change them.
//! 3. The notice comes over the socket's error queue, for a range of numbers at a time: the bytes were acknowledged,
//!    and the pages are free. Its code says whether the kernel *thinks* it copied them after all.

use std::io::{self, IoSlice};
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, sendmsg};

use super::{Job, unsupported};

/// In the record: sends of which the kernel says they were zero-copy.
const ZEROCOPY: &str = "sends reported zero-copy";
/// In the record: sends of which the kernel says they were copied.
const COPIED: &str = "sends reported copied";

/// How long the receiver may take to acknowledge, milliseconds.
const DEADLINE_MS: u16 = 60_000;

/// Does this kernel know `MSG_ZEROCOPY` for such a socket?
pub(super) fn available(job: &Job<'_>) -> io::Result<()> {
    switch_on(job.socket).map_err(|error| {
        unsupported(format!("this kernel has no MSG_ZEROCOPY for such a socket: SO_ZEROCOPY: {error}"))
    })
}

/// Sets `SO_ZEROCOPY`.
fn switch_on(socket: &TcpStream) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `on`, which lives here.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ZEROCOPY, (&raw const on).cast(), length)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A socket that sends from the program's own pages.
#[derive(Debug)]
pub(super) struct ZerocopySocket<'a> {
    socket: &'a TcpStream,
    /// Sends so far that will be completed: the number of the next one.
    issued: u32,
    /// How many of them the kernel has reported as zero-copy.
    zerocopy: u32,
    /// How many it has reported as copied.
    copied: u32,
}

impl<'a> ZerocopySocket<'a> {
    /// Switches the socket over.
    pub(super) fn new(socket: &'a TcpStream) -> io::Result<Self> {
        switch_on(socket)?;
        Ok(ZerocopySocket { socket, issued: 0, zerocopy: 0, copied: 0 })
    }

    /// Sends from `bytes`, which must not be changed until the send is completed; returns how many were taken.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send_pieces(&[IoSlice::new(bytes)])
    }

    /// The same of several pieces at once.
    pub(super) fn send_pieces(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            let flags = MsgFlags::from_bits_retain(libc::MSG_ZEROCOPY);
            match sendmsg::<()>(self.socket.as_raw_fd(), pieces, &[], flags, None) {
                Ok(taken) => {
                    self.issued = self.issued.wrapping_add(1);
                    return Ok(taken);
                }
                // Too many notices outstanding (net.core.optmem_max): some must come in first.
                Err(Errno::ENOBUFS) if self.outstanding() > 0 => self.wait()?,
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends that are not completed.
    pub(super) fn outstanding(&self) -> u32 {
        self.issued.wrapping_sub(self.zerocopy).wrapping_sub(self.copied)
    }

    /// Waits until at least one more send is completed.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        let before = self.outstanding();
        loop {
            while self.take_notice()? {}
            if self.outstanding() != before {
                return Ok(());
            }
            // POLLERR is always waited for.
            let mut sockets = [PollFd::new(self.socket.as_fd(), PollFlags::empty())];
            if poll(&mut sockets, PollTimeout::from(DEADLINE_MS))? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the kernel does not complete a MSG_ZEROCOPY send",
                ));
            }
            if sockets[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP)) {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        }
    }

    /// Waits for every send, and passes on what the kernel says of them.
    pub(super) fn finish(mut self, job: &Job<'_>) -> io::Result<()> {
        while self.outstanding() > 0 {
            self.wait()?;
        }
        job.follower.claim(ZEROCOPY, self.zerocopy.into());
        job.follower.claim(COPIED, self.copied.into());
        Ok(())
    }

    /// Reads one notice off the error queue; false where there is none.
    fn take_notice(&mut self) -> io::Result<bool> {
        let Some(notice) = read_notice(self.socket.as_raw_fd())? else { return Ok(false) };
        if notice.ee_errno != 0 || notice.ee_origin != SO_EE_ORIGIN_ZEROCOPY {
            return Err(io::Error::other(format!(
                "the socket's error queue holds no MSG_ZEROCOPY notice: errno {} origin {}",
                notice.ee_errno, notice.ee_origin
            )));
        }
        // Numbers ee_info..=ee_data, which wrap around.
        let sends = notice.ee_data.wrapping_sub(notice.ee_info).wrapping_add(1);
        if notice.ee_code == SO_EE_CODE_ZEROCOPY_COPIED {
            self.copied = self.copied.wrapping_add(sends);
        } else {
            self.zerocopy = self.zerocopy.wrapping_add(sends);
        }
        Ok(true)
    }
}

/// From `linux/errqueue.h`.
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;
const SO_EE_CODE_ZEROCOPY_COPIED: u8 = 1;

/// The next message of a socket's error queue. nix has no type for a notice of origin ZEROCOPY, whose offender is no
/// address.
fn read_notice(socket: i32) -> io::Result<Option<libc::sock_extended_err>> {
    // Room for one control message with a sock_extended_err and an address, aligned as a cmsghdr.
    let mut control = [0_u64; 16];
    // SAFETY: msghdr is plain data for which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: msg_control and msg_controllen describe `control`, which outlives the call; there is no other buffer.
    let got = unsafe { libc::recvmsg(socket, &raw mut message, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT) };
    if got < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    }
    // SAFETY: recvmsg filled the control messages that msg_controllen now spans, all of them inside `control`.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    // SAFETY: CMSG_LEN is arithmetic only.
    let enough = unsafe { libc::CMSG_LEN(size_of::<libc::sock_extended_err>() as u32) } as usize;
    match header {
        Some(header) if header.cmsg_len >= enough => {
            // SAFETY: cmsg_len was checked: a whole sock_extended_err (plain data) follows the header.
            Ok(Some(unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(header).cast()) }))
        }
        _ => Err(io::Error::other("a message of the socket's error queue says nothing")),
    }
}
