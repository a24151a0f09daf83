//! `read` + `write`: the file's bytes go through a buffer of the program.
//!
//! Each piece costs two system calls and two copies by the CPU: page cache → buffer, buffer → socket.

use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::{Job, file_too_short};

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    let mut buffer = vec![0_u8; job.chunk];
    let mut socket = job.socket;
    let mut sent = 0;
    while sent < job.bytes {
        let piece = job.file.read_at(&mut buffer[..job.piece(sent)], job.offset + sent)?;
        if piece == 0 {
            return Err(file_too_short(sent, job));
        }
        socket.write_all(&buffer[..piece])?;
        sent += piece as u64;
        job.taken(sent)?;
    }
    Ok(sent)
}
