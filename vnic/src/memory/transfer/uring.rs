//! Many requests for a file at once, by io_uring: started with one system call, done in whatever order suits the disk.
//!
//! Operation:
//! 1. `start` takes a request, and puts it into the submission ring; `submit` starts all of them with one call.
//! 2. `next_done` says which are done, in the order in which the kernel is done with them. What was moved only in part goes on where it
//!    stopped.
//! 3. `finish` tells the driver, and lets go of its memory; then the ticket is free again.
//!
//! Invariants: from `start` until its completion is seen, a transfer stays where it is and as it is, and holds the memory that its
//! pieces lie in. All requests are ended before the ring is dropped.
//!
//! Limits: a request at the disk cannot be called back: whoever wants the memory waits for it.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};

use crate::memory::uring;

use super::{Direction, MOST_PIECES, MOST_UNDER_WAY, Operation, Transfer};

/// What it asks of the kernel.
const CODES: &[u8] = &[
    opcode::Nop::CODE,
    opcode::Read::CODE,
    opcode::Readv::CODE,
    opcode::Write::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// The name of what is no request.
const NO_REQUEST: u64 = u64::MAX;

/// How often a request is tried again that the kernel puts off, before it is an error: nobody else has a turn meanwhile.
const MOST_PUT_OFF: u32 = 1000;

/// The most that a request of one piece moves at once: what is left goes on, as the kernel stops there anyway. (`MAX_RW_COUNT`)
const MOST_BYTES: usize = 0x7fff_f000;

/// A request under way.
#[derive(Debug)]
struct Slot {
    operation: Operation,
    transfer: Transfer,
    /// How often the kernel has put it off.
    put_off: u32,
}

/// See the [module](self).
pub struct Transfers {
    ring: IoUring,
    file: File,
    /// By ticket.
    slots: Box<[Slot]>,
    unused: Vec<u16>,
    /// With the kernel, or in the submission ring.
    open: usize,
}

impl fmt::Debug for Transfers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transfers").field("open", &self.open).finish_non_exhaustive()
    }
}

impl Transfers {
    /// For requests for this file.
    ///
    /// # Errors
    /// This host has no io_uring, or does not allow it.
    pub fn new(file: File) -> io::Result<Self> {
        let mut ring = uring::restricted(u32::from(MOST_UNDER_WAY), CODES, |ring| {
            ring.submitter().register_files(&[file.as_raw_fd()])
        })?;
        // To set one up can be allowed where to use it is not.
        // SAFETY: a request that touches no memory.
        unsafe { ring.submission().push(&opcode::Nop::new().build().user_data(NO_REQUEST)) }
            .map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        ring.completion().for_each(drop);
        let slot = || Slot { operation: Operation::Sync, transfer: Transfer::default(), put_off: 0 };
        Ok(Transfers {
            ring,
            file,
            slots: (0..MOST_UNDER_WAY).map(|_| slot()).collect(),
            unused: (0..MOST_UNDER_WAY).rev().collect(),
            open: 0,
        })
    }

    /// Readable while there are completions.
    #[must_use]
    pub fn events(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps its file open for as long as it lives, which is longer than the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Is there room for another request?
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.unused.is_empty()
    }

