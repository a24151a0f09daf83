//! What takes [stamps](super::stamp).
//!
//! Place: a worker of the data path takes the stamps of some of the frames that it sends, while it still has their buffers.
//!
//! Invariants: no allocation and no system call but for a page of the guest's that nobody has looked at yet; each stamp is a
//! budget of steps.

use std::sync::Arc;

use super::GuestPhysical;
use super::kernel::{Kernel, Use};
use super::space::{Reader, Translations};
use super::stamp::{Stamp, pages};

/// Reads of guest memory for each of them, at most.
const STEPS: u32 = 64;

/// Where the first page of a buffer is, if that is a file's: its `address_space`, and which page of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) mapping: u64,
    pub(crate) page: u64,
}

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
        // Page tables are walked once for most of them.
        let reader = Reader::new(&self.memory, &self.kernel.space, STEPS);
        buffers.into_iter().map(move |(gpa, len)| self.stamp_by(&reader, gpa, len).0)
    }

    /// The same, each with the place in a file that the buffer begins at.
    pub(crate) fn stamps_with_places(
        &self,
        buffers: impl IntoIterator<Item = (u64, u32)>,
        known: &mut Translations,
    ) -> Vec<(u64, Option<Place>)> {
        let reader = Reader::knowing(&self.memory, &self.kernel.space, STEPS, known.clone());
        let stamps = buffers.into_iter().map(|(gpa, len)| self.stamp_by(&reader, gpa, len)).collect();
        *known = reader.known();
        stamps
    }

    /// Where the structures of these buffers' pages are, in physical memory, and how many bytes each has.
    pub(crate) fn structures(
        &self,
        buffers: impl IntoIterator<Item = (u64, u32)>,
        known: &mut Translations,
    ) -> Vec<(u64, usize)> {
        let reader = Reader::knowing(&self.memory, &self.kernel.space, STEPS, known.clone());
        let structure = |number| {
            reader.begin(STEPS);
            reader.physical(self.kernel.structure(number)?).ok()
        };
        let pages = buffers.into_iter().filter_map(|(gpa, len)| pages(gpa, len));
        let found = pages.flatten().filter_map(structure);
        let found = found.map(|at| (at, self.kernel.layout.page_size as usize)).collect();
        *known = reader.known();
        found
    }

    fn stamp_by(&self, reader: &Reader<'_, M>, gpa: u64, len: u32) -> (u64, Option<Place>) {
        let Some(pages) = pages(gpa, len) else { return (0, None) };
        let mut place = None;
        let mut stamp = Stamp::default();
        let first = *pages.start();
        for number in pages {
            reader.begin(STEPS);
            let one = self.kernel.page(reader, number).and_then(|page| {
                let Some(page) = page else { return Ok(None) };
                let used_for = self.kernel.used_for(reader, &page)?;
                if let (true, Use::File(mapping)) = (number == first, used_for) {
                    place = Some(Place { mapping, page: page.index });
                }
                self.kernel.stamp(reader, &page, used_for).map(Some)
            });
            let Ok(Some(one)) = one else { return (0, None) };
            stamp.add(one);
        }
        (stamp.into(), place)
    }
}
