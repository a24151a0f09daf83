//! One step in a page's life.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::introspect::label::Plain;
use crate::introspect::{Kind, Label};

/// What a device did with bytes of a page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "use", rename_all = "kebab-case")]
pub enum Use {
    /// Read them as part of a frame that the guest sends.
    Sent {
        /// Which bytes of whose stream; `None`: no TCP or UDP, or a frame's headers only.
        segment: Option<Segment>,
    },
    /// Overwrote them with a frame that the guest receives.
    Received {
        /// Of whose stream; `None`: no TCP or UDP.
        segment: Option<Segment>,
    },
    /// A disk overwrote them with what stands in this sector and the next ones.
    ReadFrom {
        /// Of 512 bytes, from 0.
        sector: u64,
    },
    /// A disk has taken them for this sector and the next ones.
    WrittenTo {
        /// Of 512 bytes, from 0.
        sector: u64,
    },
    /// Read them, for whatever else.
    Read,
    /// Overwrote them, with whatever else.
    Written,
    /// Kept them for so long: those of a chain that the device reads, until it is done with it, or lets it go.
    Held {
        /// Nanoseconds.
        for_ns: u64,
        /// In the ring, by `vnic hold`, before it took them; else by its link, its disk or its modelled card, after.
        by_hand: bool,
    },
    /// Is done with those of a chain that it has read: the driver may write there again.
    Completed,
}

impl Use {
    /// Is something else in the bytes now?
    #[must_use]
    pub const fn overwrites(&self) -> bool {
        matches!(self, Use::Received { .. } | Use::ReadFrom { .. } | Use::Written)
    }

    /// Is it what came before or after another use, by the same chain?
    #[must_use]
    pub const fn accompanies(&self) -> bool {
        matches!(self, Use::Held { .. } | Use::Completed)
    }
}

/// Bytes of a TCP or UDP stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Segment {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
    /// TCP's sequence number of the page's first byte in it.
    pub seq: Option<u32>,
}

/// Whose page it was, as its label had it then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Owner {
    /// A file's that has a name.
    File {
        /// The file's path.
        path: Arc<str>,
        /// Which page of the file, from 0.
        page: Option<u64>,
    },
    /// Anything else.
    Other {
        /// In words: `socket buffers`.
        words: Arc<str>,
    },
}

impl Owner {
    /// The name of the file that it is a page of.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Owner::File { path, .. } => Some(path),
            Owner::Other { .. } => None,
        }
    }

    /// Bytes of its text.
    pub(super) fn text_len(&self) -> usize {
        match self {
            Owner::File { path: text, .. } | Owner::Other { words: text } => text.len(),
        }
    }
}

impl From<&Label> for Owner {
    fn from(label: &Label) -> Self {
        match (label.kind, &label.path) {
            (Kind::File, Some(path)) => Owner::File { path: path.clone(), page: label.page },
            _ => Owner::Other { words: label.to_string().into() },
        }
    }
}

/// As its label: `/var/www/big.bin page 2`, `socket buffers`.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::File { path, page } => {
                write!(f, "{}", Plain(path))?;
                page.map_or(Ok(()), |page| write!(f, " page {page}"))
            }
            Owner::Other { words } => f.write_str(words),
        }
    }
}

/// A chain has used bytes of one page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// Nanoseconds since `serve` started.
    pub at_ns: u64,
    /// The queue's name: `transmitq0`; behind the device's name where there are several.
    pub queue: Arc<str>,
    /// The chain's free-running index in it.
    pub idx: u16,
    /// The first of the bytes, guest-physical.
    pub gpa: u64,
    /// How many, all in one page.
    pub bytes: u32,
    /// What for.
    #[serde(flatten)]
    pub what: Use,
    /// Whose the page was. `None`: nobody looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
}

/// What a log has to say of a page or a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Life {
    /// In the order of time.
    pub steps: Vec<Step>,
    /// Steps that the answer has no room for, before these.
    pub left_out: u64,
    /// Steps of any page that the log has forgotten, for it is full.
    pub forgotten: u64,
    /// Chains that the log was never shown: of any page.
    pub missed_chains: u64,
}

/// `sent by transmitq0 #14 to 10.0.2.2:9000 at seq 4711`
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let segment = match &self.what {
            Use::Sent { segment } | Use::Received { segment } => segment.as_ref(),
            _ => None,
        };
        match &self.what {
            Use::Sent { .. } => f.write_str("sent"),
            Use::Received { .. } | Use::Written => f.write_str("overwritten"),
            Use::ReadFrom { sector } => write!(f, "filled from sector {sector}"),
            Use::WrittenTo { sector } => write!(f, "stored in sector {sector}"),
            Use::Read => f.write_str("read"),
            Use::Held { .. } => f.write_str("held"),
            Use::Completed => f.write_str("completed"),
        }?;
        write!(f, " by {} #{}", self.queue, self.idx)?;
        if let Use::Held { for_ns, by_hand } = self.what {
            let (seconds, of) = (Duration::from_nanos(for_ns).as_secs_f64(), [("s", 1.0), ("ms", 1e3)]);
            let found = of.into_iter().find(|(_, per_second)| seconds * per_second >= 1.0);
            let (unit, per_second) = found.unwrap_or(("µs", 1e6));
            write!(f, " for {:.2} {unit}", seconds * per_second)?;
            return f.write_str(if by_hand { ", by vnic hold" } else { "" });
        }
        if let Some(segment) = segment {
            match self.what {
                Use::Received { .. } => write!(f, " from {}", segment.source)?,
                _ => write!(f, " to {}", segment.destination)?,
            }
            if let Some(seq) = segment.seq {
                write!(f, " at seq {seq}")?;
            }
        }
        Ok(())
    }
}
