//! The guest kernel's virtual addresses: where each lies in physical memory, and reads there that are counted.
//!
//! Operation: addresses of the direct map and of the kernel's image are a subtraction; all others (the page structures)
//! go through the kernel's page tables.
//!
//! Invariants: every read of guest memory is one step of a budget, and where the budget ends every walk ends: no loop needs
//! a bound of its own. A pointer is only ever followed through [`Reader`], which refuses what is no kernel address.

use std::cell::{Cell, RefCell};

use super::{GuestPhysical, Piece};

/// Where the kernel's image is mapped.
pub(crate) const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// Bytes of that mapping, at most.
const IMAGE_BYTES: u64 = 1 << 30;
/// The physical address in a page-table entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Most physical memory there can be.
const MAX_PHYSICAL: u64 = 1 << 52;

/// Why a walk through the guest's memory stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Stop {
    /// A pointer that leads nowhere, or to where no such thing can be.
    #[error("a pointer leads to {0:#x}, which is nothing of the kernel's")]
    Pointer(u64),
    /// Too many steps.
    #[error("its structures are too deep, or run in a circle")]
    Steps,
}

/// The kernel's address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Space {
    /// Physical address of the first page table.
    pub(crate) root: u64,
    /// Levels of page tables: 4 or 5.
    pub(crate) levels: u32,
    /// Physical minus virtual address of the kernel's image, wrapping.
    pub(crate) phys_base: u64,
    /// Virtual address of physical address 0 in the direct map; 0: not known yet.
    pub(crate) direct: u64,
    /// What to take out of page-table entries.
    pub(crate) sme_mask: u64,
}

impl Space {
    /// What the direct map has room for (Documentation/arch/x86/x86_64/mm.rst).
    fn direct_bytes(&self) -> u64 {
        if self.levels == 5 { 1 << 52 } else { 1 << 46 }
    }

    /// Has the address the form that all kernel addresses have?
    #[must_use]
    pub(crate) fn is_canonical(&self, va: u64) -> bool {
        if self.levels == 5 { va >> 56 == 0xff } else { va >> 47 == 0x1_ffff }
    }
}

/// What was read and what stood there: enough to see later whether all of it still stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    gpa: u64,
    value: u64,
}

/// Does all of it still stand there?
pub(crate) fn still_stands<'s>(seen: impl Iterator<Item = &'s Seen> + Clone, memory: &impl GuestPhysical) -> bool {
    let mut seen = seen;
    if !memory.reads_are_calls() {
        return seen.all(|one| memory.word(one.gpa) == Some(one.value));
    }
    let mut pieces: Vec<_> = seen.clone().map(|one| Piece::new(one.gpa, 8)).collect();
    memory.gather(&mut pieces);
    seen.zip(&pieces).all(|(one, piece)| piece.there && piece.bytes == one.value.to_le_bytes())
}

/// Reads that lead from most files to their directories.
const TRAIL: usize = 24;

/// A page by its address, and where it is in physical memory.
#[derive(Debug, Clone, Copy, Default)]
struct Translated {
    va: u64,
    at: u64,
    size: u64,
}

/// Pages that page tables were walked for, of each part of the address space the last: enough for the page structures of a
/// guest of 2 GiB, and those of a file are seldom far from each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Translations([Cell<Translated>; 16]);

impl Translations {
    fn slot(&self, va: u64) -> Option<&Cell<Translated>> {
        self.0.get((va >> 21) as usize % self.0.len())
    }
}

/// Counted reads in one look-up.
pub(crate) struct Reader<'k, M> {
    pub(crate) memory: &'k M,
    space: &'k Space,
    left: Cell<u32>,
    limit: Cell<u32>,
    pages: Translations,
    trail: RefCell<Vec<Seen>>,
    recording: Cell<bool>,
}

impl<'k, M: GuestPhysical> Reader<'k, M> {
    pub(crate) fn new(memory: &'k M, space: &'k Space, limit: u32) -> Self {
        Reader::knowing(memory, space, limit, Translations::default())
    }

    /// One that knows what another has found in the page tables, not long ago.
    pub(crate) fn knowing(memory: &'k M, space: &'k Space, limit: u32, pages: Translations) -> Self {
        let (left, limit) = (Cell::new(limit), Cell::new(limit));
        let (trail, recording) = (RefCell::default(), Cell::new(false));
        Reader { memory, space, left, limit, pages, trail, recording }
    }

    /// What it knows of the page tables.
    pub(crate) fn known(&self) -> Translations {
        self.pages.clone()
    }

    /// So many steps from now on.
    pub(crate) fn begin(&self, limit: u32) {
        self.limit.set(limit);
        self.left.set(limit);
    }

    /// Steps taken since then.
    pub(crate) fn steps(&self) -> u32 {
        self.limit.get() - self.left.get()
    }

    /// From now on, what is read is remembered.
    pub(crate) fn record(&self) {
        self.recording.set(true);
        let mut trail = self.trail.borrow_mut();
        trail.clear();
        trail.reserve(TRAIL);
    }

    /// What was read since [`record`](Reader::record).
    pub(crate) fn recorded(&self) -> Box<[Seen]> {
        self.recording.set(false);
        self.trail.borrow().as_slice().into()
    }

    fn step(&self) -> Result<(), Stop> {
        self.left.set(self.left.get().checked_sub(1).ok_or(Stop::Steps)?);
        Ok(())
    }

    fn physical_word(&self, gpa: u64) -> Result<Option<u64>, Stop> {
        self.step()?;
        Ok(self.memory.word(gpa))
    }

