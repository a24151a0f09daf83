//! Why `serve` cannot begin, or cannot go on.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;

use crate::blk::ImageError;
use crate::link::capture::CaptureError;
use crate::link::{LinkKind, OpenError};
use crate::sandbox::SandboxError;
use crate::vhost_user::listen::ListenError;

/// Why `serve` cannot begin, or cannot go on: one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The link.
    #[error(transparent)]
    Link(#[from] OpenError),
    /// The capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// More workers than the link has ports for.
    #[error("the link {link} has one worker: name one CPU with --cpu, not {cpus}")]
    OneWorker {
        /// The link.
        link: LinkKind,
        /// How many CPUs were named.
        cpus: usize,
    },
    /// More workers than queue pairs.
    #[error(
        "--cpu names {cpus} CPUs, and only {pairs} would have a queue pair to serve: name fewer, or offer more with --queue-pairs"
    )]
    IdleWorkers {
        /// How many CPUs were named.
        cpus: usize,
        /// Queue pairs offered.
        pairs: u16,
    },
    /// A disk's image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The vhost-user socket.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// The control socket.
    #[error("cannot listen on the control socket {}: {source}", path.display())]
    Control {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It cannot be locked in.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The workers.
    #[error("cannot start the workers: {0}")]
    Workers(io::Error),
    /// A worker ended by itself.
    #[error("a worker failed: {0}")]
    Worker(String),
    /// A host resource is missing.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ServeError {
    pub(crate) fn host(action: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| ServeError::Host { action, source: errno.into() }
    }
}
