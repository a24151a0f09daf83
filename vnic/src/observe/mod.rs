//! Counters, the event tracer, ring snapshots, the judge of a flow, and the control socket's protocol.

pub mod discovery;
mod notation;
pub mod protocol;
