//! A kernel in the guest's memory: where its structures are, and what a page's structure says.

use super::GuestPhysical;
use super::label::Kind;
use super::layout::{Head, Layout, Order, SlabMark};
use super::space::{Reader, Space, Stop};
use super::stamp::Stamp;

/// Words of a page structure, at most.
const MAX_WORDS: usize = 32;
/// Largest block of pages, as a power of two: 1 GiB.
const MAX_ORDER: u32 = 18;
/// Largest free block, as a power of two.
const MAX_FREE_ORDER: u32 = 10;
/// The order of the blocks that sockets copy into.
const SOCKET_ORDER: u32 = 3;

/// The kernel and where things are in it.
#[derive(Debug, Clone)]
pub(super) struct Kernel {
    pub(super) release: String,
    pub(super) space: Space,
    /// Where the page structures begin.
    pub(super) vmemmap: u64,
    pub(super) layout: Layout,
    /// Where its types (BTF) are, physical, and how many bytes they have.
    pub(super) types: (u64, usize),
}

/// What a page's structure says, read once; of a page in a block, mostly what the block's first page says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) number: u64,
    /// Pages from the block's first to this one.
    pub(super) within: u64,
    head: u64,
    pub(super) flags: u64,
    mapping: u64,
    /// In units of pages, of this page.
    pub(super) index: u64,
    /// Its type or, where it has none, how often it is mapped.
    kind: u32,
    references: u32,
}

/// What a page is used for, as far as its structure says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// In the page cache, of the file with this `address_space`.
    File(u64),
    /// A file's page that is being filled.
    Filling,
    /// It was a file's, and was cut off.
    CutOff,
    /// A program's; the `anon_vma`.
    Anonymous(u64),
    /// Programs', merged by the kernel.
    Merged(u64),
    Slab,
    LargeKmalloc,
    Socket,
    Free,
    Reserved,
    PageTable,
    /// The kernel moves it as it likes: memory that is compressed, or taken back by the host.
    Movable,
    HugeTlb,
    /// Of another type.
    Typed(u32),
    /// Just being freed or split.
    Frozen,
    /// Of the kernel, no more is known.
    Other(u32),
}

impl Use {
    /// The kind of page, of one that a device has.
    fn kind(self) -> Kind {
        match self {
            // Whoever writes to it now, it is a file's.
            Use::File(_) | Use::Filling | Use::CutOff => Kind::File,
            Use::Anonymous(_) | Use::Merged(_) => Kind::Anonymous,
            Use::Socket => Kind::Socket,
            Use::Slab | Use::LargeKmalloc => Kind::Slab,
            Use::Free | Use::Frozen => Kind::Unsettled,
            _ => Kind::Unknown,
        }
    }
}

impl Kernel {
    /// Where the structure of a page is.
    pub(super) fn structure(&self, number: u64) -> Option<u64> {
        self.vmemmap.checked_add(number.checked_mul(self.layout.page_size)?)
    }

    /// Reads what stands in the structure of a page. `None`: it has none.
    pub(super) fn page(&self, reader: &Reader<'_, impl GuestPhysical>, number: u64) -> Result<Option<Page>, Stop> {
        let at = &self.layout;
        let own = self.structure(number).ok_or(Stop::Pointer(number))?;
        let mut words = [0; MAX_WORDS];
        let words = words.get_mut(..(at.page_size / 8) as usize).unwrap_or_default();
        match reader.words(own, words) {
            Ok(()) => {}
            Err(Stop::Pointer(_)) => return Ok(None),
            Err(stop) => return Err(stop),
        }
        let compound = member(words, at.page_compound)?;
        let mut head = own;
        if compound & 1 == 1 {
            head = match at.head {
                Head::Pointer => compound - 1,
                Head::Mask => own & (compound - 1),
            };
        }
        let distance = own.wrapping_sub(head);
        let within = distance / at.page_size;
        if !distance.is_multiple_of(at.page_size) || within >> MAX_ORDER != 0 || within > number {
            return Err(Stop::Pointer(head));
        }
        if within > 0 {
            reader.words(head, words)?;
        }
        let half = |offset: u64| {
            let word = member(words, offset & !7)?;
            if offset.is_multiple_of(4) { Ok((word >> (8 * (offset & 7))) as u32) } else { Err(Stop::Pointer(offset)) }
        };
        Ok(Some(Page {
            number,
            within,
            head,
            flags: member(words, at.page_flags)?,
            mapping: member(words, at.page_mapping)?,
            index: member(words, at.page_index)?.wrapping_add(within),
            kind: half(at.page_type)?,
            references: half(at.page_refcount)?,
        }))
    }

