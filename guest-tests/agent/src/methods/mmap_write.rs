//! `mmap` + `write`: the program's buffer *is* the page cache, so one of the two CPU copies is gone.
//!
//! What remains per piece is one system call, one copy (page cache → socket), and a page fault for each page that is
//! touched the first time. Another process that truncates the file meanwhile makes `write` fail short.

use std::io::{self, Write};

use super::Job;
use vnic_driver::mapping::Mapping;

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    let mapping = Mapping::of_file(job.file, job.offset, job.bytes)?;
    let mut socket = job.socket;
    let mut sent = 0;
    while sent < job.bytes {
        // The kernel, not the program, reads the mapped bytes: `write` takes their address.
        let written = socket.write(mapping.bytes_at(sent, job.piece(sent)))?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        sent += written as u64;
        job.taken(sent)?;
    }
    Ok(sent)
}
