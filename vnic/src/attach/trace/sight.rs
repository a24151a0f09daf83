//! Whose the pages of a chain are, looked up while the device has it: by the time that somebody asks, the file may be gone.
//!
//! Operation: of each chain that is seen, stamps are taken of its pages. Of what turns out to have been the device's all the while,
//! the files' names are looked up a little later, once for many chains, and kept by the stamps for who reads the events; of
//! pages that still have theirs then, no others.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::fetched::Fetched;
use super::chain::Seen;
use crate::introspect::{GuestPhysical, Introspection, Label, Place, Translations};

/// Buffers whose names are kept: a few times as many as there are events unread.
const KEPT: usize = 1 << 14;
/// How long, and how many, files' pages wait for their names. A file that is removed at once has gone by then.
const WAITS: Duration = Duration::from_millis(2);
const MOST: usize = 512;
/// Pages that are tried for each file's name.
const TRIES: u32 = 4;

/// Names by the stamps of buffers, of the last ones that passed.
#[derive(Debug, Default)]
pub(super) struct Named(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    /// Without one: a buffer with this stamp has passed again since, and whose it was then was not looked up yet.
    labels: HashMap<u64, Option<Label>>,
    order: VecDeque<u64>,
}

impl Named {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These were the buffer's when it was sent.
    fn keep(&self, stamp: u64, label: Label) {
        let mut kept = self.lock();
        let Kept { labels, order } = &mut *kept;
        if labels.insert(stamp, Some(label)).is_none() {
            order.push_back(stamp);
        }
        if order.len() > KEPT
            && let Some(oldest) = order.pop_front()
        {
            labels.remove(&oldest);
        }
    }

    /// What was known of buffers with these stamps is of no use for those that pass now.
    fn forget(&self, stamps: impl Iterator<Item = u64>) {
        let mut kept = self.lock();
        for stamp in stamps {
            if let Some(label) = kept.labels.get_mut(&stamp) {
                *label = None;
            }
        }
    }

    /// The label of what a buffer with this stamp began with; `None`: it was no file's, or nobody has looked up whose.
    pub(super) fn get(&self, gpa: u64, stamp: u64) -> Option<Label> {
        let label = self.lock().labels.get(&stamp).cloned().flatten()?;
        Some(Label { gpa, ..label })
    }
}

/// Who looks.
#[derive(Debug)]
pub(in crate::attach) struct Sight<M> {
    eyes: Introspection<Arc<M>>,
    known: Translations,
    named: Arc<Named>,
    /// Buffers in files' pages that have passed, and since when their files' names wait to be looked up.
    passed: Vec<Passed>,
    since: Option<Instant>,
}

/// Address, length, stamp and place of a buffer.
#[derive(Debug, Clone, Copy)]
struct Passed {
    gpa: u64,
    len: u32,
    stamp: u64,
    place: Place,
}

impl<M: GuestPhysical> Sight<M> {
    pub(super) fn new(eyes: Introspection<Arc<M>>, named: Arc<Named>) -> Self {
        Sight { eyes, known: Translations::default(), named, passed: Vec::new(), since: None }
    }

    /// One whose names nobody reads.
    #[cfg(any(test, fuzzing))]
    pub(in crate::attach) fn alone(eyes: Introspection<Arc<M>>) -> Self {
        Sight::new(eyes, Arc::default())
    }

    /// What has to be read to look at these chains' pages.
    pub(super) fn structures<'s>(&mut self, chains: impl Iterator<Item = &'s Seen>) -> Vec<(u64, usize)> {
        self.eyes.stamper().structures(chains.flat_map(buffers), &mut self.known)
    }

    /// Looks what the chains' pages are.
    pub(super) fn look<'s>(&mut self, chains: impl Iterator<Item = &'s mut Seen>, fetched: &Fetched<'_, M>) {
        let stamper = self.eyes.stamper_through(fetched);
        for seen in chains {
            seen.stamps = stamper.stamps_with_places(buffers(seen), &mut self.known);
        }
    }

    /// The chain was the device's all the while.
    pub(super) fn keep(&mut self, seen: &Seen) {
        let in_files = buffers(seen)
            .zip(&seen.stamps)
            .filter_map(|((gpa, len), (stamp, place))| Some(Passed { gpa, len, stamp: *stamp, place: (*place)? }));
        let first = self.passed.len();
        self.passed.extend(in_files);
        self.named.forget(self.passed.iter().skip(first).map(|passed| passed.stamp));
        self.since = self.since.or_else(|| (!self.passed.is_empty()).then(Instant::now));
    }

    /// Looks up the names of the files whose pages have passed; not at once if more are coming.
    pub(in crate::attach) fn name(&mut self, ram: &M, more: bool) {
        let in_time = self.since.is_some_and(|since| since.elapsed() < WAITS);
        if self.passed.is_empty() || more && in_time && self.passed.len() < MOST {
            return;
        }
        let passed = std::mem::take(&mut self.passed);
        self.since = None;
        let mut names: HashMap<u64, (u32, Option<Label>)> = HashMap::new();
        let mut sitting = self.eyes.sit();
        for Passed { gpa, len, stamp, place } in passed.iter().rev() {
            let (tries, name) = names.entry(place.mapping).or_default();
            if name.is_some() || *tries == TRIES {
                continue;
            }
            *tries += 1;
            let mut labels = Vec::new();
            sitting.labels_of(*gpa, *len, *stamp, &mut labels);
            *name = labels.into_iter().next().filter(|label| label.path.is_some());
        }
        drop(sitting);
        // What is still there after the name was read was that file's all the while.
        let buffers = || passed.iter().map(|passed| (passed.gpa, passed.len));
        let mut fetched = Fetched::new(ram);
        fetched.fetch(self.eyes.stamper().structures(buffers(), &mut self.known));
        let now = self.eyes.stamper_through(&fetched).stamps_with_places(buffers(), &mut self.known);
        for (Passed { gpa, stamp, place, .. }, (now, _)) in passed.iter().zip(now) {
            if now == *stamp
                && let Some((_, Some(name))) = names.get(&place.mapping)
            {
                self.named.keep(*stamp, Label { gpa: *gpa, page: Some(place.page), why: None, ..name.clone() });
            }
        }
    }
}

fn buffers(seen: &Seen) -> impl Iterator<Item = (u64, u32)> {
    seen.buffers.iter().map(|buffer| (buffer.gpa, buffer.len))
}
