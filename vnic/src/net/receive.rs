//! The driver's receive buffers, gathered into one room for the next frame.
//!
//! Place: the worker pops chains until they hold what the port announced, makes a [`ReceiveSpace`] of them, lets the
//! port fill it, and pushes one used entry for each chain that [`ReceiveSpace::filled`] names.
//!
//! Operation (VIRTIO 1.3, 5.1.6.3.2 Device Requirements: Setting Up Receive Buffers; 5.1.6.4 Processing of Incoming
//! Packets):
//! 1. The frame goes behind the room of the virtio-net header, over as many chains as it takes: one, or with
//!    `mrg_rxbuf` several. Each chain is filled before the next is begun.
//! 2. The header goes in front of it, with `num_buffers` counted.
//! 3. The chains are used, all of them in one go. Those that were not needed stay with the worker for the next frame.
//!
//! Invariants: guest memory is written only while a `ReceiveSpace` borrows the arena, and the worker cannot give a chain
//! back before that borrow ends. So nothing is ever written to a chain that is the driver's again (CVE-2021-3748).

use std::io;
use std::os::fd::BorrowedFd;

use super::frame::without_first;
use super::{Frame, MAX_FRAME_LEN, header, vectored};
use crate::memory::GuestSlice;
use crate::ring::{Chain, Segments};
use crate::spec::net::{NET_HEADER_LEN, NetHeader};
use crate::spec::{Feature, Features};

/// Buffers a frame takes at most: with MRG_RXBUF each is at least as long as the header (VIRTIO 1.3, 5.1.6.3.1 Driver
/// Requirements: Setting Up Receive Buffers). More than these are not looked at for one frame.
pub const MAX_BUFFERS: usize = (MAX_FRAME_LEN as usize + NET_HEADER_LEN).div_ceil(NET_HEADER_LEN);

/// A frame is longer than the driver's buffers. It is dropped, and counted as `no_room`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("frame of {needed} bytes with its header does not fit into {room} bytes of receive buffers")]
pub struct NoRoom {
    /// Bytes needed, virtio-net header included.
    pub needed: usize,
    /// Bytes there were.
    pub room: usize,
}

/// Room for one frame in one or several chains of a receiveq.
#[derive(Debug)]
pub struct ReceiveSpace<'a> {
    segments: &'a Segments,
    chains: &'a [Chain],
    header_len: usize,
    room: usize,
    /// Bytes of header and frame, once there is one.
    written: usize,
}

impl<'a> ReceiveSpace<'a> {
    /// The room in `chains`, which were popped into `segments`; without `mrg_rxbuf` only that of the first.
    #[must_use]
    pub fn new(segments: &'a Segments, chains: &'a [Chain], features: Features) -> Self {
        let usable = if features.has(Feature::MrgRxbuf) { chains.len() } else { 1 };
        let chains = chains.get(..usable).unwrap_or(chains);
        let room = chains.iter().map(|chain| chain.writable_len as usize).sum();
        ReceiveSpace { segments, chains, header_len: header::header_len(features), room, written: 0 }
    }

