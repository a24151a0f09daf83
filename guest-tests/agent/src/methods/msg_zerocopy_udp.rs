//! `MSG_ZEROCOPY` on a socket of UDP, several datagrams a call: `UDP_SEGMENT` has the NIC cut them, or the kernel where the NIC cannot.
//!
//! The pages are those of a mapping of the file, which are the page cache; between them stand the datagrams' headers, which are the
//! program's own memory and must stay as they are until the kernel says that it is done with them.

use std::io::{self, IoSlice};

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use vnic::datagram::HEADER_LEN;
use vnic_driver::mapping::Mapping;

use super::completions::ZerocopySocket;
use super::{Job, datagrams};

/// Datagrams a call: each has two pieces, and a socket buffer of Linux has room for 17 (`MAX_SKB_FRAGS`).
const AT_ONCE: usize = 8;

/// A header that never lies in two pages: it would be two pieces.
#[repr(align(32))]
struct Apart([u8; HEADER_LEN]);

/// Sends the job.
pub(super) fn send(job: &Job<'_>) -> io::Result<u64> {
    let mapping = Mapping::of_file(job.file, job.offset, job.bytes)?;
    let mut socket = ZerocopySocket::new(job.socket)?;
    setsockopt(job.socket, UdpGsoSegment, &((HEADER_LEN + datagrams::PAYLOAD) as i32))?;
    let starts = (0..job.bytes).step_by(datagrams::PAYLOAD);
    let headers: Vec<Apart> = starts.map(|start| Apart(datagrams::header(job, start))).collect();
    let mut sent = 0;
    let mut next = headers.iter();
    while sent < job.bytes {
        let mut pieces = Vec::with_capacity(2 * AT_ONCE);
        for header in next.by_ref().take(AT_ONCE) {
            let bytes = mapping.bytes_at(sent, datagrams::next(job, sent));
            pieces.extend([IoSlice::new(&header.0), IoSlice::new(bytes)]);
            sent += bytes.len() as u64;
        }
        socket.send_pieces(&pieces)?;
        datagrams::taken(job, sent)?;
    }
    socket.finish(job)?;
    Ok(sent)
}
