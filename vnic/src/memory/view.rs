//! The guest's memory as the device has it: by guest-physical address, or behind an IOMMU by what that translates.

use std::fs::File;
use std::ops::Deref;
use std::sync::Arc;

use super::iotlb::{self, Iotlb, Miss};
use super::mapping::RegionSpec;
use super::regions::{Found, GuestRegions, Hint, Piece};
use super::{Access, ContiguousAlias, Gpa, GuestSlice, MemoryError, UserAddr};

/// The guest's memory, as addresses in descriptors see it. What is true of it whatever the addresses are is said by its
/// [`GuestRegions`], which it derefs to. See the [module](super).
#[derive(Debug, Default)]
pub struct Memory {
    guest: Arc<GuestRegions>,
    /// Behind an IOMMU: addresses are IOVAs.
    iotlb: Option<Arc<Iotlb>>,
}

impl Deref for Memory {
    type Target = GuestRegions;

    fn deref(&self) -> &GuestRegions {
        &self.guest
    }
}

impl From<GuestRegions> for Memory {
    fn from(guest: GuestRegions) -> Self {
        Memory { guest: Arc::new(guest), iotlb: None }
    }
}

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
        GuestRegions::map(regions).map(Memory::from)
    }

    /// The same memory and one region more, by guest-physical address.
    ///
    /// # Errors
    /// As [`map`](Memory::map).
    pub fn with_region<F: Into<File>>(&self, spec: RegionSpec, file: F) -> Result<Self, MemoryError> {
        self.guest.with(spec, file.into()).map(Memory::from)
    }

    /// The same memory without the region that has exactly these addresses and size, by guest-physical address.
    ///
    /// # Errors
    /// There is none.
    pub fn without_region(&self, gpa: Gpa, user_addr: UserAddr, size: u64) -> Result<Self, MemoryError> {
        self.guest.without(gpa, user_addr, size).map(Memory::from)
    }

    /// The same memory behind an IOMMU: addresses are IOVAs from here on, translated by `iotlb`.
    #[must_use]
    pub fn behind(&self, iotlb: Arc<Iotlb>) -> Self {
        Memory { guest: Arc::clone(&self.guest), iotlb: Some(iotlb) }
    }

    /// The same memory as it is in front of the IOMMU: addresses are guest-physical.
    pub(super) fn in_front(&self) -> Self {
        Memory { guest: Arc::clone(&self.guest), iotlb: None }
    }

    /// The memory itself, by guest-physical address.
    #[must_use]
    pub fn guest(&self) -> &Arc<GuestRegions> {
        &self.guest
    }

    /// What translates this memory's addresses; `None`: they are guest-physical.
    #[must_use]
    pub fn iotlb(&self) -> Option<&Arc<Iotlb>> {
        self.iotlb.as_ref()
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
        let pieces = |next, left, rest| Pieces { memory: &self.guest, next: Some(next), left, rest };
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

    /// Behind an IOMMU: every piece of a range, neighbours on the host as one. Off the data path: a queue has its own copy
    /// of the translations, and an arena for the pieces.
    fn translate(&self, addr: u64, len: u64, access: Access) -> Result<Vec<Piece>, MemoryError> {
        let Some(iotlb) = &self.iotlb else { return Err(MemoryError::Unmapped { addr, len }) };
        let mut pieces: Vec<Piece> = Vec::new();
        let (mut at, mut left) = (addr, len);
        while left > 0 {
            let piece = iotlb.look_up(&self.guest, at, access)?.from(at, left);
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
        let place = |piece: Piece| Some((piece, self.guest.mapping_at(piece.host)?));
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
            at = match iotlb.look_up(&self.guest, at, access) {
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
            let piece = iotlb.look_up(&self.guest, addr, access)?.from(addr, len);
            if piece.len == len {
                return Ok(Found::Whole(piece.host));
            }
            // All of it, or nothing.
            return Ok(match self.translate(addr, len, access)?.as_slice() {
                [whole] => Found::Whole(whole.host),
                _ => Found::Scattered,
            });
        }
        self.guest.search(addr, len, hint)
    }

    /// Copies `out.len()` bytes at `addr` out of guest memory, wherever its borders are.
    ///
    /// # Errors
    /// As [`pieces`](Memory::pieces); nothing has been copied then.
    pub fn read(&self, addr: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let mut rest = out;
        for piece in self.pieces(addr, rest.len() as u64, Access::Read)? {
            let copied = piece.read_once(rest);
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
}

/// The pieces of a range. See [`Memory::pieces`].
#[derive(Debug)]
pub struct Pieces<'m> {
    memory: &'m GuestRegions,
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
                    // `find` saw that the regions after `at` go on without a hole until all is covered.
                    let piece = self.memory.piece_behind(*at, self.left);
                    *at += 1;
                    piece
                }
                Rest::Listed(list) => list.next(),
            };
            self.left -= self.next.map_or(self.left, |next| next.len);
        }
        // SAFETY: `find` or `translate` took the piece from a region of the memory, in bounds, and it stays mapped for 'm.
        Some(unsafe { GuestSlice::new(piece.addr, piece.host, piece.len as usize) })
    }
}
