//! Following a chain, descriptor by descriptor: the checks that each must pass, and the segments that come of it.

use crate::memory::{Access, Found, Hint, Memory, MemoryError, Tlb, next_page};
use crate::spec::ring::{DESC_F_WRITE, Descriptor};

use super::RingError;
use super::arena::{MAX_SEGMENTS, Oddities, Segments};
use super::chain::{Chain, Segment};

/// What is known of a chain while it is being followed: the checks that each descriptor must pass, whoever follows it.
#[derive(Debug)]
pub(super) struct ChainTotals {
    pub(super) head: u16,
    pub(super) descriptors: u16,
    /// Sums of lengths; `take` keeps their sum below 2^32.
    readable_len: u64,
    writable_len: u64,
    writing: bool,
}

impl ChainTotals {
    #[inline(always)]
    pub(super) fn new(head: u16) -> Self {
        ChainTotals { head, descriptors: 0, readable_len: 0, writable_len: 0, writing: false }
    }

    /// Counts descriptor `index`, which is not an indirect one, and says what the device may do with its buffer.
    #[inline(always)]
    pub(super) fn take(&mut self, index: u16, desc: &Descriptor) -> Result<Access, RingError> {
        let head = self.head;
        let writable = desc.flags & DESC_F_WRITE != 0;
        if self.writing && !writable {
            // VIRTIO 1.3, 2.7.4.2 Driver Requirements: Message Framing.
            return Err(RingError::ReadableAfterWritable { head, index });
        }
        let len = u64::from(desc.len);
        // VIRTIO 1.3, 2.7.5.1: no chain longer than 2^32 bytes in total. One byte less, as `written` is 32 bits.
        if self.readable_len + self.writable_len + len > u64::from(u32::MAX) {
            return Err(RingError::TotalTooLarge { head, index, max: u32::MAX });
        }
        self.descriptors += 1;
        self.writing = writable;
        if writable {
            self.writable_len += len;
            Ok(Access::Write)
        } else {
            self.readable_len += len;
            Ok(Access::Read)
        }
    }
}

/// Whoever follows a chain: takes its descriptors one by one.
pub(super) trait Follower<'m> {
    /// Takes the buffer of descriptor `index`, which is not an indirect one. The walk bounds how many come.
    fn buffer(&mut self, index: u16, desc: &Descriptor) -> Result<(), RingError>;

    /// Descriptors so far.
    fn descriptors(&self) -> u16;

    /// Where what is odd about the chain is counted, if anywhere.
    fn oddities(&mut self) -> Option<&mut Oddities>;

    /// The memory the chain's addresses are in, and where in it a table at `addr` is likely to be found.
    fn memory(&mut self, addr: u64) -> (&'m Memory, Hint);
}

/// A chain while the device follows it.
#[derive(Debug)]
pub(super) struct ChainBuilder<'s> {
    memory: &'s Memory,
    oddities: &'s mut Oddities,
    list: &'s mut Vec<Segment>,
    hint: &'s mut Hint,
    tlb: Option<&'s mut Tlb>,
    /// The first buffer whose translation is missing.
    incomplete: Option<RingError>,
    totals: ChainTotals,
    first: usize,
    readable: usize,
}

impl<'s> ChainBuilder<'s> {
    #[inline]
    pub(super) fn new(into: &'s mut Segments, head: u16) -> Self {
        let Segments { memory, list, hint, tlb, oddities } = into;
        let first = list.len();
        let mut tlb = tlb.as_mut();
        if let Some(tlb) = &mut tlb {
            tlb.forget_misses();
        }
        let totals = ChainTotals::new(head);
        ChainBuilder { memory, oddities, list, hint, tlb, incomplete: None, totals, first, readable: 0 }
    }

    /// Appends the segments of one buffer. A buffer of no bytes is one empty segment, whatever its address.
    #[inline(always)]
    fn push(&mut self, addr: u64, len: u32, access: Access) -> Result<(), MemoryError> {
        if self.tlb.is_some() && len > 0 {
            return self.push_translated(addr, len, access);
        }
        match self.memory.find(addr, u64::from(len), access, self.hint)? {
            Found::Whole(host) => self.list.push(Segment { addr, host, len, continues: false }),
            Found::Split { .. } | Found::Scattered => self.push_pieces(addr, len, access)?,
        }
        Ok(())
    }

