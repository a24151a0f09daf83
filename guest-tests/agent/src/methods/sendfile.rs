//! `sendfile`: one call; the kernel hands the file's page-cache pages to the socket, no byte enters the program.
//!
//! With scatter-gather and transmit checksum in the NIC no CPU copies a byte. The call returns when the socket has
//! taken the pages, not when they are sent: who changes the file in between changes what goes out.

use std::io;

use nix::sys::sendfile::sendfile64;

use super::{Job, file_too_short};

/// Sends the job: everything that is left with each call. One call suffices, unless a signal or the kernel's limit of
/// 2 GiB per call cuts it short.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    send_by(job, |sent| job.rest(sent))
}

/// Sends the job with calls of as many bytes as `call` says, given those sent before.
pub(super) fn send_by(job: &Job<'_>, call: impl Fn(u64) -> usize) -> io::Result<u64> {
    let mut sent = 0;
    while sent < job.bytes {
        let mut offset = i64::try_from(job.offset + sent).map_err(io::Error::other)?;
        match sendfile64(job.socket, job.file, Some(&mut offset), call(sent))? {
            0 => return Err(file_too_short(sent, job)),
            taken => sent += taken as u64,
        }
        job.taken(sent)?;
    }
    Ok(sent)
}
