//! `MSG_ZEROCOPY` from a mapping of the file: the kernel pins the mapped pages, which are the page cache, and the NIC
//! gathers the bytes from there.
//!
//! One system call per piece and one now and then for the notices; page faults only inside the kernel.
//!
//! What the notices say is a claim. Where the NIC has no scatter-gather every byte is copied, and Linux notices it only for
//! frames that go out as they are (`__pskb_pull_tail` takes the pages away, and says so): one that is cut into segments is
//! copied by `skb_segment`, which says nothing. Notices of neighbouring sends become one, with the word of the first.

use std::io;

use super::Job;
use super::completions::ZerocopySocket;
use vnic_driver::mapping::Mapping;

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    let mapping = Mapping::of_file(job.file, job.offset, job.bytes)?;
    let mut socket = ZerocopySocket::new(job.socket)?;
    let mut sent = 0;
    while sent < job.bytes {
        sent += socket.send(mapping.bytes_at(sent, job.piece(sent)))? as u64;
        job.taken(sent)?;
    }
    socket.finish(job)?;
    Ok(sent)
}
