//! `vmsplice`: the program gives pages of its own memory to a pipe, and `splice` moves them on to the socket.
//!
//! Here the memory is a mapping of the file, so that the pages are the page cache. Two system calls per piece, no CPU
//! copy; unlike with `MSG_ZEROCOPY` nobody says when the pages are free again.

use std::io::{self, IoSlice};

use nix::fcntl::{SpliceFFlags, splice, vmsplice};
use nix::unistd::pipe2;

use super::Job;
use super::splice::widen;
use vnic_driver::mapping::Mapping;

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    let mapping = Mapping::of_file(job.file, job.offset, job.bytes)?;
    let (pipe_out, pipe_in) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    widen(&pipe_in, job.chunk);
    let mut sent = 0;
    while sent < job.bytes {
        let bytes = IoSlice::new(mapping.bytes_at(sent, job.piece(sent)));
        let mut in_pipe = vmsplice(&pipe_in, &[bytes], SpliceFFlags::empty())?;
        while in_pipe > 0 {
            let last = sent + in_pipe as u64 >= job.bytes;
            let more = if last { SpliceFFlags::empty() } else { SpliceFFlags::SPLICE_F_MORE };
            let moved = splice(&pipe_out, None, job.socket, None, in_pipe, SpliceFFlags::SPLICE_F_MOVE | more)?;
            if moved == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            in_pipe -= moved;
            sent += moved as u64;
        }
        job.taken(sent)?;
    }
    Ok(sent)
}
