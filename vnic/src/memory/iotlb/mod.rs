//! The IOTLB: where the guest's IOMMU lets the device's addresses lead.
//!
//! Place: one per device, attached to the [`Memory`](super::Memory) that its rings and arenas translate through
//! ([`Memory::behind`](super::Memory::behind)). The session's thread writes it; a queue reads it when its own copy ([`Tlb`]) does not know an
//! address, under a lock held for moments. Whoever looks on gets a copy of the table and never this lock.
//!
//! Operation:
//! 1. A look-up that finds nothing is [`MemoryError::Untranslated`]: no fault, but a miss. Who needs the translation
//!    [asks](Iotlb::ask), and is told which misses nobody has asked for yet: those are sent to the front-end, once each.
//! 2. An update answers what was asked. While anyone [waits](Waiting), it says so, and who waits looks again.
//! 3. An invalidation takes the translations out of the table first; then every queue drops its copies, between two
//!    bursts; then the front-end is answered. What a queue looks up meanwhile is gone from the table already.
//!
//! A translation counts only for what was asked: to read, or to write. QEMU checks the access it is asked for and then
//! answers with both rights whatever the guest's tables say, so the other is asked for when it is needed. What comes
//! unasked counts for nothing until it is asked for.
//!
//! Invariants: a translation lies in one region of the memory it is used with, or the look-up fails by name; so what a
//! look-up returns is as mapped as the memory itself.
//!
//! Limits: [`CAPACITY`] translations; the one given up for a new one is simply a miss when it is needed again.

mod cache;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::regions::{GuestRegions, Piece};
use super::{Access, Gpa, MemoryError};
pub(crate) use cache::Tlb;
pub use table::{CAPACITY, IotlbEntry, Table};
use table::{Refusal, Rights};

/// The smallest unit an IOMMU translates, and what is asked for.
pub const PAGE: u64 = 4096;

/// A translation that is needed and not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Miss {
    /// The address.
    pub iova: u64,
    /// What for.
    pub access: Access,
}

impl Miss {
    /// The page it is in, as it is asked for once: a translation may be of less than a page, but seldom is.
    const fn page(self) -> (u64, Access) {
        (self.iova & !(PAGE - 1), self.access)
    }
}

/// How the IOTLB fared.
#[derive(Debug, Default)]
pub struct Counters {
    /// Look-ups that found a translation; the queues add theirs burst by burst.
    pub hits: AtomicU64,
    /// Translations the front-end was asked for.
    pub misses: AtomicU64,
    /// Translations it gave.
    pub updates: AtomicU64,
    /// Invalidations.
    pub invalidations: AtomicU64,
    /// Translations given up for want of room.
    pub evicted: AtomicU64,
}

impl Counters {
    /// All of them, by name.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 5] {
        let Counters { hits, misses, updates, invalidations, evicted } = self;
        let all = [
            ("hits", hits),
            ("misses", misses),
            ("updates", updates),
            ("invalidations", invalidations),
            ("evicted", evicted),
        ];
        all.map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }
}

#[derive(Debug, Default)]
struct Inner {
    table: Table,
    /// Pages the front-end was asked for and has not answered.
    asked: BTreeSet<(u64, Access)>,
    /// How many wait for translations.
    waiting: usize,
}

/// The IOTLB. See the [module](self).
#[derive(Debug)]
pub struct Iotlb {
    inner: Mutex<Inner>,
    /// Most translations.
    capacity: usize,
    /// What was not asked for counts, too.
    trusting: bool,
    /// No translation was ever larger than a page.
    pages: AtomicBool,
    /// How it fared.
    pub counters: Counters,
}

impl Default for Iotlb {
    fn default() -> Self {
        Iotlb::with_capacity(CAPACITY)
    }
}

/// A translation with its place on the host.
pub(super) struct Whole {
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) host: *mut u8,
    trusted: Rights,
}

impl Whole {
    /// What is in it from `addr` on, which is inside; at most `len` bytes.
    pub(super) fn from(&self, addr: u64, len: u64) -> Piece {
        let offset = addr.wrapping_sub(self.start);
        let host = self.host.wrapping_add(offset as usize);
        Piece { addr, host, len: len.min(self.size.saturating_sub(offset)) }
    }
}

/// The first address of the page behind the one `addr` is in; of the last page, the last address there is.
pub(crate) const fn next_page(addr: u64) -> u64 {
    (addr | (PAGE - 1)).saturating_add(1)
}

/// What an update came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Updated {
    /// It replaced a translation that may be in use: all copies must go before the front-end is answered.
    pub replaced: bool,
    /// Someone waits for translations and should look again.
    pub awaited: bool,
}

