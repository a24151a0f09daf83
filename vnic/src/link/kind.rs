//! Which link, as `--link` names it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::stream::passt::Network;

/// A link as given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// A TCP/IP endpoint in this process.
    Peer,
    /// The host's tap device of this name.
    Tap(String),
    /// `passt`, started for this: the guest's network without rights on the host, with these ports published.
    Passt(Network),
    /// The program that listens at this path and speaks QEMU's `-netdev stream` framing.
    Stream(PathBuf),
    /// Frames are taken and forgotten, unread.
    Sink,
    /// Frames are gathered into the host's memory and forgotten: what a copying NIC would do.
    SinkCopy,
    /// Frames come back on the receive queue of the same pair.
    Loopback,
}

impl LinkKind {
    /// Can several workers have a port of it each? Not where there is one endpoint, or one connection, with one state.
    #[must_use]
    pub const fn takes_many_workers(&self) -> bool {
        match self {
            LinkKind::Peer | LinkKind::Passt(_) | LinkKind::Stream(_) => false,
            LinkKind::Tap(_) | LinkKind::Sink | LinkKind::SinkCopy | LinkKind::Loopback => true,
        }
    }
}

/// Longest name of a network device, bytes (`IFNAMSIZ` with its final 0).
const MAX_NAME: usize = 15;

/// Not a link.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseLinkError {
    /// No such kind.
    #[error("`{0}` is not a link: it is one of peer, tap:NAME, passt, stream:PATH, sink, sink:copy, loopback")]
    Unknown(String),
    /// A tap without a name, or with one no device can have.
    #[error("`{0}` is no name for a tap: 1 to 15 bytes, without `/`, `:`, `%` and white space, and not `.` or `..`")]
    TapName(String),
    /// A stream without a socket.
    #[error("`stream:` names no socket: it is stream:PATH")]
    StreamPath,
}

impl FromStr for LinkKind {
    type Err = ParseLinkError;

    fn from_str(text: &str) -> Result<Self, ParseLinkError> {
        match text {
            "peer" => Ok(LinkKind::Peer),
            "sink" => Ok(LinkKind::Sink),
            "sink:copy" => Ok(LinkKind::SinkCopy),
            "loopback" => Ok(LinkKind::Loopback),
            "passt" => Ok(LinkKind::Passt(Network::default())),
            _ => match text.split_once(':') {
                Some(("tap", name)) if is_device_name(name) => Ok(LinkKind::Tap(name.to_owned())),
                Some(("tap", name)) => Err(ParseLinkError::TapName(name.to_owned())),
                Some(("stream", "")) => Err(ParseLinkError::StreamPath),
                Some(("stream", path)) => Ok(LinkKind::Stream(path.into())),
                _ => Err(ParseLinkError::Unknown(text.to_owned())),
            },
        }
    }
}

/// As the kernel's `dev_valid_name`; `%` would make it choose a name of its own.
fn is_device_name(name: &str) -> bool {
    let odd = |c: char| c == '/' || c == ':' || c == '%' || c == '\0' || c.is_whitespace();
    (1..=MAX_NAME).contains(&name.len()) && name != "." && name != ".." && !name.contains(odd)
}

impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkKind::Peer => f.pad("peer"),
            LinkKind::Tap(name) => write!(f, "tap:{name}"),
            LinkKind::Passt(_) => f.pad("passt"),
            LinkKind::Stream(path) => write!(f, "stream:{}", path.display()),
            LinkKind::Sink => f.pad("sink"),
            LinkKind::SinkCopy => f.pad("sink:copy"),
            LinkKind::Loopback => f.pad("loopback"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_reads_back_as_printed() {
        for text in ["peer", "tap:vnic0", "passt", "stream:/run/net.sock", "sink", "sink:copy", "loopback"] {
            assert_eq!(text.parse::<LinkKind>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn an_unknown_link_names_those_there_are() {
        let error = "bridge:br0".parse::<LinkKind>().unwrap_err().to_string();
        assert!(error.contains("`bridge:br0`") && error.contains("tap:NAME"), "{error}");
    }

    #[test]
    fn a_name_no_device_can_have_is_refused() {
        for name in ["", ".", "..", "a/b", "a b", "tap%d", "a:b", "sixteen-bytes-xx"] {
            assert_eq!(format!("tap:{name}").parse::<LinkKind>(), Err(ParseLinkError::TapName(name.into())));
        }
        assert!("tap:fifteen-bytes-x".parse::<LinkKind>().is_ok());
    }
}
