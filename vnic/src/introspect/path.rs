//! From an inode to a name: its entry in a directory; the directory entries up to the mount, and the mounts up to the root.
//!
//! Limits: only names in the guest's directory cache are there to be found. A file system that is mounted several times
//! has several names; the one in the lowest mount namespace is given, and there the oldest mount's. A file of an overlay
//! has the name it has in the layer that it lies in.

use std::sync::Arc;

use super::GuestPhysical;
use super::kernel::Kernel;
use super::layout::MountChain;
use super::space::{Reader, Seen, Stop};

/// Longest name of a file, bytes.
const MAX_NAME: u32 = 255;
/// Mounts of one file system that are looked at.
const MAX_MOUNTS: usize = 256;
/// Names of one file that are looked at.
const MAX_ALIASES: usize = 32;

/// A file's name and place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) path: Option<Arc<str>>,
    pub(super) filesystem: Arc<str>,
    pub(super) device: Arc<str>,
    pub(super) deleted: bool,
}

/// What a directory, and the file system it is in, give to the names of all files in it.
#[derive(Debug)]
pub(super) struct Folder {
    /// What it was made of.
    pub(super) seen: Box<[Seen]>,
    /// Empty for the root. `None`: the file has no directory entry in the guest's memory.
    path: Option<Box<[u8]>>,
    filesystem: Arc<str>,
    device: Arc<str>,
    /// Where the file system's mounts begin.
    roots: Arc<[u64]>,
}

impl Folder {
    /// A directory in this one. `None`: a mount begins there, so it is not only here.
    pub(super) fn with(&self, dentry: u64, name: &[u8], seen: &[Seen]) -> Option<Folder> {
        let above = self.path.as_ref().filter(|_| !self.roots.contains(&dentry))?;
        let path = Some([above, b"/".as_slice(), name].concat().into());
        let (filesystem, device, roots) = (self.filesystem.clone(), self.device.clone(), self.roots.clone());
        Some(Folder { seen: [seen, &self.seen].concat().into(), path, filesystem, device, roots })
    }
}

/// What an inode and its directory entry say.
#[derive(Debug)]
pub(super) struct Entry {
    sb: u64,
    /// 0: there is none.
    dentry: u64,
    /// Its own `dentry` where it is in no directory.
    parent: u64,
    deleted: bool,
    name: Vec<u8>,
}

impl Entry {
    /// The `super_block` and the `dentry` of the directory.
    pub(super) fn place(&self) -> (u64, u64) {
        (self.sb, self.parent)
    }

    /// The same for the file itself, where it is the root of a mount, and so is not only in that directory.
    pub(super) fn place_as_root(&self, folder: &Folder) -> Option<(u64, u64)> {
        folder.roots.contains(&self.dentry).then_some((self.sb, self.dentry))
    }

    /// The name in this folder; or the folder's, where it is the file itself.
    pub(super) fn name_in(&self, folder: &Folder, is_itself: bool) -> Name {
        let path = folder.path.as_ref().map(|above| {
            if !is_itself && self.dentry != self.parent {
                return text(&[above, b"/".as_slice(), &self.name].concat());
            }
            text(if above.is_empty() { b"/" } else { above })
        });
        let (filesystem, device) = (folder.filesystem.clone(), folder.device.clone());
        Name { path, filesystem, device, deleted: self.deleted }
    }
}

/// Names from a file up, one behind the other.
#[derive(Debug)]
struct Names {
    text: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

impl Default for Names {
    fn default() -> Self {
        // As much as most paths have.
        Names { text: Vec::with_capacity(128), ends: Vec::with_capacity(16) }
    }
}

impl Names {
    /// Forgets those after so many.
    fn truncate(&mut self, count: usize) {
        self.ends.truncate(count);
        self.text.truncate(self.ends.last().copied().unwrap_or_default());
    }

