//! `readv` and `writev` straight to and from guest memory.
//!
//! Invariants: an iovec made from a [`GuestSlice`] is used within the call that borrows the slice, and forgotten
//! before it returns; so it is never used after the mapping is gone.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::memory::GuestSlice;

/// Pieces that one call takes (`UIO_MAXIOV`).
pub const MAX_PIECES: usize = 1024;

/// Room for a call's iovecs, kept from call to call so that none allocates.
pub struct Scratch {
    list: Vec<libc::iovec>,
}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scratch").field("capacity", &self.list.capacity()).finish()
    }
}

// SAFETY: the list is empty between calls (see the module's invariant): there is no pointer in it to send.
unsafe impl Send for Scratch {}

impl Default for Scratch {
    fn default() -> Self {
        Scratch { list: Vec::with_capacity(MAX_PIECES) }
    }
}

impl Scratch {
    /// Writes `prefix` and the slices to `fd`.
    pub(super) fn writev<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        prefix: &[u8],
        slices: impl Iterator<Item = GuestSlice<'a>>,
    ) -> io::Result<usize> {
        self.list.clear();
        self.list.push(libc::iovec { iov_base: prefix.as_ptr().cast_mut().cast(), iov_len: prefix.len() });
        let whole = self.fill(slices, MAX_PIECES);
        let done = if whole {
            // SAFETY: each iovec is `prefix`, which is only read, or a guest slice, which its lifetime keeps mapped.
            unsafe { libc::writev(fd.as_raw_fd(), self.list.as_ptr(), self.list.len() as libc::c_int) }
        } else {
            self.list.clear();
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        };
        self.list.clear();
        usize::try_from(done).map_err(|_| io::Error::last_os_error())
    }

    /// Reads from `fd` into the slices, as far as one call takes them. `None`: there was more to read.
    ///
    /// The kernel cuts off what does not fit, and does not say so. Therefore it is offered one byte more than the slices
    /// have: if that is written to, something was cut off.
    pub(super) fn readv<'a>(
        &mut self,
        fd: BorrowedFd<'_>,
        slices: impl Iterator<Item = GuestSlice<'a>>,
    ) -> io::Result<Option<usize>> {
        self.list.clear();
        self.fill(slices, MAX_PIECES - 1);
        let room: usize = self.list.iter().map(|piece| piece.iov_len).sum();
        let mut beyond = 0_u8;
        self.list.push(libc::iovec { iov_base: (&raw mut beyond).cast(), iov_len: 1 });
        // SAFETY: each iovec is a guest slice, writable and mapped for as long as its lifetime, which outlives this call;
        // the last one is a byte of this function's.
        let done = unsafe { libc::readv(fd.as_raw_fd(), self.list.as_ptr(), self.list.len() as libc::c_int) };
        self.list.clear();
        let done = usize::try_from(done).map_err(|_| io::Error::last_os_error())?;
        Ok((done <= room).then_some(done))
    }

    /// Takes slices until there are `most` pieces. Were there few enough?
    fn fill<'a>(&mut self, slices: impl Iterator<Item = GuestSlice<'a>>, most: usize) -> bool {
        for slice in slices {
            if self.list.len() == most {
                return false;
            }
            self.list.push(libc::iovec { iov_base: slice.as_ptr().cast(), iov_len: slice.len() });
        }
        true
    }
}
