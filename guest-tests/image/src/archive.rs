//! An initramfs: a cpio archive in the `newc` form, byte for byte the same for the same content.

use std::io::{self, Write};

use cpio::NewcBuilder;
use cpio::newc::{ModeFileType, trailer};

/// What lies at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A folder.
    Folder,
    /// A file with these bytes, executable or not.
    File(Vec<u8>, Access),
    /// A symbolic link.
    Link(String),
    /// A character device.
    CharacterDevice {
        /// Its driver.
        major: u32,
        /// Which of the driver's.
        minor: u32,
    },
}

/// Who may do what with a file; all belong to root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// 0755
    Program,
    /// 0644
    Data,
}

/// Paths and what lies there, in the order they are unpacked: folders before what is in them.
#[derive(Debug, Default)]
pub struct Archive {
    nodes: Vec<(String, Node)>,
}

impl Archive {
    /// Adds a node at an absolute path.
    pub fn add(&mut self, path: &str, node: Node) {
        self.nodes.push((path.trim_start_matches('/').to_owned(), node));
    }

    /// Adds folders at absolute paths.
    pub fn folders(&mut self, paths: &[&str]) {
        for path in paths {
            self.add(path, Node::Folder);
        }
    }

    /// What lies at an absolute path.
    #[must_use]
    pub fn node(&self, path: &str) -> Option<&Node> {
        self.nodes.iter().find(|(known, _)| known == path.trim_start_matches('/')).map(|(_, node)| node)
    }

    /// The paths in it, without the first slash, in the order they are unpacked.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().map(|(path, _)| path.as_str())
    }

    /// The archive. Times are 0 and inode numbers count up, so that nothing of this machine is in it.
    ///
    /// # Errors
    /// A file of 4 GiB or more.
    pub fn bytes(&self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for (inode, (path, node)) in (1_u32..).zip(&self.nodes) {
            let entry = NewcBuilder::new(path).ino(inode).uid(0).gid(0).nlink(1).mtime(0);
            let (entry, kind, mode, content): (_, _, _, &[u8]) = match node {
                Node::Folder => (entry.nlink(2), ModeFileType::Directory, 0o755, &[]),
                Node::File(content, Access::Program) => (entry, ModeFileType::Regular, 0o755, content),
                Node::File(content, Access::Data) => (entry, ModeFileType::Regular, 0o644, content),
                Node::Link(target) => (entry, ModeFileType::Symlink, 0o777, target.as_bytes()),
                Node::CharacterDevice { major, minor } => {
                    (entry.rdev_major(*major).rdev_minor(*minor), ModeFileType::Char, 0o600, &[])
                }
            };
            let size = u32::try_from(content.len()).map_err(io::Error::other)?;
            let mut writer = entry.mode(mode).set_mode_file_type(kind).write(&mut bytes, size);
            writer.write_all(content)?;
            writer.finish()?;
        }
        trailer(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use cpio::NewcReader;

    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::default();
        archive.folders(&["/bin", "/dev"]);
        archive.add("/bin/busybox", Node::File(b"program".to_vec(), Access::Program));
        archive.add("/bin/sh", Node::Link("busybox".to_owned()));
        archive.add("/dev/console", Node::CharacterDevice { major: 5, minor: 1 });
        archive
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        assert_eq!(sample().bytes().expect("an archive"), sample().bytes().expect("an archive"));
    }

    #[test]
    fn entries_read_back_with_mode_device_and_content() {
        let bytes = sample().bytes().expect("an archive");
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        loop {
            let mut reader = NewcReader::new(rest).expect("an entry");
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                break;
            }
            let mut content = Vec::new();
            io::Read::read_to_end(&mut reader, &mut content).expect("its content");
            seen.push((entry.name().to_owned(), entry.mode(), entry.rdev_major(), entry.rdev_minor(), content));
            rest = reader.finish().expect("its end");
        }
        let expected: Vec<(String, u32, u32, u32, Vec<u8>)> = vec![
            ("bin".to_owned(), 0o040_755, 0, 0, Vec::new()),
            ("dev".to_owned(), 0o040_755, 0, 0, Vec::new()),
            ("bin/busybox".to_owned(), 0o100_755, 0, 0, b"program".to_vec()),
            ("bin/sh".to_owned(), 0o120_777, 0, 0, b"busybox".to_vec()),
            ("dev/console".to_owned(), 0o020_600, 5, 1, Vec::new()),
        ];
        assert_eq!(seen, expected);
    }
}
