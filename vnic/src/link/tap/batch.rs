//! The frames of a burst written in one system call, by io_uring.
//!
//! Operation:
//! 1. `add` puts a frame into a slot and an entry for it into the submission ring; nothing is read yet.
//! 2. `submit` starts all of them with one call. A tap takes its frames at once, so the completions are there when the
//!    call returns; where there is no room, the kernel tries again when there is, and the ring's file becomes readable.
//! 3. `next` says what became of a frame, in the order in which the kernel is done with them; then its slot is free again.
//!
//! Invariants: from `add` until its completion is seen, a slot stays where it is and as it is, and holds the memory that
//! its pieces lie in. A batch ends all that is in flight before it is dropped (`quiesce`).
//!
//! Limits: a frame in more than [`PIECES`] pieces is not taken. Writes that are retried by the kernel may be overtaken.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};

use crate::memory::Memory;
use crate::net::Frame;
use crate::spec::net::NET_HEADER_LEN;

/// Frames that can be in flight: a burst.
pub(super) const SLOTS: u16 = 256;

/// Most pieces of a frame, its header included: 64 KiB of single pages, with its headers apart, and some.
const PIECES: usize = 32;

/// The name of requests that are no frame.
const NO_FRAME: u64 = u64::MAX;

/// A frame on its way.
struct Slot {
    header: [u8; NET_HEADER_LEN],
    pieces: [libc::iovec; PIECES],
    memory: Option<Arc<Memory>>,
    pair: usize,
    bytes: u32,
}

// SAFETY: its pieces point into `header`, which moves with nobody while a request is under way, and into shared memory
// that `memory` keeps mapped; only the kernel follows them.
unsafe impl Send for Slot {}

impl Slot {
    const FREE: Slot = Slot {
        header: [0; NET_HEADER_LEN],
        pieces: [libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; PIECES],
        memory: None,
        pair: 0,
        bytes: 0,
    };

    /// Describes `header` and `frame`. Returns in how many pieces; `None`: in too many.
    fn fill(&mut self, pair: usize, header: &[u8], frame: &Frame<'_>) -> Option<u32> {
        for (to, from) in self.header.iter_mut().zip(header) {
            *to = *from;
        }
        let first =
            libc::iovec { iov_base: self.header.as_mut_ptr().cast(), iov_len: header.len().min(NET_HEADER_LEN) };
        let rest = frame.segments().map(|slice| libc::iovec { iov_base: slice.as_ptr().cast(), iov_len: slice.len() });
        let mut all = std::iter::once(first).chain(rest);
        let mut count = 0;
        for (place, piece) in self.pieces.iter_mut().zip(all.by_ref()) {
            *place = piece;
            count += 1;
        }
        if all.next().is_some() {
            return None;
        }
        self.memory = Some(Arc::clone(frame.memory()));
        (self.pair, self.bytes) = (pair, frame.len);
        Some(count)
    }
}

/// What became of a frame that was to be added.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// It has this slot.
    Slot(u16),
    /// All slots are taken.
    Full,
    /// It is in too many pieces.
    TooManyPieces,
}

/// A frame that the kernel is done with.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) slot: u16,
    pub(super) pair: usize,
    pub(super) bytes: u32,
    /// As `writev` would have said.
    pub(super) result: io::Result<()>,
}

