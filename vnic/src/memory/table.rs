//! The set of mapped regions and the look-up of addresses in it.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::iotlb::{self, Iotlb, Miss};
use super::mapping::{Mapping, RegionSpec};
use super::{Access, ContiguousAlias, Gpa, GuestSlice, MemoryError, UserAddr};

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

/// An immutable set of mapped regions. See the [module](super).
#[derive(Debug, Default)]
pub struct Memory {
    /// By rising guest-physical address; `specs` and `entries` are the same regions in the same order.
    mappings: Vec<Arc<Mapping>>,
    specs: Vec<RegionSpec>,
    entries: Vec<Entry>,
    /// Behind an IOMMU: addresses are IOVAs.
    iotlb: Option<Arc<Iotlb>>,
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
        Memory::over(mappings.collect::<Result<_, _>>()?).checked()
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
        Memory::over(mappings).checked()
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
    pub fn extends(&self, other: &Memory) -> bool {
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
        Memory { mappings, specs, entries, iotlb: None }
    }

    /// The same memory behind an IOMMU: addresses are IOVAs from here on, translated by `iotlb`.
    #[must_use]
    pub fn behind(&self, iotlb: Arc<Iotlb>) -> Self {
        Memory { iotlb: Some(iotlb), ..Memory::over(self.mappings.clone()) }
    }

    /// The same memory as it is in front of the IOMMU: addresses are guest-physical.
    pub(super) fn in_front(&self) -> Self {
        Memory::over(self.mappings.clone())
    }

    /// What translates this memory's addresses; `None`: they are guest-physical.
    #[must_use]
    pub fn iotlb(&self) -> Option<&Arc<Iotlb>> {
        self.iotlb.as_ref()
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
        let pieces = |next, left, rest| Pieces { memory: self, next: Some(next), left, rest };
        match self.find(addr, len, access, &mut hint)? {
            Found::Whole(host) => Ok(pieces(Piece { addr, host, len }, 0, Rest::From(0))),
            Found::Split { first, at } => Ok(pieces(first, len - first.len, Rest::From(at))),
            Found::Scattered => {
                let mut list = self.translate(addr, len, access)?.into_iter();
                let next = list.next().ok_or(MemoryError::Unmapped { addr, len })?;
                Ok(pieces(next, len - next.len, Rest::Listed(list)))
            }
        }
    }

