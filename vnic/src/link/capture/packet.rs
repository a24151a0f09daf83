//! What of a frame is on record beside its bytes: the chains that it was in.

use serde::Serialize;

use crate::net::{Frame, ReceiveSpace};
use crate::ring::{ChainView, Segment, Segments};
use crate::spec::net::NetHeader;

/// Buffers of a frame that are recorded; of more, only how many there were.
const MAX_BUFFERS: usize = 4096;

/// A buffer of a chain, as it was when the device had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Buffer {
    /// As the driver wrote it.
    pub addr: u64,
    /// Where its first byte is, guest-physical.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// Device-writable?
    pub writable: bool,
    /// What its pages were ([`Stamper`](crate::introspect::Stamper)); 0: nobody looked.
    #[serde(skip)]
    pub stamp: u64,
}

#[cfg(test)]
impl Buffer {
    /// One byte at this address.
    pub(crate) const fn at_gpa(gpa: u64) -> Self {
        Buffer { addr: gpa, gpa, len: 1, writable: false, stamp: 1 }
    }
}

/// A chain that a frame was in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) head: u16,
    pub(super) idx: u16,
    pub(super) descriptors: u16,
    pub(super) indirect: bool,
    /// Bytes that the device has written, of a chain that it has written to.
    pub(super) written: Option<u32>,
    /// Of the packet's buffers, so many are its own.
    pub(super) buffers: usize,
}

/// See the [module](self). The memory is used again.
#[derive(Debug, Default)]
pub(super) struct Packet {
    pub(super) chains: Vec<Chain>,
    /// Of all chains, one behind the other.
    pub(super) buffers: Vec<Buffer>,
    /// Of a frame that was sent.
    pub(super) header: Option<NetHeader>,
}

impl Packet {
    pub(super) fn clear(&mut self) {
        self.chains.clear();
        self.buffers.clear();
        self.header = None;
    }

    /// Bytes that it takes.
    pub(super) fn size(&self) -> usize {
        size_of_val(self.chains.as_slice()) + size_of_val(self.buffers.as_slice())
    }

    /// The chain of a frame that is sent. `stamp` says where a buffer of so many bytes is, guest-physical, and its stamp.
    pub(super) fn sent(&mut self, frame: &Frame<'_>, stamp: impl FnMut(&Segment, u32) -> (u64, u64)) {
        self.header = Some(frame.header);
        self.chain(frame.view(), None, stamp);
    }

    /// The chains of a frame that the driver gets.
    pub(super) fn received(&mut self, segments: &Segments, space: &ReceiveSpace<'_>) {
        for (chain, written) in space.filled() {
            self.chain(segments.view(*chain), Some(written), |segment, _| (segment.addr, 0));
        }
    }

    fn chain(&mut self, view: ChainView<'_>, written: Option<u32>, mut stamp: impl FnMut(&Segment, u32) -> (u64, u64)) {
        let (chain, list) = (view.chain, view.segments());
        let (before, mut at) = (self.buffers.len(), 0);
        while let Some(first) = list.get(at).filter(|_| self.buffers.len() < MAX_BUFFERS) {
            // Where a buffer crosses a border of memory regions it has several segments, and is one descriptor still.
            let pieces = 1 + list.iter().skip(at + 1).take_while(|segment| segment.continues).count();
            let len: u64 = list.iter().skip(at).take(pieces).map(|segment| u64::from(segment.len)).sum();
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            let (gpa, stamp) = stamp(first, len);
            let writable = at >= chain.readable as usize;
            self.buffers.push(Buffer { addr: first.addr, gpa, len, writable, stamp });
            at += pieces;
        }
        self.chains.push(Chain {
            head: chain.head,
            idx: chain.idx,
            descriptors: chain.descriptors,
            indirect: chain.indirect,
            written,
            buffers: self.buffers.len() - before,
        });
    }

    /// Each chain with its buffers and with what is known of them; that is of all buffers in their order.
    pub(super) fn with<'a, T>(&'a self, known: &'a [T]) -> impl Iterator<Item = (&'a Chain, &'a [Buffer], &'a [T])> {
        let mut at = 0;
        self.chains.iter().map(move |chain| {
            let own = at..at + chain.buffers;
            at = own.end;
            (chain, self.buffers.get(own.clone()).unwrap_or_default(), known.get(own).unwrap_or_default())
        })
    }
}
