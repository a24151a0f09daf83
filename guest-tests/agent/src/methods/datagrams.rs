//! What stands around a file's bytes where they go in datagrams ([`vnic::datagram`]): a header in front of each.

use std::io;

use vnic::datagram::{HEADER_LEN, Header, Kind};
use vnic_experiment::stamp::STAMP_BYTES;

use super::Job;

/// Bytes of the file in a datagram: so few that they lie in one page, and fit into an Ethernet's packet; whole stamps, so that who looks for
/// the file's bytes in memory finds each in one datagram.
pub(super) const PAYLOAD: usize = 1024;
const _: () = assert!(PAYLOAD.is_multiple_of(STAMP_BYTES) && 4096 % PAYLOAD == 0);

/// The header of the datagram whose bytes start at `sent`.
pub(super) fn header(job: &Job<'_>, sent: u64) -> [u8; HEADER_LEN] {
    Header { kind: Kind::Data, transfer: job.transfer, offset: sent }.to_bytes()
}

/// The size of the next datagram's bytes when `sent` are done.
pub(super) fn next(job: &Job<'_>, sent: u64) -> usize {
    usize::try_from(job.bytes.saturating_sub(sent)).map_or(PAYLOAD, |left| left.min(PAYLOAD))
}

/// Tells the follower at the end of each chunk: a datagram is no call's worth of waiting.
pub(super) fn taken(job: &Job<'_>, sent: u64) -> io::Result<()> {
    if sent >= job.bytes || sent.is_multiple_of(job.chunk as u64) { job.taken(sent) } else { Ok(()) }
}
