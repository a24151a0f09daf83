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
    read_ahead: Option<usize>,
    /// Where it is; allocated when it is first needed.
    bytes: Vec<u8>,
}

impl TapQueue {
    pub(super) fn new(file: File) -> Self {
        TapQueue { file, drained: false, read_ahead: None, bytes: Vec::new() }
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

    /// What was read ahead has another header than the driver expects now.
    pub(super) fn forget(&mut self) {
        self.read_ahead = None;
    }

    /// See [`Port::pending`](crate::link::Port::pending).
    pub(super) fn pending(&self, shape: Shape) -> Option<usize> {
        match self.read_ahead {
            Some(len) => Some(len.saturating_sub(shape.header_len)),
            None => (!self.drained).then_some(shape.largest),
        }
    }

    /// See [`Port::measure`](crate::link::Port::measure).
    pub(super) fn measure(&mut self, shape: Shape, counters: &LinkCounters) -> bool {
        if self.drained || self.read_ahead.is_some() {
            return false;
        }
        self.bytes.resize(NET_HEADER_LEN + MAX_RECEIVE, 0);
        match self.file.read(&mut self.bytes) {
            Ok(len) if len > shape.header_len => self.read_ahead = Some(len),
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
        let fitted = match self.read_ahead.take() {
            Some(len) => self.write_read_ahead(len, shape, space),
            None => match space.read_from(self.file.as_fd(), scratch) {
                Ok(read) => read,
                Err(error) => {
                    // `poll` tries again.
                    self.drained = true;
                    if error.kind() == io::ErrorKind::WouldBlock {
                        return Ok(Received::Nothing);
                    }
                    Count::Failed.add(counters, 1);
                    return Err(LinkError::Io { action: "read from the tap", source: error });
                }
            },
        };
        let Some(len) = fitted else {
            Count::NoRoom.add(counters, 1);
            // A byte more than there was room for, at least.
            let bytes = u32::try_from(space.room()).unwrap_or(u32::MAX).saturating_add(1);
            return Err(LinkError::Refused { bytes, reason: "longer than the driver's buffers" });
        };
        // A tap gives frames of 64 KiB at most.
        let bytes = len as u32;
        Count::Received.add(counters, 1);
        Count::ReceivedBytes.add(counters, u64::from(bytes));
        Ok(Received::Frame { bytes })
    }

    /// The frame that was read ahead, `len` bytes with its header. Returns its length; `None`: it does not fit.
    fn write_read_ahead(&self, len: usize, shape: Shape, space: &mut ReceiveSpace<'_>) -> Option<usize> {
        let mut header = [0; NET_HEADER_LEN];
        let (theirs, frame) = self.bytes.split_at(shape.header_len.min(self.bytes.len()));
        for (to, from) in header.iter_mut().zip(theirs) {
            *to = *from;
        }
        let frame = frame.get(..len.saturating_sub(shape.header_len)).unwrap_or_default();
        space.write(NetHeader::from_bytes(header), &[frame]).is_ok().then_some(frame.len())
    }
}
