//! A link of any kind, opened by name.

use std::sync::Arc;

use super::loopback::Loopback;
use super::peer::{Peer, Pinger};
use super::sink::{CopyingSink, Sink};
use super::stream::Stream;
use super::tap::{Share, Tap, TapError};
use super::{LinkCounters, LinkKind, Port};
use crate::spec::Features;

/// Why a link could not be opened, in one sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The tap.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A host resource is missing.
    #[error("cannot open the link {link}: {source}")]
    Io {
        /// The link's name.
        link: String,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// A port of any kind, until a worker takes it: each kind has workers of its own, so that none makes an indirect call per
/// frame.
#[derive(Debug)]
pub enum AnyPort {
    /// See [`Peer`].
    Peer(Box<Peer>),
    /// See [`Tap`].
    Tap(Box<Tap>),
    /// See [`Stream`].
    Stream(Box<Stream>),
    /// See [`Sink`].
    Sink(Sink),
    /// See [`CopyingSink`].
    CopyingSink(CopyingSink),
    /// See [`Loopback`].
    Loopback(Loopback),
}

/// Opens a link for the only worker of a device with `pairs` queue pairs.
///
/// # Errors
/// The host lacks what the link needs.
pub fn open(kind: &LinkKind, pairs: usize) -> Result<AnyPort, OpenError> {
    open_share(kind, Share { pairs, worker: 0, workers: 1 })
}

/// Opens a link for one worker of several.
///
/// # Errors
/// The host lacks what the link needs.
pub fn open_share(kind: &LinkKind, share: Share) -> Result<AnyPort, OpenError> {
    let failed = |source| OpenError::Io { link: kind.to_string(), source };
    Ok(match kind {
        LinkKind::Peer => AnyPort::Peer(Box::new(Peer::new(share.pairs).map_err(failed)?)),
        LinkKind::Passt(network) => AnyPort::Stream(Box::new(Stream::passt(network, share.pairs).map_err(failed)?)),
        LinkKind::Stream(path) => AnyPort::Stream(Box::new(Stream::connect(path, share.pairs).map_err(failed)?)),
        LinkKind::Tap(name) => AnyPort::Tap(Box::new(Tap::open(name, share)?)),
        LinkKind::Sink => AnyPort::Sink(Sink::new()),
        LinkKind::SinkCopy => AnyPort::CopyingSink(CopyingSink::new()),
        LinkKind::Loopback => AnyPort::Loopback(Loopback::new()),
    })
}

/// Calls the same method of whichever port it is.
macro_rules! each {
    ($any:expr, $port:ident => $call:expr) => {
        match $any {
            AnyPort::Peer($port) => $call,
            AnyPort::Tap($port) => $call,
            AnyPort::Stream($port) => $call,
            AnyPort::Sink($port) => $call,
            AnyPort::CopyingSink($port) => $call,
            AnyPort::Loopback($port) => $call,
        }
    };
}

impl AnyPort {
    /// The way to have the other end ping the guest; only a peer does.
    #[must_use]
    pub fn pinger(&self) -> Option<Pinger> {
        match self {
            AnyPort::Peer(peer) => Some(peer.pinger()),
            _ => None,
        }
    }

    /// What it counts.
    #[must_use]
    pub fn counters(&self) -> Arc<LinkCounters> {
        each!(self, port => port.counters())
    }

    /// See [`Port::stays`].
    #[must_use]
    pub fn stays(&self) -> Option<&'static str> {
        each!(self, port => port.stays())
    }

    /// See [`Port::lacks`].
    #[must_use]
    pub fn lacks(&self) -> Features {
        each!(self, port => port.lacks())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_links_that_need_nothing_the_peer_alone_ends_connections_when_the_guest_moves() {
        let stays = |kind: LinkKind| open(&kind, 1).unwrap().stays().is_some();
        assert!(stays(LinkKind::Peer));
        assert!(![LinkKind::Sink, LinkKind::SinkCopy, LinkKind::Loopback].into_iter().any(stays));
    }
}