    #[cold]
    fn push_pieces(&mut self, addr: u64, len: u32, access: Access) -> Result<(), MemoryError> {
        let mut continues = false;
        for piece in self.memory.pieces(addr, u64::from(len), access)? {
            // A piece is no longer than the buffer, whose length is a u32.
            let len = piece.len() as u32;
            self.list.push(Segment { addr: piece.addr(), host: piece.as_ptr(), len, continues });
            continues = true;
        }
        Ok(())
    }

    /// Behind an IOMMU: what neighbours on the host is one segment, whatever translations it came from. A miss does not
    /// end the look: all misses of a chain are found in one walk.
    #[inline(never)]
    fn push_translated(&mut self, addr: u64, len: u32, access: Access) -> Result<(), MemoryError> {
        let Some(tlb) = &mut self.tlb else { return Ok(()) };
        let end = addr.checked_add(u64::from(len)).ok_or(MemoryError::Wraps { addr, len: u64::from(len) })?;
        let (mut at, mut missing) = (addr, None);
        while at < end && !tlb.is_full() {
            match tlb.piece(self.memory, at, end - at, access) {
                Ok(piece) => {
                    // A piece is no longer than the buffer, whose length is a u32.
                    let continues = at != addr;
                    match self.list.last_mut() {
                        Some(last) if continues && last.host.wrapping_add(last.len as usize) == piece.host => {
                            last.len += piece.len as u32;
                        }
                        _ => self.list.push(Segment { addr: at, host: piece.host, len: piece.len as u32, continues }),
                    }
                    at += piece.len;
                }
                Err(error @ MemoryError::Untranslated { .. }) => {
                    missing.get_or_insert(error);
                    at = next_page(at);
                }
                Err(error) => return Err(error),
            }
        }
        missing.map_or(Ok(()), Err)
    }

    /// Is every buffer translated?
    ///
    /// # Errors
    /// The first that is not.
    #[inline]
    pub(super) fn complete(&mut self) -> Result<(), RingError> {
        self.incomplete.take().map_or(Ok(()), Err)
    }

    /// Packed rings: the buffer id, which stands in a chain's last descriptor.
    #[inline(always)]
    pub(super) fn set_head(&mut self, id: u16) {
        self.totals.head = id;
    }

    /// The chain is complete.
    #[inline]
    pub(super) fn finish(self, idx: u16, slots: u16, indirect: bool) -> Chain {
        Chain {
            head: self.totals.head,
            idx,
            descriptors: self.totals.descriptors,
            slots,
            indirect,
            // The arena holds at most a burst of chains of at most 32768 descriptors each.
            first: self.first as u32,
            count: (self.list.len() - self.first) as u32,
            readable: self.readable as u32,
            // `take` kept both below 2^32.
            readable_len: self.totals.readable_len as u32,
            writable_len: self.totals.writable_len as u32,
        }
    }

    /// The chain is malformed: nothing of it stays in the arena.
    #[cold]
    pub(super) fn abandon(self) {
        self.list.truncate(self.first);
    }
}

impl<'s> Follower<'s> for ChainBuilder<'s> {
    #[inline(always)]
    fn buffer(&mut self, index: u16, desc: &Descriptor) -> Result<(), RingError> {
        let access = self.totals.take(index, desc)?;
        let head = self.totals.head;
        if self.list.len() >= MAX_SEGMENTS {
            return Err(RingError::TooManySegments { head, max: MAX_SEGMENTS });
        }
        match self.push(desc.addr, desc.len, access) {
            Ok(()) => {}
            Err(source @ MemoryError::Untranslated { .. }) => {
                self.incomplete.get_or_insert(RingError::Unmapped { head, index, source });
            }
            Err(source) => return Err(RingError::of_buffer(head, index, source)),
        }
        if access == Access::Read {
            self.readable = self.list.len() - self.first;
        }
        Ok(())
    }

    #[inline]
    fn descriptors(&self) -> u16 {
        self.totals.descriptors
    }

    fn oddities(&mut self) -> Option<&mut Oddities> {
        Some(self.oddities)
    }

    #[inline]
    fn memory(&mut self, addr: u64) -> (&'s Memory, Hint) {
        let hint = match &mut self.tlb {
            Some(tlb) => tlb.hint(self.memory, addr),
            None => *self.hint,
        };
        (self.memory, hint)
    }
}
