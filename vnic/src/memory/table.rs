//! The set of mapped regions and the look-up of addresses in it.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::mapping::{Mapping, RegionSpec};
use super::{Access, Gpa, GuestSlice, MemoryError, UserAddr};

/// Regions a memory table may have: what other back-ends take (libvhost-user's and QEMU's limit).
pub const MAX_REGIONS: usize = 509;

/// The region where a look-up ended the last time: the next one tries there first. It is a copy, so that the usual case
/// loads nothing else; whoever keeps one keeps it for one [`Memory`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hint(Entry);

impl Hint {
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

/// An immutable set of mapped regions. See the [module](super).
#[derive(Debug, Default)]
pub struct Memory {
    /// By rising guest-physical address; `specs` and `entries` are the same regions in the same order.
    mappings: Vec<Arc<Mapping>>,
    specs: Vec<RegionSpec>,
    entries: Vec<Entry>,
}

// SAFETY: the raw pointers in `entries` point into `mappings`, which are shared bytes that nobody borrows; a `Memory`
// never changes after it was made.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// No regions: every address is unmapped.
    #[must_use]
    pub fn empty() -> Self {
        Memory::default()
    }

    /// Maps a whole memory table. Nothing is mapped unless all of it can be.
    ///
    /// # Errors
    /// A region is empty, overflows, overlaps another, has too short a file or cannot be mapped; there are too many.
    pub fn map<F: Into<File>>(regions: Vec<(RegionSpec, F)>) -> Result<Self, MemoryError> {
        let specs: Vec<RegionSpec> = regions.iter().map(|(spec, _)| *spec).collect();
        check_all(&specs)?;
        let mappings = regions.into_iter().map(|(spec, file)| Mapping::new(spec, file.into()).map(Arc::new));
        Ok(Memory::over(mappings.collect::<Result<_, _>>()?))
    }

    /// As [`map`](Memory::map), without files.
    ///
    /// # Errors
    /// As [`map`](Memory::map).
    #[cfg(miri)]
    pub(super) fn private(specs: &[RegionSpec]) -> Result<Self, MemoryError> {
        check_all(specs)?;
        Ok(Memory::over(specs.iter().map(|spec| Arc::new(Mapping::private(*spec))).collect()))
    }

    /// The same memory and one region more.
    ///
    /// # Errors
    /// As [`map`](Memory::map).
    pub fn with_region<F: Into<File>>(&self, spec: RegionSpec, file: F) -> Result<Self, MemoryError> {
        let mut specs = self.specs.clone();
        specs.push(spec);
        check_all(&specs)?;
        let mut mappings = self.mappings.clone();
        mappings.push(Arc::new(Mapping::new(spec, file.into())?));
        Ok(Memory::over(mappings))
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
    pub fn without_region(&self, gpa: Gpa, user_addr: UserAddr, size: u64) -> Result<Self, MemoryError> {
        let is_it = |spec: &RegionSpec| spec.gpa == gpa && spec.user_addr == user_addr && spec.size == size;
        if !self.specs.iter().any(is_it) {
            return Err(MemoryError::NoSuchRegion { gpa: gpa.0, size });
        }
        Ok(Memory::over(self.mappings.iter().filter(|mapping| !is_it(mapping.spec())).cloned().collect()))
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
        Memory { mappings, specs, entries }
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

    /// The host memory of `len` bytes at `addr`, which must be in one piece: ring tables.
    ///
    /// # Errors
    /// Part of the range is unmapped, it wraps, or it crosses from one region into the next.
    pub fn slice(&self, addr: u64, len: u64, access: Access) -> Result<GuestSlice<'_>, MemoryError> {
        let mut pieces = self.pieces(addr, len, access)?;
        let (Some(piece), None) = (pieces.next(), pieces.next()) else {
            return Err(MemoryError::Split { addr, len });
        };
        Ok(piece)
    }

    /// The host memory of `len` bytes at `addr`, piece by piece in order; all of it is known to be mapped before the
    /// first piece is handed out. No bytes are one empty piece, whatever the address.
    ///
    /// # Errors
    /// Part of the range is unmapped, or it wraps.
    pub fn pieces(&self, addr: u64, len: u64, access: Access) -> Result<Pieces<'_>, MemoryError> {
        let mut hint = Hint::default();
        match self.find(addr, len, access, &mut hint)? {
            Found::Whole(host) => Ok(Pieces { memory: self, at: 0, next: Some(Piece { addr, host, len }), left: 0 }),
            Found::Split { first, at } => Ok(Pieces { memory: self, at, next: Some(first), left: len - first.len }),
        }
    }

    /// The first step of [`pieces`](Memory::pieces): where `len` bytes at `addr` are. The hint is used and renewed; it
    /// must come from this memory.
    #[inline(always)]
    pub(crate) fn find(&self, addr: u64, len: u64, access: Access, hint: &mut Hint) -> Result<Found, MemoryError> {
        if let Some(host) = hint.hit(addr, len) {
            return Ok(Found::Whole(host));
        }
        self.search(addr, len, access, hint)
    }

    #[inline(never)]
    fn search(&self, addr: u64, len: u64, _access: Access, hint: &mut Hint) -> Result<Found, MemoryError> {
        if len == 0 {
            // Nothing is touched: no address is wrong.
            return Ok(Found::Whole(std::ptr::NonNull::dangling().as_ptr()));
        }
        if addr.checked_add(len).is_none() {
            return Err(MemoryError::Wraps { addr, len });
        }
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

    /// Copies `out.len()` bytes at `addr` out of guest memory, wherever its borders are.
    ///
    /// # Errors
    /// As [`pieces`](Memory::pieces); nothing has been copied then.
    pub fn read(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let mut rest = out;
        for piece in self.pieces(addr, rest.len() as u64, Access::Read)? {
            let copied = piece.copy_to(rest);
            rest = rest.split_at_mut(copied).1;
        }
        Ok(())
    }

    /// Copies `bytes` into guest memory at `addr`, wherever its borders are.
    ///
    /// # Errors
    /// As [`pieces`](Memory::pieces); nothing has been copied then.
    pub fn write(&self, addr: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let mut rest = bytes;
        for piece in self.pieces(addr, rest.len() as u64, Access::Write)? {
            let copied = piece.copy_from(rest);
            rest = rest.split_at(copied).1;
        }
        Ok(())
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

/// What [`Memory::find`] found.
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
}

/// The pieces of a range. See [`Memory::pieces`].
#[derive(Debug)]
pub struct Pieces<'m> {
    memory: &'m Memory,
    /// Region of `next`.
    at: usize,
    next: Option<Piece>,
    /// Bytes after `next`.
    left: u64,
}

impl<'m> Iterator for Pieces<'m> {
    type Item = GuestSlice<'m>;

    fn next(&mut self) -> Option<GuestSlice<'m>> {
        let piece = self.next.take()?;
        if self.left > 0 {
            self.at += 1;
            // `find` saw that the regions after `at` go on without a hole until all is covered.
            self.next = self.memory.entries.get(self.at).map(|entry| Piece {
                addr: entry.start,
                host: entry.host,
                len: entry.size.min(self.left),
            });
            self.left -= self.next.map_or(self.left, |next| next.len);
        }
        // SAFETY: `find` took the piece from a region of the memory, in bounds, and it stays mapped for 'm.
        Some(unsafe { GuestSlice::new(piece.addr, piece.host, piece.len as usize) })
    }
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
