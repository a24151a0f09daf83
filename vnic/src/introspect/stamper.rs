//! What takes [stamps](super::stamp).
//!
//! Place: a worker of the data path takes the stamps of some of the frames that it sends, while it still has their buffers.
//!
//! Invariants: no allocation and no system call but for a page of the guest's that nobody has looked at yet; each stamp is a
//! budget of steps.

use std::sync::Arc;

use super::GuestPhysical;
use super::kernel::{Kernel, Use};
use super::space::Reader;
use super::stamp::{Stamp, pages};

/// Reads of guest memory for each of them, at most.
const STEPS: u32 = 64;

/// Takes stamps. See the [module](self).
#[derive(Debug)]
pub struct Stamper<M> {
    memory: M,
    kernel: Arc<Kernel>,
}

impl<M: GuestPhysical> Stamper<M> {
    pub(super) fn new(memory: M, kernel: Arc<Kernel>) -> Self {
        Stamper { memory, kernel }
    }

    /// The release of the kernel whose pages these are.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.kernel.release
    }

    /// The stamp of the buffer's pages; 0: there is none.
    #[must_use]
    pub fn stamp(&self, gpa: u64, len: u32) -> u64 {
        self.stamps([(gpa, len)]).next().unwrap_or_default()
    }

    /// The stamps of several buffers, all of one moment.
    pub fn stamps(&self, buffers: impl IntoIterator<Item = (u64, u32)>) -> impl Iterator<Item = u64> {
        self.stamps_with_files(buffers).map(|(_, stamp, _)| stamp)
    }

    /// The same, each behind its buffer's address; with the `address_space` of the file whose page is the buffer's first.
    pub(super) fn stamps_with_files(
        &self,
        buffers: impl IntoIterator<Item = (u64, u32)>,
    ) -> impl Iterator<Item = (u64, u64, Option<u64>)> {
        // Page tables are walked once for most of them.
        let reader = Reader::new(&self.memory, &self.kernel.space, STEPS);
        buffers.into_iter().map(move |(gpa, len)| {
            let mut file = None;
            (gpa, self.stamp_by(&reader, gpa, len, &mut file), file)
        })
    }

    fn stamp_by(&self, reader: &Reader<'_, M>, gpa: u64, len: u32, file: &mut Option<u64>) -> u64 {
        let Some(pages) = pages(gpa, len) else { return 0 };
        let mut stamp = Stamp::default();
        let first = *pages.start();
        for number in pages {
            reader.begin(STEPS);
            let one = self.kernel.page(reader, number).and_then(|page| {
                let Some(page) = page else { return Ok(None) };
                let used_for = self.kernel.used_for(reader, &page)?;
                if let (true, Use::File(mapping)) = (number == first, used_for) {
                    *file = Some(mapping);
                }
                self.kernel.stamp(reader, &page, used_for).map(Some)
            });
            let Ok(Some(one)) = one else { return 0 };
            stamp.add(one);
        }
        stamp.into()
    }
}