/// The frames in flight.
pub(super) struct Batch {
    ring: IoUring,
    slots: Box<[Slot]>,
    free: Vec<u16>,
    /// Slots in the submission ring or with the kernel.
    in_flight: u16,
    /// Completions seen by `quiesce`, not asked for yet.
    done: Vec<(u16, i32)>,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Batch {
    /// A batch of no frames.
    ///
    /// # Errors
    /// This host has no io_uring, or does not allow it.
    pub(super) fn new() -> io::Result<Self> {
        let mut ring = IoUring::new(u32::from(SLOTS))?;
        // To set one up can be allowed where to use it is not.
        // SAFETY: a request that touches no memory.
        unsafe { ring.submission().push(&opcode::Nop::new().build().user_data(NO_FRAME)) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        ring.completion().for_each(drop);
        let slots = (0..SLOTS).map(|_| Slot::FREE).collect();
        let (free, done) = ((0..SLOTS).rev().collect(), Vec::with_capacity(usize::from(SLOTS)));
        Ok(Batch { ring, slots, free, in_flight: 0, done })
    }

    /// Readable while there are completions.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring keeps its file open for as long as it lives, which is longer than the borrow.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }

    /// Takes a frame for `fd`, which must stay open while it is in flight; else nothing is read, nothing changed.
    pub(super) fn add(&mut self, fd: BorrowedFd<'_>, pair: usize, header: &[u8], frame: &Frame<'_>) -> Added {
        let Some(&number) = self.free.last() else { return Added::Full };
        let Some(slot) = self.slots.get_mut(usize::from(number)) else { return Added::Full };
        let Some(count) = slot.fill(pair, header, frame) else { return Added::TooManyPieces };
        let write = opcode::Writev::new(types::Fd(fd.as_raw_fd()), slot.pieces.as_ptr(), count);
        // SAFETY: the slot's pieces, and what they point to, stay until the completion is seen (the module's invariant).
        if unsafe { self.ring.submission().push(&write.build().user_data(u64::from(number))) }.is_err() {
            slot.memory = None;
            return Added::Full;
        }
        self.free.pop();
        self.in_flight += 1;
        Added::Slot(number)
    }

    /// Is there anything to submit?
    pub(super) fn is_waiting(&mut self) -> bool {
        !self.ring.submission().is_empty()
    }

    /// Starts what was added. What the kernel does not take now it takes at the next call.
    pub(super) fn submit(&mut self) {
        while let Err(error) = self.ring.submit()
            && error.kind() == io::ErrorKind::Interrupted
        {}
    }

    /// The next frame that is done with.
    pub(super) fn next(&mut self) -> Option<Done> {
        loop {
            let (number, result) = match self.done.pop() {
                Some(done) => done,
                None => self.completion()?,
            };
            let Some(slot) = self.slots.get_mut(usize::from(number)) else { continue };
            if slot.memory.take().is_none() {
                continue;
            }
            self.free.push(number);
            let result = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) };
            return Some(Done { slot: number, pair: slot.pair, bytes: slot.bytes, result });
        }
    }

    /// The next completion of a frame, as the kernel says it.
    fn completion(&mut self) -> Option<(u16, i32)> {
        loop {
            let entry = self.ring.completion().next()?;
            if let Ok(number) = u16::try_from(entry.user_data()) {
                self.in_flight -= 1;
                return Some((number, entry.result()));
            }
        }
    }

    /// Ends all that is in flight, giving up what the file has no room for; `next` then names each.
    pub(super) fn quiesce(&mut self) {
        self.submit();
        let mut asked = false;
        loop {
            while let Some(done) = self.completion() {
                self.done.push(done);
            }
            if self.in_flight == 0 {
                return;
            }
            if !asked && !self.is_waiting() {
                asked = true;
                self.cancel();
            }
            // A write that is under way ends by itself, one that waits for room is given up.
            let _ = self.ring.submit_and_wait(1);
        }
    }

