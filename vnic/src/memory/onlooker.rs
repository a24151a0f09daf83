//! Reads of guest memory for who only looks: nothing is written, and no page is made to exist by looking at it.
//!
//! Operation: a page of a shared file that was never written is a hole; touching it through a mapping makes it exist and
//! costs the host memory. So a page is read only once the file is known to have it (`SEEK_DATA`); a hole reads as zeroes,
//! which is what stands there. What was known once is remembered, a bit for each page.
//!
//! Limits: a page that the front-end takes back later (a balloon) may come to exist again, empty, if it is looked at.
//! Files of huge pages do not tell their holes apart: there every page counts as existing.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::Memory;
use super::mapping::{Mapping, base_page_size};

/// A page of what is remembered, as a shift: 4 KiB, the smallest there is.
const PAGE: u32 = 12;

/// The guest's memory by guest-physical address, for looking at. See the [module](self).
#[derive(Debug)]
pub struct Onlooker {
    memory: Memory,
    /// One for each region, in their order.
    regions: Vec<Region>,
}

#[derive(Debug)]
struct Region {
    start: u64,
    size: u64,
    /// A bit for each page that is known to exist.
    known: Vec<AtomicU64>,
}

impl Onlooker {
    /// Over the same regions; behind an IOMMU, as they are in front of it.
    ///
    /// # Errors
    /// The host does not say which pages exist.
    pub fn new(memory: &Arc<Memory>) -> io::Result<Self> {
        let memory = memory.in_front();
        let region = |mapping: &Mapping| {
            let spec = mapping.spec();
            let words = (spec.size >> PAGE).div_ceil(64) + 1;
            let known = (0..words).map(|_| AtomicU64::new(0)).collect();
            Region { start: spec.gpa.0, size: spec.size, known }
        };
        let regions = memory.mappings().map(region).collect();
        let onlooker = Onlooker { memory, regions };
        onlooker.existing(&mut |_, _| {})?;
        Ok(onlooker)
    }

    /// Is there guest memory at this address?
    #[must_use]
    pub fn has(&self, gpa: u64) -> bool {
        self.region(gpa).is_some()
    }

    /// The aligned eight bytes at `gpa`, read once. `None`: there is no memory, or `gpa` is not aligned.
    #[inline]
    #[must_use]
    pub fn word(&self, gpa: u64) -> Option<u64> {
        let (at, region) = self.region(gpa)?;
        let host = self.memory.host_in(at, gpa, 8)?;
        if !gpa.is_multiple_of(8) || !host.cast::<u64>().is_aligned() {
            return None;
        }
        if !region.knows(gpa) && !self.exists(at, gpa) {
            return Some(0);
        }
        // SAFETY: `host_in` found eight mapped bytes, the pointer is aligned. The guest may write meanwhile: volatile.
        Some(unsafe { host.cast::<u64>().read_volatile() })
    }

    /// Aligned words from `gpa` on, each read once. `None`: part of it is no memory, or `gpa` is not aligned.
    #[inline]
    #[must_use]
    pub fn words(&self, gpa: u64, out: &mut [u64]) -> Option<()> {
        let bytes = 8 * out.len() as u64;
        let in_one_page = (gpa & ((1 << PAGE) - 1)) + bytes <= 1 << PAGE;
        let (at, region) = self.region(gpa)?;
        let host = self.memory.host_in(at, gpa, bytes).map(|host| host.cast::<u64>());
        let Some(host) = host.filter(|_| in_one_page && region.knows(gpa)) else {
            for (number, word) in (0..).zip(out) {
                *word = self.word(gpa.checked_add(8 * number)?)?;
            }
            return Some(());
        };
        if !gpa.is_multiple_of(8) || !host.is_aligned() {
            return None;
        }
        for (number, word) in out.iter_mut().enumerate() {
            // SAFETY: `host_in` found as many mapped bytes as all the words have, the pointer is aligned. The guest may write
            // meanwhile: volatile.
            *word = unsafe { host.add(number).read_volatile() };
        }
        Some(())
    }

    /// Copies the bytes at `gpa`, wherever the pages' borders are. `None`: part of it is no memory.
    #[must_use]
    pub fn copy(&self, gpa: u64, out: &mut [u8]) -> Option<()> {
        let (mut at, mut rest) = (gpa, out);
        while !rest.is_empty() {
            let room = (1_u64 << PAGE) - (at & ((1 << PAGE) - 1));
            let (piece, after) = rest.split_at_mut(rest.len().min(room as usize));
            let (index, region) = self.region(at)?;
            if region.knows(at) || self.exists(index, at) {
                self.memory.read(at, piece).ok()?;
            } else {
                piece.fill(0);
            }
            at = at.checked_add(piece.len() as u64)?;
            rest = after;
        }
        Some(())
    }

