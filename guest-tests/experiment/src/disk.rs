//! What the disk brought into memory while a flow was watched, and whether the NIC gathered it from there: the same frames in both rings.
//!
//! Place: built by the control thread, handed to the disk's workers as their [`DiskObserver`], handed back at the end. No allocation and
//! no lock in between.

use std::collections::BTreeSet;

use vnic::observe::observer::{DiskObserver, DiskRead};

use crate::run::DiskAccounts;
use crate::trail::{Piece, Trail};
use crate::wire::PAGE_SIZE;

/// One worker's part of the watch.
#[derive(Debug, Default)]
pub struct DiskWatch {
    requests: u64,
    bytes: u64,
    trail: Trail,
}

impl DiskObserver for DiskWatch {
    fn read(&mut self, read: &DiskRead<'_>) {
        self.requests += 1;
        let mut offset = read.offset;
        for &(gpa, len) in read.pieces {
            self.bytes += len;
            self.trail.remember(Piece { gpa, len, offset }, 0);
            offset = offset.wrapping_add(len);
        }
    }
}

fn frames<'p>(pieces: impl Iterator<Item = &'p Piece>) -> BTreeSet<u64> {
    pieces.flat_map(|piece| piece.by_page()).map(|part| part.gpa / PAGE_SIZE).collect()
}

/// Bytes of these pieces that lie in these frames.
fn bytes_in<'p>(pieces: impl Iterator<Item = &'p Piece>, frames: &BTreeSet<u64>) -> u64 {
    let parts = pieces.flat_map(|piece| piece.by_page());
    parts.filter(|part| frames.contains(&(part.gpa / PAGE_SIZE))).map(|part| part.len).sum()
}

/// What the disk's workers saw, beside where the payload lay.
///
/// # Errors
/// Some of it could not be remembered.
pub(crate) fn accounts(parts: &[DiskWatch], sent: &[Piece]) -> Result<DiskAccounts, String> {
    let forgotten: u64 = parts.iter().map(|part| part.trail.forgotten()).sum();
    if forgotten > 0 {
        return Err(format!("there was no room to remember where {forgotten} bytes of the disk went"));
    }
    let read = || parts.iter().flat_map(|part| part.trail.pieces());
    let (frames_sent, frames_read) = (frames(sent.iter()), frames(read()));
    Ok(DiskAccounts {
        requests: parts.iter().map(|part| part.requests).sum(),
        descriptors: read().count() as u64,
        bytes: parts.iter().map(|part| part.bytes).sum(),
        bytes_in_pages_sent: bytes_in(read(), &frames_sent),
        payload_bytes_in_pages_read: bytes_in(sent.iter(), &frames_read),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_filled_and_the_nic_gathered_are_compared_frame_by_frame() {
        let mut watch = DiskWatch::default();
        watch.read(&DiskRead { offset: 0, pieces: &[(0x1000, 4096), (0x3000, 8192)] });
        watch.read(&DiskRead { offset: 1 << 20, pieces: &[(0x9000, 512)] });
        let piece = |gpa, len| Piece { gpa, len, offset: 0 };
        // Half of one page, parts of two, and one that the disk never filled.
        let sent = [piece(0x1800, 2048), piece(0x3ffe, 4), piece(0x7000, 100)];
        let expected = DiskAccounts {
            requests: 2,
            descriptors: 3,
            bytes: 12800,
            bytes_in_pages_sent: 12288,
            payload_bytes_in_pages_read: 2052,
        };
        assert_eq!(accounts(&[watch], &sent), Ok(expected));
    }
}
