//! Counters, the event tracer, ring snapshots, the judge of a flow, and the control socket's protocol.

pub mod counters;
pub mod discovery;
pub mod flow;
mod notation;
pub mod protocol;
pub mod scan;
pub mod tracer;
