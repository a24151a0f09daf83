//! What VIRTIO 1.3 asks of a network device and its virtqueues, each MUST played by a driver over a vhost-user session.
//!
//! Place: beside the device, on its socket; nothing is known of it but what it answers. It has to give every frame that it is sent
//! back: `vnic serve --link loopback` does, and so does DPDK's testpmd with `--forward-mode=io --port-topology=loop`.
//!
//! | module | one sentence |
//! |---|---|
//! | [`session`] | a driver with a pair of queues, and what it does with them |
//! | [`link`] | a vhost-user session, or the registers of a device of QEMU's own ([`pci`], over [`qtest`]) |
//! | [`packet`] | the frames that are sent |
//! | [`chains`] | descriptors: how they lie, what may be written, in which order |
//! | [`notifications`] | kicks and calls, and who does without |
//! | [`states`] | features, starting, stopping, starting anew |
//! | [`transmit`] | headers that a driver writes |
//! | [`receive`] | headers and buffers that a device fills |
//! | [`elsewhere`] | what a vhost-user back-end has no part in |
//!
//! What must *not* happen is waited for for a moment ([`session::QUIET`]): a device that is late with it passes, a good one never
//! fails.

mod chains;
mod elsewhere;
mod link;
mod notifications;
pub mod packet;
mod pci;
mod qtest;
mod receive;
pub mod session;
mod states;
mod transmit;

use std::path::Path;

use serde::Serialize;
use vnic::spec::{Feature, Features};

pub use link::Link;
pub use packet::Packet;
pub use session::{Driver, Target};

/// The format of the rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// VIRTIO 1.3, 2.7.
    Split,
    /// VIRTIO 1.3, 2.8.
    Packed,
}

impl Format {
    /// These features, and what it takes to have rings of this format.
    fn and(self, features: &[Feature]) -> Features {
        match self {
            Format::Split => Features::of(features),
            Format::Packed => Features::of(features).with(Feature::RingPacked),
        }
    }
}

/// How a requirement is tried.
#[derive(Debug, Clone, Copy)]
enum Check {
    /// With rings of each of these formats.
    Played(&'static [Format], fn(&Target, Format) -> anyhow::Result<()>),
    /// By the device's registers; why not over a vhost-user session.
    ByRegisters(fn(&pci::Pci) -> anyhow::Result<()>, &'static str),
    /// Not: why.
    Not(&'static str),
}

const BOTH: &[Format] = &[Format::Split, Format::Packed];
const SPLIT: &[Format] = &[Format::Split];
const PACKED: &[Format] = &[Format::Packed];

/// What the specification asks for.
#[derive(Debug, Clone, Copy)]
pub struct Requirement {
    /// The section of VIRTIO 1.3, and which of its requirements.
    pub number: &'static str,
    /// What the device must do, shortened.
    pub text: &'static str,
    /// Features without which it asks for nothing.
    needs: &'static [Feature],
    check: Check,
}

/// What came of one, with rings of one format.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// As in [`Requirement`].
    pub number: &'static str,
    /// As in [`Requirement`].
    pub text: &'static str,
    /// The format, where it was played.
    pub format: Option<Format>,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a requirement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "why", rename_all = "lowercase")]
pub enum Outcome {
    /// It is met.
    Met,
    /// It is not: what was seen.
    Failed(String),
    /// It was not tried: why.
    Skipped(String),
}

impl From<anyhow::Result<()>> for Outcome {
    fn from(played: anyhow::Result<()>) -> Outcome {
        played.map_or_else(|error| Outcome::Failed(format!("{error:#}")), |()| Outcome::Met)
    }
}

/// All requirements, in the specification's order.
pub fn requirements() -> impl Iterator<Item = &'static Requirement> {
    [states::ALL, chains::ALL, notifications::ALL, transmit::ALL, receive::ALL, elsewhere::ALL].into_iter().flatten()
}

/// Plays those whose number begins so against the back-end on a socket, and tells of each as soon as it is known.
///
/// # Errors
/// Nobody listens there.
pub fn play(socket: &Path, number: &str, tell: impl FnMut(&Row)) -> anyhow::Result<Vec<Row>> {
    Ok(play_against(&Target::new(socket)?, number, tell))
}

/// The same against any device.
pub fn play_against(target: &Target, number: &str, mut tell: impl FnMut(&Row)) -> Vec<Row> {
    let mut rows = Vec::new();
    for requirement in requirements().filter(|requirement| requirement.number.starts_with(number)) {
        let Requirement { number, text, needs, check } = *requirement;
        let mut add = |format, outcome| {
            let row = Row { number, text, format, outcome };
            tell(&row);
            rows.push(row);
        };
        let (formats, play) = match check {
            Check::Played(formats, play) => (formats, play),
            Check::Not(why) => {
                add(None, Outcome::Skipped(elsewhere::why(target, why).to_owned()));
                continue;
            }
            Check::ByRegisters(play, why) => {
                let outcome = target.registers().map(|device| device.and_then(|(device, _)| play(&device)));
                add(None, outcome.map_or_else(|| Outcome::Skipped(why.to_owned()), Outcome::from));
                continue;
            }
        };
        for format in formats {
            let missing = format.and(needs).minus(target.offered);
            let outcome = if missing == Features::NONE {
                Outcome::from(play(target, *format))
            } else {
                Outcome::Skipped(format!("{} is not offered", missing.names().join(", ")))
            };
            add(Some(*format), outcome);
        }
    }
    rows
}
