//! Following a chain of descriptors: direct, then perhaps one indirect table at its end.
//!
//! Operation (VIRTIO 1.3, 2.7.5 The Virtqueue Descriptor Table): a chain is zero or more direct descriptors linked by
//! `next`, of which the last may refer to an indirect table (2.7.5.3.2). Each descriptor is loaded once and checked as
//! the local copy. The number of steps is bounded by the table's size, so a loop ends as an error.

use crate::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor};

use super::RingError;
use super::builder::Follower;
use super::pointers::IndirectTable;

/// Descriptors a chain may have on a ring that is smaller: Linux drivers put more into an indirect table than the ring
/// has slots, and QEMU takes as many as this.
pub const MIN_CHAIN_LIMIT: u16 = 1024;

/// Entries an indirect table may have: `next` has 16 bits.
pub const MAX_INDIRECT_ENTRIES: u32 = 65535;

/// What a walk needs to know of its ring.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// The ring's size.
    pub(super) size: u16,
    /// INDIRECT_DESC was negotiated.
    pub(super) indirect: bool,
}

impl Rules {
    #[inline]
    pub(super) fn max_chain(self) -> u16 {
        self.size.max(MIN_CHAIN_LIMIT)
    }
}

/// Counts a descriptor whose flags have no meaning.
#[inline]
pub(super) fn note_flags<'m>(chain: &mut impl Follower<'m>, flags: u16) {
    if flags & !(DESC_F_NEXT | DESC_F_WRITE | DESC_F_INDIRECT) != 0
        && let Some(oddities) = chain.oddities()
    {
        oddities.unknown_flags += 1;
    }
}

/// Counts a chain that is longer than the ring.
#[inline]
pub(super) fn note_length<'m>(chain: &mut impl Follower<'m>, rules: Rules) {
    if chain.descriptors() > rules.size
        && let Some(oddities) = chain.oddities()
    {
        oddities.long_chains += 1;
    }
}

/// Follows the chain that starts at `head` in the table that `desc` reads. Returns whether it has an indirect part.
#[inline(always)]
pub(super) fn split_chain<'m>(
    chain: &mut impl Follower<'m>,
    head: u16,
    rules: Rules,
    mut desc: impl FnMut(u16) -> Option<Descriptor>,
) -> Result<bool, RingError> {
    let size = u32::from(rules.size);
    let mut index = head;
    let mut from = head;
    loop {
        let Some(d) = desc(index) else {
            return Err(RingError::DescIndexOutOfRange { head, index: from, next: index, size });
        };
        note_flags(chain, d.flags);
        if d.flags & DESC_F_INDIRECT != 0 {
            indirect_table(chain, head, index, &d, rules)?;
            note_length(chain, rules);
            return Ok(true);
        }
        if chain.descriptors() >= rules.size {
            return Err(RingError::Loop { head, index, size });
        }
        chain.buffer(index, &d)?;
        if d.flags & DESC_F_NEXT == 0 {
            return Ok(false);
        }
        from = index;
        index = d.next;
    }
}

/// Follows the indirect table that descriptor `index` refers to. Its WRITE flag means nothing
/// (VIRTIO 1.3, 2.7.5.3.2 Device Requirements: Indirect Descriptors).
pub(super) fn indirect_table<'m>(
    chain: &mut impl Follower<'m>,
    head: u16,
    index: u16,
    refers: &Descriptor,
    rules: Rules,
) -> Result<(), RingError> {
    let table = open_table(chain, head, index, refers, rules)?;
    let mut at = 0;
    let mut from = 0;
    for _ in 0..table.len() {
        let Some(d) = table.desc(at) else {
            return Err(RingError::DescIndexOutOfRange { head, index: from, next: at, size: table.len() });
        };
        note_flags(chain, d.flags);
        if d.flags & DESC_F_INDIRECT != 0 {
            return Err(RingError::IndirectNested { head, index: at });
        }
        if chain.descriptors() >= rules.max_chain() {
            return Err(RingError::ChainTooLong { head, max: u32::from(rules.max_chain()) });
        }
        chain.buffer(at, &d)?;
        if d.flags & DESC_F_NEXT == 0 {
            return Ok(());
        }
        from = at;
        at = d.next;
    }
    // As many descriptors as there are, and the last one still has a next: it names one that was there before, or
    // none at all.
    if u32::from(at) >= table.len() {
        return Err(RingError::DescIndexOutOfRange { head, index: from, next: at, size: table.len() });
    }
    Err(RingError::Loop { head, index: at, size: table.len() })
}

/// Checks the descriptor that refers to an indirect table. VIRTIO 1.3, 2.7.5.3.1 Driver Requirements: Indirect
/// Descriptors.
pub(super) fn open_table<'m>(
    chain: &mut impl Follower<'m>,
    head: u16,
    index: u16,
    refers: &Descriptor,
    rules: Rules,
) -> Result<IndirectTable<'m>, RingError> {
    if !rules.indirect {
        return Err(RingError::IndirectNotNegotiated { head, index });
    }
    if refers.flags & DESC_F_NEXT != 0 {
        return Err(RingError::IndirectWithNext { head, index });
    }
    let entries = check_table_len(head, index, refers.len)?;
    let (memory, hint) = chain.memory(refers.addr);
    IndirectTable::new(memory, refers.addr, entries, hint).map_err(|source| RingError::IndirectUnmapped {
        head,
        index,
        source,
    })
}

/// How many entries an indirect table of `len` bytes has. Descriptor `index` of the chain at `head` refers to it.
///
/// # Errors
/// No table is so long: it would be empty, end within an entry, or have more than [`MAX_INDIRECT_ENTRIES`].
#[inline]
pub fn check_table_len(head: u16, index: u16, len: u32) -> Result<u32, RingError> {
    if len == 0 {
        return Err(RingError::IndirectEmpty { head, index });
    }
    if !len.is_multiple_of(16) {
        return Err(RingError::IndirectMisaligned { head, index, len });
    }
    if len / 16 > MAX_INDIRECT_ENTRIES {
        return Err(RingError::IndirectTooLong { head, index, len, max: 16 * MAX_INDIRECT_ENTRIES });
    }
    Ok(len / 16)
}
