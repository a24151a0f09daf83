//! A VM that runs already, looked into from outside: its memory is read through its VMM's process, its virtio devices are
//! found in its kernel's own structures.
//!
//! Place: `vnic attach`. It only reads: the VM is never stopped, signalled or traced, and nothing is written to it.
//!
//! Operation:
//! 1. [`process`]: the process's mappings, and reads through `/proc/PID/mem` or, of shared memory, its file.
//! 2. [`ram`]: which of them are the guest's RAM, and how they lie around the PCI hole.
//! 3. `sysfs`, [`devices`]: from any file's super block to `/sys`, to the virtio bus, its devices, queues and rings.
//! 4. `rings`: snapshots of the rings, made of copies; `trace`: what passes through them.
//!
//! Invariants: whatever stands in the process's memory is an answer or a sentence. Each look is a budget of steps.
//!
//! Limits: Linux guests on x86-64 with BTF and a mounted `/sys`. What only the device knows is not to be had: features that
//! it offered and the driver did not take, and whether a notification is on its way.

pub mod answers;
pub mod devices;
mod fetched;
mod layout;
pub(crate) mod packed;
mod placement;
pub mod process;
pub mod ram;
mod rings;
mod serve;
mod sysfs;
#[cfg(any(test, fuzzing))]
pub mod testing;
#[cfg(test)]
mod tests;
pub(crate) mod trace;
pub(crate) mod turn;

use std::io;
use std::sync::Arc;

use devices::{Device, Finder, Queue};
use process::{Process, ProcessError};
use ram::Ram;

#[cfg(test)]
pub(crate) use serve::look;
pub use serve::{Options, serve};

use crate::introspect::{self, Introspection, Label, Stop};
use crate::serve::ServeError;

/// Why there is nothing to look into.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The process.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// Nothing in it is large enough to be a guest's memory.
    #[error("process {pid} ({name}) is no VM: none of its memory is large enough to be a guest's")]
    NoVmm {
        /// Which.
        pid: u32,
        /// Its name.
        name: String,
    },
    /// There is no kernel that can be looked into.
    #[error("process {pid}: {error}")]
    Guest {
        /// Which.
        pid: u32,
        /// Why not.
        error: introspect::AttachError,
    },
    /// The page tables say that RAM is elsewhere.
    #[error("process {pid}: Linux {release} is in its memory, but how that lies around the PCI hole is not known here")]
    Layout {
        /// Which.
        pid: u32,
        /// `uname -r`.
        release: String,
    },
    /// A kernel whose devices cannot be found.
    #[error("Linux {release}: its devices cannot be found: {what}")]
    Unknown {
        /// `uname -r`.
        release: String,
        /// Why not.
        what: String,
    },
    /// The control socket, or waiting.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A host resource is missing.
    #[error("cannot make a copy of a ring: {0}")]
    Host(io::Error),
    /// There is no such queue.
    #[error("there is no queue `{name}`; this VM has {names}")]
    NoQueue {
        /// What was asked for.
        name: String,
        /// The queues there are.
        names: String,
    },
    /// Something that a device could do.
    #[error("`vnic attach` only looks: it holds and sends nothing")]
    OnlyLooks,
    /// It ended meanwhile.
    #[error("process {0} has ended")]
    Ended(u32),
}

/// The eyes on a VM.
#[derive(Debug)]
pub struct Attached {
    ram: Arc<Ram>,
    process: Arc<Process>,
    eyes: Introspection<Arc<Ram>>,
    finder: Finder,
}

impl Attached {
    /// Finds the guest's memory and kernel in the process.
    ///
    /// # Errors
    /// It may not be read, is no VM, or its guest cannot be looked into.
    pub fn open(pid: u32) -> Result<Attached, AttachError> {
        Attached::to(Arc::new(Process::open(pid)?))
    }

    fn to(process: Arc<Process>) -> Result<Attached, AttachError> {
        let eyes = ram::find(&process)?;
        let finder = Finder::new(&eyes)?;
        Ok(Attached { ram: eyes.memory().clone(), process, eyes, finder })
    }

    /// Finds the guest's kernel anew where the one that was known runs no more: the guest has booted.
    ///
    /// # Errors
    /// As [`open`](Attached::open).
    pub fn refresh(&mut self) -> Result<(), AttachError> {
        if self.process.has_ended() {
            return Err(AttachError::Ended(self.process.pid()));
        }
        if !self.eyes.is_alive() {
            *self = Attached::to(self.process.clone())?;
        }
        Ok(())
    }

    /// Whose the pages at these guest-physical addresses are.
    pub fn labels(&mut self, gpas: &[u64]) -> Vec<Label> {
        gpas.iter().map(|gpa| self.eyes.label(*gpa)).collect()
    }

    /// The names of the flags that the guest's kernel has set on these pages.
    pub fn flags(&mut self, gpas: &[u64]) -> Vec<Vec<String>> {
        gpas.iter().map(|gpa| self.eyes.flags(*gpa)).collect()
    }

    /// The guest's memory.
    #[must_use]
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    fn shared_ram(&self) -> Arc<Ram> {
        self.ram.clone()
    }

    fn eyes(&mut self) -> &mut Introspection<Arc<Ram>> {
        &mut self.eyes
    }

    /// The kernel's release, as `uname -r` has it.
    #[must_use]
    pub fn release(&self) -> &str {
        self.eyes.release()
    }

    /// The virtio devices there are now.
    ///
    /// # Errors
    /// The kernel's structures lead nowhere: a sentence.
    pub fn devices(&mut self) -> Result<Vec<Device>, AttachError> {
        // The guest may change its lists under the eyes: once more, then.
        let devices = self.finder.devices(&self.eyes).or_else(|_| self.finder.devices(&self.eyes));
        if let Ok(devices) = devices {
            return Ok(devices);
        }
        if self.process.has_ended() {
            return Err(AttachError::Ended(self.process.pid()));
        }
        // Much may still stand of a kernel that is gone, and lead nowhere from some place on.
        *self = Attached::to(self.process.clone())?;
        let unknown = |stop: Stop| AttachError::Unknown { release: self.release().to_owned(), what: stop.to_string() };
        self.finder.devices(&self.eyes).map_err(unknown)
    }

    /// How far the device is in a packed ring, as [`snapshot::take_packed`](crate::ring::snapshot::take_packed) wants it.
    fn position(&self, queue: &Queue) -> u32 {
        let device = queue.packed.and_then(|books| books.device(self.ram(), &queue.layout, queue.last_used));
        device.map_or(0, |device| u32::from(device.to_bits()) << 16)
    }
}
