//! Where a flow's payload lay, piece by piece, for those who can tell only later whose memory that was.

use std::iter;

use crate::wire::PAGE_SIZE;

/// Most pieces of payload that are remembered: those of 1.5 GB in frames of 1460 bytes.
const MAX_PIECES: usize = 1 << 20;

/// Payload bytes that lie one behind the other, in memory and in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where the first of them is, guest-physical.
    pub gpa: u64,
    /// How many.
    pub len: u64,
    /// Where the first of them stands in the stream.
    pub offset: u64,
}

impl Piece {
    /// Its parts, each within one page.
    pub(crate) fn by_page(self) -> impl Iterator<Item = Piece> {
        let mut rest = self;
        iter::from_fn(move || {
            let len = rest.len.min(PAGE_SIZE - rest.gpa % PAGE_SIZE);
            let part = Piece { len, ..rest };
            // A guest writes any offset it likes: nothing overflows.
            rest = Piece { gpa: rest.gpa + len, len: rest.len - len, offset: rest.offset.wrapping_add(len) };
            (len > 0).then_some(part)
        })
    }

    /// By how much its place in a file is ahead of its place in the stream, where it lies in this page of the file.
    pub(crate) fn shift(self, page: u64) -> u64 {
        page.wrapping_mul(PAGE_SIZE).wrapping_add(self.gpa % PAGE_SIZE).wrapping_sub(self.offset)
    }
}

/// The pieces, in the order they were sent.
#[derive(Debug)]
pub(super) struct Trail {
    pieces: Vec<Piece>,
    /// What the pages of each were when it was sent, where somebody looked.
    stamps: Vec<u64>,
    /// Bytes there was no room for.
    forgotten: u64,
}

impl Default for Trail {
    fn default() -> Self {
        // Room is touched only as far as it is used, and none is asked for while frames go by.
        let (pieces, stamps) = (Vec::with_capacity(MAX_PIECES), Vec::with_capacity(MAX_PIECES));
        Trail { pieces, stamps, forgotten: 0 }
    }
}

impl Trail {
    /// `stamp` is 0 where nobody looked.
    pub(super) fn remember(&mut self, piece: Piece, stamp: u64) {
        if self.pieces.len() < self.pieces.capacity() {
            self.pieces.push(piece);
            self.stamps.push(stamp);
        } else {
            self.forgotten += piece.len;
        }
    }

    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    pub(super) fn stamped(&self) -> impl Iterator<Item = (Piece, u64)> {
        self.pieces.iter().copied().zip(self.stamps.iter().copied())
    }

    pub(super) fn forgotten(&self) -> u64 {
        self.forgotten
    }
}
