//! Guest memory: the regions a front-end shared, and checked translation of addresses into them.
//!
//! Place: the session builds a [`Memory`] from a memory table; rings and queues translate through it. Nothing outside
//! this module and the ring's pointer layer holds a raw pointer into the guest.
//!
//! Operation: a [`Memory`] never changes. A new memory table, or one region more or less, makes a new one that shares
//! the mappings of the regions that stay; whoever still holds the old one keeps its mappings alive. A worker is told to
//! take the new one, and only when it has is the front-end answered.
//!
//! Invariants: every byte of a region in a [`Memory`] is mapped readable and writable for as long as the `Memory`
//! lives, whatever becomes of the file behind it ([`fault`] fills the hole that a truncation tears).
//!
//! The regions themselves, by guest-physical address, are [`GuestRegions`]; a [`Memory`] is how the device sees them: as they are,
//! or behind an IOMMU by IOVAs, through an [`Iotlb`]. The IOTLB knows the regions and not who looks through it.
//!
//! Who writes into a guest that is being copied elsewhere marks the pages in a [`DirtyLog`].

mod address;
mod alias;
mod dirty_log;
mod error;
pub mod fault;
mod file_pages;
pub mod iotlb;
mod mapping;
mod onlooker;
mod regions;
mod shared_area;
mod slice;
mod survey;
pub mod testing;
#[cfg(test)]
mod tests;
pub mod transfer;
#[cfg(feature = "device")]
pub(crate) mod uring;
mod view;

pub use address::{Gpa, Iova, UserAddr};
pub(crate) use alias::ContiguousAlias;
pub use dirty_log::{DirtyLog, LOG_PAGE};
pub use error::{Access, MemoryError};
pub use file_pages::{BadRuns, FilePages, MAX_PAGES, PageRun};
pub use iotlb::{Iotlb, IotlbEntry, Miss};
pub(crate) use iotlb::{Tlb, next_page};
pub use mapping::RegionSpec;
pub use onlooker::Onlooker;
pub(crate) use regions::{Found, Hint};
pub use regions::{GuestRegions, MAX_REGIONS};
pub use shared_area::SharedArea;
pub use slice::GuestSlice;
pub use view::{Memory, Pieces};