    /// Are all requests done with?
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.open == 0
    }

    /// Takes a request, with its transfer, for which there comes an empty one. Returns its ticket; `None`: there is no room, and
    /// nothing was taken.
    pub fn start(&mut self, operation: Operation, transfer: &mut Transfer) -> Option<u16> {
        let ticket = self.unused.pop()?;
        let slot = self.slots.get_mut(usize::from(ticket))?;
        (slot.operation, slot.put_off) = (operation, 0);
        std::mem::swap(&mut slot.transfer, transfer);
        self.push(ticket);
        Some(ticket)
    }

    /// Puts a request into the submission ring, which has as many places as there are tickets.
    fn push(&mut self, ticket: u16) {
        let Some(slot) = self.slots.get(usize::from(ticket)) else { return };
        let entry = slot.entry().user_data(u64::from(ticket));
        loop {
            // SAFETY: the pieces, and what they point to, stay until the completion is seen (Invariants).
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                self.open += 1;
                return;
            }
            // It holds what went on after a part was moved as well.
            self.submit();
        }
    }

    /// Starts what was taken. What the kernel does not take now it takes at the next call.
    pub fn submit(&mut self) {
        if self.ring.submission().is_empty() {
            return;
        }
        while let Err(error) = self.ring.submit()
            && error.kind() == io::ErrorKind::Interrupted
        {}
    }

    /// Waits until the kernel is done with one, if any is under way.
    pub fn wait(&mut self) {
        if self.open > 0 {
            // However it ends, `next_done` says what there is.
            let _ = self.ring.submit_and_wait(1);
        }
    }

    /// The next request that is done, and how it went. Its ticket is to be [finished](Transfers::finish).
    pub fn next_done(&mut self) -> Option<(u16, io::Result<()>)> {
        loop {
            let entry = self.ring.completion().next()?;
            let Ok(ticket) = u16::try_from(entry.user_data()) else { continue };
            self.open -= 1;
            let Some(slot) = self.slots.get_mut(usize::from(ticket)) else { continue };
            match slot.take_result(entry.result()) {
                Some(result) => return Some((ticket, result)),
                None => {
                    self.push(ticket);
                    self.submit();
                }
            }
        }
    }

    /// A request that is done and whose result was taken: tells the driver, and frees the ticket.
    pub fn finish(&mut self, ticket: u16, status: u8) {
        if let Some(slot) = self.slots.get_mut(usize::from(ticket)) {
            slot.transfer.finish(status);
            self.unused.push(ticket);
        }
    }

    /// The file.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.file
    }
}

impl Slot {
    /// The request for what is left of it.
    fn entry(&self) -> Entry {
        let file = types::Fixed(0);
        match self.operation {
            Operation::Sync => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            Operation::Allocate { mode, offset, len } => {
                opcode::Fallocate::new(file, len).offset(offset).mode(mode).build()
            }
            Operation::Move { direction, offset } => {
                let pieces = self.transfer.rest();
                let flags = if direction == Direction::ToDisk { libc::RWF_DSYNC } else { 0 };
                // One piece needs no list, which the kernel would read first.
                if let [piece] = pieces {
                    let (at, len) = (piece.iov_base.cast::<u8>(), piece.iov_len.min(MOST_BYTES) as u32);
                    return match direction {
                        Direction::FromFile => opcode::Read::new(file, at, len).offset(offset).build(),
                        Direction::ToFile | Direction::ToDisk => {
                            opcode::Write::new(file, at, len).offset(offset).rw_flags(flags).build()
                        }
                    };
                }
                let count = pieces.len().min(MOST_PIECES) as u32;
                match direction {
                    Direction::FromFile => opcode::Readv::new(file, pieces.as_ptr(), count).offset(offset).build(),
                    Direction::ToFile | Direction::ToDisk => {
                        opcode::Writev::new(file, pieces.as_ptr(), count).offset(offset).rw_flags(flags).build()
                    }
                }
            }
        }
    }

    /// What the kernel says. `None`: it is to go on.
    fn take_result(&mut self, result: i32) -> Option<io::Result<()>> {
        match (&mut self.operation, u64::try_from(result)) {
            (_, Err(_)) if matches!(-result, libc::EINTR | libc::EAGAIN) && self.put_off < MOST_PUT_OFF => {
                self.put_off += 1;
                None
            }
            (_, Err(_)) => Some(Err(io::Error::from_raw_os_error(-result))),
            (Operation::Move { .. }, Ok(0)) if self.transfer.left() > 0 => {
                Some(Err(io::ErrorKind::UnexpectedEof.into()))
            }
            (Operation::Move { offset, .. }, Ok(moved)) => {
                *offset += moved;
                self.transfer.advance(moved);
                (self.transfer.left() == 0).then_some(Ok(()))
            }
            (_, Ok(_)) => Some(Ok(())),
        }
    }
}

impl Drop for Transfers {
    fn drop(&mut self) {
        while self.open > 0 {
            self.wait();
            while self.ring.completion().next().is_some() {
                self.open -= 1;
            }
        }
        // The kernel takes a ring apart when it likes, and the file would stay open, and locked, for as long. A ring that has no
        // files any more is as good.
        let _ = self.ring.submitter().unregister_files();
    }
}

#[cfg(test)]
mod tests;
