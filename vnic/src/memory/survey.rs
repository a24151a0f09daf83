//! Reads through all guest memory that is there, for a scan: copies it piece by piece, changes nothing.
//!
//! Operation: `mincore` says which pages exist; the others are left alone, because touching one would make it exist
//! and cost the guest's host memory. Runs of pages are copied window by window, each beginning with the end of the
//! one before, so that what the caller looks for is whole in one of them.

use std::io;

use super::Memory;
use super::mapping::{Mapping, base_page_size};

/// Bytes copied at a time.
const WINDOW: usize = 1 << 20;
/// Pages asked for in one `mincore`: 64 MiB of 4 KiB pages.
const ASK: usize = 16 << 10;

impl Memory {
    /// Shows `look` every resident byte of guest memory, in windows: guest-physical address and a copy of the bytes.
    /// Two windows of one run of pages share `overlap` bytes (less than a page). Returns the bytes read.
    ///
    /// The guest runs on meanwhile: a window is a mix of moments, as any DMA read is.
    ///
    /// # Errors
    /// The host does not say which pages exist.
    pub fn survey(&self, overlap: usize, mut look: impl FnMut(u64, &[u8])) -> io::Result<u64> {
        if self.iotlb().is_some() {
            // What exists is known by its guest-physical address, and whatever the IOMMU leads to is among it.
            return self.in_front().survey(overlap, look);
        }
        let mut buffer = vec![0; WINDOW];
        let mut read = 0;
        let mut run: Option<(u64, u64)> = None;
        for mapping in self.mappings() {
            mapping.resident(|start, end, is_there| match (run, is_there) {
                (Some((from, to)), true) if to == start => run = Some((from, end)),
                (open, _) => {
                    if let Some((from, to)) = open {
                        read += self.windows(from, to, overlap, &mut buffer, &mut look);
                    }
                    run = is_there.then_some((start, end));
                }
            })?;
        }
        if let Some((from, to)) = run {
            read += self.windows(from, to, overlap, &mut buffer, &mut look);
        }
        Ok(read)
    }

    fn windows(&self, from: u64, to: u64, overlap: usize, buffer: &mut [u8], look: &mut impl FnMut(u64, &[u8])) -> u64 {
        let mut at = from;
        loop {
            let len = (to - at).min(buffer.len() as u64) as usize;
            let Some(window) = buffer.get_mut(..len) else { return to - from };
            // A run lies in memory that this table maps: nothing can be wrong with it.
            if self.read(at, window).is_ok() {
                look(at, window);
            }
            if at + len as u64 == to {
                return to - from;
            }
            at += (len - overlap) as u64;
        }
    }
}

impl Mapping {
    /// Tells for each page of the region, in order, from where to where it goes (guest-physical) and whether it exists.
    fn resident(&self, mut tell: impl FnMut(u64, u64, bool)) -> io::Result<()> {
        let page = base_page_size();
        let spec = self.spec();
        let first = self.host() as u64;
        // Pages of the host; the region may begin within the first and end within the last.
        let (mut host, end) = (first - first % page, first + spec.size);
        let mut there = vec![0_u8; ASK];
        while host < end {
            let pages = (end - host).div_ceil(page).min(ASK as u64);
            // SAFETY: all of the pages are this mapping's; `there` has a byte for each.
            let asked = unsafe { libc::mincore(host as *mut _, (pages * page) as usize, there.as_mut_ptr()) };
            if asked != 0 {
                return Err(io::Error::last_os_error());
            }
            for flags in there.iter().take(pages as usize) {
                let (from, to) = (host.max(first), (host + page).min(end));
                tell(spec.gpa.0 + (from - first), spec.gpa.0 + (to - first), flags & 1 == 1);
                host += page;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::memory::Gpa;
    use crate::memory::testing::GuestRam;

    #[test]
    fn what_stands_across_windows_and_regions_is_whole_once() {
        let ram = GuestRam::with_regions(&[(Gpa(0), 3 << 20), (Gpa(3 << 20), 1 << 20)]).unwrap();
        let places = [5, (1 << 20) - 30, (2 << 20) - 63, (3 << 20) - 32, (4 << 20) - 64];
        // Everything exists, so that runs are as long as they can be.
        ram.write(0, &vec![1; 4 << 20]).unwrap();
        for place in places {
            ram.write(place, &[7; 64]).unwrap();
        }
        let mut found = Vec::new();
        let read = ram.memory().survey(63, |addr, bytes| {
            let whole = bytes.windows(64).enumerate().filter(|(_, window)| window == &[7; 64]);
            found.extend(whole.map(|(at, _)| addr + at as u64));
        });
        assert_eq!(found, places);
        assert_eq!(read.unwrap(), 4 << 20);
    }

    #[test]
    fn pages_that_do_not_exist_are_not_made() {
        let ram = GuestRam::new(64 << 20).unwrap();
        ram.write(8 << 20, &[1]).unwrap();
        let read = || ram.memory().survey(63, |_, _| {}).unwrap();
        let first = read();
        assert!((4096..64 << 20).contains(&first), "{first} bytes exist");
        assert_eq!(read(), first, "reading made no more");
    }
}
