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
mod sitting;
mod space;
mod stamp;
mod stamper;
pub mod testing;
#[cfg(test)]
mod tests;
pub mod vmcoreinfo;

use std::sync::Arc;

use kernel::Kernel;
use look::Look;
use names::Names;

pub(crate) use anchor::offset;
pub use attach::{AttachError, Work};
pub(crate) use label::Plain;
pub use label::{Kind, Label};
pub use layout::Missing;
pub use physical::{GuestPhysical, Piece};
pub(crate) use sitting::Sitting;
pub(crate) use space::{Reader, Stop, Translations};
pub use stamp::{MAX_PAGES, Stamped};
pub(crate) use stamper::Place;
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
        let notes = vmcoreinfo::find(&memory)?;
        Introspection::attach_by(memory, &notes, &mut Work::default())
    }

    /// Finds the kernel that runs in this memory among those that left these notes, wherever they were found. `work` is what the
    /// attempts before this one have cost: all of them together have a bound.
    ///
    /// # Errors
    /// There is none, or none that can be looked into.
    pub fn attach_by(memory: M, notes: &vmcoreinfo::Found, work: &mut Work) -> Result<Self, AttachError> {
        let kernel = Arc::new(attach::find(&memory, notes, work)?);
        Ok(Introspection { memory, kernel, names: Names::default(), statistics: Statistics::default(), work: *work })
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
        // One that is gone altogether has no page that looks like a file's; one that runs has some, few as they may be. Among few, one
        // that just changes is many: more are asked before a kernel is given up, and with it what takes stamps of its pages.
        let sample = |looks| self.kernel.sample(&self.memory, looks, &mut Work::default()).unwrap_or_default();
        let lives = |(pages, bad)| pages > 0 && !attach::is_dead(pages, bad);
        [ALIVE_SAMPLE, attach::LARGE_SAMPLE].into_iter().any(|looks| lives(sample(looks)))
    }

    /// Whose the byte at this guest-physical address is.
    pub fn label(&mut self, gpa: u64) -> Label {
        self.sit().label(gpa).0
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
        self.sit().labels_of(gpa, len, stamp, labels);
    }

    /// Begins to look at buffers that were given their stamps before.
    pub(crate) fn sit(&mut self) -> Sitting<'_, M> {
        self.names.sit();
        let look = Look::new(&self.memory, &self.kernel, &mut self.names, MAX_STEPS);
        Sitting { look, statistics: &mut self.statistics }
    }

    /// What takes stamps of this kernel's pages.
    #[must_use]
    pub fn stamper(&self) -> Stamper<M>
    where
        M: Clone,
    {
        Stamper::new(self.memory.clone(), self.kernel.clone())
    }

    /// The same through other memory: the same guest's, part of which was read beforehand.
    pub(crate) fn stamper_through<T: GuestPhysical>(&self, memory: T) -> Stamper<T> {
        Stamper::new(memory, self.kernel.clone())
    }

    /// More eyes on this kernel, which remember for themselves.
    pub(crate) fn more(&self) -> Self
    where
        M: Clone,
    {
        let (memory, kernel) = (self.memory.clone(), self.kernel.clone());
        Introspection { memory, kernel, names: Names::default(), statistics: Statistics::default(), work: self.work }
    }
}
