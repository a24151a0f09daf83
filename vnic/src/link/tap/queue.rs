//! One queue of a tap: where the frames for the driver come from.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd};

use super::super::{LinkCounters, LinkError, Received};
use super::{Count, MAX_RECEIVE, device};
use crate::net::ReceiveSpace;
use crate::net::vectored::Scratch;
use crate::spec::net::{NET_HEADER_LEN, NetHeader};

/// How frames come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Length of the virtio-net header in front.
    pub(super) header_len: usize,
    /// Room that a frame may need, without it.
    pub(super) largest: usize,
}

/// A queue.
#[derive(Debug)]
pub(super) struct TapQueue {
    file: File,
    /// The last read found nothing, and `poll` has not been called since.
    pub(super) drained: bool,
    /// A frame that was read before the driver had room, virtio-net header first, and its length with that.
    held: Option<usize>,
    /// Where it is; allocated when it is first needed.
    held_bytes: Vec<u8>,
}

impl TapQueue {
    pub(super) fn new(file: File) -> Self {
        TapQueue { file, drained: false, held: None, held_bytes: Vec::new() }
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Has the kernel send frames here, or not.
    pub(super) fn set_receiving(&self, on: bool) {
        match device::set_queue(self.file(), on) {
            // It is so already.
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
            Err(error) => {
                tracing::warn!(%error, on, "TUNSETQUEUE: frames may go to a queue that the driver does not use")
            }
        }
    }

    /// What is held has another header than the driver expects now.
    pub(super) fn forget(&mut self) {
        self.held = None;
    }

    /// See [`Port::pending`](crate::link::Port::pending).
    pub(super) fn pending(&self, shape: Shape) -> Option<usize> {
        match self.held {
            Some(len) => Some(len.saturating_sub(shape.header_len)),
            None => (!self.drained).then_some(shape.largest),
        }
    }

    /// See [`Port::settle`](crate::link::Port::settle).
    pub(super) fn settle(&mut self, shape: Shape, counters: &LinkCounters) -> bool {
        if self.drained || self.held.is_some() {
            return false;
        }
        self.held_bytes.resize(NET_HEADER_LEN + MAX_RECEIVE, 0);
        match self.file.read(&mut self.held_bytes) {
            Ok(len) if len > shape.header_len => self.held = Some(len),
            Ok(_) => Count::Failed.add(counters, 1),
            Err(error) => {
                self.drained = true;
                if error.kind() != io::ErrorKind::WouldBlock {
                    Count::Failed.add(counters, 1);
                }
            }
        }
        true
    }

    /// The next frame into the driver's buffers.
    pub(super) fn receive(
        &mut self,
        shape: Shape,
        space: &mut ReceiveSpace<'_>,
        scratch: &mut Scratch,
        counters: &LinkCounters,
    ) -> Result<Received, LinkError> {
        let fitted = match self.held.take() {
            Some(len) => self.write_held(len, shape, space),
            None => match self.read(shape, space, scratch, counters)? {
                Some(fitted) => fitted,
                None => return Ok(Received::Nothing),
            },
        };
        // A tap gives frames of 64 KiB at most.
        let bytes = match fitted {
            Ok(len) => len as u32,
            Err(len) => {
                Count::NoRoom.add(counters, 1);
                return Err(LinkError::Refused { bytes: len as u32, reason: "longer than the driver's buffers" });
            }
        };
        Count::Received.add(counters, 1);
        Count::ReceivedBytes.add(counters, u64::from(bytes));
        Ok(Received::Frame { bytes })
    }

    /// The held frame, `len` bytes with its header. Returns its length; `Err`: it does not fit.
    fn write_held(&self, len: usize, shape: Shape, space: &mut ReceiveSpace<'_>) -> Result<usize, usize> {
        let mut header = [0; NET_HEADER_LEN];
        let (theirs, frame) = self.held_bytes.split_at(shape.header_len.min(self.held_bytes.len()));
        for (to, from) in header.iter_mut().zip(theirs) {
            *to = *from;
        }
        let frame = frame.get(..len.saturating_sub(shape.header_len)).unwrap_or_default();
        let written = space.write(NetHeader::from_bytes(header), &[frame]);
        written.map(|()| frame.len()).map_err(|_| frame.len())
    }

    /// Reads a frame; `None`: there is none. `Err` inside: it may not have fitted.
    fn read(
        &mut self,
        shape: Shape,
        space: &mut ReceiveSpace<'_>,
        scratch: &mut Scratch,
        counters: &LinkCounters,
    ) -> Result<Option<Result<usize, usize>>, LinkError> {
        let read = match space.read_from(self.file.as_fd(), scratch) {
            Ok(read) => read,
            Err(error) => {
                // `poll` tries again.
                self.drained = true;
                if error.kind() == io::ErrorKind::WouldBlock {
                    return Ok(None);
                }
                Count::Failed.add(counters, 1);
                return Err(LinkError::Io { action: "read from the tap", source: error });
            }
        };
        if read == space.room() && read < shape.largest {
            // It may have been longer: the kernel cuts off what does not fit, and does not say so.
            space.discard();
            return Ok(Some(Err(read)));
        }
        Ok(Some(Ok(read)))
    }
}
