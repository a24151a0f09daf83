//! Frames on their way into the socket, each behind its length.
//!
//! Operation: frames are gathered one behind the other in a ring, each in one piece, and written together with one system call.
//! What the socket does not take stays. What was written stays, too, until others take its place: it can be
//! [sent again](SendBuffer::again).
//!
//! Invariants: places count on for ever; a byte's place in the ring is what is left of it. Between what is written and the end
//! there are no more than [`UNWRITTEN`] bytes and a gap, so that nothing is overwritten that was not written.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, send};

/// Bytes of a frame's length in front of it, big-endian.
pub(super) const PREFIX: usize = 4;

/// Most bytes that wait for the socket: eight frames of 64 KiB, and more than it takes at once.
pub(super) const UNWRITTEN: usize = 512 << 10;

/// More than the longest frame, for the gap at the ring's end.
const GAP: usize = 128 << 10;

/// See the module.
#[derive(Debug)]
pub(super) struct SendBuffer {
    ring: Box<[u8]>,
    written: u64,
    end: u64,
    /// Not yet written over: nothing lies here, as the next frame had no room before the ring's end.
    gap: Option<Range<u64>>,
    /// Frames gathered since all was written.
    frames: u64,
}

impl SendBuffer {
    /// One in which the last `kept` bytes that were written can still be found, or a few less.
    pub(super) fn keeping(kept: usize) -> Self {
        let ring = vec![0; kept + UNWRITTEN + GAP].into_boxed_slice();
        SendBuffer { ring, written: 0, end: 0, gap: None, frames: 0 }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.written == self.end
    }

    /// Where the last frame ends.
    pub(super) const fn end(&self) -> u64 {
        self.end
    }

    /// Is there room for `len` bytes, prefixes included?
    pub(super) const fn has_room(&self, len: usize) -> bool {
        let gap = match &self.gap {
            Some(gap) => gap.end - gap.start,
            None => 0,
        };
        (self.end - self.written - gap) as usize + len <= UNWRITTEN
    }

    /// A byte's place in the ring.
    const fn at(&self, place: u64) -> usize {
        (place % self.ring.len() as u64) as usize
    }

    /// Makes room for `len` bytes in one piece; the caller has asked [`SendBuffer::has_room`].
    fn reserve(&mut self, len: usize) -> Range<usize> {
        let left = self.ring.len() - self.at(self.end);
        if left < len {
            let next = self.end + left as u64;
            if self.is_empty() {
                self.written = next;
            } else {
                self.gap = Some(self.end..next);
            }
            self.end = next;
        }
        let at = self.at(self.end);
        self.end += len as u64;
        self.frames += 1;
        at..at + len
    }

    /// Room for a frame of `len` bytes, its prefix written, and the place where it ends; the caller has asked
    /// [`SendBuffer::has_room`].
    pub(super) fn frame(&mut self, len: usize) -> (u64, &mut [u8]) {
        let room = self.reserve(PREFIX + len);
        let end = self.end;
        let Some((prefix, frame)) = self.ring.get_mut(room).and_then(|room| room.split_at_mut_checked(PREFIX)) else {
            debug_assert!(false, "there is no room for a frame of {len} bytes");
            return (end, &mut []);
        };
        // A frame's length is 32 bits.
        prefix.copy_from_slice(&(len as u32).to_be_bytes());
        (end, frame)
    }

    /// The frame whose `len` bytes end at the place `end` once more, if they are still there, and there is room.
    pub(super) fn again(&mut self, end: u64, len: usize) -> bool {
        let whole = PREFIX + len;
        let known = end <= self.end && self.has_room(whole);
        let Some(start) = end.checked_sub(whole as u64).filter(|_| known) else { return false };
        // With the gap that there may be before the copy.
        if self.end + (GAP + whole) as u64 - start > self.ring.len() as u64 {
            return false;
        }
        let from = self.at(start);
        let to = self.reserve(whole);
        self.ring.copy_within(from..from + whole, to.start);
        true
    }

    /// Writes what is there, as far as the socket takes it.
    pub(super) fn write(&mut self, socket: BorrowedFd<'_>) -> io::Result<()> {
        while self.written < self.end {
            if let Some(gap) = self.gap.take_if(|gap| gap.start == self.written) {
                self.written = gap.end;
                continue;
            }
            let until = self.gap.as_ref().map_or(self.end, |gap| gap.start);
            let at = self.at(self.written);
            let rest = self.ring.get(at..self.ring.len().min(at + (until - self.written) as usize)).unwrap_or_default();
            match send(socket.as_raw_fd(), rest, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Ok(count) => self.written += count as u64,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.frames = 0;
        Ok(())
    }

    /// Forgets what was not written. Returns how many frames that may be.
    pub(super) fn clear(&mut self) -> u64 {
        self.written = self.end;
        self.gap = None;
        std::mem::take(&mut self.frames)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    use super::*;

    /// Bytes of a frame by which it is known.
    fn content(number: usize) -> Vec<u8> {
        (0..60 + number * 7919 % 60_000).map(|at| (at * 3 + number) as u8).collect()
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_often_the_ring_goes_round() {
        const COUNT: usize = 300;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let reader = std::thread::spawn(move || {
            for number in 0..COUNT {
                let mut prefix = [0; PREFIX];
                theirs.read_exact(&mut prefix).unwrap();
                let mut frame = vec![0; u32::from_be_bytes(prefix) as usize];
                theirs.read_exact(&mut frame).unwrap();
                assert!(frame == content(number), "frame {number}");
            }
        });
        let mut buffer = SendBuffer::keeping(0);
        for number in 0..COUNT {
            let frame = content(number);
            while !buffer.has_room(PREFIX + frame.len()) {
                buffer.write(ours.as_fd()).unwrap();
            }
            buffer.frame(frame.len()).1.copy_from_slice(&frame);
        }
        while !buffer.is_empty() {
            buffer.write(ours.as_fd()).unwrap();
        }
        assert!(buffer.end() > 5 * buffer.ring.len() as u64);
        reader.join().unwrap();
    }

    #[test]
    fn what_was_written_can_be_sent_again_until_others_have_its_place() {
        const KEPT: usize = 1 << 20;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut buffer = SendBuffer::keeping(KEPT);
        let mut got = Vec::new();
        let mut pass = |buffer: &mut SendBuffer| {
            while !buffer.is_empty() {
                buffer.write(ours.as_fd()).unwrap();
                let mut bytes = vec![0; 1 << 20];
                let count = theirs.read(&mut bytes).unwrap();
                got.extend_from_slice(&bytes[..count]);
            }
            std::mem::take(&mut got)
        };
        let first = content(3);
        buffer.frame(first.len()).1.copy_from_slice(&first);
        let place = buffer.end();
        pass(&mut buffer);
        let mut others = 0;
        while buffer.again(place, first.len()) {
            assert!(pass(&mut buffer)[PREFIX..] == first, "after {others} others");
            buffer.frame(60_000).1.fill(0xaa);
            pass(&mut buffer);
            others += 1;
            assert!(others < 100, "it cannot be there any more");
        }
        assert!(others * 60_000 + others * first.len() > KEPT - 60_000, "it was gone after {others} others");
        assert!(!buffer.again(2, first.len()), "before the beginning");
    }
}
