//! What the guest says of a page whose owner it knows, for who tells the owner from outside: an object on each line.

use serde::{Deserialize, Serialize};

/// A page of the guest's, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// Where it is, guest-physical.
    pub gpa: u64,
    /// Whose.
    pub by: Owner,
}

/// Whose a page is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// A file's.
    File {
        /// Its names, each as good as the other.
        names: Vec<String>,
        /// The file system's type.
        filesystem: String,
        /// Which page of it.
        page: u64,
        /// Whether it has no name any more.
        deleted: bool,
    },
    /// A program's own.
    Program {
        /// As the kernel calls it.
        name: String,
        /// The processes that have it, and where.
        places: Vec<(u32, u64)>,
    },
}
