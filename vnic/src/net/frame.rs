//! A transmitted frame: the checked virtio-net header and the slices of guest memory that hold the rest.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::header::{self, HeaderError};
use super::vectored;
use crate::memory::{GuestSlice, Memory};
use crate::ring::{Chain, ChainView};
use crate::spec::Features;
use crate::spec::net::{NET_HEADER_LEN, NetHeader};

/// The longest frame: Ethernet header, two VLAN tags, IPv6 header and the longest payload an IPv6 header can state.
/// (VIRTIO 1.3, 5.1.6.3.1 counts 65550 bytes: an Ethernet header and 64 KiB.)
pub const MAX_FRAME_LEN: u32 = 14 + 8 + 40 + 65_535;

/// An Ethernet header: anything shorter is no frame.
pub const MIN_FRAME_LEN: u32 = 14;

/// A transmit chain that is no frame. The chain goes back to the driver, the frame is counted by [`FrameError::name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The chain holds (part of) a virtio-net header and nothing else.
    #[error("chain of {len} bytes holds no frame behind its virtio-net header")]
    NoFrame {
        /// Device-readable bytes of the chain.
        len: u32,
    },
    /// Shorter than an Ethernet header.
    #[error("frame of {len} bytes is shorter than an Ethernet header")]
    Runt {
        /// The frame's length.
        len: u32,
    },
    /// Longer than any frame.
    #[error("frame of {len} bytes is longer than {MAX_FRAME_LEN}")]
    TooLong {
        /// The frame's length.
        len: u32,
    },
    /// A transmit chain with device-writable buffers: driver and device do not mean the same queue.
    #[error("transmit chain with {len} device-writable bytes")]
    Writable {
        /// Device-writable bytes of the chain.
        len: u32,
    },
    /// The virtio-net header is wrong.
    #[error(transparent)]
    Header(#[from] HeaderError),
}

impl FrameError {
    /// Every name, for a table of counters.
    pub const NAMES: [&'static str; 10] = [
        "no_frame",
        "runt",
        "too_long",
        "writable_buffers",
        HeaderError::NAMES[0],
        HeaderError::NAMES[1],
        HeaderError::NAMES[2],
        HeaderError::NAMES[3],
        HeaderError::NAMES[4],
        HeaderError::NAMES[5],
    ];

    /// The name its frames are counted by.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            FrameError::NoFrame { .. } => Self::NAMES[0],
            FrameError::Runt { .. } => Self::NAMES[1],
            FrameError::TooLong { .. } => Self::NAMES[2],
            FrameError::Writable { .. } => Self::NAMES[3],
            FrameError::Header(error) => error.name(),
        }
    }
}

/// One frame from the driver, still in guest memory. Starts with the Ethernet header: the virtio-net header has been
/// taken off and checked.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// The virtio-net header, read once and checked against `len`.
    pub header: NetHeader,
    /// Length in bytes, Ethernet header to last payload byte.
    pub len: u32,
    view: ChainView<'a>,
    /// Bytes of the virtio-net header, in front of the frame.
    skip: usize,
}

impl<'a> Frame<'a> {
    /// The frame in a chain of a transmitq. The virtio-net header may be split over
    /// descriptors in any way (VIRTIO 1.3, 2.7.4 Message Framing).
    ///
    /// # Errors
    /// The chain holds no frame that can be sent. A chain with device-writable buffers is refused too: the device has
    /// nothing to write there, so a driver that asks for it is broken.
    pub fn new(view: ChainView<'a>, features: Features) -> Result<Self, FrameError> {
        let (chain, skip) = (&view.chain, header::header_len(features));
        if chain.writable_len > 0 {
            return Err(FrameError::Writable { len: chain.writable_len });
        }
        let Some(len) = chain.readable_len.checked_sub(skip as u32).filter(|len| *len > 0) else {
            return Err(FrameError::NoFrame { len: chain.readable_len });
        };
        if len < MIN_FRAME_LEN {
            return Err(FrameError::Runt { len });
        }
        if len > MAX_FRAME_LEN {
            return Err(FrameError::TooLong { len });
        }
        let in_one = view.readable().next().filter(|_| skip == NET_HEADER_LEN).and_then(|slice| slice.first_12());
        let bytes = in_one.unwrap_or_else(|| {
            let mut bytes = [0; NET_HEADER_LEN];
            read_once(view.readable(), bytes.get_mut(..skip).unwrap_or_default());
            bytes
        });
        let header = header::check(NetHeader::from_bytes(bytes), len, features)?;
        Ok(Frame { header, len, view, skip })
    }

