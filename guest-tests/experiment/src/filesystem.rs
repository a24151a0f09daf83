//! The file systems that a file can be sent from, and what the guest needs for each.

use std::fmt;
use std::str::FromStr;

/// A file system by its name in the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filesystem {
    /// As in the record.
    pub name: &'static str,
    /// What the guest's disk is to be.
    pub disk: Disk,
    /// The group of the image's modules that it needs beside what every guest has.
    pub modules: Option<&'static str>,
    /// Does it keep the bytes of a file in memory in another form, too? Those that compress do, or pack.
    pub packs: bool,
    /// Does it get its bytes from a server, a program or another part of the same kernel? What that copies is its own affair.
    pub served: bool,
    /// A program of the host's that the guest needs for it, and Debian's package of it.
    pub tool: Option<(&'static str, &'static str)>,
}

/// What a guest's disk is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Whatever it is: the file system is not there.
    Any,
    /// With an empty file system, which this program of the host makes: its name, its options, its Debian package.
    Made(&'static str, &'static [&'static str], &'static str),
    /// Empty: the guest writes to it.
    Blank,
}

/// The disk of a guest of which nothing else is asked.
pub const EXT4: Disk = Disk::Made(
    "mke2fs",
    &["-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-m", "0"],
    "e2fsprogs",
);
const BTRFS: Disk = Disk::Made("mkfs.btrfs", &["-q", "-f"], "btrfs-progs");

/// Every file system there is.
pub const FILESYSTEMS: &[Filesystem] = &[
    of("tmpfs", Disk::Any, None, None),
    of("tmpfs-huge", Disk::Any, None, None),
    of("ext4", EXT4, None, None),
    of("xfs", Disk::Made("mkfs.xfs", &["-q", "-f"], "xfsprogs"), Some("filesystems"), None),
    of("btrfs", BTRFS, Some("btrfs"), None),
    Filesystem { packs: true, ..of("btrfs-zstd", BTRFS, Some("btrfs"), None) },
    of("overlayfs", EXT4, Some("filesystems"), None),
    Filesystem { packs: true, ..of("squashfs", Disk::Blank, Some("squashfs"), Some(("mksquashfs", "squashfs-tools"))) },
    of("erofs", Disk::Blank, Some("erofs"), Some(("mkfs.erofs", "erofs-utils"))),
    Filesystem { served: true, ..of("fuse", EXT4, Some("fuse"), None) },
    // The server's own page cache has the bytes, too.
    Filesystem { served: true, packs: true, ..of("nfs", EXT4, Some("nfs"), None) },
];

const fn of(
    name: &'static str,
    disk: Disk,
    modules: Option<&'static str>,
    tool: Option<(&'static str, &'static str)>,
) -> Filesystem {
    Filesystem { name, disk, modules, packs: false, served: false, tool }
}

/// A name that is no file system's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no file system `{name}`; there are {}", FILESYSTEMS.iter().map(|known| known.name).collect::<Vec<_>>().join(", "))]
pub struct BadFilesystem {
    name: String,
}

impl FromStr for Filesystem {
    type Err = BadFilesystem;

    fn from_str(name: &str) -> Result<Filesystem, BadFilesystem> {
        FILESYSTEMS
            .iter()
            .find(|known| known.name == name)
            .copied()
            .ok_or_else(|| BadFilesystem { name: name.to_owned() })
    }
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// Several, with commas between in text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filesystems(pub Vec<Filesystem>);

impl Filesystems {
    /// The one disk of a guest that is to have all of these.
    ///
    /// # Errors
    /// They want different ones.
    pub fn disk(&self) -> Result<Disk, String> {
        let mut found: Option<Filesystem> = None;
        for filesystem in self.0.iter().filter(|filesystem| filesystem.disk != Disk::Any) {
            match found {
                Some(other) if other.disk != filesystem.disk => {
                    return Err(format!("a guest has one disk: {other} and {filesystem} take a run each"));
                }
                _ => found = Some(*filesystem),
            }
        }
        Ok(found.map_or(Disk::Any, |filesystem| filesystem.disk))
    }
}

impl FromStr for Filesystems {
    type Err = BadFilesystem;

    fn from_str(list: &str) -> Result<Filesystems, BadFilesystem> {
        list.split(',').map(|name| name.trim().parse()).collect::<Result<_, _>>().map(Filesystems)
    }
}

impl fmt::Display for Filesystems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.iter().map(|filesystem| filesystem.name).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_one_and_leads_to_its_file_system() {
        for known in FILESYSTEMS {
            assert_eq!(known.name.parse(), Ok(*known));
            assert_eq!(FILESYSTEMS.iter().filter(|other| other.name == known.name).count(), 1, "{known}");
        }
        let error = "ext5".parse::<Filesystem>().unwrap_err().to_string();
        assert!(error.contains("ext5") && error.contains("squashfs"), "{error}");
    }

    #[test]
    fn file_systems_of_one_run_share_a_disk() {
        let disk = |list: &str| list.parse::<Filesystems>().unwrap().disk();
        assert_eq!(disk("tmpfs"), Ok(Disk::Any));
        assert_eq!(disk("tmpfs,ext4,overlayfs"), Ok(EXT4));
        assert!(disk("ext4,xfs").unwrap_err().contains("ext4 and xfs"));
        assert_eq!("tmpfs, ext4".parse::<Filesystems>().unwrap().to_string(), "tmpfs,ext4");
    }
}
