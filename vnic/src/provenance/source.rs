//! What payload was read from.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::introspect::{Kind, Label, Plain};
use crate::ring::snapshot::BufferOwner;

/// What kind of memory payload was read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// A file's own pages.
    File,
    /// A program's own memory.
    Anonymous,
    /// What the kernel copies payload into for a socket.
    Socket,
    /// Something else.
    Other,
    /// Not known for sure.
    Unsettled,
}

impl SourceKind {
    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SourceKind::File => "file",
            SourceKind::Anonymous => "anonymous",
            SourceKind::Socket => "socket",
            SourceKind::Other => "other",
            SourceKind::Unsettled => "unsettled",
        }
    }

    /// Was it read from where its owner has it, with no copy made for sending?
    #[must_use]
    pub fn is_zero_copy(self) -> bool {
        matches!(self, SourceKind::File | SourceKind::Anonymous)
    }
}

/// What payload was read from. What a kind does not have is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// What it is.
    pub kind: SourceKind,
    /// The file's path.
    pub path: Option<String>,
    /// The file system's type.
    pub filesystem: Option<String>,
    /// What the file system is on.
    pub device: Option<String>,
    /// The file's inode number.
    pub inode: Option<u64>,
    /// Has the file no name any more?
    pub deleted: Option<bool>,
    /// The program whose memory it is.
    pub program: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
}

impl Source {
    /// One of which no more than its kind is known.
    #[must_use]
    pub fn of(kind: SourceKind) -> Self {
        Source {
            kind,
            path: None,
            filesystem: None,
            device: None,
            inode: None,
            deleted: None,
            program: None,
            pid: None,
        }
    }
}

impl SourceKind {
    /// What a page with this label is, as a source.
    pub(crate) fn of(label: &Label) -> Self {
        match label.kind {
            Kind::File => SourceKind::File,
            Kind::Anonymous => SourceKind::Anonymous,
            Kind::Socket => SourceKind::Socket,
            // The heads of frames, which have the payload of small ones.
            Kind::Slab if label.cache.as_deref().is_none_or(is_for_sockets) => SourceKind::Socket,
            // It was in use when it was sent: whose it was then is lost.
            Kind::Unsettled | Kind::Free => SourceKind::Unsettled,
            Kind::Slab | Kind::Reserved | Kind::Firmware | Kind::Unknown => SourceKind::Other,
        }
    }
}

impl Source {
    /// Is it what [`From`] would make of this label?
    pub(super) fn is_of(&self, label: &Label) -> bool {
        self.kind == SourceKind::of(label)
            && match self.kind {
                SourceKind::File => {
                    (self.inode, self.deleted) == (label.inode, label.deleted)
                        && self.path.as_deref() == label.path.as_deref()
                        && self.filesystem.as_deref() == label.filesystem.as_deref()
                        && self.device.as_deref() == label.device.as_deref()
                }
                SourceKind::Anonymous => (&self.program, self.pid) == (&label.program, label.pid),
                SourceKind::Socket | SourceKind::Other | SourceKind::Unsettled => true,
            }
    }
}

/// From the label of a page that has been sent.
impl From<&Label> for Source {
    fn from(label: &Label) -> Self {
        let text = |text: &Option<std::sync::Arc<str>>| text.as_deref().map(str::to_owned);
        let kind = SourceKind::of(label);
        match kind {
            SourceKind::File => Source {
                path: text(&label.path),
                filesystem: text(&label.filesystem),
                device: text(&label.device),
                inode: label.inode,
                deleted: label.deleted,
                ..Source::of(kind)
            },
            SourceKind::Anonymous => Source { program: label.program.clone(), pid: label.pid, ..Source::of(kind) },
            SourceKind::Socket | SourceKind::Other | SourceKind::Unsettled => Source::of(kind),
        }
    }
}

/// The labels of a buffer's pages: the first, and whether others are of other memory.
pub(crate) fn in_words(labels: &[Label]) -> Option<String> {
    let first = labels.first()?;
    let same = labels.iter().all(|label| Source::from(label) == Source::from(first));
    Some(if same { first.to_string() } else { format!("{first}, and other memory") })
}

/// The same for programs.
#[must_use]
pub fn owner(labels: &[Label]) -> Option<Box<BufferOwner>> {
    let first = labels.first()?;
    let source = Source::from(first);
    if labels.iter().any(|label| !source.is_of(label)) {
        return Some(Box::new(BufferOwner { kind: "mixed".to_owned(), ..BufferOwner::default() }));
    }
    Some(Box::new(BufferOwner {
        kind: source.kind.name().to_owned(),
        path: first.path.clone(),
        page: first.page,
        program: source.program,
        pid: source.pid,
    }))
}

/// Is it a cache that the kernel takes the linear part of an skb from?
fn is_for_sockets(cache: &str) -> bool {
    ["kmalloc-", "skbuff_", "large kmalloc"].iter().any(|name| cache.starts_with(name))
}

/// In words: `/var/www/big.bin (ext4 on vda1)`, `memory of nginx[812]`, `socket buffers (copied)`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            SourceKind::File => {
                match (&self.path, self.inode) {
                    (Some(path), _) => write!(f, "{}", Plain(path))?,
                    (None, Some(inode)) => write!(f, "inode {inode}")?,
                    (None, None) => f.write_str("files that let go of their pages meanwhile")?,
                }
                if self.deleted == Some(true) {
                    f.write_str(" (deleted)")?;
                }
                match (&self.filesystem, &self.device) {
                    (Some(filesystem), Some(device)) if device != filesystem => {
                        write!(f, " ({} on {})", Plain(filesystem), Plain(device))
                    }
                    (Some(filesystem), _) => write!(f, " ({})", Plain(filesystem)),
                    _ => Ok(()),
                }
            }
            SourceKind::Anonymous => match (&self.program, self.pid) {
                (Some(program), Some(pid)) => write!(f, "memory of {}[{pid}]", Plain(program)),
                _ => f.write_str("memory of programs that let go of it meanwhile"),
            },
            SourceKind::Socket => f.write_str("socket buffers (copied)"),
            SourceKind::Other => f.write_str("other memory of the kernel"),
            SourceKind::Unsettled => f.write_str("unsettled"),
        }
    }
}
