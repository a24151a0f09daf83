//! Who looks at the frames that go out, whatever for.
//!
//! Place: an [`Observer`] is called on a worker's thread for every frame that the link has taken, before the driver gets its
//! buffers back. It must neither allocate nor wait: the data path stands still meanwhile. While nobody looks, a frame costs a
//! branch.

use std::any::Any;
use std::fmt::Debug;

use crate::memory::Memory;
use crate::net::Frame;

/// Sees each transmitted frame of one worker.
pub trait Observer: Any + Debug + Send {
    /// A frame has gone out.
    fn transmitted(&mut self, frame: &TransmittedFrame<'_>);
}

/// Sees what a disk's worker has brought into the guest's memory. The same holds for it.
pub trait DiskObserver: Any + Debug + Send {
    /// A read is done: its data are there.
    fn read(&mut self, read: &DiskRead<'_>);
}

/// Data that a disk has written into the guest's memory.
#[derive(Debug, Clone, Copy)]
pub struct DiskRead<'a> {
    /// Where on the disk they stand, bytes.
    pub offset: u64,
    /// Where they lie: guest-physical address and length of each piece, in order.
    pub pieces: &'a [(u64, u64)],
}

/// A frame that the link has taken, still in the driver's buffers.
#[derive(Debug, Clone, Copy)]
pub struct TransmittedFrame<'a> {
    /// The frame.
    pub frame: &'a Frame<'a>,
    /// Bytes of it that the device read out of guest memory.
    pub read: u32,
    /// Bytes of it that the device copied once more.
    pub copied: u32,
    /// Behind an IOMMU: the memory that the driver's addresses lead to.
    pub translated: Option<&'a Memory>,
}

impl TransmittedFrame<'_> {
    /// The frame's pieces: the guest-physical address of each, and its length. Behind an IOMMU it is the address that the
    /// driver's own led to.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, u64)> {
        self.frame.segments().map(|slice| {
            // A slice is in one region, so its guest-physical addresses follow one another, too.
            let translated = self.translated.and_then(|memory| memory.gpa_at(slice.as_ptr()));
            (translated.map_or(slice.addr(), |gpa| gpa.0), slice.len() as u64)
        })
    }
}
