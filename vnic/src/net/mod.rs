//! virtio-net: features, the packet header, transmitq (chain → frame) and receiveq (frame → driver buffers).

mod frame;

pub use frame::Frame;
