//! The translations themselves: a bounded set of ranges that do not overlap.

use std::collections::BTreeMap;

use crate::memory::{Access, Gpa, Iova};

/// Translations that are kept: a guest with 256 MiB mapped in single pages.
pub const CAPACITY: usize = 1 << 16;

/// A translation that the front-end's IOMMU gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IotlbEntry {
    /// First address, as descriptors have it.
    pub iova: Iova,
    /// Bytes, not 0; the last one is an address.
    pub size: u64,
    /// Where they are; all in one memory region.
    pub gpa: Gpa,
    /// May the device read them?
    pub read: bool,
    /// May the device write them?
    pub write: bool,
}

/// What may be done with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Rights {
    pub(super) read: bool,
    pub(super) write: bool,
}

impl Rights {
    pub(super) const fn has(self, access: Access) -> bool {
        match access {
            Access::Read => self.read,
            Access::Write => self.write,
        }
    }

    const fn and(self, other: Rights) -> Rights {
        Rights { read: self.read && other.read, write: self.write && other.write }
    }

    const fn or(self, other: Rights) -> Rights {
        Rights { read: self.read || other.read, write: self.write || other.write }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    last: u64,
    gpa: u64,
    /// What the front-end said.
    granted: Rights,
    /// The part of it that was asked for, and counts.
    trusted: Rights,
}

/// A whole translation as it was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) gpa: u64,
    pub(super) trusted: Rights,
}

/// Why there is no translation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The front-end has not said.
    Unknown,
    /// It has said no.
    Forbidden,
}

/// What a new translation did to those that were there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Inserted {
    /// It leads elsewhere than one that was there, or takes a right away.
    pub(super) replaced: bool,
    /// Translations that were given up for want of room.
    pub(super) evicted: u64,
}

/// The set. By first address; no two overlap.
#[derive(Debug, Clone, Default)]
pub struct Table {
    entries: BTreeMap<u64, Entry>,
    /// Bytes that they translate together.
    bytes: u64,
    /// The translation given up last: the next one is taken behind it.
    hand: u64,
}

impl Table {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that are translated.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    fn put(&mut self, first: u64, entry: Entry) {
        self.take(first);
        self.bytes = self.bytes.saturating_add(size(first, &entry));
        self.entries.insert(first, entry);
    }

    fn take(&mut self, first: u64) -> Option<Entry> {
        let entry = self.entries.remove(&first)?;
        self.bytes = self.bytes.saturating_sub(size(first, &entry));
        Some(entry)
    }

    /// All translations by rising address, with what counts of their rights.
    pub fn entries(&self) -> impl Iterator<Item = IotlbEntry> {
        self.entries.iter().map(|(first, entry)| IotlbEntry {
            iova: Iova(*first),
            size: size(*first, entry),
            gpa: Gpa(entry.gpa),
            read: entry.trusted.read,
            write: entry.trusted.write,
        })
    }

    /// Where `iova` leads, whatever may be done there.
    #[must_use]
    pub fn gpa_of(&self, iova: u64) -> Option<Gpa> {
        let (first, entry) = self.over(iova)?;
        Some(Gpa(entry.gpa + (iova - first)))
    }

    /// The translation that `iova` is in.
    fn over(&self, iova: u64) -> Option<(u64, Entry)> {
        let (first, entry) = self.entries.range(..=iova).next_back()?;
        (iova <= entry.last).then_some((*first, *entry))
    }

    /// The translation that `iova` is in, if `access` is allowed there.
    pub(super) fn find(&self, iova: u64, access: Access) -> Result<Range, Refusal> {
        let (first, entry) = self.over(iova).ok_or(Refusal::Unknown)?;
        if entry.trusted.has(access) {
            return Ok(Range { first, last: entry.last, gpa: entry.gpa, trusted: entry.trusted });
        }
        Err(if entry.granted.has(access) { Refusal::Unknown } else { Refusal::Forbidden })
    }

    /// Adds a translation. It replaces what overlaps it; of its rights only what was asked for counts.
    pub(super) fn insert(&mut self, new: &IotlbEntry, asked: Rights, capacity: usize) -> Inserted {
        let first = new.iova.0;
        let last = first.saturating_add(new.size.saturating_sub(1));
        let granted = Rights { read: new.read, write: new.write };
        let mut trusted = granted.and(asked);
        let before = self.entries.get(&first).copied();
        let mut done = Inserted::default();
        match before {
            // The same again, asked for another access perhaps.
            Some(entry) if (entry.last, entry.gpa, entry.granted) == (last, new.gpa.0, granted) => {
                trusted = trusted.or(entry.trusted);
            }
            _ => done.replaced = self.remove(first, last),
        }
        self.put(first, Entry { last, gpa: new.gpa.0, granted, trusted });
        done.evicted = self.trim(capacity, Some(first));
        done
    }

    /// Gives up as many translations as are too many, but not the one at `spared`. Returns how many.
    pub(super) fn trim(&mut self, capacity: usize, spared: Option<u64>) -> u64 {
        let mut evicted = 0;
        while self.entries.len() > capacity && self.evict(spared) {
            evicted += 1;
        }
        evicted
    }

    fn evict(&mut self, spared: Option<u64>) -> bool {
        let other = |(first, _): (&u64, &Entry)| (Some(*first) != spared).then_some(*first);
        let behind = self.hand.checked_add(1).and_then(|from| self.entries.range(from..).find_map(other));
        let Some(victim) = behind.or_else(|| self.entries.iter().find_map(other)) else { return false };
        self.hand = victim;
        self.take(victim).is_some()
    }

    /// Forgets all from `first` to `last`, both included; of a translation that reaches beyond, the rest stays. Returns
    /// whether there was anything.
    pub(super) fn remove(&mut self, first: u64, last: u64) -> bool {
        let mut any = false;
        while let Some((&start, &entry)) = self.entries.range(..=last).next_back() {
            if entry.last < first {
                break;
            }
            any = true;
            self.take(start);
            if start < first {
                self.put(start, Entry { last: first - 1, ..entry });
            }
            if entry.last > last {
                let start_of_rest = last + 1;
                self.put(start_of_rest, Entry { gpa: entry.gpa + (start_of_rest - start), ..entry });
            }
        }
        any
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

/// Bytes of a translation. One of all addresses would be a byte too long for this; no update can say one.
const fn size(first: u64, entry: &Entry) -> u64 {
    (entry.last - first).saturating_add(1)
}
