//! `sendfile` from a descriptor opened with `O_DIRECT`: the disk fills pages of the pipe between file and socket, and the NIC
//! gathers the bytes from there. No CPU copies a byte, although no byte comes from the page cache.
//!
//! Offset and length of what the kernel reads are multiples of a block: a call may ask for more than the file has, and gets what there is.

use std::io;

use nix::sys::sendfile::sendfile64;
use vnic_experiment::wire::PAGE_SIZE;

use super::direct_io::{self, DirectFile};
use super::{Job, file_too_short, unsupported};

/// Is there a way past the page cache for this part of the file?
pub(super) fn available(job: &Job<'_>) -> io::Result<()> {
    direct_io::available(job)?;
    let end = job.offset + job.bytes;
    if job.offset.is_multiple_of(PAGE_SIZE) && (end.is_multiple_of(PAGE_SIZE) || end >= job.file.metadata()?.len()) {
        Ok(())
    } else {
        Err(unsupported("sendfile from an O_DIRECT descriptor moves whole blocks only"))
    }
}

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    available(job)?;
    let file = DirectFile::open(job.file)?;
    let mut sent = 0;
    while sent < job.bytes {
        let mut offset = i64::try_from(job.offset + sent).map_err(io::Error::other)?;
        // Whole blocks; at the file's end there are fewer bytes.
        let count = job.rest(sent).next_multiple_of(PAGE_SIZE as usize);
        match sendfile64(job.socket, file.file(), Some(&mut offset), count)? {
            0 => return Err(file_too_short(sent, job)),
            taken => sent += taken as u64,
        }
        job.taken(sent)?;
    }
    Ok(sent)
}