impl Iotlb {
    /// An IOTLB without translations, with room for so many.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Iotlb {
            inner: Mutex::default(),
            capacity,
            trusting: false,
            pages: AtomicBool::new(true),
            counters: Counters::default(),
        }
    }

    /// An IOTLB for those who look on: it is told the same, and translates all of it, asked for or not.
    #[must_use]
    pub fn for_observers() -> Self {
        Iotlb { trusting: true, ..Iotlb::default() }
    }

    /// Where `iova` leads, as far as is known.
    #[must_use]
    pub fn gpa_of(&self, iova: u64) -> Option<Gpa> {
        self.lock().table.gpa_of(iova)
    }

    /// The first translations by rising address, at most `most`: an update waits while they are copied.
    #[must_use]
    pub fn first(&self, most: usize) -> Vec<IotlbEntry> {
        self.lock().table.entries().take(most).collect()
    }

    /// Bytes that are translated.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lock().table.bytes()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Translations there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().table.len()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Was no translation ever larger than a page? See [`Tlb::forget`].
    #[must_use]
    pub fn is_paged(&self) -> bool {
        self.pages.load(Ordering::Relaxed)
    }

    /// Takes a translation.
    pub fn update(&self, entry: &IotlbEntry) -> Updated {
        if entry.size > PAGE || !entry.iova.0.is_multiple_of(PAGE) {
            self.pages.store(false, Ordering::Relaxed);
        }
        let last = entry.iova.0.saturating_add(entry.size.saturating_sub(1));
        let mut inner = self.lock();
        let mut asked = Rights { read: self.trusting, write: self.trusting };
        for (_, access) in inner.take_asked(entry.iova.0, last) {
            match access {
                Access::Read => asked.read = true,
                Access::Write => asked.write = true,
            }
        }
        let done = inner.table.insert(entry, asked, self.capacity);
        self.counters.updates.fetch_add(1, Ordering::Relaxed);
        self.counters.evicted.fetch_add(done.evicted, Ordering::Relaxed);
        Updated { replaced: done.replaced, awaited: inner.waiting > 0 }
    }

    /// Forgets the translations of the addresses from `first` to `last`, both included. What was asked of them is asked
    /// again when it is needed: the answer may have been given before.
    pub fn invalidate(&self, first: u64, last: u64) {
        let mut inner = self.lock();
        inner.table.remove(first, last);
        // A hole in one makes two of it.
        let evicted = inner.table.trim(self.capacity, None);
        inner.take_asked(first, last);
        self.counters.evicted.fetch_add(evicted, Ordering::Relaxed);
        self.counters.invalidations.fetch_add(1, Ordering::Relaxed);
    }

    /// Forgets everything: the memory is another, or the device was reset.
    pub fn clear(&self) {
        let mut inner = self.lock();
        inner.table.clear();
        inner.asked.clear();
        self.pages.store(true, Ordering::Relaxed);
    }

    /// Registers someone who needs all of `misses`, and says which the front-end is to be asked for. `None`: all are
    /// there by now.
    #[must_use]
    pub fn ask(self: &Arc<Self>, misses: &[Miss]) -> Option<(Waiting, Vec<Miss>)> {
        self.lock().waiting += 1;
        let mut waiting = Waiting { iotlb: Arc::clone(self), misses: misses.to_vec() };
        let fresh = waiting.look_again()?;
        Some((waiting, fresh))
    }

    /// These could not be asked for: the next who looks for them tries again.
    pub fn unask(&self, misses: &[Miss]) {
        let mut inner = self.lock();
        for miss in misses {
            inner.asked.remove(&miss.page());
        }
    }

    /// The whole translation of `addr`, as a place in `memory`.
    pub(super) fn look_up(&self, memory: &GuestRegions, addr: u64, access: Access) -> Result<Whole, MemoryError> {
        let found = self.lock().table.find(addr, access);
        let range = found.map_err(|refusal| match refusal {
            Refusal::Unknown => MemoryError::Untranslated { addr, access },
            Refusal::Forbidden => MemoryError::Forbidden { addr, access },
        })?;
        let size = (range.last - range.first).saturating_add(1);
        let host = memory.host_of(range.gpa, size).ok_or(MemoryError::Astray { addr, gpa: range.gpa, size })?;
        Ok(Whole { start: range.first, size, host, trusted: range.trusted })
    }
}

impl Inner {
    /// Takes out what was asked and not answered of the pages that the addresses from `first` to `last` are in.
    fn take_asked(&mut self, first: u64, last: u64) -> Vec<(u64, Access)> {
        let from = (first & !(PAGE - 1), Access::Read);
        let pages: Vec<_> = self.asked.range(from..=(last, Access::Write)).copied().collect();
        for page in &pages {
            self.asked.remove(page);
        }
        pages
    }

    fn is_missing(&self, miss: &Miss) -> bool {
        self.table.find(miss.iova, miss.access) == Err(Refusal::Unknown)
    }
}

/// Someone who waits for translations, until dropped. What nobody waits for any more counts as never asked: a front-end
/// that had no answer then may have one the next time.
#[derive(Debug)]
pub struct Waiting {
    iotlb: Arc<Iotlb>,
    misses: Vec<Miss>,
}

impl Waiting {
    /// Looks which translations are still missing. `None`: all are there; else those that the front-end is to be asked for.
    #[must_use]
    pub fn look_again(&mut self) -> Option<Vec<Miss>> {
        let mut inner = self.iotlb.lock();
        self.misses.retain(|miss| inner.is_missing(miss));
        let mut fresh = Vec::new();
        for miss in &self.misses {
            if inner.asked.insert(miss.page()) {
                fresh.push(*miss);
            }
        }
        self.iotlb.counters.misses.fetch_add(fresh.len() as u64, Ordering::Relaxed);
        (!self.misses.is_empty()).then_some(fresh)
    }

    /// The first translation that was missing at the last look.
    #[must_use]
    pub fn first(&self) -> Option<Miss> {
        self.misses.first().copied()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut inner = self.iotlb.lock();
        inner.waiting = inner.waiting.saturating_sub(1);
        for miss in &self.misses {
            inner.asked.remove(&miss.page());
        }
    }
}
