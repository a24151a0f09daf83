//! Frames out of the socket, each behind its length.

use std::io::{self, Read as _};
use std::ops::Range;
use std::os::unix::net::UnixStream;

use super::send::PREFIX;
use crate::net::{MAX_FRAME_LEN, MIN_FRAME_LEN};

/// Four of the longest frames.
const CAPACITY: usize = 256 << 10;

/// The far end stated a length that no frame has: where the next one begins nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {0} bytes was announced; frames have {MIN_FRAME_LEN} to {MAX_FRAME_LEN}")]
pub(super) struct BadLength(u32);

/// What has been read and not yet taken.
#[derive(Debug)]
pub(super) struct ReceiveBuffer {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl ReceiveBuffer {
    pub(super) fn new() -> Self {
        ReceiveBuffer { bytes: vec![0; CAPACITY].into_boxed_slice(), start: 0, end: 0 }
    }

    /// Where the next whole frame lies; `None`: more must be read first.
    fn next(&self) -> Result<Option<Range<usize>>, BadLength> {
        let Some((prefix, rest)) = self.bytes.get(self.start..self.end).and_then(<[u8]>::split_first_chunk::<PREFIX>)
        else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*prefix);
        if !(MIN_FRAME_LEN..=MAX_FRAME_LEN).contains(&len) {
            return Err(BadLength(len));
        }
        let at = self.start + PREFIX;
        Ok((rest.len() >= len as usize).then(|| at..at + len as usize))
    }

    /// The next whole frame.
    pub(super) fn frame(&self) -> Result<Option<&[u8]>, BadLength> {
        Ok(self.next()?.and_then(|at| self.bytes.get(at)))
    }

    /// The next whole frame is taken.
    pub(super) fn take(&mut self) {
        if let Ok(Some(at)) = self.next() {
            self.start = at.end;
        }
    }

    /// Reads more, behind the rest of a frame that may be there. `Ok(0)`: the far end has closed.
    pub(super) fn read(&mut self, mut socket: &UnixStream) -> io::Result<usize> {
        // A whole frame would have been taken first: at most one unfinished frame is moved.
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let count = socket.read(self.bytes.get_mut(self.end..).unwrap_or_default())?;
        self.end += count;
        Ok(count)
    }

    /// Forgets everything.
    pub(super) const fn clear(&mut self) {
        (self.start, self.end) = (0, 0);
    }
}
