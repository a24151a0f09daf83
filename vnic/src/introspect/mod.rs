//! Whose memory is this? A look into the structures of the Linux kernel that runs in the guest, from outside: no agent, no
//! debug symbols, nothing but the guest's RAM.
//!
//! Place: on a control thread, never the data path. It only reads.
//!
//! Operation: [`Introspection::attach`] finds the running kernel and where the members of its structures are;
//! [`Introspection::label`] goes from a page to its owner: a file's path, a program, a slab cache.
//!
//! Invariants: the guest runs on meanwhile, and nothing it keeps in its memory is trusted. Every pointer is checked by where
//! it leads and, where there is one, by the pointer back; every read is a step of a budget ([`MAX_STEPS`]) at whose end the
//! look-up ends. A label is given only if a second look finds all that it comes from unchanged; else the page is
//! [`Kind::Unsettled`]. What is remembered has a bound, and holds only as long as everything it was made of still stands.
//!
//! Limits: Linux on x86-64 with BTF (`CONFIG_DEBUG_INFO_BTF`, as all distributions have it). Encrypted guests cannot be
//! looked into.

mod anchor;
mod attach;
pub mod btf;
mod kernel;
pub(crate) mod label;
mod layout;
mod look;
mod names;
mod owner;
mod path;
mod physical;
mod space;
mod stamp;
mod stamper;
pub mod testing;
#[cfg(test)]
mod tests;
pub mod vmcoreinfo;

use std::collections::HashMap;
use std::sync::Arc;

use kernel::Kernel;
use look::Look;
use names::Names;
use stamp::{Stamp, pages};

pub(crate) use anchor::offset;
pub use attach::{AttachError, Work};
pub(crate) use label::Plain;
pub use label::{Kind, Label};
pub use layout::Missing;
pub use physical::GuestPhysical;
pub(crate) use space::{Reader, Stop};
pub use stamp::MAX_PAGES;
pub use stamper::Stamper;

/// Reads of guest memory in one look-up, at most.
pub const MAX_STEPS: u32 = 8192;
/// Pages that [`Introspection::is_alive`] looks at.
const ALIVE_SAMPLE: u64 = 500;

/// What was looked up so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Statistics {
    /// Addresses.
    pub looks: u64,
    /// Of them, those whose page changed meanwhile.
    pub unsettled: u64,
    /// Files whose name was still known.
    pub remembered: u64,
    /// Files whose name was looked up.
    pub named: u64,
    /// Reads of guest memory.
    pub steps: u64,
    /// Most of them in one look-up.
    pub most_steps: u32,
}

/// The eyes on a running kernel. See the [module](self).
#[derive(Debug)]
pub struct Introspection<M> {
    memory: M,
    kernel: Arc<Kernel>,
    names: Names,
    statistics: Statistics,
    work: Work,
}

impl<M: GuestPhysical> Introspection<M> {
    /// Finds the kernel that runs in this memory.
    ///
    /// # Errors
    /// There is none, or none that can be looked into.
    pub fn attach(memory: M) -> Result<Self, AttachError> {
        let mut work = Work::default();
        let kernel = Arc::new(attach::find(&memory, &mut work)?);
        Ok(Introspection { memory, kernel, names: Names::default(), statistics: Statistics::default(), work })
    }

    /// The kernel's release, as `uname -r` has it.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.kernel.release
    }

    /// What attaching has cost.
    #[must_use]
    pub fn work(&self) -> Work {
        self.work
    }

    /// What was looked up so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics { remembered: self.names.remembered, named: self.names.looked_up, ..self.statistics }
    }

    /// Does this kernel still run? Of a dead one, file pages soon lead nowhere.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        // One that is gone altogether has no page that looks like a file's; one that runs has some, few as they may be.
        let sample = |looks| self.kernel.sample(&self.memory, looks, &mut Work::default()).unwrap_or_default();
        let sampled = [ALIVE_SAMPLE, attach::LARGE_SAMPLE].into_iter().map(sample).find(|(pages, _)| *pages > 0);
        sampled.is_some_and(|(pages, bad)| !attach::is_dead(pages, bad))
    }

    /// Whose the byte at this guest-physical address is.
    pub fn label(&mut self, gpa: u64) -> Label {
        self.look(gpa).0
    }

    /// The names of the flags that the kernel has set on the page at this guest-physical address; none where it keeps no account.
    #[must_use]
    pub fn flags(&mut self, gpa: u64) -> Vec<String> {
        let look = Look::new(&self.memory, &self.kernel, &mut self.names, MAX_STEPS);
        look.flags(gpa).unwrap_or_default()
    }

    /// Whose the pages of a buffer were when it was given this stamp: a label for each of them in their order, or one for all.
    /// Of pages that have another stamp by now, the kind is told that they had then, and no more.
    pub fn labels_of(&mut self, gpa: u64, len: u32, stamp: u64, labels: &mut Vec<Label>) {
        let first = labels.len();
        let then = Stamp::from(stamp).kind();
        let had = |why: &str| Label::of(gpa, then.unwrap_or(Kind::Unsettled)).because(why);
        let pages = pages(gpa, len).filter(|_| stamp != 0);
        let Some(pages) = pages else { return labels.push(had("nobody looked at it when it was sent")) };
        let mut now = Stamp::default();
        for number in pages {
            let (mut label, stamp) = self.look((number << 12).max(gpa));
            if label.kind == Kind::Unsettled && then.is_some() {
                label = had("no more of it could be told");
            }
            labels.push(label);
            now.add(stamp);
        }
        if u64::from(now) != stamp {
            labels.truncate(first);
            labels.push(had("it has changed hands since it was sent"));
        }
    }

    /// What takes stamps of this kernel's pages.
    #[must_use]
    pub fn stamper(&self) -> Stamper<M>
    where
        M: Clone,
    {
        Stamper::new(self.memory.clone(), self.kernel.clone())
    }

    /// More eyes on this kernel, which remember for themselves.
    pub(crate) fn more(&self) -> Self
    where
        M: Clone,
    {
        let (memory, kernel) = (self.memory.clone(), self.kernel.clone());
        Introspection { memory, kernel, names: Names::default(), statistics: Statistics::default(), work: self.work }
    }

    /// The stamps of several buffers, all of one moment, and of those in a file's pages whose they are: the same name for all
    /// pages of a file that `files` has seen already.
    pub(crate) fn sight(
        &mut self,
        buffers: impl Iterator<Item = (u64, u32)>,
        files: &mut HashMap<u64, Label>,
    ) -> Vec<(u64, Option<Label>)>
    where
        M: Clone,
    {
        let stamped: Vec<_> = self.stamper().stamps_with_files(buffers).collect();
        let mut label = |gpa, mapping| match files.get(&mapping) {
            Some(label) => Some(Label { gpa, page: None, ..label.clone() }),
            None => {
                let label = self.label(gpa);
                label.path.is_some().then(|| files.insert(mapping, label.clone()));
                label.path.is_some().then_some(label)
            }
        };
        stamped.into_iter().map(|(gpa, stamp, file)| (stamp, file.and_then(|file| label(gpa, file)))).collect()
    }

    fn look(&mut self, gpa: u64) -> (Label, Stamp) {
        let mut look = Look::new(&self.memory, &self.kernel, &mut self.names, MAX_STEPS);
        let (label, stamp) = look.label(gpa);
        let steps = look.steps();
        let all = &mut self.statistics;
        all.looks += 1;
        all.unsettled += u64::from(label.kind == Kind::Unsettled);
        all.steps += u64::from(steps);
        all.most_steps = all.most_steps.max(steps);
        (label, stamp)
    }
}
