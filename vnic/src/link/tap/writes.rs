//! Frames on their way to a tap by io_uring: those of a burst are written with one system call.
//!
//! Operation:
//! 1. `add` describes a frame and puts a request into the submission ring; nothing is read yet.
//! 2. `submit` starts all requests with one call. A tap takes its frames at once, so the completions are there when the
//!    call returns.
//! 3. Where the tap has no room, the kernel either waits by itself, and the ring's file becomes readable when it is done,
//!    or refuses the frame (`EAGAIN`; which of the two depends on its version). A refused frame is submitted again by the
//!    next `submit`, and `add` takes no other until then.
//! 4. `next` says what became of a frame, in the order in which the kernel is done with them.
//! 5. `quiesce` makes sure that no buffer of a pair is read any more, and waits for nobody: what the tap has no room for
//!    is copied into memory of this process, from where it is written later.
//!
//! Invariants: from `add` until its completion is seen, a [`Write`] stays where it is and as it is, and holds the memory
//! that its pieces lie in. All requests are ended before the ring is dropped.
//!
//! Limits: a frame in more than [`PIECES`] pieces is not taken. Writes that wait for room may be overtaken.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};

use crate::memory::uring;
use crate::memory::{GuestSlice, Memory};
use crate::net::Frame;
use crate::spec::net::NET_HEADER_LEN;

/// Frames that can be on their way: a burst.
pub(super) const MOST: u16 = 256;

/// Most pieces of a frame, its header included: 64 KiB of single pages, with its headers apart, and some.
const PIECES: usize = 32;

/// The name of requests that are no frame.
const NO_FRAME: u64 = u64::MAX;

/// Where a write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unused,
    /// In the submission ring, or with the kernel.
    Submitted,
    /// The tap had no room.
    Refused,
}

/// A frame on its way.
struct Write {
    state: State,
    file: RawFd,
    header: [u8; NET_HEADER_LEN],
    pieces: [libc::iovec; PIECES],
    count: u32,
    /// What the pieces lie in; `None` when they are in `copy`.
    memory: Option<Arc<Memory>>,
    /// Header and frame, if it had to be copied.
    copy: Vec<u8>,
    pair: usize,
    bytes: u32,
}

// SAFETY: its pieces point into `header` or `copy`, which stay where they are while a request is under way, and into
// shared memory that `memory` keeps mapped; only the kernel follows them.
unsafe impl Send for Write {}

impl Write {
    const UNUSED: Write = Write {
        state: State::Unused,
        file: -1,
        header: [0; NET_HEADER_LEN],
        pieces: [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PIECES],
        count: 0,
        memory: None,
        copy: Vec::new(),
        pair: 0,
        bytes: 0,
    };

    /// Describes `header` and `frame`. False: they are in too many pieces.
    fn describe(&mut self, header: &[u8], frame: &Frame<'_>) -> bool {
        for (to, from) in self.header.iter_mut().zip(header) {
            *to = *from;
        }
        let first =
            libc::iovec { iov_base: self.header.as_mut_ptr().cast(), iov_len: header.len().min(NET_HEADER_LEN) };
        let rest = frame.segments().map(|slice| libc::iovec { iov_base: slice.as_ptr().cast(), iov_len: slice.len() });
        let mut all = std::iter::once(first).chain(rest);
        self.count = 0;
        for (place, piece) in self.pieces.iter_mut().zip(all.by_ref()) {
            *place = piece;
            self.count += 1;
        }
        all.next().is_none()
    }

    /// Does the frame lie in the driver's buffers?
    const fn is_in_buffers(&self) -> bool {
        self.memory.is_some()
    }

    /// Moves the frame out of the driver's buffers. Not while the kernel has it.
    fn copy_out(&mut self) {
        let [first, rest @ ..] = &self.pieces;
        self.copy.extend(self.header.iter().take(first.iov_len));
        for piece in rest.iter().take((self.count as usize).saturating_sub(1)) {
            // SAFETY: `memory` keeps the piece mapped, readable and writable.
            let slice = unsafe { GuestSlice::new(0, piece.iov_base.cast(), piece.iov_len) };
            let at = self.copy.len();
            self.copy.resize(at + slice.len(), 0);
            slice.copy_to(self.copy.get_mut(at..).unwrap_or_default());
        }
        let [first, ..] = &mut self.pieces;
        *first = libc::iovec { iov_base: self.copy.as_mut_ptr().cast(), iov_len: self.copy.len() };
        self.count = 1;
        self.memory = None;
    }
}

