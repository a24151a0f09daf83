//! What a hostile guest or front-end may write, made from a fuzzer's bytes, and what must hold whatever that is.
//!
//! | target | |
//! |---|---|
//! | `split_ring`, `packed_ring` | [`ring`]: the device half of a ring, with writes of the guest between any two of its loads |
//! | `disk` | [`disk`]: chains as requests for a disk |
//! | `net_header` | [`net`]: chains as frames, packets in words, frames in receive buffers |
//! | `vhost_user` | [`front_end`]: messages with files for a whole session, with workers behind it |
//! | `control` | [`control`]: clients of the control socket |
//! | `iotlb` | [`iotlb`]: translations against a plain list of what was said |
//! | `in_flight` | [`in_flight`]: a record of what is in flight, beside a ring |
//! | `introspect` | [`introspect`]: a kernel's memory, some of which says something else |
//! | `attach` | [`attach`]: the same of its virtio devices and their rings |
//!
//! Each module's `run` is a target: it decodes its bytes, plays them, and panics when an invariant is broken. Not part of
//! the workspace; `scripts/fuzz.sh` runs all of them.

pub mod attach;
pub mod control;
pub mod disk;
pub mod front_end;
pub mod in_flight;
pub mod introspect;
pub mod iotlb;
pub mod net;
pub mod ring;