    /// Asks the kernel to give up what it has.
    fn cancel(&mut self) {
        let slots = self.slots.iter().zip(0_u64..);
        for (_, number) in slots.filter(|(slot, _)| slot.memory.is_some()) {
            let cancel = opcode::AsyncCancel::new(number).build().user_data(NO_FRAME);
            // SAFETY: a request that touches no memory. The ring has room for one per slot, as it is empty.
            let _ = unsafe { self.ring.submission().push(&cancel) };
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.quiesce();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::net::features::OFFERED;
    use crate::net::testing::Nic;

    /// A batch and a stream to write to; `None` where there is no io_uring.
    fn batch() -> Option<(Batch, UnixStream, UnixStream)> {
        let (near, far) = UnixStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        match Batch::new() {
            Ok(batch) => Some((batch, near, far)),
            Err(error) => {
                #[expect(clippy::print_stderr, reason = "how a test says that it was skipped")]
                {
                    eprintln!("SKIP: this host allows no io_uring: {error}");
                }
                None
            }
        }
    }

    fn add(nic: &mut Nic, batch: &mut Batch, to: &UnixStream, frame: &[u8], cuts: &[usize]) -> Added {
        let bytes = [&[0; NET_HEADER_LEN][..], frame].concat();
        nic.with_frame(&bytes, cuts, |frame| batch.add(to.as_fd(), 3, b"header", &frame.unwrap()))
    }

    #[test]
    fn frames_are_written_by_one_call_and_none_before() {
        let Some((mut batch, near, mut far)) = batch() else { return };
        let mut nic = Nic::new(OFFERED, 0, 0);
        // Buffers come back to the driver at once in `with_frame`, so all frames are the same here.
        for number in 0..20 {
            assert_eq!(add(&mut nic, &mut batch, &near, &[7; 100], &[12, 30, 0, 9]), Added::Slot(number));
        }
        assert!(batch.is_waiting() && batch.next().is_none());
        far.set_nonblocking(true).unwrap();
        assert_eq!(far.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        batch.submit();
        let done: Vec<Done> = std::iter::from_fn(|| batch.next()).collect();
        assert_eq!(done.len(), 20, "a socket with room takes all at once");
        assert!(done.iter().all(|done| done.result.is_ok() && done.pair == 3 && done.bytes == 100));
        let mut got = vec![0; 20 * 106];
        far.read_exact(&mut got).unwrap();
        let one = [&b"header"[..], &[7; 100]].concat();
        assert!(got.chunks(106).all(|frame| frame == one));
    }

    #[test]
    fn more_frames_than_slots_and_more_pieces_than_it_takes_are_refused() {
        let Some((mut batch, near, _far)) = batch() else { return };
        let mut nic = Nic::new(OFFERED, 0, 0);
        let pieces = |count: usize| vec![1; 12 + count - 1];
        assert_eq!(add(&mut nic, &mut batch, &near, &[7; 100], &pieces(PIECES)), Added::TooManyPieces);
        assert_eq!(add(&mut nic, &mut batch, &near, &[7; 100], &pieces(PIECES - 1)), Added::Slot(0));
        for number in 1..SLOTS {
            assert_eq!(add(&mut nic, &mut batch, &near, &[7; 100], &[]), Added::Slot(number));
        }
        assert_eq!(add(&mut nic, &mut batch, &near, &[7; 100], &[]), Added::Full);
        batch.submit();
        assert!(batch.next().is_some());
        assert!(matches!(add(&mut nic, &mut batch, &near, &[7; 100], &[]), Added::Slot(_)));
    }

    /// Fills the stream, and adds a frame for which it has no room.
    fn stuck(batch: &mut Batch, near: &UnixStream) {
        let mut nic = Nic::new(OFFERED, 0, 0);
        while (&*near).write(&[1; 4096]).is_ok() {}
        assert_eq!(add(&mut nic, batch, near, &[7; 100], &[]), Added::Slot(0));
        batch.submit();
    }

    #[test]
    fn a_frame_without_room_completes_late_or_says_so() {
        let Some((mut batch, near, mut far)) = batch() else { return };
        stuck(&mut batch, &near);
        if let Some(done) = batch.next() {
            assert_eq!(done.result.unwrap_err().kind(), io::ErrorKind::WouldBlock);
            return;
        }
        far.set_nonblocking(true).unwrap();
        while far.read(&mut [0; 65536]).is_ok() {}
        let mut fds = [nix::poll::PollFd::new(batch.file(), nix::poll::PollFlags::POLLIN)];
        assert_eq!(nix::poll::poll(&mut fds, 10_000_u16).unwrap(), 1, "not told within ten seconds");
        assert!(batch.next().expect("it is done with").result.is_ok());
    }

    #[test]
    fn what_has_no_room_is_given_up_when_it_must_end() {
        let Some((mut batch, near, _far)) = batch() else { return };
        stuck(&mut batch, &near);
        batch.quiesce();
        assert_eq!(batch.in_flight, 0);
        assert!(batch.next().expect("it is done with").result.is_err());
        assert!(batch.next().is_none() && batch.free.len() == usize::from(SLOTS));
        stuck(&mut batch, &near);
        drop(batch);
    }
}