    /// The longest frame there is room for, bytes without virtio-net header.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.room.saturating_sub(self.header_len)
    }

    /// Writes a frame, given in parts, and its header; `num_buffers` is counted here. At most once per space.
    ///
    /// # Errors
    /// It does not fit; nothing has been written.
    pub fn write(&mut self, header: NetHeader, parts: &[&[u8]]) -> Result<(), NoRoom> {
        let len = parts.iter().map(|part| part.len()).sum();
        self.fill(header, len, parts.iter().copied())
    }

    /// Copies a frame of the driver from where it lies, and puts `header` in front; `num_buffers` is counted here. At most
    /// once per space.
    ///
    /// # Errors
    /// It does not fit; nothing has been written.
    #[inline(always)]
    pub fn copy(&mut self, header: NetHeader, frame: &Frame<'_>) -> Result<(), NoRoom> {
        // Nearly all frames go into one buffer, and many come in one.
        if let (Some(from), Some(to)) = (frame.whole(), self.one_buffer()) {
            let header = NetHeader { num_buffers: 1, ..header }.to_bytes();
            let rest = to.advanced(self.header_len);
            if from.len() <= rest.len() && self.header_len == header.len() {
                self.written = self.header_len + from.len();
                to.copy_from(&header);
                from.copy_to_slice(&rest);
                return Ok(());
            }
        }
        self.fill(header, frame.len as usize, frame.segments())
    }

    /// The first chain, if it is one buffer in one piece.
    #[inline(always)]
    fn one_buffer(&self) -> Option<GuestSlice<'a>> {
        let mut slices = self.segments.view(*self.chains.first()?).writable();
        let first = slices.next()?;
        (slices.len() == 0).then_some(first)
    }

    #[inline(never)]
    fn fill<P: Part>(&mut self, header: NetHeader, len: usize, parts: impl Iterator<Item = P>) -> Result<(), NoRoom> {
        let needed = self.header_len + len;
        if needed > self.room {
            return Err(NoRoom { needed, room: self.room });
        }
        let mut slices = without_first(self.slices(), self.header_len);
        let mut slice = slices.next();
        for mut part in parts {
            while let Some(here) = slice.filter(|_| !part.is_empty()) {
                let count = part.copy_to(&here);
                part = part.behind(count);
                let rest = here.advanced(count);
                slice = if rest.is_empty() { slices.next() } else { Some(rest) };
            }
        }
        self.written = needed;
        self.write_header(0, &NetHeader { num_buffers: self.buffers(), ..header }.to_bytes());
        Ok(())
    }

    /// Reads one frame from `fd` in one system call, straight into guest memory. What is read must begin with a
    /// virtio-net header as long as the one negotiated; `num_buffers` is counted here. `scratch` is reused from call
    /// to call. Returns the frame's length without header; `None`: it was longer than the room, and is lost. At most once
    /// per space.
    ///
    /// # Errors
    /// What `readv` says; `InvalidData` for less than a header and an Ethernet header.
    pub fn read_from(&mut self, fd: BorrowedFd<'_>, scratch: &mut vectored::Scratch) -> io::Result<Option<usize>> {
        let Some(done) = scratch.readv(fd, without_first(self.slices(), 0))? else { return Ok(None) };
        let len = done.checked_sub(self.header_len).filter(|len| *len > 0);
        let len =
            len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "read less than a virtio-net header"))?;
        self.written = done;
        // `num_buffers` stands behind the short header's fields.
        self.write_header(10, &self.buffers().to_le_bytes());
        Ok(Some(len))
    }

    /// The chains that hold the frame, and how many bytes were written into each: one used entry each, in this order.
    /// Empty when nothing was written.
    pub fn filled(&self) -> impl Iterator<Item = (&'a Chain, u32)> + use<'a> {
        let mut rest = self.written;
        self.chains.iter().map_while(move |chain| {
            let here = rest.min(chain.writable_len as usize);
            let more = rest > 0;
            rest -= here;
            // `here` is at most `writable_len`, which is 32 bits.
            more.then_some((chain, here as u32))
        })
    }

    /// The frame that was written, where it lies in guest memory: for a capture, before the chains are given back.
    pub fn frame(&self) -> impl Iterator<Item = GuestSlice<'a>> + Clone + use<'a, '_> {
        let mut rest = self.written.saturating_sub(self.header_len);
        without_first(self.slices(), self.header_len).map_while(move |slice| {
            let here = slice.first(rest);
            rest -= here.len();
            (!here.is_empty()).then_some(here)
        })
    }

    /// How many chains hold the frame.
    #[must_use]
    pub fn buffers(&self) -> u16 {
        // A queue has at most 32768 entries, so no more chains.
        self.filled().count().try_into().unwrap_or(u16::MAX)
    }

    fn slices(&self) -> impl Iterator<Item = GuestSlice<'a>> + Clone + use<'a> {
        let segments = self.segments;
        self.chains.iter().flat_map(|chain| segments.view(*chain).writable())
    }

    /// Writes bytes of the header from byte `at` on; what lies beyond the negotiated header's end is left out.
    fn write_header(&self, at: usize, bytes: &[u8]) {
        let count = self.header_len.saturating_sub(at).min(bytes.len());
        let mut bytes = bytes.get(..count).unwrap_or_default();
        for slice in without_first(self.slices(), at) {
            let done = slice.copy_from(bytes);
            bytes = bytes.get(done..).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
        }
    }
}

/// A piece of a frame on its way into the driver's buffers.
trait Part: Sized {
    fn is_empty(&self) -> bool;

    /// Copies as much as fits. Returns how many bytes.
    fn copy_to(&self, slice: &GuestSlice<'_>) -> usize;

    /// What comes behind the first `count` bytes.
    fn behind(self, count: usize) -> Self;
}

impl Part for &[u8] {
    fn is_empty(&self) -> bool {
        <[u8]>::is_empty(self)
    }

    fn copy_to(&self, slice: &GuestSlice<'_>) -> usize {
        slice.copy_from(self)
    }

    fn behind(self, count: usize) -> Self {
        self.get(count..).unwrap_or_default()
    }
}

impl Part for GuestSlice<'_> {
    fn is_empty(&self) -> bool {
        GuestSlice::is_empty(self)
    }

    fn copy_to(&self, slice: &GuestSlice<'_>) -> usize {
        self.copy_to_slice(slice)
    }

    fn behind(self, count: usize) -> Self {
        self.advanced(count)
    }
}
