//! Copy on write: pages of a `MAP_PRIVATE` mapping are the page cache's until the program writes to one; then it gets a
//! copy of its own.
//!
//! Pieces are sent with `MSG_ZEROCOPY` in turn as they are, and after the program has written a byte to each of their
//! pages (the byte that was there already: the kernel does not look). The NIC is handed page-cache pages for the former
//! and other pages for the latter, and for each of those the CPU copied one page: in the page fault, not in the socket.

use std::io;

use vnic_experiment::wire::PAGE_SIZE;

use super::completions::ZerocopySocket;
use super::{Job, file_too_short};
use vnic_driver::mapping::Mapping;

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    // The program itself touches the mapped pages: past the file's end that raises SIGBUS.
    if job.file.metadata()?.len() < job.offset + job.bytes {
        return Err(file_too_short(0, job));
    }
    let mut mapping = Mapping::private_of_file(job.file, job.offset, job.bytes)?;
    let mut socket = ZerocopySocket::new(job.socket)?;
    // Even a job of one chunk has both halves.
    let half = usize::try_from(job.bytes.div_ceil(2)).unwrap_or(usize::MAX);
    let piece = half.next_multiple_of(PAGE_SIZE as usize).min(job.chunk);
    let mut sent = 0;
    let mut written_to = false;
    while sent < job.bytes {
        let end = (sent + piece as u64).min(job.bytes);
        if written_to {
            job.follower.copied_on_write(mapping.write_to_pages(sent, end - sent));
        }
        while sent < end {
            let left = usize::try_from(end - sent).map_err(io::Error::other)?;
            sent += socket.send(mapping.bytes_at(sent, left))? as u64;
        }
        job.taken(sent)?;
        written_to = !written_to;
    }
    socket.finish(job)?;
    Ok(sent)
}
