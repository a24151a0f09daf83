//! One region of guest memory, mapped.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::stat::fstat;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, MmapRegion};

use super::fault::Guard;
use super::{Gpa, MemoryError, UserAddr};

/// The smallest page of any guest, bytes.
const GUEST_PAGE: u64 = 4096;

/// A memory region as the front-end describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionSpec {
    /// Where the guest sees it.
    pub gpa: Gpa,
    /// Its size, bytes.
    pub size: u64,
    /// Where the front-end sees it.
    pub user_addr: UserAddr,
    /// Where it starts in the shared file, bytes.
    pub mmap_offset: u64,
}

impl RegionSpec {
    /// The end in each of the three address spaces must exist. Every driver's memory begins with a page, whatever the size of its
    /// host's pages. It may end within one, as the rings of a driver without a VM do (libblkio); where in the file a region begins is the
    /// front-end's choice.
    pub(super) fn check(&self) -> Result<(), MemoryError> {
        if self.size == 0 {
            return Err(MemoryError::EmptyRegion { gpa: self.gpa.0 });
        }
        for start in [self.gpa.0, self.user_addr.0, self.mmap_offset] {
            if start.checked_add(self.size).is_none() {
                return Err(MemoryError::Wraps { addr: start, len: self.size });
            }
        }
        if !self.gpa.0.is_multiple_of(GUEST_PAGE) {
            return Err(MemoryError::WithinPage { gpa: self.gpa.0 });
        }
        Ok(())
    }

    pub(super) fn overlaps(&self, other: &RegionSpec) -> bool {
        // `check` made sure that neither sum overflows.
        self.gpa.0 < other.gpa.0 + other.size && other.gpa.0 < self.gpa.0 + self.size
    }
}

/// A region's pages in this process, until dropped.
///
/// Field order matters: the guard must stop answering for the pages before they are unmapped.
#[derive(Debug)]
pub(super) struct Mapping {
    guard: Guard,
    region: MmapRegion,
    skip: usize,
    page: u64,
    spec: RegionSpec,
}

impl Mapping {
    /// Maps `spec`, which has passed [`RegionSpec::check`].
    pub(super) fn new(spec: RegionSpec, file: File) -> Result<Self, MemoryError> {
        let gpa = spec.gpa.0;
        let failed = |reason: String| MemoryError::Map { gpa, reason };
        let have = fstat(&file).map_err(|e| failed(format!("fstat: {e}")))?.st_size;
        let have = u64::try_from(have).unwrap_or(0);
        let needed = spec.mmap_offset + spec.size;
        if have < needed {
            return Err(MemoryError::ShortFile { gpa, needed, have });
        }
        // A mapping starts on a page of the file and, with huge pages, ends on one too; a region need do neither.
        let page = page_size(&file).map_err(|e| failed(format!("fstatfs: {e}")))?;
        let skip = spec.mmap_offset % page;
        let mapped = spec.size.checked_add(skip).and_then(|len| len.checked_next_multiple_of(page));
        let mapped = mapped.and_then(|len| usize::try_from(len).ok());
        let mapped = mapped.ok_or_else(|| failed("too large for this host".to_owned()))?;
        let region = MmapRegionBuilder::new(mapped)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(file, spec.mmap_offset - skip))
            .build()
            .map_err(|e| failed(e.to_string()))?;
        let guard = Guard::new(region.as_ptr() as usize, mapped, page as usize).map_err(|e| failed(e.to_string()))?;
        Ok(Mapping { guard, region, skip: skip as usize, page, spec })
    }

    /// Memory of this process alone in place of a file's, for the interpreter that runs the tests: it maps no files.
    #[cfg(miri)]
    pub(super) fn private(spec: RegionSpec) -> Self {
        let page = base_page_size();
        let skip = spec.mmap_offset % page;
        let mapped = (spec.size + skip).next_multiple_of(page) as usize;
        let layout = std::alloc::Layout::from_size_align(mapped, page as usize).expect("a test's memory");
        // SAFETY: the size is not 0. It is never given back, so it outlives the mapping.
        let region = unsafe {
            let bytes = std::alloc::alloc_zeroed(layout);
            MmapRegion::build_raw(bytes, mapped, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
        };
        let region = region.expect("a test's memory");
        let guard = Guard::new(region.as_ptr() as usize, mapped, page as usize).expect("a slot");
        Mapping { guard, region, skip: skip as usize, page, spec }
    }

    pub(super) fn spec(&self) -> &RegionSpec {
        &self.spec
    }

    /// The region's first byte.
    pub(super) fn host(&self) -> *mut u8 {
        // `skip` is less than a page and the mapping is that much longer than the region.
        self.region.as_ptr().wrapping_add(self.skip)
    }

    /// Do the two share user addresses that are not the same bytes of one file? One memory at two guest-physical addresses is
    /// fine: some boards alias theirs.
    pub(super) fn contradicts(&self, other: &Mapping) -> bool {
        let (one, two) = (&self.spec, &other.spec);
        // `check` made sure that neither sum overflows.
        let shared = one.user_addr.0 < two.user_addr.0 + two.size && two.user_addr.0 < one.user_addr.0 + one.size;
        let start = |spec: &RegionSpec| spec.mmap_offset.wrapping_sub(spec.user_addr.0);
        let same = |file: &FileOffset| start(one) == start(two) && self.is_of(file.file());
        shared && !other.region.file_offset().is_some_and(same)
    }

    /// Is it of this file?
    pub(super) fn is_of(&self, file: impl AsFd) -> bool {
        let (Some(own), Ok(other)) = (self.region.file_offset(), fstat(file)) else { return false };
        fstat(own.file()).is_ok_and(|own| (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino))
    }

    /// The page size of its file, bytes.
    pub(super) fn page(&self) -> u64 {
        self.page
    }

    /// The file, and where in it the byte at `host` is, if it is one of the mapping's pages.
    pub(super) fn file_at(&self, host: *const u8) -> Option<(&File, u64)> {
        let offset = (host as u64).checked_sub(self.region.as_ptr() as u64)?;
        let file = self.region.file_offset()?;
        (offset < self.region.size() as u64).then(|| (file.file(), file.start() + offset))
    }

    /// Did its file shrink under it?
    pub(super) fn lost(&self) -> bool {
        self.guard.lost()
    }
}

/// The page size of the file's mappings, bytes.
fn page_size(file: &File) -> io::Result<u64> {
    let fs = fstatfs(file)?;
    if fs.filesystem_type() == HUGETLBFS_MAGIC {
        let huge = u64::try_from(fs.block_size()).unwrap_or(0);
        if huge.is_power_of_two() {
            return Ok(huge);
        }
        return Err(io::Error::other(format!("fd {}: huge pages of {huge} bytes", file.as_raw_fd())));
    }
    Ok(base_page_size())
}

/// The page size of ordinary mappings, bytes.
pub(super) fn base_page_size() -> u64 {
    // SAFETY: `sysconf` has no memory effects.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    u64::try_from(size).unwrap_or(4096)
}