    /// From the top down; empty for the root.
    fn path(&self) -> Vec<u8> {
        let mut path = Vec::with_capacity(self.text.len() + self.ends.len() + 1);
        for (at, end) in self.ends.iter().enumerate().rev() {
            let start = at.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or_default();
            path.push(b'/');
            path.extend_from_slice(self.text.get(start..*end).unwrap_or_default());
        }
        path
    }
}

/// A mount, as far as paths go.
#[derive(Debug, Clone, Copy)]
struct Mount {
    at: u64,
    root: u64,
    /// Mount namespace and number: what comes first is preferred.
    rank: (u32, u32),
}

impl Kernel {
    /// The inode behind an `address_space`. `None`: it leads to none that leads back.
    pub(super) fn inode(&self, reader: &Reader<'_, impl GuestPhysical>, mapping: u64) -> Result<Option<u64>, Stop> {
        let inode = reader.word(mapping.wrapping_add(self.layout.mapping_host))?;
        if inode == 0 {
            return Ok(None);
        }
        let back = reader.word(inode.wrapping_add(self.layout.inode_mapping))?;
        Ok((back == mapping).then_some(inode))
    }

    /// What the inode and one of its directory entries say.
    pub(super) fn entry(&self, reader: &Reader<'_, impl GuestPhysical>, inode: u64) -> Result<Entry, Stop> {
        let sb = reader.word(inode.wrapping_add(self.layout.inode_sb))?;
        let unlinked = reader.half(inode.wrapping_add(self.layout.inode_nlink))? == 0;
        let Some((dentry, is_reachable)) = self.alias(reader, inode)? else {
            return Ok(Entry { sb, dentry: 0, parent: 0, deleted: unlinked, name: Vec::new() });
        };
        let deleted = unlinked || !is_reachable;
        let (parent, name) = self.in_parent(reader, dentry)?;
        Ok(Entry { sb, dentry, parent, deleted, name })
    }

    /// The entry's directory, and what it is called there.
    pub(super) fn in_parent(
        &self,
        reader: &Reader<'_, impl GuestPhysical>,
        dentry: u64,
    ) -> Result<(u64, Vec<u8>), Stop> {
        let mut name = Vec::with_capacity(32);
        self.own_name(reader, dentry, &mut name)?;
        Ok((self.parent(reader, dentry)?, name))
    }

    /// The directory with this `dentry`, or what all files of the file system share where that is 0.
    pub(super) fn folder(
        &self,
        reader: &Reader<'_, impl GuestPhysical>,
        (sb, dentry): (u64, u64),
    ) -> Result<Folder, Stop> {
        let at = &self.layout;
        reader.record();
        let kind = reader.word(sb.wrapping_add(at.sb_type))?;
        let filesystem = text(&reader.text(reader.word(kind.wrapping_add(at.type_name))?, 32)?);
        let device = text(&reader.text(sb.wrapping_add(at.sb_id), 32)?);
        let (mut path, mut roots) = (None, Vec::new());
        if dentry != 0 {
            let mounts = self.mounts(reader, sb)?;
            path = Some(self.path(reader, &mounts, dentry)?.into());
            roots.extend(mounts.iter().map(|mount| mount.root));
        }
        Ok(Folder { seen: reader.recorded(), path, filesystem, device, roots: roots.into() })
    }

    /// One of the file's directory entries, rather one that is still in its directory, and whether it is.
    fn alias(&self, reader: &Reader<'_, impl GuestPhysical>, inode: u64) -> Result<Option<(u64, bool)>, Stop> {
        let mut node = reader.word(inode.wrapping_add(self.layout.inode_aliases))?;
        let mut any = None;
        for _ in 0..MAX_ALIASES {
            if node == 0 {
                break;
            }
            let dentry = node.wrapping_sub(self.layout.dentry_alias);
            if reader.word(dentry.wrapping_add(self.layout.dentry_inode))? != inode {
                return Err(Stop::Pointer(dentry));
            }
            if self.is_reachable(reader, dentry)? {
                return Ok(Some((dentry, true)));
            }
            any = any.or(Some((dentry, false)));
            node = reader.word(node)?;
        }
        Ok(any)
    }

    fn is_reachable(&self, reader: &Reader<'_, impl GuestPhysical>, dentry: u64) -> Result<bool, Stop> {
        let hashed = reader.word(dentry.wrapping_add(self.layout.dentry_hashed))? != 0;
        Ok(hashed || self.parent(reader, dentry)? == dentry)
    }

    fn parent(&self, reader: &Reader<'_, impl GuestPhysical>, dentry: u64) -> Result<u64, Stop> {
        reader.word(dentry.wrapping_add(self.layout.dentry_parent))
    }

