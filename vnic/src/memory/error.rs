//! What can be wrong with an address or a region.

use std::fmt;

/// What the device wants to do with a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// The device reads guest memory.
    Read,
    /// The device writes guest memory.
    Write,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Access::Read => "read",
            Access::Write => "write",
        })
    }
}

/// An address or region that cannot be used. Addresses and lengths in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Part of the range lies in no region.
    #[error("{addr:#x}+{len} is not (wholly) guest memory")]
    Unmapped {
        /// First byte of the range.
        addr: u64,
        /// Its length.
        len: u64,
    },
    /// The range's end passes the end of the address space.
    #[error("{addr:#x}+{len} wraps around the address space")]
    Wraps {
        /// First byte of the range.
        addr: u64,
        /// Its length.
        len: u64,
    },
    /// The range is not in one piece of host memory, where it must be.
    #[error("{addr:#x}+{len} crosses a region border")]
    Split {
        /// First byte of the range.
        addr: u64,
        /// Its length.
        len: u64,
    },
    /// An address that must be aligned is not.
    #[error("{addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// The address.
        addr: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// Behind an IOMMU: no translation is known. No fault, but a miss: the front-end is to be asked.
    #[error("{addr:#x} has no translation to {access} through")]
    Untranslated {
        /// The address.
        addr: u64,
        /// What for.
        access: Access,
    },
    /// Behind an IOMMU: the translation does not allow it.
    #[error("the IOMMU forbids the device to {access} {addr:#x}")]
    Forbidden {
        /// The address.
        addr: u64,
        /// What it wanted.
        access: Access,
    },
    /// Behind an IOMMU: the translation leads out of the guest's memory.
    #[error("{addr:#x} is translated to {gpa:#x}+{size}, which is not (wholly) guest memory")]
    Astray {
        /// The address.
        addr: u64,
        /// Where the translation begins, guest-physical.
        gpa: u64,
        /// Its size.
        size: u64,
    },
    /// A user address in no region.
    #[error("user address {addr:#x}+{len} is in no memory region")]
    UserUnmapped {
        /// First byte of the range.
        addr: u64,
        /// Its length.
        len: u64,
    },
    /// A region of no bytes.
    #[error("memory region at {gpa:#x} is empty")]
    EmptyRegion {
        /// Its guest-physical address.
        gpa: u64,
    },
    /// Two regions share guest-physical addresses.
    #[error("memory region at {gpa:#x}+{size} overlaps another")]
    Overlap {
        /// Its guest-physical address.
        gpa: u64,
        /// Its size.
        size: u64,
    },
    /// A region that begins within a page: no driver has such memory.
    #[error("memory region at {gpa:#x} begins within a page")]
    WithinPage {
        /// Its guest-physical address.
        gpa: u64,
    },
    /// Two regions say different things of one user address.
    #[error("memory region at {gpa:#x}+{size} shares user addresses with another, and not its memory")]
    UserOverlap {
        /// Its guest-physical address.
        gpa: u64,
        /// Its size.
        size: u64,
    },
    /// More regions than the protocol allows.
    #[error("{count} memory regions, at most {max}")]
    TooManyRegions {
        /// How many there would be.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// No such region to remove.
    #[error("no memory region at {gpa:#x}+{size}")]
    NoSuchRegion {
        /// Its guest-physical address.
        gpa: u64,
        /// Its size.
        size: u64,
    },
    /// The region's file ends before the region does (mapping it would end in SIGBUS).
    #[error("memory region at {gpa:#x} needs {needed} bytes of its file, which has {have}")]
    ShortFile {
        /// Its guest-physical address.
        gpa: u64,
        /// Offset plus size.
        needed: u64,
        /// The file's size.
        have: u64,
    },
    /// The log of dirty pages does not reach to the end of the guest's memory.
    #[error("the log of dirty pages has {have} bytes, and the guest's memory needs {needed}")]
    LogTooSmall {
        /// Its length.
        have: u64,
        /// What is needed.
        needed: u64,
    },
    /// The log of dirty pages cannot be mapped.
    #[error("the log of dirty pages cannot be used: {reason}")]
    Log {
        /// Why not.
        reason: String,
    },
    /// The host could not map the region.
    #[error("cannot map the memory region at {gpa:#x}: {reason}")]
    Map {
        /// Its guest-physical address.
        gpa: u64,
        /// What the host said.
        reason: String,
    },
}
