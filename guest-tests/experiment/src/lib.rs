//! A transfer as an experiment: a program in the guest sends a file, and four witnesses say how often its bytes were copied.
//!
//! | module | one sentence |
//! |---|---|
//! | [`wire`] | what the guest's agent and the host tell each other |
//! | [`stamp`] | what the file is made of: 64 bytes that say which file and which place they are of |
//! | [`filesystem`] | what the file is on, and what the guest needs for that |
//! | [`row`] | the rows of a run: a method, and what is switched off in the NIC |
//! | [`run`] | the record of a run |
//! | [`verdict`] | the judgement on a transfer |
//! | [`flow`] | the device as a witness: whose pages a flow's bytes are sent from |
//! | [`trail`] | where a flow's payload lay, for those who can tell only later whose memory that was |
//! | [`scan`] | the guest's memory as a witness: how often held bytes stand in it |
//! | [`watched`] | the judgement on a VM that is watched, without an agent in it |
//! | [`introspection`] | the guest kernel's structures as a witness: whose the pages are that the bytes lay in |
//! | [`owned`] | what the guest says of a page whose owner it knows |
//! | [`control`] | how the device is asked for all three, over its control socket |
//!
//! Place: over `vnic`, which knows nothing of it: [`control::Witness`] is plugged into the device's control socket, and a
//! [`flow::FlowWatch`] into its data path.

#[cfg(feature = "device")]
pub mod control;
#[cfg(feature = "device")]
pub mod disk;
pub mod filesystem;
#[cfg(feature = "device")]
pub mod flow;
#[cfg(feature = "device")]
pub mod introspection;
pub mod owned;
pub mod row;
pub mod run;
#[cfg(feature = "device")]
pub mod scan;
pub mod stamp;
#[cfg(feature = "device")]
pub mod trail;
pub mod verdict;
#[cfg(feature = "device")]
pub mod watched;
pub mod wire;
