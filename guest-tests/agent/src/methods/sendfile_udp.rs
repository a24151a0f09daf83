//! `sendfile` into a socket of UDP: a datagram a call, the file's own pages behind a header.
//!
//! The header is sent with `MSG_MORE`, which only lets it wait in the socket; `sendfile` puts the file's bytes behind it, and the datagram
//! goes. No CPU copies a byte. But for datagrams that are put together like this Linux does not let the NIC make the checksum: the CPU
//! reads every byte to sum it (`net/ipv4/ip_output.c`: `csummode` stays `CHECKSUM_NONE` with `MSG_MORE`).

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::sendfile::sendfile64;
use nix::sys::socket::{MsgFlags, send as send_to_socket};

use super::{Job, datagrams, file_too_short, unsupported};

/// Does each datagram lie in one page?
pub(super) fn available(job: &Job<'_>) -> io::Result<()> {
    if job.offset.is_multiple_of(datagrams::PAYLOAD as u64) {
        return Ok(());
    }
    // Seen on 6.18: such a datagram of two pages does not arrive.
    Err(unsupported("its datagrams must lie in one page of the file each"))
}

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    let mut sent = 0;
    while sent < job.bytes {
        let header = datagrams::header(job, sent);
        send_to_socket(job.socket.as_raw_fd(), &header, MsgFlags::from_bits_retain(libc::MSG_MORE))?;
        let mut offset = i64::try_from(job.offset + sent).map_err(io::Error::other)?;
        match sendfile64(job.socket, job.file, Some(&mut offset), datagrams::next(job, sent))? {
            0 => return Err(file_too_short(sent, job)),
            taken => sent += taken as u64,
        }
        datagrams::taken(job, sent)?;
    }
    Ok(sent)
}
