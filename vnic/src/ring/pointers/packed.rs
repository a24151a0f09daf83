//! Pointers into a packed ring.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::{Access, ContiguousAlias, Memory};
use crate::ring::RingError;
use crate::ring::layout::{self, RingLayout};
use crate::spec::ring::{DESC_ALIGN, PackedEvent};
use crate::spec::{Feature, Features};

use super::atomics::{AtomicU32, AtomicU64};
use super::{part, prefetch_to_write};

/// Alignment of an event suppression structure, bytes. VIRTIO 1.3, 2.8.10.1 (there called the driver and device area).
const EVENT_ALIGN: u64 = 4;

/// The second half of a packed descriptor, which is loaded and stored in one piece: length, buffer id and the flags
/// that say whose it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ring) struct Word {
    /// Length of the buffer; in a used descriptor, bytes written.
    pub(in crate::ring) len: u32,
    /// Buffer id.
    pub(in crate::ring) id: u16,
    /// `DESC_F_*`.
    pub(in crate::ring) flags: u16,
}

impl Word {
    const fn from_bits(bits: u64) -> Self {
        Word { len: bits as u32, id: (bits >> 32) as u16, flags: (bits >> 48) as u16 }
    }

    const fn to_bits(self) -> u64 {
        self.len as u64 | (self.id as u64) << 32 | (self.flags as u64) << 48
    }
}

/// The parts of a packed ring, and the memory they are in.
#[derive(Debug)]
pub(in crate::ring) struct PackedPointers {
    /// As long-lived as `memory` and `aliases`: handed out for a borrow of them only.
    parts: PackedParts<'static>,
    memory: Arc<Memory>,
    aliases: Vec<ContiguousAlias>,
}

/// Host pointers to the three parts, for as long as a [`PackedPointers`] is borrowed. Copied into a local, they are what no store of a
/// loop can change.
#[derive(Debug, Clone, Copy)]
pub(in crate::ring) struct PackedParts<'r> {
    desc: *mut u8,
    driver_event: *mut u8,
    device_event: *mut u8,
    size: u16,
    memory: PhantomData<&'r Memory>,
}

// SAFETY: the pointers point into shared memory that `memory` keeps mapped; all accesses are atomic.
unsafe impl Send for PackedPointers {}
// SAFETY: as above.
unsafe impl Sync for PackedPointers {}

impl PackedPointers {
    pub(in crate::ring) fn new(layout: &RingLayout, memory: Arc<Memory>) -> Result<Self, RingError> {
        layout::check_packed_size(layout.size)?;
        let desc = (layout.desc, layout::desc_len(layout.size), DESC_ALIGN);
        let event = |addr| (addr, size_of::<PackedEvent>() as u64, EVENT_ALIGN);
        let mut aliases = Vec::new();
        let parts = PackedParts {
            // The device writes used descriptors over available ones.
            desc: part(&memory, "descriptor ring", desc, Access::Write, &mut aliases)?,
            driver_event: part(&memory, "driver event suppression", event(layout.avail), Access::Read, &mut aliases)?,
            device_event: part(&memory, "device event suppression", event(layout.used), Access::Write, &mut aliases)?,
            size: layout.size,
            memory: PhantomData,
        };
        layout.check_apart(Features::of(&[Feature::RingPacked]))?;
        Ok(PackedPointers { parts, memory, aliases })
    }

    /// The pointers.
    #[inline(always)]
    pub(in crate::ring) fn parts(&self) -> PackedParts<'_> {
        self.parts
    }

    pub(in crate::ring) fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// Did a file shrink under pages of the ring that were mapped for it alone?
    pub(in crate::ring) fn lost(&self) -> bool {
        self.aliases.iter().any(ContiguousAlias::lost)
    }
}

impl<'r> PackedParts<'r> {
    pub(in crate::ring) fn size(self) -> u16 {
        self.size
    }

    /// Both halves of the descriptor at `slot`: address, then the word. A slot beyond the ring is the last one.
    #[inline]
    fn halves(self, slot: u16) -> (&'r AtomicU64, &'r AtomicU64) {
        let slot = slot.min(self.size - 1);
        // SAFETY: `slot` is below `size`, which is not 0; `new` checked 16 * size bytes and alignment to 16.
        unsafe {
            let at = self.desc.add(16 * usize::from(slot)).cast::<u64>();
            (AtomicU64::from_ptr(at), AtomicU64::from_ptr(at.add(1)))
        }
    }