    /// What the page is used for.
    pub(super) fn used_for(&self, reader: &Reader<'_, impl GuestPhysical>, page: &Page) -> Result<Use, Stop> {
        let (at, flags) = (&self.layout, &self.layout.flags);
        let has = |mask| page.flags & mask == mask;
        let is_slab = match at.slab {
            SlabMark::Flag(mask) => has(mask),
            SlabMark::Type(value) => self.is_type(page, value),
        };
        if is_slab {
            return Ok(Use::Slab);
        }
        if let Some(kind) = page.type_byte() {
            let is = |named: Option<u32>| named == Some(kind);
            return Ok(if self.is_free_block(page) {
                Use::Free
            } else if is(at.types.table) {
                Use::PageTable
            } else if is(at.types.large_kmalloc) {
                Use::LargeKmalloc
            } else if is(at.types.hugetlb) {
                Use::HugeTlb
            } else {
                Use::Typed(page.kind)
            });
        }
        if has(flags.reserved) {
            return Ok(Use::Reserved);
        }
        if page.references == 0 {
            let taken = page.mapping != 0 || page.within != 0;
            return Ok(if !taken || self.in_free_block(reader, page.number)? { Use::Free } else { Use::Frozen });
        }
        let object = page.mapping & !3;
        Ok(match page.mapping & 3 {
            0 if object == 0 && has(flags.lru | flags.uptodate) => Use::CutOff,
            0 if object == 0 => match self.order(reader, page)? {
                SOCKET_ORDER => Use::Socket,
                order => Use::Other(order),
            },
            0 if !has(flags.uptodate) || has(flags.locked) => Use::Filling,
            0 => Use::File(object),
            1 => Use::Anonymous(object),
            3 => Use::Merged(object),
            _ => Use::Movable,
        })
    }

    fn is_free_block(&self, page: &Page) -> bool {
        self.layout.buddy.is_some_and(|buddy| self.is_type(page, buddy))
    }

    /// Is the page of the type that this value of `page_type` stands for?
    fn is_type(&self, page: &Page, value: u32) -> bool {
        if self.layout.types_by_byte {
            return page.type_byte() == Some(value >> 24);
        }
        // Before, each type is a bit that is 0 where a page is of it.
        const NONE: u32 = 0xf000_0000;
        page.type_byte().is_some() && page.kind & (NONE | !value) == NONE
    }

    /// Only a free block's first page says that it is free.
    fn in_free_block(&self, reader: &Reader<'_, impl GuestPhysical>, number: u64) -> Result<bool, Stop> {
        for order in 0..=MAX_FREE_ORDER {
            let Some(first) = self.page(reader, number >> order << order)? else { continue };
            if self.is_free_block(&first) {
                let size = reader.word(first.head.wrapping_add(self.layout.page_private))?;
                return Ok(size >= order.into());
            }
        }
        Ok(false)
    }

    /// The block's size as a power of two.
    fn order(&self, reader: &Reader<'_, impl GuestPhysical>, page: &Page) -> Result<u32, Stop> {
        if page.flags & self.layout.flags.head == 0 {
            return Ok(0);
        }
        let (offset, shift) = match self.layout.order {
            Order::Byte(offset) => (offset & !7, offset & 7),
            Order::Flags(offset) => (offset, 0),
        };
        Ok((reader.word(page.head.wrapping_add(offset))? >> (8 * shift)) as u32 & 0xff)
    }

    /// Do two looks at a page agree on everything that a label comes from?
    pub(super) fn agree(&self, one: &Page, other: &Page) -> bool {
        let flags = &self.layout.flags;
        let mut mask = flags.locked | flags.uptodate | flags.reserved | flags.head;
        if let SlabMark::Flag(slab) = self.layout.slab {
            mask |= slab;
        }
        let what = |page: &Page| (page.head, page.mapping, page.index, page.flags & mask, page.type_byte());
        what(one) == what(other) && (one.references == 0) == (other.references == 0)
    }

    /// What the page is, in one number: the same as long as everything stands that tells its owner and place.
    pub(super) fn stamp(
        &self,
        reader: &Reader<'_, impl GuestPhysical>,
        page: &Page,
        used_for: Use,
    ) -> Result<Stamp, Stop> {
        let flags = &self.layout.flags;
        let mut mask = flags.reserved | flags.head;
        if let SlabMark::Flag(slab) = self.layout.slab {
            mask |= slab;
        }
        let kind = page.type_byte().map_or(0, |kind| 1 << 8 | kind);
        // Of what nobody claims, the block's size tells what it is.
        let order = if page.mapping == 0 && kind == 0 { self.order(reader, page)? } else { 0 };
        let what = u64::from(kind) << 16 | u64::from(order) << 8 | u64::from(page.references == 0);
        let of = [page.head, page.within, page.mapping, page.index, page.flags & mask, what];
        Ok(Stamp::new(of, used_for.kind()))
    }

    /// The name of the slab cache that the page belongs to.
    pub(super) fn cache(&self, reader: &Reader<'_, impl GuestPhysical>, page: &Page) -> Result<Vec<u8>, Stop> {
        let cache = reader.word(page.head.wrapping_add(self.layout.slab_cache))?;
        reader.text(reader.word(cache.wrapping_add(self.layout.cache_name))?, 64)
    }
}

/// The word at this offset of a page structure.
fn member(words: &[u64], offset: u64) -> Result<u64, Stop> {
    let word = words.get((offset / 8) as usize).filter(|_| offset.is_multiple_of(8));
    word.copied().ok_or(Stop::Pointer(offset))
}

impl Page {
    /// Its type's top byte; `None`: it has no type.
    fn type_byte(&self) -> Option<u32> {
        // What is not a type is a count, from -1 up; some way below -1 nothing is one.
        ((self.kind.cast_signed()) < -128).then_some(self.kind >> 24)
    }
}
