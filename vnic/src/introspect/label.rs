//! What is said of a page: whose it is.

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What kind of memory a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A file's page in the page cache.
    File,
    /// A program's own memory.
    Anonymous,
    /// The kernel's small objects.
    Slab,
    /// A block that sockets copy payload into. Told by exclusion: it has this size, and nothing else claims it.
    Socket,
    /// Nobody's.
    Free,
    /// The kernel's own code, data and page structures, and what it was told to leave alone.
    Reserved,
    /// The firmware's.
    Firmware,
    /// It changed while it was looked at, or is just being filled: not known, and no guess.
    Unsettled,
    /// Something else, or nothing that is known.
    Unknown,
}

impl Kind {
    /// In one word.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Anonymous => "anonymous",
            Kind::Slab => "slab",
            Kind::Socket => "socket",
            Kind::Free => "free",
            Kind::Reserved => "reserved",
            Kind::Firmware => "firmware",
            Kind::Unsettled => "unsettled",
            Kind::Unknown => "unknown",
        }
    }
}

/// Whose page it is. What a kind does not have is `None`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Label {
    /// The address that was asked for, guest-physical.
    pub gpa: u64,
    /// What it is.
    pub kind: Kind,
    /// The file's path, as the guest's first mount namespace has it. `None`: its name is not in the guest's memory.
    pub path: Option<Arc<str>>,
    /// The file system's type.
    pub filesystem: Option<Arc<str>>,
    /// What the file system is on: `vda1`.
    pub device: Option<Arc<str>>,
    /// Which page of the file, from 0.
    pub page: Option<u64>,
    /// The file's inode number.
    pub inode: Option<u64>,
    /// Has the file no name any more?
    pub deleted: Option<bool>,
    /// The program whose memory it is, as the kernel calls it (15 bytes at most).
    pub program: Option<String>,
    /// Its process.
    pub pid: Option<u32>,
    /// Where the process has it.
    pub address: Option<u64>,
    /// The slab cache.
    pub cache: Option<String>,
    /// What there is to be said beside: why it is not known, that the page is cut off its file.
    pub why: Option<String>,
}

impl Label {
    /// A label that says nothing but the kind.
    #[must_use]
    pub fn of(gpa: u64, kind: Kind) -> Self {
        Label {
            gpa,
            kind,
            path: None,
            filesystem: None,
            device: None,
            page: None,
            inode: None,
            deleted: None,
            program: None,
            pid: None,
            address: None,
            cache: None,
            why: None,
        }
    }

    /// Where in the file the address is, bytes.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.page.map(|page| page.wrapping_mul(4096).wrapping_add(self.gpa % 4096))
    }

    /// With a reason.
    #[must_use]
    pub fn because(self, why: impl Into<String>) -> Self {
        Label { why: Some(why.into()), ..self }
    }
}

/// In a few words: `/var/www/big.bin page 2`, `memory of nginx[812]`, `slab kmalloc-1k`.
impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::File => {
                match (&self.path, self.inode) {
                    (Some(path), _) => write!(f, "{}", Plain(path))?,
                    (None, Some(inode)) => write!(f, "inode {inode}")?,
                    (None, None) => f.write_str("a file")?,
                }
                if self.deleted == Some(true) {
                    f.write_str(" (deleted)")?;
                }
                self.page.map_or(Ok(()), |page| write!(f, " page {page}"))
            }
            Kind::Anonymous => match (&self.program, self.pid) {
                (Some(program), Some(pid)) => write!(f, "memory of {}[{pid}]", Plain(program)),
                _ => f.write_str("a program's memory"),
            },
            Kind::Slab => write!(f, "slab {}", Plain(self.cache.as_deref().unwrap_or("?"))),
            Kind::Socket => f.write_str("socket buffers"),
            kind => f.write_str(kind.name()),
        }?;
        match &self.why {
            Some(why) if !matches!(self.kind, Kind::Socket) => write!(f, ": {why}"),
            _ => Ok(()),
        }
    }
}

/// What a guest calls something, for people: nothing in it commands a terminal or begins a line.
pub(crate) struct Plain<'t>(pub(crate) &'t str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        self.0.chars().try_for_each(|c| match c {
            c if c.is_control() => write!(f, "{}", c.escape_unicode()),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_commands_the_terminal_is_shown_and_not_obeyed() {
        let path = Some(Arc::from("/tmp/\u{1b}[2J\nx"));
        let label = Label { path, page: Some(3), deleted: Some(true), ..Label::of(0x1000, Kind::File) };
        assert_eq!(label.to_string(), r"/tmp/\u{1b}[2J\u{a}x (deleted) page 3");
    }

    #[test]
    fn json_has_every_key_and_comes_back_the_same() {
        let label = Label {
            path: Some("/a".into()),
            program: Some("nginx".to_owned()),
            pid: Some(7),
            ..Label::of(0x2ee_1000, Kind::Anonymous).because("so")
        };
        let line = serde_json::to_string(&label).unwrap();
        assert!(line.starts_with(r#"{"gpa":49156096,"kind":"anonymous","path":"/a","filesystem":null,"#), "{line}");
        assert_eq!(serde_json::from_str::<Label>(&line).unwrap(), label);
    }
}
