//! `read` + `sendmsg` to a socket of UDP: the file's bytes go through a buffer of the program, a datagram a call.
//!
//! Two copies by the CPU as with TCP: page cache → buffer, buffer → socket.

use std::io::{self, IoSlice};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::sys::socket::{MsgFlags, sendmsg};

use super::{Job, datagrams, file_too_short};

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    let mut buffer = vec![0; job.chunk];
    let mut sent = 0;
    while sent < job.bytes {
        let piece = job.file.read_at(&mut buffer[..job.piece(sent)], job.offset + sent)?;
        if piece == 0 {
            return Err(file_too_short(sent, job));
        }
        for bytes in buffer[..piece].chunks(datagrams::PAYLOAD) {
            let header = datagrams::header(job, sent);
            let datagram = [IoSlice::new(&header), IoSlice::new(bytes)];
            sendmsg::<()>(job.socket.as_raw_fd(), &datagram, &[], MsgFlags::empty(), None)?;
            sent += bytes.len() as u64;
        }
        job.taken(sent)?;
    }
    Ok(sent)
}
