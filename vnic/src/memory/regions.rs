//! The guest's memory as the guest has it: mapped regions by guest-physical address.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::mapping::{Mapping, RegionSpec};
use super::{Gpa, MemoryError, UserAddr};

/// Regions a memory table may have: what other back-ends take (libvhost-user's and QEMU's limit).
pub const MAX_REGIONS: usize = 509;

/// The region where a look-up ended the last time: the next one tries there first. It is a copy, so that the usual case
/// loads nothing else; whoever keeps one keeps it for one [`Memory`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hint(Entry);

impl Hint {
    /// As if the last look-up had ended in these `size` bytes at `start`, which are mapped at `host`.
    pub(crate) fn over(start: u64, size: u64, host: *mut u8) -> Self {
        Hint(Entry { start, size, host })
    }

    /// The host address of `len` bytes at `addr`, if they lie wholly in the region.
    #[inline(always)]
    pub(crate) fn hit(&self, addr: u64, len: u64) -> Option<*mut u8> {
        let Hint(entry) = self;
        let offset = addr.wrapping_sub(entry.start);
        // In this order nothing overflows: the rest of the region is computed only inside it.
        (offset < entry.size && len <= entry.size - offset).then(|| entry.host.wrapping_add(offset as usize))
    }
}

impl Default for Hint {
    /// A region without bytes: nothing is found there.
    fn default() -> Self {
        Hint(Entry { start: 0, size: 0, host: std::ptr::null_mut() })
    }
}

/// A stretch of guest memory that is contiguous on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The guest's address of its first byte.
    pub(crate) addr: u64,
    /// The host's.
    pub(crate) host: *mut u8,
    /// Bytes.
    pub(crate) len: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    start: u64,
    size: u64,
    host: *mut u8,
}

/// An immutable set of mapped regions.
#[derive(Debug, Default)]
pub struct GuestRegions {
    /// By rising guest-physical address; `specs` and `entries` are the same regions in the same order.
    mappings: Vec<Arc<Mapping>>,
    specs: Vec<RegionSpec>,
    entries: Vec<Entry>,
}

// SAFETY: the raw pointers in `entries` point into `mappings`, which are shared bytes that nobody borrows; the set never
// changes after it was made.
unsafe impl Send for GuestRegions {}
// SAFETY: as above.
unsafe impl Sync for GuestRegions {}

impl GuestRegions {
    /// Maps a whole memory table. Nothing is mapped unless all of it can be.
    ///
    /// # Errors
    /// A region is empty, overflows, overlaps another, has too short a file or cannot be mapped; there are too many.
    pub(super) fn map<F: Into<File>>(regions: Vec<(RegionSpec, F)>) -> Result<Self, MemoryError> {
        let specs: Vec<RegionSpec> = regions.iter().map(|(spec, _)| *spec).collect();
        check_all(&specs)?;
        let mappings = regions.into_iter().map(|(spec, file)| Mapping::new(spec, file.into()).map(Arc::new));
        GuestRegions::over(mappings.collect::<Result<_, _>>()?).checked()
    }

    /// As [`map`](Memory::map), without files.
    ///
    /// # Errors
    /// As [`map`](Memory::map).
    #[cfg(miri)]
    pub(super) fn private(specs: &[RegionSpec]) -> Result<Self, MemoryError> {
        check_all(specs)?;
        Ok(GuestRegions::over(specs.iter().map(|spec| Arc::new(Mapping::private(*spec))).collect()))
    }

    /// The same memory and one region more.
    ///
    /// # Errors
    /// As [`map`](Memory::map).
    pub(super) fn with(&self, spec: RegionSpec, file: File) -> Result<Self, MemoryError> {
        let mut specs = self.specs.clone();
        specs.push(spec);
        check_all(&specs)?;
        let mut mappings = self.mappings.clone();
        mappings.push(Arc::new(Mapping::new(spec, file)?));
        GuestRegions::over(mappings).checked()
    }

    /// No two regions say different things of one user address: ring addresses come as such.
    fn checked(self) -> Result<Self, MemoryError> {
        for (at, mapping) in self.mappings.iter().enumerate() {
            if self.mappings.iter().take(at).any(|other| mapping.contradicts(other)) {
                let RegionSpec { gpa, size, .. } = *mapping.spec();
                return Err(MemoryError::UserOverlap { gpa: gpa.0, size });
            }
        }
        Ok(self)
    }

    /// Is all of `other` in this memory, mapped at the same place? Then what points into `other` may go on doing so.
    #[must_use]
    pub fn extends(&self, other: &Self) -> bool {
        other.mappings.iter().all(|theirs| self.mappings.iter().any(|mine| Arc::ptr_eq(mine, theirs)))
    }

    /// Is there exactly this region, of the same file?
    #[must_use]
    pub fn has(&self, spec: RegionSpec, file: impl AsFd) -> bool {
        self.mappings.iter().any(|mapping| *mapping.spec() == spec && mapping.is_of(&file))
    }

