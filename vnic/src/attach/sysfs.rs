//! The guest's `/sys`, as the kernel keeps it: the way to its devices that needs no symbol.
//!
//! Operation: a file's super block leads to all others; that of sysfs to its tree. A name there leads to a directory, a
//! device behind it, or the types that a module brought.

use super::layout::Sysfs as Offsets;
use crate::introspect::{GuestPhysical, Reader, Stop};

/// Super blocks that are looked at.
const MAX_SUPER_BLOCKS: usize = 4096;
/// Entries of a directory that are looked at.
const MAX_ENTRIES: usize = 4096;
/// Longest name, bytes.
const MAX_NAME: usize = 64;

/// The tree.
pub(super) struct Sysfs<'r, 'k, M> {
    pub(super) reader: &'r Reader<'k, M>,
    pub(super) at: &'r Offsets,
    root: u64,
}

impl<'r, 'k, M: GuestPhysical> Sysfs<'r, 'k, M> {
    /// Finds it from the super block of any file system. `None`: it is not mounted.
    pub(super) fn find(
        reader: &'r Reader<'k, M>,
        at: &'r Offsets,
        super_block: u64,
    ) -> Result<Option<Sysfs<'r, 'k, M>>, Stop> {
        let first = super_block.wrapping_add(at.sb_list);
        let mut link = first;
        for _ in 0..MAX_SUPER_BLOCKS {
            // The list's head is among them, and is no super block.
            if let Ok(Some(root)) = Self::root_of(reader, at, link.wrapping_sub(at.sb_list)) {
                return Ok(Some(Sysfs { reader, at, root }));
            }
            link = reader.word(link)?;
            if link == first {
                break;
            }
        }
        Ok(None)
    }

    fn root_of(reader: &Reader<'_, M>, at: &Offsets, sb: u64) -> Result<Option<u64>, Stop> {
        let kind = reader.word(sb.wrapping_add(at.sb_type))?;
        if reader.text(reader.word(kind.wrapping_add(at.type_name))?, 16)? != b"sysfs" {
            return Ok(None);
        }
        let info = reader.word(sb.wrapping_add(at.sb_info))?;
        let root = reader.word(info.wrapping_add(at.info_root))?;
        reader.word(root.wrapping_add(at.root_node)).map(Some)
    }

    /// The node at a path from the root; `None`: there is none.
    pub(super) fn node(&self, path: &[&str]) -> Result<Option<u64>, Stop> {
        let mut node = self.root;
        for name in path {
            let found = self.entries(node)?.into_iter().find(|(own, _)| own == name.as_bytes());
            let Some((_, child)) = found else { return Ok(None) };
            node = child;
        }
        Ok(Some(node))
    }

    /// A directory's entries, name and node.
    pub(super) fn entries(&self, directory: u64) -> Result<Vec<(Vec<u8>, u64)>, Stop> {
        let mut found = Vec::new();
        let mut branches = vec![self.reader.word(directory.wrapping_add(self.at.node_children))?];
        while let Some(branch) = branches.pop() {
            if branch == 0 {
                continue;
            }
            if found.len() == MAX_ENTRIES {
                return Err(Stop::Steps);
            }
            let node = branch.wrapping_sub(self.at.node_rb);
            let name = self.reader.word(node.wrapping_add(self.at.node_name))?;
            found.push((self.reader.text(name, MAX_NAME)?, node));
            branches.push(self.reader.word(branch.wrapping_add(self.at.rb_left))?);
            branches.push(self.reader.word(branch.wrapping_add(self.at.rb_right))?);
        }
        Ok(found)
    }

    /// The device that a link in `/sys/bus/…/devices` leads to.
    pub(super) fn device(&self, link: u64) -> Result<u64, Stop> {
        let target = self.reader.word(link.wrapping_add(self.at.node_target))?;
        let object = self.reader.word(target.wrapping_add(self.at.node_object))?;
        Ok(object.wrapping_sub(self.at.device_kobj))
    }

    /// A device's name.
    pub(super) fn name(&self, device: u64) -> Result<Vec<u8>, Stop> {
        let object = device.wrapping_add(self.at.device_kobj);
        self.reader.text(self.reader.word(object.wrapping_add(self.at.kobj_name))?, MAX_NAME)
    }

    /// The name of a device's driver; `None`: it has none.
    pub(super) fn driver(&self, device: u64) -> Result<Option<Vec<u8>>, Stop> {
        let driver = self.reader.word(device.wrapping_add(self.at.device_driver))?;
        if driver == 0 {
            return Ok(None);
        }
        self.reader.text(self.reader.word(driver.wrapping_add(self.at.driver_name))?, MAX_NAME).map(Some)
    }
}