    /// The host address of `size` bytes at `gpa`, all in one region.
    pub(super) fn host_of(&self, gpa: u64, size: u64) -> Option<*mut u8> {
        let at = self.entries.partition_point(|entry| entry.start <= gpa).checked_sub(1)?;
        let entry = self.entries.get(at)?;
        let offset = gpa - entry.start;
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

    /// Behind an IOMMU: every piece of a range, neighbours on the host as one. Off the data path: a queue has its own copy
    /// of the translations, and an arena for the pieces.
    fn translate(&self, addr: u64, len: u64, access: Access) -> Result<Vec<Piece>, MemoryError> {
        let Some(iotlb) = &self.iotlb else { return Err(MemoryError::Unmapped { addr, len }) };
        let mut pieces: Vec<Piece> = Vec::new();
        let (mut at, mut left) = (addr, len);
        while left > 0 {
            let piece = iotlb.look_up(self, at, access)?.from(at, left);
            at = at.wrapping_add(piece.len);
            left -= piece.len;
            match pieces.last_mut() {
                Some(last) if last.host.wrapping_add(last.len as usize) == piece.host => last.len += piece.len,
                _ => pieces.push(piece),
            }
        }
        Ok(pieces)
    }

    /// The host memory of `len` bytes at `addr` in one piece: as [`slice`](Memory::slice), or, where the IOMMU has scattered
    /// pages in a row, mapped once more in that row, for as long as the alias lives.
    ///
    /// # Errors
    /// As `slice`.
    pub(crate) fn contiguous(
        &self,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<(*mut u8, Option<ContiguousAlias>), MemoryError> {
        let split = match self.slice(addr, len, access) {
            Ok(slice) => return Ok((slice.as_ptr(), None)),
            Err(split @ MemoryError::Split { .. }) if self.iotlb.is_some() => split,
            Err(error) => return Err(error),
        };
        let place = |piece: Piece| {
            let at =
                self.entries.iter().position(|entry| (piece.host as u64).wrapping_sub(entry.host as u64) < entry.size);
            Some((piece, self.mappings.get(at?)?.as_ref()))
        };
        let pieces: Option<Vec<_>> = self.translate(addr, len, access)?.into_iter().map(place).collect();
        let alias = pieces.and_then(|pieces| ContiguousAlias::new(&pieces)).ok_or(split)?;
        Ok((alias.host(), Some(alias)))
    }

    /// Behind an IOMMU: adds to `misses` what is missing of a range, page by page.
    ///
    /// # Errors
    /// Part of it can never be had: it wraps, is forbidden, or leads out of memory.
    pub fn misses(&self, addr: u64, len: u64, access: Access, misses: &mut Vec<Miss>) -> Result<(), MemoryError> {
        let Some(iotlb) = &self.iotlb else { return Ok(()) };
        let end = addr.checked_add(len).ok_or(MemoryError::Wraps { addr, len })?;
        let mut at = addr;
        while at < end {
            at = match iotlb.look_up(self, at, access) {
                Ok(whole) => at.saturating_add(whole.from(at, end - at).len),
                Err(MemoryError::Untranslated { .. }) => {
                    misses.push(Miss { iova: at, access });
                    iotlb::next_page(at)
                }
                Err(error) => return Err(error),
            };
        }
        Ok(())
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
    fn search(&self, addr: u64, len: u64, access: Access, hint: &mut Hint) -> Result<Found, MemoryError> {
        if len == 0 {
            // Nothing is touched: no address is wrong.
            return Ok(Found::Whole(std::ptr::NonNull::dangling().as_ptr()));
        }
        if addr.checked_add(len).is_none() {
            return Err(MemoryError::Wraps { addr, len });
        }
        if let Some(iotlb) = &self.iotlb {
            let piece = iotlb.look_up(self, addr, access)?.from(addr, len);
            if piece.len == len {
                return Ok(Found::Whole(piece.host));
            }
            // All of it, or nothing.
            return Ok(match self.translate(addr, len, access)?.as_slice() {
                [whole] => Found::Whole(whole.host),
                _ => Found::Scattered,
            });
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
    /// Behind an IOMMU: the translation of its first byte does not reach to its end.
    Scattered,
}

/// The pieces of a range. See [`Memory::pieces`].
#[derive(Debug)]
pub struct Pieces<'m> {
    memory: &'m Memory,
    next: Option<Piece>,
    /// Bytes after `next`.
    left: u64,
    rest: Rest,
}

/// Where the pieces behind the next one are.
#[derive(Debug)]
enum Rest {
    /// In the regions behind this one.
    From(usize),
    /// Behind an IOMMU: wherever it says.
    Listed(std::vec::IntoIter<Piece>),
}

impl<'m> Iterator for Pieces<'m> {
    type Item = GuestSlice<'m>;

    fn next(&mut self) -> Option<GuestSlice<'m>> {
        let piece = self.next.take()?;
        if self.left > 0 {
            self.next = match &mut self.rest {
                Rest::From(at) => {
                    *at += 1;
                    // `find` saw that the regions after `at` go on without a hole until all is covered.
                    self.memory.entries.get(*at).map(|entry| Piece {
                        addr: entry.start,
                        host: entry.host,
                        len: entry.size.min(self.left),
                    })
                }
                Rest::Listed(list) => list.next(),
            };
            self.left -= self.next.map_or(self.left, |next| next.len);
        }
        // SAFETY: `find` or `translate` took the piece from a region of the memory, in bounds, and it stays mapped for 'm.
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
