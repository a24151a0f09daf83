//! Where a file's page-cache pages are in the guest's physical memory.
//!
//! Operation: map the file, touch every page, read `/proc/self/pagemap`: one little-endian 64-bit entry per virtual
//! page, bits 0–54 the page-frame number, bit 63 "present". Without CAP_SYS_ADMIN the kernel shows frame number 0.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};
use vnic_experiment::wire::{PAGE_SIZE, PageRun};

use vnic_driver::mapping::Mapping;

/// Bits 0–54 of an entry.
const FRAME: u64 = (1 << 55) - 1;
/// Bit 63 of an entry.
const PRESENT: u64 = 1 << 63;

/// The pages of the whole file, in file order; those that are not in memory are brought there.
///
/// # Errors
/// The page map cannot be read, or does not show frame numbers to this user.
pub fn page_runs(file: &File) -> Result<Vec<PageRun>> {
    let Some(mapping) = map_whole(file)? else { return Ok(Vec::new()) };
    mapping.touch();
    runs((0..).zip(page_map(&mapping)?))
}

/// The pages of the file that are in memory, in file order.
///
/// # Errors
/// The page map cannot be read, or does not show frame numbers to this user.
pub fn resident_page_runs(file: &File) -> Result<Vec<PageRun>> {
    let Some(mapping) = map_whole(file)? else { return Ok(Vec::new()) };
    let resident = mapping.resident_pages().context("mincore")?;
    for &page in &resident {
        mapping.touch_page(page);
    }
    let entries = page_map(&mapping)?;
    runs(resident.iter().filter_map(|&page| Some((page as u64, *entries.get(page)?))))
}

/// Has the kernel read a byte of each page of the file; how many there are. To the witness that counts every access, this is as
/// many bytes loaded.
///
/// # Errors
/// The file cannot be read.
pub fn touch(file: &File) -> Result<u64> {
    let pages = file.metadata().context("stat of the file")?.len().div_ceil(PAGE_SIZE);
    for page in 0..pages {
        file.read_exact_at(&mut [0], page * PAGE_SIZE).context("read a byte of each page")?;
    }
    Ok(pages)
}

fn map_whole(file: &File) -> Result<Option<Mapping>> {
    let bytes = file.metadata().context("stat of the file")?.len();
    if bytes == 0 {
        return Ok(None);
    }
    Mapping::of_file(file, 0, bytes).map(Some).context("map the file to see its pages")
}

/// The guest-physical addresses of this program's own pages from `address` on, which must be in memory.
///
/// # Errors
/// The page map cannot be read, does not show frame numbers to this user, or has no such page.
pub fn frames(address: u64, count: usize) -> Result<Vec<u64>> {
    let runs = runs((0..).zip(entries(address, count)?))?;
    Ok(runs.iter().flat_map(|run| (0..run.count).map(|page| run.gpa + page * PAGE_SIZE)).collect())
}

/// What the kernel says each page is used for (/proc/kpageflags), by its address.
///
/// # Errors
/// The kernel does not say.
pub fn flags(addresses: &[u64]) -> Result<Vec<u64>> {
    let file = File::open("/proc/kpageflags").context("open /proc/kpageflags")?;
    let flags_at = |gpa: &u64| {
        let mut flags = [0; 8];
        file.read_exact_at(&mut flags, gpa / PAGE_SIZE * 8).context("read /proc/kpageflags")?;
        Ok(u64::from_le_bytes(flags))
    };
    addresses.iter().map(flags_at).collect()
}

/// The page map's entry for each page of the mapping.
fn page_map(mapping: &Mapping) -> Result<Vec<u64>> {
    entries(mapping.address() as u64, mapping.pages())
}

fn entries(address: u64, count: usize) -> Result<Vec<u64>> {
    let mut entries = vec![0_u8; count * 8];
    let pagemap = File::open("/proc/self/pagemap").context("open /proc/self/pagemap")?;
    pagemap.read_exact_at(&mut entries, address / PAGE_SIZE * 8).context("read /proc/self/pagemap")?;
    Ok(entries.chunks_exact(8).map(|entry| u64::from_le_bytes(std::array::from_fn(|i| entry[i]))).collect())
}

/// Joins pages and their entries of the page map to runs.
fn runs(entries: impl Iterator<Item = (u64, u64)>) -> Result<Vec<PageRun>> {
    let mut runs: Vec<PageRun> = Vec::new();
    for (page, entry) in entries {
        if entry & PRESENT == 0 {
            bail!("page {page} of the file is not in memory");
        }
        let gpa = (entry & FRAME) * PAGE_SIZE;
        ensure!(gpa != 0, "the kernel hides physical page numbers: this needs CAP_SYS_ADMIN");
        match runs.last_mut() {
            Some(run) if run.gpa + run.count * PAGE_SIZE == gpa && run.page + run.count == page => run.count += 1,
            _ => runs.push(PageRun { page, gpa, count: 1 }),
        }
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn present(frame: u64) -> u64 {
        PRESENT | frame
    }

    #[test]
    fn neighbours_join_and_gaps_part() {
        let entries = [present(16), present(17), present(9), present(10), present(12)];
        let expected = [
            PageRun { page: 0, gpa: 16 * PAGE_SIZE, count: 2 },
            PageRun { page: 2, gpa: 9 * PAGE_SIZE, count: 2 },
            PageRun { page: 4, gpa: 12 * PAGE_SIZE, count: 1 },
        ];
        assert_eq!(runs((0..).zip(entries)).expect("runs"), expected);
    }

    #[test]
    fn every_page_of_a_file_is_found_or_the_missing_right_is_named() {
        use std::io::Write;
        let mut file = crate::file::unlinked_temporary().expect("a temporary file");
        file.write_all(&vec![7; 5 * 4096 + 1]).expect("the file is written");
        match page_runs(&file) {
            Ok(runs) => assert_eq!(runs.iter().map(|run| run.count).sum::<u64>(), 6),
            Err(error) => assert!(format!("{error:#}").contains("CAP_SYS_ADMIN"), "{error:#}"),
        }
    }

    #[test]
    fn pages_apart_in_the_file_stay_apart_even_when_neighbours_in_memory() {
        let runs = runs([(0, present(5)), (2, present(6))].into_iter()).expect("runs");
        assert_eq!(runs.len(), 2);
    }

    #[test]
    fn descending_pages_stay_apart() {
        let runs = runs((0..).zip([present(5), present(4)])).expect("runs");
        assert_eq!(runs.len(), 2);
    }

    #[test]
    fn a_page_that_is_not_in_memory_is_an_error() {
        assert!(runs((0..).zip([present(5), 0])).is_err());
    }

    #[test]
    fn a_hidden_frame_number_is_an_error() {
        let error = runs((0..).zip([PRESENT])).expect_err("frame 0").to_string();
        assert!(error.contains("CAP_SYS_ADMIN"), "{error}");
    }

    #[test]
    fn flag_bits_above_the_frame_number_are_no_address() {
        let soft_dirty = 1 << 55;
        assert_eq!(
            runs((0..).zip([present(3) | soft_dirty])).expect("runs"),
            [PageRun { page: 0, gpa: 3 * PAGE_SIZE, count: 1 }]
        );
    }
}