    /// Loads the word of `slot`; what was stored before its flags were can be loaded after.
    #[inline]
    pub(in crate::ring) fn word(self, slot: u16) -> Word {
        Word::from_bits(self.halves(slot).1.load(Ordering::Acquire))
    }

    /// The line of `slot` will be read and then written soon.
    #[inline(always)]
    pub(in crate::ring) fn prefetch(self, slot: u16) {
        prefetch_to_write(self.desc.wrapping_add(16 * usize::from(slot)));
    }

    /// Loads the address of `slot`, after its word.
    #[inline]
    pub(in crate::ring) fn addr(self, slot: u16) -> u64 {
        self.halves(slot).0.load(Ordering::Relaxed)
    }

    /// Stores the address of `slot`, before its word.
    pub(in crate::ring) fn set_addr(self, slot: u16, addr: u64) {
        self.halves(slot).0.store(addr, Ordering::Relaxed);
    }

    /// Stores the word of `slot` behind one that the other side waits for.
    #[inline]
    pub(in crate::ring) fn set_word(self, slot: u16, word: Word) {
        self.halves(slot).1.store(word.to_bits(), Ordering::Relaxed);
    }

    /// Stores words for these ids, of no bytes and with the same flags, from `slot` on as far as the ring goes, behind one that
    /// the other side waits for.
    #[inline(always)]
    pub(in crate::ring) fn set_word_run(self, slot: u16, ids: &[u16], flags: u16) {
        let slot = usize::from(slot);
        let first = self.desc.wrapping_add(16 * slot).cast::<u64>();
        for (at, id) in ids.iter().take(usize::from(self.size).saturating_sub(slot)).enumerate() {
            // SAFETY: `slot + at` is below `size`; `new` checked 16 * size bytes and alignment to 16.
            let word = unsafe { AtomicU64::from_ptr(first.add(2 * at + 1)) };
            word.store(Word { len: 0, id: *id, flags }.to_bits(), Ordering::Relaxed);
        }
    }

    /// Stores the word of `slot` that the other side waits for: it then finds all that was stored before.
    #[inline]
    pub(in crate::ring) fn release_word(self, slot: u16, word: Word) {
        self.halves(slot).1.store(word.to_bits(), Ordering::Release);
    }

    #[inline]
    fn event(at: &AtomicU32) -> PackedEvent {
        let bits = at.load(Ordering::Relaxed);
        PackedEvent { off_wrap: bits as u16, flags: (bits >> 16) as u16 }
    }

    #[inline]
    fn set_event(at: &AtomicU32, event: PackedEvent) {
        // In one piece: the flags never stand beside another event's offset.
        at.store(u32::from(event.off_wrap) | u32::from(event.flags) << 16, Ordering::Relaxed);
    }

    #[inline]
    fn driver_event_field(self) -> &'r AtomicU32 {
        // SAFETY: `new` checked four aligned bytes.
        unsafe { AtomicU32::from_ptr(self.driver_event.cast()) }
    }

    #[inline]
    fn device_event_field(self) -> &'r AtomicU32 {
        // SAFETY: `new` checked four aligned bytes.
        unsafe { AtomicU32::from_ptr(self.device_event.cast()) }
    }

    /// Which calls the driver wants.
    #[inline]
    pub(in crate::ring) fn driver_event(self) -> PackedEvent {
        Self::event(self.driver_event_field())
    }

    /// Says which calls the driver wants.
    pub(in crate::ring) fn set_driver_event(self, event: PackedEvent) {
        Self::set_event(self.driver_event_field(), event);
    }

    /// Which kicks the device wants.
    #[inline]
    pub(in crate::ring) fn device_event(self) -> PackedEvent {
        Self::event(self.device_event_field())
    }

    /// Says which kicks the device wants.
    #[inline]
    pub(in crate::ring) fn set_device_event(self, event: PackedEvent) {
        Self::set_event(self.device_event_field(), event);
    }
}
