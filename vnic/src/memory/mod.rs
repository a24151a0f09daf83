//! Guest memory: the regions a front-end shared, and checked translation of addresses into them.
//!
//! Place: the session builds a [`Memory`] from a memory table; rings and queues translate through it. Nothing outside
//! this module and the ring's pointer layer holds a raw pointer into the guest.

mod address;
mod error;
mod slice;

pub use address::{Gpa, Iova, UserAddr};
pub use error::{Access, MemoryError};
pub use slice::GuestSlice;