    /// The frame in a chain, if it is a usual one: a whole header of [`NET_HEADER_LEN`] bytes in the first buffer, with
    /// nothing left to the device. `None` if anything is unusual: then [`Frame::new`], which reads everything anew, has the last
    /// word. Not for drivers with the short header.
    #[inline(always)]
    #[must_use]
    pub fn plain(view: ChainView<'a>) -> Option<Self> {
        let len = view.chain.readable_len.wrapping_sub(NET_HEADER_LEN as u32);
        let usual = view.chain.writable_len == 0 && (MIN_FRAME_LEN..=MAX_FRAME_LEN).contains(&len);
        let header = NetHeader::from_bytes(view.readable().next()?.first_12()?);
        let plain = usual && header::is_plain(&header);
        plain.then_some(Frame { header: NetHeader::default(), len, view, skip: NET_HEADER_LEN })
    }

    /// The chain it came in.
    #[must_use]
    pub const fn chain(&self) -> &Chain {
        &self.view.chain
    }

    /// The memory it lies in: it stays where it is for as long as this is held.
    #[must_use]
    pub const fn memory(&self) -> &'a Arc<Memory> {
        self.view.memory()
    }

    /// The chain with all its segments, the virtio-net header's included.
    #[must_use]
    pub const fn view(&self) -> ChainView<'a> {
        self.view
    }

    /// The frame's bytes, slice by slice, none of them empty.
    pub fn segments(&self) -> impl Iterator<Item = GuestSlice<'a>> + Clone + use<'a, '_> {
        without_first(self.view.readable(), self.skip)
    }

    /// Copies the frame into `out`, as much as fits. Returns how many bytes.
    #[inline(always)]
    pub fn copy_to(&self, out: &mut [u8]) -> usize {
        match self.whole() {
            Some(slice) => slice.copy_to(out),
            None => gather(self.segments(), out),
        }
    }

    /// The frame, if it is in one piece with its virtio-net header, as most short ones are.
    #[inline(always)]
    pub(super) fn whole(&self) -> Option<GuestSlice<'a>> {
        let mut slices = self.view.readable();
        let first = slices.next()?;
        (slices.len() == 0).then(|| first.advanced(self.skip))
    }

    /// The frame's first bytes, as many as `out` takes: for looking at its headers.
    pub fn peek<'o>(&self, out: &'o mut [u8]) -> &'o [u8] {
        let count = read_once(self.segments(), out);
        out.get(..count).unwrap_or_default()
    }

    /// Writes `prefix` and the frame to `fd` in one system call, straight from guest memory. `scratch` is reused from
    /// call to call. Returns the bytes written, `prefix` included.
    ///
    /// # Errors
    /// What `writev` says; `E2BIG` for more pieces than it takes.
    pub fn write_to(&self, fd: BorrowedFd<'_>, prefix: &[u8], scratch: &mut vectored::Scratch) -> io::Result<usize> {
        scratch.writev(fd, prefix, self.segments())
    }
}

/// Reads slices into `out` one behind the other, as much as fits, each byte loaded once: for what is checked then.
fn read_once<'a>(slices: impl Iterator<Item = GuestSlice<'a>>, out: &mut [u8]) -> usize {
    let mut done = 0;
    for slice in slices {
        let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) else { break };
        done += slice.read_once(rest);
    }
    done
}

/// Copies slices into `out` one behind the other, as much as fits.
#[inline(never)]
fn gather<'a>(slices: impl Iterator<Item = GuestSlice<'a>> + Clone, out: &mut [u8]) -> usize {
    let mut done = 0;
    let mut ahead = slices.clone();
    ahead.next();
    for slice in slices {
        if let Some(next) = ahead.next() {
            next.prefetch_read();
        }
        let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) else { break };
        done += slice.copy_to(rest);
    }
    done
}

/// The slices without their first `skip` bytes and without empty ones.
pub(super) fn without_first<'a, I>(slices: I, skip: usize) -> impl Iterator<Item = GuestSlice<'a>> + Clone + use<'a, I>
where
    I: Iterator<Item = GuestSlice<'a>> + Clone,
{
    let mut skip = skip;
    slices.filter_map(move |slice| {
        let here = skip.min(slice.len());
        skip -= here;
        let rest = slice.advanced(here);
        (!rest.is_empty()).then_some(rest)
    })
}