    /// Tells from where to where (guest-physical) pages exist, in rising order.
    ///
    /// # Errors
    /// The host does not say.
    pub fn existing(&self, tell: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        for (mapping, region) in self.memory.mappings().zip(&self.regions) {
            let Some((file, first)) = mapping.file_at(mapping.host()) else {
                tell(region.start, region.start + region.size);
                continue;
            };
            let mut at = 0;
            while at < region.size {
                let Some(data) = seek(file, first + at, Whence::SeekData)? else { break };
                let hole = seek(file, data, Whence::SeekHole)?.unwrap_or(u64::MAX);
                let (from, to) = ((data - first).min(region.size), (hole.saturating_sub(first)).min(region.size));
                if from >= to {
                    break;
                }
                region.learn(from, to);
                tell(region.start + from, region.start + to);
                at = to;
            }
        }
        Ok(())
    }

    #[inline]
    fn region(&self, gpa: u64) -> Option<(usize, &Region)> {
        self.regions.iter().enumerate().find(|(_, region)| gpa.wrapping_sub(region.start) < region.size)
    }

    /// Asks the file.
    #[cold]
    fn exists(&self, region: usize, gpa: u64) -> bool {
        let (Some(mapping), Some(region)) = (self.memory.mappings().nth(region), self.regions.get(region)) else {
            return false;
        };
        let offset = (gpa - region.start) & !(base_page_size() - 1);
        let Some((file, first)) = mapping.file_at(mapping.host()) else { return true };
        // A file of which a page begins before the region's first byte: ask for that byte's page.
        let is = seek(file, first + offset, Whence::SeekData).is_ok_and(|data| data == Some(first + offset));
        if is {
            region.learn(offset, offset + 1);
        }
        is
    }
}

impl Region {
    #[inline]
    fn knows(&self, gpa: u64) -> bool {
        let page = (gpa - self.start) >> PAGE;
        self.known.get((page / 64) as usize).is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 == 1)
    }

    /// The pages of these offsets exist.
    fn learn(&self, from: u64, to: u64) {
        let (mut page, end) = (from >> PAGE, to.div_ceil(1 << PAGE));
        while page < end {
            let bits = (64 - page % 64).min(end - page);
            let mask = u64::MAX >> (64 - bits) << (page % 64);
            if let Some(word) = self.known.get((page / 64) as usize) {
                word.fetch_or(mask, Ordering::Relaxed);
            }
            page += bits;
        }
    }
}

/// Where data or the next hole begins at or behind `offset`; `None`: neither does.
fn seek(file: impl AsFd, offset: u64, whence: Whence) -> io::Result<Option<u64>> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    match lseek(file, offset, whence) {
        Ok(at) => Ok(u64::try_from(at).ok()),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::testing::GuestRam;

    #[test]
    fn a_hole_reads_as_zeroes_and_stays_one() {
        let ram = GuestRam::new(64 << 20).unwrap();
        ram.write(8 << 20, &7_u64.to_le_bytes()).unwrap();
        let onlooker = Onlooker::new(ram.memory()).unwrap();
        let blocks = || nix::sys::stat::fstat(ram.fd()).unwrap().st_blocks;
        let before = blocks();
        for gpa in (0..64 << 20).step_by(4096) {
            let expected = if gpa == 8 << 20 { 7 } else { 0 };
            assert_eq!(onlooker.word(gpa), Some(expected), "{gpa:#x}");
        }
        let mut all = vec![1; 64 << 20];
        onlooker.copy(0, &mut all).unwrap();
        assert_eq!(all.iter().map(|byte| u64::from(*byte)).sum::<u64>(), 7);
        assert_eq!(blocks(), before, "looking made pages exist");
    }

    #[test]
    fn a_page_that_comes_to_exist_later_is_read() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let onlooker = Onlooker::new(ram.memory()).unwrap();
        assert_eq!(onlooker.word(0x5008), Some(0));
        ram.write(0x5008, &9_u64.to_le_bytes()).unwrap();
        assert_eq!(onlooker.word(0x5008), Some(9));
    }

    #[test]
    fn words_are_what_one_after_the_other_is_across_pages_holes_and_regions() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let pages = [0, 1, 3].map(|page: u64| page << PAGE);
        for gpa in pages.into_iter().flat_map(|page| (page..page + 4096).step_by(8)) {
            ram.write(gpa, &(gpa + 1).to_le_bytes()).unwrap();
        }
        let onlooker = Onlooker::new(ram.memory()).unwrap();
        for gpa in [0, 0xfc0, 0xfc8, 0x1fe0, 0x2fe0, 0x3fe0, (1 << 20) - 64] {
            let mut words = [7; 8];
            onlooker.words(gpa, &mut words).unwrap();
            let expected = std::array::from_fn(|number| onlooker.word(gpa + 8 * number as u64).unwrap());
            assert_eq!(words, expected, "{gpa:#x}");
        }
        assert_eq!(onlooker.words((1 << 20) - 56, &mut [0; 8]), None);
    }

    #[test]
    fn outside_memory_and_unaligned_there_is_nothing() {
        let ram = GuestRam::new(1 << 20).unwrap();
        let onlooker = Onlooker::new(ram.memory()).unwrap();
        for gpa in [1 << 20, u64::MAX - 7, (1 << 20) - 4, 4] {
            assert_eq!(onlooker.word(gpa), None, "{gpa:#x}");
            assert_eq!(onlooker.words(gpa, &mut [0; 2]), None, "{gpa:#x}");
        }
        assert!(onlooker.copy((1 << 20) - 4, &mut [0; 8]).is_none());
    }
}
