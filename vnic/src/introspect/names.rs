//! The names of files and directories that were looked up: each holds as long as everything it was made of still stands in the
//! guest's memory.
//!
//! Operation: a name is what the file's own entry says, in a [`Folder`] that all files of a directory share. A file that is
//! looked up for the first time is read only up to its directory; what that was made of is compared with what stands there.
//!
//! Invariants: a folder is compared after the file's entry was read. So, whatever the guest does meanwhile, there was a moment
//! at which all of it stood at once: the folder from when it was read until it is compared, the entry within that time.

use std::sync::Arc;

use super::GuestPhysical;
use super::path::{Folder, Name};
use super::space::{Seen, still_stands};

/// Places for names that are remembered.
const NAMES: usize = 2048;
/// Places for directories that are remembered, beside those of the names.
const FOLDERS: usize = 512;
/// What is made of more reads than this is looked up each time.
const MAX_SEEN: usize = 256;

/// Names by their file's `address_space` and inode number.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: Places<Known, NAMES>,
    /// By their `super_block` and `dentry`.
    folders: Places<Arc<Folder>, FOLDERS>,
    /// The sitting that is held; see [`Sitting`](super::Sitting).
    sitting: u64,
    /// How often a name was still known.
    pub(super) remembered: u64,
    /// How often it was not.
    pub(super) looked_up: u64,
}

/// A place for each of what is remembered, by its two numbers; who comes to a place that is taken, takes it. So a guest that
/// chooses the numbers has things looked up again, and no more.
#[derive(Debug)]
struct Places<T, const COUNT: usize>(Vec<Option<((u64, u64), T)>>);

impl<T, const COUNT: usize> Default for Places<T, COUNT> {
    fn default() -> Self {
        Places((0..COUNT).map(|_| None).collect())
    }
}

impl<T, const COUNT: usize> Places<T, COUNT> {
    fn place(&mut self, of: (u64, u64)) -> Option<&mut Option<((u64, u64), T)>> {
        // Addresses of objects of a slab differ in their middle bits only.
        let mixed = (of.0 ^ of.1.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.0.get_mut(mixed as usize % COUNT)
    }

    fn get(&mut self, of: (u64, u64)) -> Option<&mut T> {
        self.place(of)?.as_mut().filter(|(who, _)| *who == of).map(|(_, what)| what)
    }

    fn keep(&mut self, of: (u64, u64), what: T) {
        if let Some(place) = self.place(of) {
            *place = Some((of, what));
        }
    }
}

#[derive(Debug)]
struct Known {
    seen: Box<[Seen]>,
    folder: Arc<Folder>,
    name: Name,
    /// The sitting in which it last was seen to hold.
    held: u64,
}

impl Names {
    /// From now on, each name has to be looked at once more.
    pub(super) fn sit(&mut self) {
        self.sitting += 1;
    }

    /// The file's name, if it still holds.
    pub(super) fn get(&mut self, file: (u64, u64), memory: &impl GuestPhysical) -> Option<Name> {
        let sitting = self.sitting;
        let holds = |known: &&mut Known| {
            known.held == sitting || still_stands(known.seen.iter().chain(&known.folder.seen), memory)
        };
        let known = self.known.get(file).filter(holds)?;
        known.held = sitting;
        self.remembered += 1;
        Some(known.name.clone())
    }

    /// The directory, as it was when it was read; whether it still is, is to be seen.
    pub(super) fn folder(&mut self, place: (u64, u64)) -> Option<Arc<Folder>> {
        self.folders.get(place).cloned()
    }

    /// Remembers a directory.
    pub(super) fn keep_folder(&mut self, place: (u64, u64), folder: &Arc<Folder>) {
        if folder.seen.len() <= MAX_SEEN {
            self.folders.keep(place, folder.clone());
        }
    }

    /// Remembers a name and what it was made of, beside its directory.
    pub(super) fn keep(&mut self, file: (u64, u64), seen: Box<[Seen]>, folder: Arc<Folder>, name: &Name) {
        self.looked_up += 1;
        if seen.len().max(folder.seen.len()) <= MAX_SEEN {
            self.known.keep(file, Known { seen, folder, name: name.clone(), held: self.sitting });
        }
    }
}
