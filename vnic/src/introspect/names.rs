//! The names of files that were looked up: each holds as long as everything it was made of still stands in the guest's
//! memory.

use std::collections::HashMap;

use super::GuestPhysical;
use super::path::Name;
use super::space::{Seen, still_stands};

/// Names that are remembered.
const MAX_NAMES: usize = 2048;
/// A name made of more reads than this is looked up each time.
const MAX_SEEN: usize = 256;

/// Names by their file's `address_space` and inode number.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashMap<(u64, u64), Known>,
    /// The sitting that is held; see [`Sitting`](super::Sitting).
    sitting: u64,
    /// How often a name was still known.
    pub(super) remembered: u64,
    /// How often it was not.
    pub(super) looked_up: u64,
}

#[derive(Debug)]
struct Known {
    seen: Box<[Seen]>,
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
        let holds = |known: &&mut Known| known.held == sitting || still_stands(&known.seen, memory);
        let known = self.known.get_mut(&file).filter(holds)?;
        known.held = sitting;
        self.remembered += 1;
        Some(known.name.clone())
    }

    /// Remembers a name and what it was made of.
    pub(super) fn keep(&mut self, file: (u64, u64), seen: Vec<Seen>, name: &Name) {
        self.looked_up += 1;
        if seen.len() > MAX_SEEN {
            return;
        }
        if self.known.len() >= MAX_NAMES {
            self.known.clear();
        }
        self.known.insert(file, Known { seen: seen.into(), name: name.clone(), held: self.sitting });
    }
}