    /// Where a kernel address lies in physical memory.
    pub(crate) fn physical(&self, va: u64) -> Result<u64, Stop> {
        let Space { direct, phys_base, .. } = *self.space;
        let page = self.pages.slot(va).map(Cell::get).unwrap_or_default();
        if va.wrapping_sub(page.va) < page.size {
            return Ok(page.at + (va - page.va));
        }
        if !self.space.is_canonical(va) {
            return Err(Stop::Pointer(va));
        }
        if va.wrapping_sub(IMAGE) < IMAGE_BYTES {
            return Ok(va.wrapping_add(phys_base));
        }
        if direct != 0 && self.memory.has(va.wrapping_sub(direct)) {
            return Ok(va - direct);
        }
        let page = self.page_of(self.space.root, va)?.ok_or(Stop::Pointer(va))?;
        if let Some(slot) = self.pages.slot(va) {
            slot.set(page);
        }
        Ok(page.at + (va - page.va))
    }

    /// Where `va` leads by the page tables at `root`; `None`: nowhere.
    pub(crate) fn walk(&self, root: u64, va: u64) -> Result<Option<u64>, Stop> {
        Ok(self.page_of(root, va)?.map(|page| page.at + (va - page.va)))
    }

    fn page_of(&self, root: u64, va: u64) -> Result<Option<Translated>, Stop> {
        let mut table = root & ADDRESS;
        for level in (0..self.space.levels).rev() {
            let shift = 12 + 9 * level;
            let Some(entry) = self.physical_word(table + (va >> shift & 0x1ff) * 8)? else { return Ok(None) };
            let entry = entry & !self.space.sme_mask;
            if entry & PRESENT == 0 {
                return Ok(None);
            }
            if level == 0 || (level <= 2 && entry & LARGE != 0) {
                let size = 1_u64 << shift;
                let within = size - 1;
                return Ok(Some(Translated { va: va & !within, at: entry & ADDRESS & !within, size }));
            }
            table = entry & ADDRESS;
        }
        Ok(None)
    }

    /// The eight bytes at an aligned kernel address.
    #[inline]
    pub(crate) fn word(&self, va: u64) -> Result<u64, Stop> {
        // Most are in the direct map: where there is memory, no second look is needed to know it.
        let direct = va.wrapping_sub(self.space.direct);
        let in_direct = self.space.direct != 0 && direct < self.space.direct_bytes() && self.space.is_canonical(va);
        let value = if in_direct { self.physical_word(direct)? } else { None };
        let (gpa, value) = match value {
            Some(value) => (direct, value),
            None => {
                let gpa = self.physical(va)?;
                (gpa, self.physical_word(gpa)?.ok_or(Stop::Pointer(va))?)
            }
        };
        if self.recording.get() {
            self.trail.borrow_mut().push(Seen { gpa, value });
        }
        Ok(value)
    }

    /// Words from an aligned kernel address on: a step for each page that they are in.
    pub(crate) fn words(&self, va: u64, out: &mut [u64]) -> Result<(), Stop> {
        let mut at = va;
        let mut rest = out;
        while !rest.is_empty() {
            self.step()?;
            let len = ((0x1000 - (at & 0xfff)).div_ceil(8) as usize).min(rest.len());
            let (piece, more) = rest.split_at_mut(len);
            self.memory.words(self.physical(at)?, piece).ok_or(Stop::Pointer(at))?;
            at = at.checked_add(8 * len as u64).ok_or(Stop::Pointer(va))?;
            rest = more;
        }
        Ok(())
    }

    /// Four bytes at an aligned kernel address.
    pub(crate) fn half(&self, va: u64) -> Result<u32, Stop> {
        if !va.is_multiple_of(4) {
            return Err(Stop::Pointer(va));
        }
        Ok((self.word(va & !7)? >> (8 * (va & 7))) as u32)
    }

    /// Copies bytes at any kernel address; each page of them is a step.
    pub(crate) fn copy(&self, va: u64, out: &mut [u8]) -> Result<(), Stop> {
        let mut at = va;
        let mut rest = out;
        while !rest.is_empty() {
            self.step()?;
            let len = ((0x1000 - (at & 0xfff)) as usize).min(rest.len());
            let (piece, more) = rest.split_at_mut(len);
            self.memory.copy(self.physical(at)?, piece).ok_or(Stop::Pointer(at))?;
            at = at.checked_add(len as u64).ok_or(Stop::Pointer(va))?;
            rest = more;
        }
        Ok(())
    }

    /// Adds the bytes at any kernel address, at most `most`, to the first 0. Returns how many.
    pub(crate) fn text_into(&self, va: u64, most: usize, text: &mut Vec<u8>) -> Result<usize, Stop> {
        let (first, mut at) = (text.len(), va);
        while text.len() - first < most {
            let word = self.word(at & !7)?;
            let skip = (at & 7) as usize;
            let room = (8 - skip).min(most - (text.len() - first));
            let bytes = word.to_le_bytes();
            let bytes = bytes.get(skip..skip + room).unwrap_or_default();
            let end = bytes.iter().position(|byte| *byte == 0);
            text.extend_from_slice(bytes.get(..end.unwrap_or(room)).unwrap_or_default());
            if end.is_some() {
                break;
            }
            at = (at & !7).checked_add(8).ok_or(Stop::Pointer(va))?;
        }
        Ok(text.len() - first)
    }

    /// The same, on their own.
    pub(crate) fn text(&self, va: u64, most: usize) -> Result<Vec<u8>, Stop> {
        let mut text = Vec::with_capacity(32);
        self.text_into(va, most, &mut text)?;
        Ok(text)
    }
}

/// A physical address that a kernel can have.
pub(crate) fn is_physical(at: u64) -> bool {
    at < MAX_PHYSICAL
}
