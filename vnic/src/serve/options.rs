//! What `serve` is told.

use std::fmt;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::control::Extension;
use super::top::Keeping;
use crate::backend::PollMode;
use crate::blk::DiskOptions;
use crate::hardware::Applied;
use crate::link::LinkKind;
use crate::sandbox;
use crate::spec::Features;

/// Where the front-end is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// Listen on this socket path; front-ends come and go.
    Listen(PathBuf),
    /// Connect to the front-end's socket, again whenever it goes away.
    Connect(PathBuf),
    /// An inherited, connected or listening socket.
    Fd(RawFd),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Listen(path) | Endpoint::Connect(path) => path.display().fmt(f),
            Endpoint::Fd(fd) => write!(f, "file descriptor {fd}"),
        }
    }
}

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceKind {
    /// A network card: [`crate::nic`].
    #[default]
    Net,
    /// An entropy device: [`crate::rng`].
    Rng,
}

impl DeviceKind {
    /// Its name, as the vhost-user specification has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            DeviceKind::Net => "net",
            DeviceKind::Rng => "rng",
        }
    }
}

/// Not a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a device: it is one of net, rng")]
pub struct UnknownDevice(String);

impl FromStr for DeviceKind {
    type Err = UnknownDevice;

    fn from_str(name: &str) -> Result<Self, UnknownDevice> {
        match name {
            "net" => Ok(DeviceKind::Net),
            "rng" => Ok(DeviceKind::Rng),
            _ => Err(UnknownDevice(name.to_owned())),
        }
    }
}

/// All that `serve` needs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the front-end of the first device is; none: there are only disks.
    pub endpoint: Option<Endpoint>,
    /// Disks beside it.
    pub disks: Vec<DiskOptions>,
    /// Which device; what is said of frames and pairs is for a NIC.
    pub device: DeviceKind,
    /// Where frames go.
    pub link: LinkKind,
    /// The control socket; `None`: the endpoint's path with `.control`, or none for an inherited socket.
    pub control: Option<PathBuf>,
    /// Write every frame to this pcapng file.
    pub capture: Option<PathBuf>,
    /// With whose memory the buffers are that were sent.
    pub capture_labels: bool,
    /// Features not to offer.
    pub withhold: Features,
    /// Queue pairs to offer.
    pub queue_pairs: u16,
    /// The largest queue size a front-end may set.
    pub queue_size: u16,
    /// The model of hardware that a NIC's chains are accounted or paced by.
    pub hardware: Option<Applied>,
    /// When workers sleep.
    pub poll: PollMode,
    /// A worker per CPU, pinned to it; empty: one worker, not pinned.
    pub cpus: Vec<usize>,
    /// When accounts of what is sent are kept.
    pub accounts: Keeping,
    /// Record what happens to the guest's pages.
    pub lives: bool,
    /// What the process gives up once everything is open.
    pub sandbox: sandbox::Mode,
    /// Answers what the control socket does not know.
    pub extension: Option<Arc<dyn Extension>>,
}

impl Options {
    /// What is served where nothing else is said: a NIC with one pair and a peer.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Options {
            endpoint: Some(endpoint),
            disks: Vec::new(),
            device: DeviceKind::Net,
            link: LinkKind::Peer,
            control: None,
            capture: None,
            capture_labels: false,
            withhold: Features::NONE,
            queue_pairs: 1,
            queue_size: 1024,
            hardware: None,
            poll: PollMode::Adaptive,
            cpus: Vec::new(),
            accounts: Keeping::Always,
            lives: false,
            sandbox: sandbox::Mode::Off,
            extension: None,
        }
    }

    /// The control socket's path by the contract: as given, or beside the vhost-user socket.
    #[must_use]
    pub fn control_path(&self) -> Option<PathBuf> {
        self.control.clone().or_else(|| match &self.endpoint {
            Some(Endpoint::Listen(path) | Endpoint::Connect(path)) => Some(control_beside(path)),
            Some(Endpoint::Fd(_)) => None,
            None => self.disks.first().map(|disk| control_beside(&disk.socket)),
        })
    }
}

/// The control socket that goes with a socket, by the contract: its path with `.control`.
#[must_use]
pub fn control_beside(socket: &Path) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(".control");
    name.into()
}
