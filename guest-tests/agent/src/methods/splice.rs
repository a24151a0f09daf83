//! `splice` through a pipe: page-cache pages into a pipe, from the pipe into the socket; the bytes stay where they are.
//!
//! A pipe holds references to pages (16 by default, 64 KiB), so a piece is at most what the pipe takes. Two system
//! calls per piece, no CPU copy.

use std::io;
use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

use super::{Job, file_too_short};

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    let (pipe_out, pipe_in) = pipe2(OFlag::O_CLOEXEC)?;
    widen(&pipe_in, job.chunk);
    let mut offset = i64::try_from(job.offset).map_err(io::Error::other)?;
    let mut sent = 0;
    while sent < job.bytes {
        let piece = splice(job.file, Some(&mut offset), &pipe_in, None, job.piece(sent), SpliceFFlags::SPLICE_F_MOVE)?;
        if piece == 0 {
            return Err(file_too_short(sent, job));
        }
        let mut in_pipe = piece;
        while in_pipe > 0 {
            // MORE, except for the file's last piece: TCP need not send a short segment at each piece's end.
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

/// Makes room for a whole chunk where the system allows it; a pipe that stays small only means smaller pieces.
pub(super) fn widen(pipe: &OwnedFd, chunk: usize) {
    if let Ok(bytes) = i32::try_from(chunk) {
        let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(bytes));
    }
}
