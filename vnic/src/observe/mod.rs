//! Counters, the event tracer, observers of frames, and the control socket's protocol.

pub mod counters;
pub mod discovery;
mod notation;
pub mod observer;
pub mod protocol;
pub mod tracer;
