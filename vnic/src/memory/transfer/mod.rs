//! Files straight into guest memory, and out of it: what a request for a disk moves.
//!
//! Place: a [chain's view](crate::ring::ChainView) fills a [`Transfer`]; it is carried out here and now
//! ([`Transfer::run`]), or by io_uring with others.
//!
//! Invariants: each piece lies in the memory that the transfer holds, and so stays mapped for as long as it is there. The guest may
//! change the bytes meanwhile, as with any DMA: they are never borrowed, and only the kernel follows the pointers.
//!
//! Limits: a system call is given [`MOST_PIECES`] pieces at a time.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::{GuestSlice, Memory};

#[cfg(feature = "device")]
mod uring;

#[cfg(feature = "device")]
pub use uring::Transfers;

/// Requests that io_uring has under way at a time.
pub const MOST_UNDER_WAY: u16 = 256;

/// Pieces in one system call: `IOV_MAX`.
pub const MOST_PIECES: usize = 1024;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the file into the guest's memory.
    FromFile,
    /// From the guest's memory into the file.
    ToFile,
    /// The same, and onto the disk before it is said to be done.
    ToDisk,
}

/// What is asked of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The transfer, from or to this offset.
    Move {
        /// Which way.
        direction: Direction,
        /// Where in the file.
        offset: u64,
    },
    /// What was written is to be on the disk.
    Sync,
    /// `fallocate`.
    Allocate {
        /// Its mode.
        mode: i32,
        /// Where in the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

impl Operation {
    /// Carries it out with system calls that wait.
    ///
    /// # Errors
    /// The file cannot do it there.
    pub fn run(self, file: &File, transfer: &mut Transfer) -> io::Result<()> {
        match self {
            Operation::Move { direction, offset } => transfer.run(file, direction, offset),
            Operation::Sync => file.sync_data(),
            Operation::Allocate { mode, offset, len } => {
                let mode = nix::fcntl::FallocateFlags::from_bits_retain(mode);
                Ok(nix::fcntl::fallocate(file, mode, offset as libc::off_t, len as libc::off_t)?)
            }
        }
    }
}

/// Pieces of guest memory, in order, with what keeps them mapped.
#[derive(Debug, Default)]
pub struct Transfer {
    pieces: Vec<libc::iovec>,
    /// The first that is not wholly moved.
    first: usize,
    left: u64,
    /// Where the driver is told what became of it.
    status: Option<std::ptr::NonNull<u8>>,
    memory: Option<Arc<Memory>>,
}

// SAFETY: the pieces point into shared memory that `memory` keeps mapped; nobody borrows its bytes.
unsafe impl Send for Transfer {}

impl Transfer {
    /// Describes these pieces, and the byte where the driver is told what became of them. The room of an earlier transfer is used
    /// again.
    ///
    /// # Safety
    /// Pieces and status lie in `memory`.
    pub(crate) unsafe fn set<'m>(
        &mut self,
        memory: &Arc<Memory>,
        pieces: impl Iterator<Item = GuestSlice<'m>>,
        status: Option<GuestSlice<'m>>,
    ) {
        self.pieces.clear();
        (self.first, self.left) = (0, 0);
        for piece in pieces.filter(|piece| !piece.is_empty()) {
            self.left += piece.len() as u64;
            self.pieces.push(libc::iovec { iov_base: piece.as_ptr().cast(), iov_len: piece.len() });
        }
        self.status =
            status.filter(|status| !status.is_empty()).and_then(|status| std::ptr::NonNull::new(status.as_ptr()));
        self.memory = Some(Arc::clone(memory));
    }

    /// Bytes that are still to be moved.
    #[must_use]
    pub const fn left(&self) -> u64 {
        self.left
    }

    /// Do address and length of each piece suit a disk that wants them to be multiples of `unit`, a power of two?
    #[must_use]
    pub fn is_aligned(&self, unit: usize) -> bool {
        self.rest().iter().all(|piece| (piece.iov_base as usize | piece.iov_len) & (unit - 1) == 0)
    }

    /// Tells the driver what became of it, and lets go of the memory.
    pub fn finish(&mut self, status: u8) {
        if let (Some(at), Some(memory)) = (self.status.take(), self.memory.take()) {
            // SAFETY: `set` was told that the byte lies in `memory`, which is still there.
            let slice = unsafe { GuestSlice::new(0, at.as_ptr(), 1) };
            slice.copy_from(&[status]);
            drop(memory);
        }
        self.pieces.clear();
        (self.first, self.left) = (0, 0);
    }

    /// The pieces that are not wholly moved.
    fn rest(&self) -> &[libc::iovec] {
        self.pieces.get(self.first..).unwrap_or_default()
    }

    /// So many bytes were moved.
    fn advance(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
        let mut bytes = bytes as usize;
        while let Some(piece) = self.pieces.get_mut(self.first) {
            if bytes < piece.iov_len {
                piece.iov_base = piece.iov_base.cast::<u8>().wrapping_add(bytes).cast();
                piece.iov_len -= bytes;
                return;
            }
            bytes -= piece.iov_len;
            self.first += 1;
        }
    }

    /// Moves all of it, from or to `offset` of the file, with system calls that wait.
    ///
    /// # Errors
    /// The file cannot be read or written there, or ends before (`UnexpectedEof`).
    pub fn run(&mut self, file: &File, direction: Direction, mut offset: u64) -> io::Result<()> {
        while self.left > 0 {
            let pieces = self.rest();
            let count = pieces.len().min(MOST_PIECES) as libc::c_int;
            let (pieces, at) = (pieces.as_ptr(), offset as libc::off_t);
            // SAFETY: each piece is mapped memory of the guest (Invariants), and `count` of them are there.
            let moved = unsafe {
                match direction {
                    Direction::FromFile => libc::preadv(file.as_raw_fd(), pieces, count, at),
                    Direction::ToFile => libc::pwritev(file.as_raw_fd(), pieces, count, at),
                    Direction::ToDisk => libc::pwritev2(file.as_raw_fd(), pieces, count, at, libc::RWF_DSYNC),
                }
            };
            match u64::try_from(moved) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => {
                    self.advance(moved);
                    offset += moved;
                }
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

/// Bytes that are moved by way of a buffer at a time.
const BOUNCE: usize = 256 << 10;

/// What the buffer's address is a multiple of: no disk asks for more.
const PAGE: usize = 4096;

impl Transfer {
    /// The same by way of a buffer of this process, whose address suits any disk. Returns how many bytes were copied.
    ///
    /// # Errors
    /// As [`run`](Transfer::run).
    pub fn run_copied(&mut self, file: &File, direction: Direction, mut offset: u64) -> io::Result<u64> {
        let mut room = vec![0; BOUNCE + PAGE];
        let skew = room.as_ptr().align_offset(PAGE);
        let mut copied = 0;
        while self.left > 0 {
            let count = usize::try_from(self.left).unwrap_or(BOUNCE).min(BOUNCE);
            let buffer = room.get_mut(skew..).and_then(|room| room.get_mut(..count)).unwrap_or_default();
            match direction {
                Direction::FromFile => {
                    file.read_exact_at(buffer, offset)?;
                    self.each_piece(buffer, |piece, bytes| piece.copy_from(bytes));
                }
                Direction::ToFile | Direction::ToDisk => {
                    self.each_piece(buffer, |piece, bytes| piece.copy_to(bytes));
                    file.write_all_at(buffer, offset)?;
                }
            }
            self.advance(count as u64);
            offset += count as u64;
            copied += count as u64;
        }
        if direction == Direction::ToDisk {
            file.sync_data()?;
        }
        Ok(copied)
    }

    /// Has each piece that is left copy its part of `buffer`, as far as that goes.
    fn each_piece(&self, buffer: &mut [u8], copy: impl Fn(GuestSlice<'_>, &mut [u8]) -> usize) {
        let mut at = 0;
        for piece in self.rest() {
            let Some(part) = buffer.get_mut(at..).filter(|part| !part.is_empty()) else { return };
            // SAFETY: the piece lies in memory that this transfer holds (Invariants).
            let slice = unsafe { GuestSlice::new(0, piece.iov_base.cast(), piece.iov_len) };
            at += copy(slice, part);
        }
    }
}

#[cfg(test)]
mod tests;