    /// The same memory without the region that has exactly these addresses and size.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn without(&self, gpa: Gpa, user_addr: UserAddr, size: u64) -> Result<Self, MemoryError> {
        let is_it = |spec: &RegionSpec| spec.gpa == gpa && spec.user_addr == user_addr && spec.size == size;
        if !self.specs.iter().any(is_it) {
            return Err(MemoryError::NoSuchRegion { gpa: gpa.0, size });
        }
        Ok(GuestRegions::over(self.mappings.iter().filter(|mapping| !is_it(mapping.spec())).cloned().collect()))
    }

    fn over(mut mappings: Vec<Arc<Mapping>>) -> Self {
        mappings.sort_by_key(|mapping| mapping.spec().gpa);
        let specs = mappings.iter().map(|mapping| *mapping.spec()).collect();
        let entry = |mapping: &Arc<Mapping>| Entry {
            start: mapping.spec().gpa.0,
            size: mapping.spec().size,
            host: mapping.host(),
        };
        let entries = mappings.iter().map(entry).collect();
        GuestRegions { mappings, specs, entries }
    }

    /// The regions, by rising guest-physical address.
    #[must_use]
    pub fn regions(&self) -> &[RegionSpec] {
        &self.specs
    }

    /// The regions' mappings, in the same order.
    pub(super) fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().map(AsRef::as_ref)
    }

    /// Has a region's file shrunk under it, so that zeroes now stand where the guest's bytes were? The session must end.
    #[must_use]
    pub fn lost(&self) -> bool {
        self.mappings.iter().any(|mapping| mapping.lost())
    }

    /// The host address of `size` bytes at `gpa`, all in one region.
    pub(super) fn host_of(&self, gpa: u64, size: u64) -> Option<*mut u8> {
        let at = self.entries.partition_point(|entry| entry.start <= gpa).checked_sub(1)?;
        let entry = self.entries.get(at)?;
        let offset = gpa - entry.start;
        (offset < entry.size && size <= entry.size - offset).then(|| entry.host.wrapping_add(offset as usize))
    }

    /// The host address of `size` bytes at `gpa`, all in the region of this number.
    #[inline]
    pub(super) fn host_in(&self, region: usize, gpa: u64, size: u64) -> Option<*mut u8> {
        let entry = self.entries.get(region)?;
        let offset = gpa.wrapping_sub(entry.start);
        (offset < entry.size && size <= entry.size - offset).then(|| entry.host.wrapping_add(offset as usize))
    }

    /// The guest-physical address of a host address that a look-up in this memory gave.
    #[must_use]
    pub fn gpa_at(&self, host: *const u8) -> Option<Gpa> {
        let within = |entry: &Entry| {
            let offset = (host as u64).wrapping_sub(entry.host as u64);
            (offset < entry.size).then(|| Gpa(entry.start + offset))
        };
        self.entries.iter().find_map(within)
    }

    /// The region that a host address is in, which a look-up in it gave.
    pub(super) fn mapping_at(&self, host: *const u8) -> Option<&Mapping> {
        let within = |entry: &Entry| (host as u64).wrapping_sub(entry.host as u64) < entry.size;
        self.entries.iter().zip(&self.mappings).find_map(|(entry, mapping)| within(entry).then_some(mapping.as_ref()))
    }

    /// The region behind region `at`, as a piece of at most `most` bytes.
    pub(super) fn piece_behind(&self, at: usize, most: u64) -> Option<Piece> {
        let entry = self.entries.get(at + 1)?;
        Some(Piece { addr: entry.start, host: entry.host, len: entry.size.min(most) })
    }

    /// Where `len` bytes at `addr` are, which are some. The hint is renewed.
    pub(super) fn search(&self, addr: u64, len: u64, hint: &mut Hint) -> Result<Found, MemoryError> {
        let unmapped = MemoryError::Unmapped { addr, len };
        let after = self.entries.partition_point(|entry| entry.start <= addr);
        let Some(at) = after.checked_sub(1) else { return Err(unmapped) };
        let Some(entry) = self.entries.get(at) else { return Err(unmapped) };
        let offset = addr - entry.start;
        if offset >= entry.size {
            return Err(unmapped);
        }
        *hint = Hint(*entry);
        let host = entry.host.wrapping_add(offset as usize);
        let have = entry.size - offset;
        if len <= have {
            return Ok(Found::Whole(host));
        }
        // The rest must follow without a hole, in the regions after this one.
        let mut end = entry.start + entry.size;
        for next in self.entries.iter().skip(at + 1) {
            if next.start != end {
                break;
            }
            end = next.start + next.size;
            if end >= addr + len {
                return Ok(Found::Split { first: Piece { addr, host, len: have }, at });
            }
        }
        Err(unmapped)
    }

    /// The guest-physical address of `len` bytes that the front-end sees at `user`, all in one region.
    ///
    /// # Errors
    /// They are in none.
    pub fn gpa_of(&self, user: UserAddr, len: u64) -> Result<Gpa, MemoryError> {
        for spec in &self.specs {
            let offset = user.0.wrapping_sub(spec.user_addr.0);
            if offset < spec.size && len <= spec.size - offset {
                // No overflow: `check` saw the region's end.
                return Ok(Gpa(spec.gpa.0 + offset));
            }
        }
        Err(MemoryError::UserUnmapped { addr: user.0, len })
    }
}

/// What a look-up found.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Found {
    /// All of it in one piece of host memory.
    Whole(*mut u8),
    /// It goes on in the regions after `at`, without a hole.
    Split {
        /// What is in the first.
        first: Piece,
        /// Index of the region.
        at: usize,
    },
    /// Behind an IOMMU: the translation of its first byte does not reach to its end.
    Scattered,
}

fn check_all(specs: &[RegionSpec]) -> Result<(), MemoryError> {
    if specs.len() > MAX_REGIONS {
        return Err(MemoryError::TooManyRegions { count: specs.len(), max: MAX_REGIONS });
    }
    for (at, spec) in specs.iter().enumerate() {
        spec.check()?;
        if specs.iter().take(at).any(|other| spec.overlaps(other)) {
            return Err(MemoryError::Overlap { gpa: spec.gpa.0, size: spec.size });
        }
    }
    Ok(())
}
