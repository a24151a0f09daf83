//! virtio-net: features, the packet header, transmitq (chain → frame) and receiveq (frame → driver buffers).
//!
//! | file | |
//! |---|---|
//! | [`features`] | what the device offers, what depends on what, what may be withheld |
//! | [`header`] | the virtio-net header: read once, checked against frame and features |
//! | [`frame`] | a transmit chain as a frame |
//! | [`parse`] | who talks to whom in a frame, and in words |
//! | [`receive`] | the driver's receive buffers as one room for a frame |
//! | [`checksum`] | the Internet checksum, where no offload does it |

pub mod checksum;
pub mod features;
pub mod frame;
pub mod header;
pub mod parse;
pub mod receive;
pub mod vectored;

pub use frame::{Frame, FrameError, MAX_FRAME_LEN, MIN_FRAME_LEN};
pub use header::{HeaderError, header_len};
pub use receive::{MAX_BUFFERS, NoRoom, ReceiveSpace};

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
