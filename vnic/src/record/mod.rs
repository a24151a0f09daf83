//! What the guest's agent and the host tell each other about a transfer, and the record a run leaves behind.

pub mod datagram;
pub mod row;
pub mod run;
pub mod stamp;
pub mod verdict;
pub mod wire;
