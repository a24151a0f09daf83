//! Whose the pages of a chain are, looked up while the device has it: by the time that somebody asks, the file may be gone.
//!
//! Operation: of each chain that is seen, stamps are taken of its pages, and the file's name is looked up; once for all chains of
//! a look, as pages that a device has go from one file to no other. What turns out to have been the device's all the while is
//! kept by its stamps, for who reads the events later.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::ram::Ram;
use super::chain::Seen;
use crate::introspect::{Introspection, Kind, Label, MAX_PAGES};

/// Buffers whose names are kept: a few times as many as there are events unread.
const KEPT: usize = 1 << 14;

/// Names by the stamps of buffers, of the last ones that passed.
#[derive(Debug, Default)]
pub(super) struct Named(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    labels: HashMap<u64, Label>,
    order: VecDeque<u64>,
}

impl Named {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These were the buffer's when it was sent.
    fn keep(&self, stamp: u64, label: &Label) {
        let mut kept = self.lock();
        let Kept { labels, order } = &mut *kept;
        if labels.insert(stamp, label.clone()).is_none() {
            order.push_back(stamp);
        }
        if order.len() > KEPT
            && let Some(oldest) = order.pop_front()
        {
            labels.remove(&oldest);
        }
    }

    /// Where `labels` say of a buffer with this stamp that it was a file's, and no more: whose.
    pub(super) fn complete(&self, stamp: u64, labels: &mut [Label]) {
        if let [label] = labels
            && label.kind == Kind::File
            && label.path.is_none()
            && let Some(known) = self.lock().labels.get(&stamp)
        {
            *label = Label { gpa: label.gpa, why: label.why.take(), ..known.clone() };
        }
    }
}

/// Who looks.
#[derive(Debug)]
pub(in crate::attach) struct Sight {
    eyes: Introspection<Arc<Ram>>,
    /// Of the look that is under way, by `address_space`.
    files: HashMap<u64, Label>,
    named: Arc<Named>,
}

impl Sight {
    pub(super) fn new(eyes: Introspection<Arc<Ram>>, named: Arc<Named>) -> Self {
        Sight { eyes, files: HashMap::new(), named }
    }

    /// Another look begins.
    pub(super) fn begin(&mut self) {
        self.files.clear();
    }

    /// Looks whose the chain's pages are. Returns how many pages these are.
    pub(super) fn look(&mut self, seen: &mut Seen) -> u64 {
        let buffers = seen.buffers.iter().map(|buffer| (buffer.gpa, buffer.len));
        (seen.stamps, seen.labels) = self.eyes.sight(buffers, &mut self.files).into_iter().unzip();
        seen.buffers.iter().map(|buffer| u64::from(buffer.len >> 12).min(MAX_PAGES) + 1).sum()
    }

    /// The chain was the device's all the while.
    pub(super) fn keep(&self, seen: &Seen) {
        for (stamp, label) in seen.stamps.iter().zip(&seen.labels) {
            if let Some(label) = label {
                self.named.keep(*stamp, label);
            }
        }
    }
}