    fn path(&self, reader: &Reader<'_, impl GuestPhysical>, mounts: &[Mount], dentry: u64) -> Result<Vec<u8>, Stop> {
        // From the file up: one name after the other, and which mounts begin here.
        let mut names = Names::default();
        let mut best: Option<(Mount, usize)> = None;
        self.climb(reader, dentry, &mut names, |here, depth| {
            let at_this = mounts.iter().filter(|mount| mount.root == here).min_by_key(|mount| mount.rank);
            if let Some(mount) = at_this.filter(|mount| best.is_none_or(|(other, _)| mount.rank < other.rank)) {
                best = Some((*mount, depth));
            }
            false
        })?;
        if let Some((mount, depth)) = best {
            names.truncate(depth);
            self.climb_mounts(reader, mount.at, &mut names)?;
        }
        Ok(names.path())
    }

    /// Adds what the entry is called in its directory.
    fn own_name(&self, reader: &Reader<'_, impl GuestPhysical>, dentry: u64, name: &mut Vec<u8>) -> Result<(), Stop> {
        let len = reader.half(dentry.wrapping_add(self.layout.dentry_name_len))?.min(MAX_NAME);
        let at = reader.word(dentry.wrapping_add(self.layout.dentry_name))?;
        reader.text_into(at, len as usize, name)?;
        Ok(())
    }

    /// Adds the name of `dentry` and of all above it, to where `is_end` says or nothing is above.
    fn climb(
        &self,
        reader: &Reader<'_, impl GuestPhysical>,
        dentry: u64,
        names: &mut Names,
        mut is_end: impl FnMut(u64, usize) -> bool,
    ) -> Result<(), Stop> {
        let mut here = dentry;
        while !is_end(here, names.ends.len()) {
            let above = self.parent(reader, here)?;
            let first = names.text.len();
            self.own_name(reader, here, &mut names.text)?;
            // A file system's root is called `/`; what is its own root and called otherwise is in no directory: a memfd.
            if above == here && names.text.get(first..) == Some(b"/") {
                names.text.truncate(first);
            } else {
                names.ends.push(names.text.len());
            }
            if above == here {
                break;
            }
            here = above;
        }
        Ok(())
    }

    /// Adds where the mount is mounted, and what that is in, up to the mount that is in none.
    fn climb_mounts(&self, reader: &Reader<'_, impl GuestPhysical>, mount: u64, names: &mut Names) -> Result<(), Stop> {
        let mut mount = mount;
        loop {
            let above = reader.word(mount.wrapping_add(self.layout.mount_parent))?;
            if above == mount {
                return Ok(());
            }
            let point = reader.word(mount.wrapping_add(self.layout.mount_point))?;
            let root = reader.word(above.wrapping_add(self.layout.mount_root))?;
            self.climb(reader, point, names, |here, _| here == root)?;
            mount = above;
        }
    }

    /// The file system's mounts that are in some namespace.
    fn mounts(&self, reader: &Reader<'_, impl GuestPhysical>, sb: u64) -> Result<Vec<Mount>, Stop> {
        let at = &self.layout;
        let first = sb.wrapping_add(at.sb_mounts);
        let mut mounts = Vec::new();
        let mut node = reader.word(first)?;
        for _ in 0..MAX_MOUNTS {
            let (mount, next) = match at.mounts {
                MountChain::List(_) if node == first => break,
                MountChain::Next(_) if node == 0 => break,
                MountChain::List(offset) => (node.wrapping_sub(offset), node),
                MountChain::Next(offset) => (node, node.wrapping_add(offset)),
            };
            if reader.word(mount.wrapping_add(at.mount_sb))? != sb {
                return Err(Stop::Pointer(mount));
            }
            node = reader.word(next)?;
            let namespace = reader.word(mount.wrapping_add(at.mount_ns))?;
            // The kernel's own mounts have an error number there; one that was taken down has nothing.
            if namespace == 0 || namespace >= -4095_i64 as u64 {
                continue;
            }
            let number = reader.half(namespace.wrapping_add(at.ns_number))?;
            let id = reader.half(mount.wrapping_add(at.mount_id))?;
            if number != 0 {
                let root = reader.word(mount.wrapping_add(at.mount_root))?;
                mounts.push(Mount { at: mount, root, rank: (number, id) });
            }
        }
        Ok(mounts)
    }
}

/// What a guest calls something, as text.
pub(super) fn text(bytes: &[u8]) -> Arc<str> {
    String::from_utf8_lossy(bytes).into()
}
