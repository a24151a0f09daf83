//! A queue's own copy of the translations it uses: no lock while it is warm.

use std::cell::Cell;
use std::sync::Arc;

use crate::memory::regions::Piece;
use crate::memory::{Access, GuestRegions, Hint, MemoryError};

use super::{Iotlb, Miss, PAGE};

/// Pages of which a queue remembers the translation: more than a ring of 1024 has buffers. Two addresses that far apart
/// share a place.
const SLOTS: usize = 4096;
/// Misses that are noted in one walk: a chain of 64 KiB of single pages, and some.
const MISSES: usize = 64;
const PAGE_BITS: u32 = 12;
/// Pages behind its own that a page's place may hold besides, where they are neighbours on the host.
const JOINED: u64 = 16;

/// Where one page's translation leads: all of the translation, so that a buffer may go on behind the page.
#[derive(Debug, Clone, Copy)]
struct Slot {
    start: u64,
    /// Bytes from `start` on that may be read, and written: all of them, or none.
    readable: u64,
    writable: u64,
    host: *mut u8,
}

impl Slot {
    const EMPTY: Slot = Slot { start: 0, readable: 0, writable: 0, host: std::ptr::null_mut() };

    #[inline(always)]
    const fn size(&self, access: Access) -> u64 {
        match access {
            Access::Read => self.readable,
            Access::Write => self.writable,
        }
    }
}

/// The copy. Belongs to one arena, of whose memory it holds pointers.
#[derive(Debug)]
pub(crate) struct Tlb {
    slots: Box<[Slot; SLOTS]>,
    iotlb: Arc<Iotlb>,
    hits: Cell<u64>,
    missing: Vec<Miss>,
}

impl Tlb {
    /// An empty copy of `iotlb`.
    pub(crate) fn new(iotlb: Arc<Iotlb>) -> Self {
        Tlb { slots: Box::new([Slot::EMPTY; SLOTS]), iotlb, hits: Cell::new(0), missing: Vec::with_capacity(MISSES) }
    }

    #[inline(always)]
    const fn place(addr: u64) -> usize {
        (addr >> PAGE_BITS) as usize & (SLOTS - 1)
    }

    /// The host address of `len` bytes at `addr`, if the copy has them in one translation that allows it. Who looks up
    /// many counts them together, by [`count`](Self::count).
    #[inline(always)]
    pub(crate) fn look(&self, addr: u64, len: u64, access: Access) -> Option<*mut u8> {
        let slot = self.slots.get(Self::place(addr))?;
        let (size, offset) = (slot.size(access), addr.wrapping_sub(slot.start));
        // In this order nothing overflows: the rest of the translation is computed only inside it.
        (offset < size && len <= size - offset).then(|| slot.host.wrapping_add(offset as usize))
    }

    /// So many of them were found.
    #[inline(always)]
    pub(crate) fn count(&self, hits: u64) {
        self.hits.set(self.hits.get().wrapping_add(hits));
    }

    /// The same, counted.
    #[inline(always)]
    pub(crate) fn hit(&self, addr: u64, len: u64, access: Access) -> Option<*mut u8> {
        let found = self.look(addr, len, access);
        self.count(found.is_some().into());
        found
    }

    /// What is in one piece from `addr` on, at most `len` bytes (not 0), out of the copy or, new to it, out of the
    /// IOTLB. A miss is noted.
    #[inline]
    pub(crate) fn piece(
        &mut self,
        memory: &GuestRegions,
        addr: u64,
        len: u64,
        access: Access,
    ) -> Result<Piece, MemoryError> {
        let slot = self.slots.get(Self::place(addr)).copied().unwrap_or(Slot::EMPTY);
        let (size, offset) = (slot.size(access), addr.wrapping_sub(slot.start));
        if offset < size {
            if len > size - offset {
                self.join(addr, slot);
            }
            self.hits.set(self.hits.get().wrapping_add(1));
            let host = slot.host.wrapping_add(offset as usize);
            return Ok(Piece { addr, host, len: len.min(size - offset) });
        }
        self.fill(memory, addr, len, access)
    }

    /// Where the next page is the neighbour on the host, too, the place of this one holds it from now on: a buffer over a
    /// page's border is then found at once.
    fn join(&mut self, addr: u64, slot: Slot) {
        let size = slot.readable.max(slot.writable);
        let end = slot.start.saturating_add(size);
        let next = self.slots.get(Self::place(end)).copied().unwrap_or(Slot::EMPTY);
        let both = (slot.readable > 0, slot.writable > 0) == (next.readable > 0, next.writable > 0);
        let follows = next.start == end && next.host == slot.host.wrapping_add(size as usize) && both;
        if !self.iotlb.is_paged() || !follows || size >= JOINED * PAGE {
            return;
        }
        let more = next.readable.max(next.writable).min(PAGE);
        if let Some(slot) = self.slots.get_mut(Self::place(addr)) {
            slot.readable += if slot.readable > 0 { more } else { 0 };
            slot.writable += if slot.writable > 0 { more } else { 0 };
        }
    }

    #[cold]
    fn fill(&mut self, memory: &GuestRegions, addr: u64, len: u64, access: Access) -> Result<Piece, MemoryError> {
        let found = self.iotlb.look_up(memory, addr, access);
        let whole = match found {
            Ok(whole) => whole,
            Err(error) => {
                if matches!(error, MemoryError::Untranslated { .. }) && !self.is_full() {
                    self.missing.push(Miss { iova: addr, access });
                }
                return Err(error);
            }
        };
        let rights = |may| if may { whole.size } else { 0 };
        if let Some(slot) = self.slots.get_mut(Self::place(addr)) {
            *slot = Slot {
                start: whole.start,
                readable: rights(whole.trusted.read),
                writable: rights(whole.trusted.write),
                host: whole.host,
            };
        }
        self.hits.set(self.hits.get().wrapping_add(1));
        Ok(whole.from(addr, len))
    }

    /// For a look-up to read at `addr`: the translation it is in, where there is one. A miss is noted.
    pub(crate) fn hint(&mut self, memory: &GuestRegions, addr: u64) -> Hint {
        match self.piece(memory, addr, u64::MAX, Access::Read) {
            Ok(Piece { host, len, .. }) => Hint::over(addr, len, host),
            Err(_) => Hint::default(),
        }
    }

    /// Are as many misses noted as there is room for?
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.missing.len() >= MISSES
    }

    /// The misses noted since the last `forget_misses`.
    pub(crate) fn missing(&self) -> &[Miss] {
        &self.missing
    }

    /// A new walk begins.
    #[inline]
    pub(crate) fn forget_misses(&mut self) {
        self.missing.clear();
    }

    /// Look-ups that found a translation since this was last asked.
    pub(crate) fn take_hits(&self) -> u64 {
        self.hits.take()
    }

    /// Forgets what overlaps the addresses from `first` to `last`, both included. Where no translation was ever larger than
    /// a page, only the pages' own places need a look.
    pub(crate) fn forget(&mut self, first: u64, last: u64) {
        self.forget_misses();
        // Those before may have been joined with them.
        let (from, to) = ((first >> PAGE_BITS).saturating_sub(JOINED), last >> PAGE_BITS);
        if self.iotlb.is_paged() && to - from < SLOTS as u64 {
            for page in from..=to {
                if let Some(slot) = self.slots.get_mut(page as usize & (SLOTS - 1)) {
                    *slot = Slot::EMPTY;
                }
            }
        } else {
            self.slots.fill(Slot::EMPTY);
        }
    }
}
