//! The engine: queues, workers and the session's requests, for devices of any kind. It knows no network.
//!
//! A device is a [`DeviceModel`] (what it is) and a [`DataPath`] (what it does with its chains); [`Backend`] and
//! [`Workers`] are what every device has. [`crate::nic`] is the first of them, [`crate::rng`] the smallest.
//!
//! | file | |
//! |---|---|
//! | [`data_path`] | what a worker drives, as a trait |
//! | [`model`] | what a device is, as a trait |
//! | [`queue`] | one queue at work; the one way in which a chain [goes back](complete) |
//! | [`in_flight`] | its chains that the data path has kept |
//! | [`log`] | what is written into the guest, for a front-end that copies it elsewhere |
//! | [`record`] | the same, kept by the front-end for the back-end that comes after this one |
//! | `worker`, [`workers`], [`command`] | the data path's threads, and what they are asked |
//! | [`poller`] | when they sleep |
//! | [`device`] | a device as its session drives it |
//! | [`iommu`] | the IOTLB and whom to ask |
//! | `event` | a chain as a trace shows it |
//! | [`labels`] | whose the guest's pages are |
//! | `guest` | whoever knows the guest of a device, and labels what it sends |
//! | [`shared`] | what the threads share |

pub mod command;
pub mod data_path;
pub mod device;
mod event;
pub(crate) mod guest;
pub mod in_flight;
pub mod iommu;
pub mod labels;
pub mod log;
pub mod model;
pub mod poller;
pub mod queue;
pub mod record;
pub mod shared;
mod worker;
pub mod workers;

pub use command::{Notice, Notices};
pub use data_path::{BURST, DataPath, Progress, Queues};
pub use device::Backend;
pub use event::chain_event;
pub(crate) use event::gpa_of;
pub use in_flight::InFlight;
pub use log::QueueLog;
pub use model::DeviceModel;
pub use poller::PollMode;
pub use queue::{Queue, complete};
pub use shared::{About, NamedCounters, QueueShared, QueueState, Shared};
pub use workers::{Plan, Workers};
