//! The fast path: following the chains that nearly all are, with everything in registers.
//!
//! Place: a device half tries the fast path first. It takes a chain only if every look-up ends in the region of the one
//! before, in an arena with room, and nothing is odd; else it falls back, leaves nothing behind, and the
//! walk (`walk`, `packed::walk`) starts the chain anew, reading every descriptor again, and has the last word: only the
//! walk makes errors. So the fast path need not know every rule, but it must never take what the walk would refuse; the
//! differential tests run through both.

use crate::memory::{Access, Hint};
use crate::spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor};

use super::arena::Segments;
use super::chain::{Chain, Segment};
use super::pointers::HostTable;
use super::walk::Rules;

/// A chain on the fast path. All fields live in registers as long as nothing out of line is given a reference to them.
pub(super) struct FastPath<'s> {
    segments: &'s mut Segments,
    hint: Hint,
    first: usize,
    descriptors: u16,
    readable: u16,
    readable_len: u64,
    total: u64,
}

/// The chain is not a usual one: the walk has to follow it.
pub(super) struct Fallback;

impl<'s> FastPath<'s> {
    #[inline(always)]
    pub(super) fn new(segments: &'s mut Segments) -> Self {
        let (hint, first) = (segments.hint(), segments.len());
        FastPath { segments, hint, first, descriptors: 0, readable: 0, readable_len: 0, total: 0 }
    }

    /// Takes one buffer: not indirect, and at most `limit` of them in all.
    #[inline(always)]
    pub(super) fn take(&mut self, desc: &Descriptor, limit: u16) -> Result<(), Fallback> {
        let readable_after_writable = desc.flags & DESC_F_WRITE == 0 && self.readable != self.descriptors;
        let access = if desc.flags & DESC_F_WRITE == 0 { Access::Read } else { Access::Write };
        let host = self.find(desc.addr, u64::from(desc.len), access);
        let (Some(host), false) = (host, readable_after_writable || self.descriptors == limit) else {
            return Err(Fallback);
        };
        // No sum of fewer than 2^16 lengths overflows; `finish` checks it.
        self.total += u64::from(desc.len);
        self.descriptors += 1;
        if desc.flags & DESC_F_WRITE == 0 {
            self.readable = self.descriptors;
            self.readable_len = self.total;
        }
        let segment = Segment { addr: desc.addr, host, len: desc.len, continues: false };
        if self.segments.push_if_room(segment) { Ok(()) } else { Err(Fallback) }
    }

    /// Takes a whole split indirect table.
    #[inline(always)]
    pub(super) fn split_table(&mut self, refers: &Descriptor, rules: Rules) -> Result<(), Fallback> {
        let table = self.table(refers, rules)?;
        let limit = (table.len() as u16).min(rules.size);
        let mut index = 0;
        loop {
            let desc = table.desc(index).ok_or(Fallback)?;
            if desc.flags & !(DESC_F_NEXT | DESC_F_WRITE) != 0 {
                return Err(Fallback);
            }
            self.take(&desc, limit)?;
            if desc.flags & DESC_F_NEXT == 0 {
                return Ok(());
            }
            index = desc.next;
        }
    }

    /// As [`split_table`](Self::split_table), of a packed ring.
    #[inline(always)]
    pub(super) fn packed_table(&mut self, refers: &Descriptor, rules: Rules) -> Result<(), Fallback> {
        let table = self.table(refers, rules)?;
        for index in 0..table.len() as u16 {
            let desc = table.desc(index).ok_or(Fallback)?;
            // Buffer id and flags stand where a split descriptor has flags and next.
            let desc = Descriptor { flags: desc.next, ..desc };
            if desc.flags & DESC_F_INDIRECT != 0 {
                return Err(Fallback);
            }
            self.take(&desc, rules.size)?;
        }
        Ok(())
    }

    #[inline(always)]
    fn table(&self, refers: &Descriptor, rules: Rules) -> Result<HostTable<'s>, Fallback> {
        let odd = refers.flags & !DESC_F_WRITE != DESC_F_INDIRECT
            || refers.len == 0
            || !refers.len.is_multiple_of(16)
            || refers.len / 16 > 4096;
        if odd || !rules.indirect || self.descriptors != 0 {
            return Err(Fallback);
        }
        let host = self.find(refers.addr, u64::from(refers.len), Access::Read).ok_or(Fallback)?;
        // SAFETY: the arena found it, in memory that lives at least as long as 's.
        unsafe { HostTable::new(host, refers.len / 16) }.ok_or(Fallback)
    }

    /// The host address of a range, where the look-up before ended or, behind an IOMMU, where the queue's copy says.
    #[inline(always)]
    fn find(&self, addr: u64, len: u64, access: Access) -> Option<*mut u8> {
        self.hint.hit(addr, len).or_else(|| self.segments.translated(addr, len, access))
    }

    /// The chain is complete.
    #[inline(always)]
    pub(super) fn finish(self, head: u16, idx: u16, slots: u16, indirect: bool) -> Result<Chain, Fallback> {
        if self.total > u64::from(u32::MAX) {
            return Err(Fallback);
        }
        Ok(Chain {
            head,
            idx,
            descriptors: self.descriptors,
            slots,
            indirect,
            first: self.first as u32,
            count: u32::from(self.descriptors),
            readable: u32::from(self.readable),
            readable_len: self.readable_len as u32,
            writable_len: (self.total - self.readable_len) as u32,
        })
    }
}
