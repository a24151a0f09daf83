//! Frames on their way into the socket, each behind its length.
//!
//! Operation: frames are gathered one behind the other, and written together with one system call. What the socket does not
//! take stays. Room is made only when all is written: nothing is moved.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

/// Bytes of a frame's length in front of it, big-endian.
pub(super) const PREFIX: usize = 4;

/// Room for eight frames of 64 KiB: what the socket takes at once is less.
pub(super) const CAPACITY: usize = 512 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct SendBuffer {
    bytes: Box<[u8]>,
    written: usize,
    end: usize,
    /// Frames gathered since all was written.
    frames: u64,
}

impl SendBuffer {
    pub(super) fn new() -> Self {
        SendBuffer { bytes: vec![0; CAPACITY].into_boxed_slice(), written: 0, end: 0, frames: 0 }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// Is there room for `len` bytes, prefixes included?
    pub(super) const fn has_room(&self, len: usize) -> bool {
        len <= CAPACITY - self.end
    }

    /// Room for a frame of `len` bytes, its prefix written; the caller has asked [`SendBuffer::has_room`].
    pub(super) fn frame(&mut self, len: usize) -> &mut [u8] {
        let at = self.end;
        self.end += PREFIX + len;
        self.frames += 1;
        let Some((prefix, frame)) = self.bytes.get_mut(at..self.end).and_then(|room| room.split_at_mut_checked(PREFIX))
        else {
            debug_assert!(false, "there is no room for a frame of {len} bytes");
            return &mut [];
        };
        // A frame's length is 32 bits.
        prefix.copy_from_slice(&(len as u32).to_be_bytes());
        frame
    }

    /// Writes what is there, as far as the socket takes it.
    pub(super) fn write(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while self.written < self.end {
            let rest = self.bytes.get(self.written..self.end).unwrap_or_default();
            match send(socket.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Ok(count) => self.written += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.clear();
        Ok(())
    }

    /// Forgets what was not written. Returns how many frames that may be.
    pub(super) const fn clear(&mut self) -> u64 {
        let frames = self.frames;
        (self.written, self.end, self.frames) = (0, 0, 0);
        frames
    }
}