/// What became of a frame that was to be added.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// It has this ticket.
    Ticket(u16),
    /// There is no room.
    Full,
    /// It is in too many pieces.
    TooManyPieces,
}

/// Something happened to a frame.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) ticket: u16,
    pub(super) pair: usize,
    pub(super) bytes: u32,
    pub(super) what: What,
}

/// What happened to it.
#[derive(Debug)]
pub(super) enum What {
    /// The kernel is done with it: what `writev` would have said.
    Written(io::Result<()>),
    /// It was copied, and its buffers are not used any more. It will be written later.
    Copied,
    /// The kernel is done with one that was copied before.
    CopyWritten(io::Result<()>),
}

/// The frames on their way.
pub(super) struct Writes {
    ring: IoUring,
    /// By ticket.
    writes: Box<[Write]>,
    unused: Vec<u16>,
    /// How many are in [`State::Submitted`].
    submitted: u16,
    /// Those in [`State::Refused`].
    refused: VecDeque<u16>,
    /// What was seen while waiting, and not asked for yet.
    events: VecDeque<Event>,
}

impl fmt::Debug for Writes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writes").field("submitted", &self.submitted).finish_non_exhaustive()
    }
}

impl Writes {
    /// A ring without frames.
    ///
    /// # Errors
    /// This host has no io_uring, or does not allow it.
    pub(super) fn new() -> io::Result<Self> {
        let codes = [opcode::Nop::CODE, opcode::Writev::CODE, opcode::AsyncCancel::CODE];
        let mut ring = uring::restricted(u32::from(MOST), &codes, |_| Ok(()))?;
        // To set one up can be allowed where to use it is not.
        // SAFETY: a request that touches no memory.
        unsafe { ring.submission().push(&opcode::Nop::new().build().user_data(NO_FRAME)) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        ring.completion().for_each(drop);
        let room = usize::from(MOST);
        Ok(Writes {
            ring,
            writes: (0..MOST).map(|_| Write::UNUSED).collect(),
            unused: (0..MOST).rev().collect(),
            submitted: 0,
            refused: VecDeque::with_capacity(room),
            events: VecDeque::with_capacity(room),
        })
    }

    /// Readable while there are completions.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps its file open for as long as it lives, which is longer than the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Takes a frame for `file`, which must stay open while the frame is here; else nothing is read, nothing changed.
    pub(super) fn add(&mut self, file: BorrowedFd<'_>, pair: usize, header: &[u8], frame: &Frame<'_>) -> Added {
        if !self.refused.is_empty() {
            return Added::Full;
        }
        let Some(&ticket) = self.unused.last() else { return Added::Full };
        let Some(write) = self.writes.get_mut(usize::from(ticket)) else { return Added::Full };
        if !write.describe(header, frame) {
            return Added::TooManyPieces;
        }
        (write.file, write.pair, write.bytes) = (file.as_raw_fd(), pair, frame.len);
        if !self.push(ticket) {
            return Added::Full;
        }
        if let Some(write) = self.writes.get_mut(usize::from(ticket)) {
            write.memory = Some(Arc::clone(frame.memory()));
        }
        self.unused.pop();
        Added::Ticket(ticket)
    }

    /// Puts a request for a write into the submission ring. False: it is full.
    fn push(&mut self, ticket: u16) -> bool {
        let Some(write) = self.writes.get_mut(usize::from(ticket)) else { return false };
        let request = opcode::Writev::new(types::Fd(write.file), write.pieces.as_ptr(), write.count);
        // SAFETY: the pieces, and what they point to, stay until the completion is seen (the module's invariant).
        let pushed = unsafe { self.ring.submission().push(&request.build().user_data(u64::from(ticket))) }.is_ok();
        if pushed {
            write.state = State::Submitted;
            self.submitted += 1;
        }
        pushed
    }

    /// Is there anything to submit?
    pub(super) fn is_waiting(&mut self) -> bool {
        !self.refused.is_empty() || !self.ring.submission().is_empty()
    }

    /// Starts what was added, and what was refused once more. What the kernel does not take now it takes at the next call.
    pub(super) fn submit(&mut self) {
        while let Some(&ticket) = self.refused.front()
            && self.push(ticket)
        {
            self.refused.pop_front();
        }
        while let Err(error) = self.ring.submit()
            && error.kind() == io::ErrorKind::Interrupted
        {}
    }

    /// The next thing that happened to a frame.
    pub(super) fn next(&mut self) -> Option<Event> {
        while self.events.is_empty() {
            if !self.take_completion() {
                return None;
            }
        }
        self.events.pop_front()
    }

    /// Takes in what the kernel says about one request. False: it says nothing.
    fn take_completion(&mut self) -> bool {
        let Some(entry) = self.ring.completion().next() else { return false };
        let Ok(ticket) = u16::try_from(entry.user_data()) else { return true };
        self.submitted -= 1;
        match -entry.result() {
            // Only `cancel` has requests cancelled.
            libc::EAGAIN | libc::ECANCELED => {
                if let Some(write) = self.writes.get_mut(usize::from(ticket)) {
                    write.state = State::Refused;
                    self.refused.push_back(ticket);
                }
            }
            error @ 1.. => self.end(ticket, Err(io::Error::from_raw_os_error(error))),
            _ => self.end(ticket, Ok(())),
        }
        true
    }

    /// A frame is written, or never will be.
    fn end(&mut self, ticket: u16, result: io::Result<()>) {
        let Some(write) = self.writes.get_mut(usize::from(ticket)) else { return };
        let what = if write.is_in_buffers() { What::Written(result) } else { What::CopyWritten(result) };
        self.events.push_back(Event { ticket, pair: write.pair, bytes: write.bytes, what });
        (write.state, write.memory, write.copy) = (State::Unused, None, Vec::new());
        self.unused.push(ticket);
    }

    /// Makes sure that no buffer of `pair` is read any more. Frames for which there is no room are copied.
    pub(super) fn quiesce(&mut self, pair: usize) {
        if self.submitted == 0 && self.refused.is_empty() {
            return;
        }
        let concerned = |write: &Write| write.pair == pair && write.is_in_buffers();
        self.submit();
        self.cancel(concerned);
        for (write, ticket) in self.writes.iter_mut().zip(0..).filter(|(write, _)| concerned(write)) {
            write.copy_out();
            self.events.push_back(Event { ticket, pair, bytes: write.bytes, what: What::Copied });
        }
    }

    /// Gives up all that the tap has no room for; `next` then names each as cancelled.
    pub(super) fn give_up(&mut self) {
        self.submit();
        self.cancel(|_| true);
        while let Some(ticket) = self.refused.pop_front() {
            self.end(ticket, Err(io::Error::from_raw_os_error(libc::ECANCELED)));
        }
    }

    /// Has the kernel end the writes that `concerned` names: those under way end by themselves, those that wait for room
    /// are refused.
    fn cancel(&mut self, concerned: impl Fn(&Write) -> bool) {
        let mut asked = false;
        loop {
            while self.take_completion() {}
            let open = |write: &Write| write.state == State::Submitted && concerned(write);
            if !self.writes.iter().any(open) {
                return;
            }
            if !asked && self.ring.submission().is_empty() {
                asked = true;
                for (_, ticket) in self.writes.iter().zip(0_u64..).filter(|(write, _)| open(write)) {
                    let cancel = opcode::AsyncCancel::new(ticket).build().user_data(NO_FRAME);
                    // SAFETY: a request that touches no memory. The ring has room for one per write, as it is empty.
                    let _ = unsafe { self.ring.submission().push(&cancel) };
                }
            }
            let _ = self.ring.submit_and_wait(1);
        }
    }
}

impl Drop for Writes {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests;
