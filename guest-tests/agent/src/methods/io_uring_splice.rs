//! io_uring's `SPLICE`, file to pipe and pipe to socket: as `splice`, with a ring in place of the system calls' arguments.

use std::io;
use std::os::fd::AsRawFd;

use io_uring::types::Fd;
use io_uring::{IoUring, Probe, opcode};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::splice::widen;
use super::{Job, file_too_short, unsupported};

/// Of the pipe's end of a splice: there is no offset in it.
const NO_OFFSET: i64 = -1;
const MOVE: u32 = 1;
const MORE: u32 = 4;

/// Does this kernel have io_uring, and `SPLICE` in it?
pub(super) fn available(_: &Job<'_>) -> io::Result<()> {
    let ring = IoUring::new(2).map_err(|error| unsupported(format!("this kernel has no io_uring: {error}")))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let is_there = probe.is_supported(opcode::Splice::CODE);
    if is_there { Ok(()) } else { Err(unsupported("this kernel's io_uring has no SPLICE")) }
}

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    let mut ring = IoUring::new(2)?;
    let (pipe_out, pipe_in) = pipe2(OFlag::O_CLOEXEC)?;
    widen(&pipe_in, job.chunk);
    let [file, socket] = [job.file.as_raw_fd(), job.socket.as_raw_fd()].map(Fd);
    let [pipe_out, pipe_in] = [pipe_out.as_raw_fd(), pipe_in.as_raw_fd()].map(Fd);
    let mut sent = 0;
    while sent < job.bytes {
        let offset = i64::try_from(job.offset + sent).map_err(io::Error::other)?;
        let length = u32::try_from(job.piece(sent)).unwrap_or(u32::MAX);
        let into = opcode::Splice::new(file, offset, pipe_in, NO_OFFSET, length).flags(MOVE);
        let mut in_pipe = done(&mut ring, into)?;
        if in_pipe == 0 {
            return Err(file_too_short(sent, job));
        }
        while in_pipe > 0 {
            let more = if sent + u64::from(in_pipe) >= job.bytes { 0 } else { MORE };
            let out = opcode::Splice::new(pipe_out, NO_OFFSET, socket, NO_OFFSET, in_pipe).flags(MOVE | more);
            let moved = done(&mut ring, out)?;
            if moved == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            in_pipe = in_pipe.saturating_sub(moved);
            sent += u64::from(moved);
        }
        job.taken(sent)?;
    }
    Ok(sent)
}

/// Submits one, waits for it; the bytes that it moved.
fn done(ring: &mut IoUring, splice: opcode::Splice) -> io::Result<u32> {
    // SAFETY: a splice refers to no memory, only to descriptors, which are open until it has completed below.
    unsafe { ring.submission().push(&splice.build()) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map_or(0, |entry| entry.result());
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}
