//! One look-up: from a page to its label, settled or not.

use std::sync::Arc;

use super::GuestPhysical;
use super::kernel::{Kernel, Page, Use};
use super::label::{Kind, Label};
use super::names::Names;
use super::owner::Owner;
use super::path::{Folder, Name};
use super::space::{Reader, Stop, still_stands};
use super::stamp::Stamp;

/// Looks at a page that changes under them.
const LOOKS: u32 = 3;
/// Below this address a PC has its firmware.
const FIRMWARE_END: u64 = 1 << 20;

/// One look-up in a kernel.
pub(super) struct Look<'k, M> {
    reader: Reader<'k, M>,
    kernel: &'k Kernel,
    names: &'k mut Names,
}

impl<'k, M: GuestPhysical> Look<'k, M> {
    pub(super) fn new(memory: &'k M, kernel: &'k Kernel, names: &'k mut Names, most_steps: u32) -> Self {
        Look { reader: Reader::new(memory, &kernel.space, most_steps), kernel, names }
    }

    /// So many reads of guest memory from now on.
    pub(super) fn begin(&self, most_steps: u32) {
        self.reader.begin(most_steps);
    }

    /// Reads of guest memory so far.
    pub(super) fn steps(&self) -> u32 {
        self.reader.steps()
    }

    /// The names of the flags that the page has; of a large one, those of all of it.
    pub(super) fn flags(&self, gpa: u64) -> Result<Vec<String>, Stop> {
        let set = self.kernel.page(&self.reader, gpa >> 12)?.map_or(0, |page| page.flags);
        let names = self.kernel.layout.flag_names.iter();
        Ok(names.filter(|(bit, _)| set >> bit & 1 == 1).map(|(_, name)| name.clone()).collect())
    }

    /// Whose the byte is, and the stamp of its page as it was then.
    pub(super) fn label(&mut self, gpa: u64) -> (Label, Stamp) {
        if !self.reader.memory.has(gpa) {
            return (Label::of(gpa, Kind::Unknown).because("the guest has no memory there"), Stamp::default());
        }
        let mut why = String::new();
        for _ in 0..LOOKS {
            match self.look(gpa) {
                Ok(Some(found)) => return found,
                Ok(None) => "it changes while it is looked at".clone_into(&mut why),
                Err(stop) => why = stop.to_string(),
            }
        }
        (Label::of(gpa, Kind::Unsettled).because(why), Stamp::default())
    }

    /// `None`: it changed meanwhile.
    fn look(&mut self, gpa: u64) -> Result<Option<(Label, Stamp)>, Stop> {
        let Some(page) = self.kernel.page(&self.reader, gpa >> 12)? else {
            let kind = if gpa < FIRMWARE_END { Kind::Firmware } else { Kind::Unknown };
            return Ok(Some((Label::of(gpa, kind).because("the kernel keeps no account of it"), Stamp::default())));
        };
        let used_for = self.kernel.used_for(&self.reader, &page)?;
        let stamp = self.kernel.stamp(&self.reader, &page, used_for)?;
        let label = self.describe(gpa, &page, used_for)?;
        let again = self.kernel.page(&self.reader, gpa >> 12)?;
        let settled = again.is_some_and(|again| self.kernel.agree(&page, &again));
        Ok(label.filter(|_| settled).map(|label| (label, stamp)))
    }

    fn describe(&mut self, gpa: u64, page: &Page, used_for: Use) -> Result<Option<Label>, Stop> {
        let of = |kind| Label::of(gpa, kind);
        Ok(Some(match used_for {
            Use::File(mapping) => return self.file(gpa, mapping, page.index),
            Use::HugeTlb => of(Kind::Unknown).because("a page of hugetlbfs"),
            Use::Filling => of(Kind::Unsettled).because("a file's page that is just being filled"),
            Use::CutOff => of(Kind::File).because("cut off its file, which was truncated or removed meanwhile"),
            Use::Anonymous(tree) => owned(gpa, self.kernel.owner(&self.reader, tree, page)?),
            Use::Merged(node) => {
                let owner = self.kernel.owner_of_merged(&self.reader, node, page)?;
                owned(gpa, owner).because("merged: other processes may have the same page")
            }
            Use::Slab => {
                let cache = self.kernel.cache(&self.reader, page)?;
                Label { cache: Some(String::from_utf8_lossy(&cache).into_owned()), ..of(Kind::Slab) }
            }
            Use::LargeKmalloc => Label { cache: Some("large kmalloc".to_owned()), ..of(Kind::Slab) },
            Use::Socket => {
                of(Kind::Socket).because("by exclusion: a block of the size that sockets use, which nothing claims")
            }
            Use::Free => of(Kind::Free),
            Use::Reserved if gpa < FIRMWARE_END => of(Kind::Firmware),
            Use::Reserved => of(Kind::Reserved),
            Use::PageTable => of(Kind::Unknown).because("a page table"),
            Use::Movable => of(Kind::Unknown).because("taken back by the host, or compressed"),
            Use::Typed(kind) => of(Kind::Unknown).because(format!("of the page type {kind:#x}")),
            Use::Frozen => of(Kind::Unsettled).because("just being freed or split"),
            Use::Other(order) => {
                of(Kind::Unknown).because(format!("the kernel's, in a block of {} pages", 1_u64 << order.min(31)))
            }
        }))
    }

    /// A page of the file with this `address_space`. `None`: something changed meanwhile.
    fn file(&mut self, gpa: u64, mapping: u64, page: u64) -> Result<Option<Label>, Stop> {
        let (kernel, reader) = (self.kernel, &self.reader);
        reader.record();
        let label = Label { page: Some(page), ..Label::of(gpa, Kind::File) };
        let Some(inode) = kernel.inode(reader, mapping)? else {
            return Ok(Some(label.because("no inode that leads back to it")));
        };
        let number = reader.word(inode.wrapping_add(kernel.layout.inode_ino))?;
        let file = (mapping, number);
        let name = match self.names.get(file, reader.memory) {
            Some(name) => name,
            None => {
                let Some(name) = self.first_name(file, inode)? else { return Ok(None) };
                name
            }
        };
        let why = name.path.is_none().then(|| "its name is not in the guest's memory".to_owned());
        Ok(Some(Label {
            path: name.path,
            filesystem: Some(name.filesystem),
            device: Some(name.device),
            inode: Some(number),
            deleted: Some(name.deleted),
            why,
            ..label
        }))
    }

    /// What the file is called, of which the reader has recorded how it led here. `None`: something changed meanwhile.
    fn first_name(&mut self, file: (u64, u64), inode: u64) -> Result<Option<Name>, Stop> {
        let entry = self.kernel.entry(&self.reader, inode)?;
        let seen = self.reader.recorded();
        let (mut folder, mut new) = self.folder(entry.place())?;
        let as_root = entry.place_as_root(&folder);
        if let Some(place) = as_root {
            (folder, new) = self.folder(place)?;
        }
        let of_folder = folder.seen.iter().take(new);
        if !still_stands(seen.iter().chain(of_folder), self.reader.memory) {
            return Ok(None);
        }
        let name = entry.name_in(&folder, as_root.is_some());
        self.names.keep(file, seen, folder, &name);
        Ok(Some(name))
    }

    /// A directory, and how many of the words that it is made of have not been compared after they were read: the first of them.
    fn folder(&mut self, place: (u64, u64)) -> Result<(Arc<Folder>, usize), Stop> {
        if let Some(folder) = self.remembered(place) {
            return Ok((folder, 0));
        }
        let (folder, new) = match self.folder_in_another(place)? {
            Some(found) => found,
            None => self.folder_by_itself(place)?,
        };
        self.names.keep_folder(place, &folder);
        Ok((folder, new))
    }

    /// As its name in the directory above says, which most often is known, or is soon to be asked for.
    fn folder_in_another(&mut self, (sb, dentry): (u64, u64)) -> Result<Option<(Arc<Folder>, usize)>, Stop> {
        if dentry == 0 {
            return Ok(None);
        }
        self.reader.record();
        let (parent, name) = self.kernel.in_parent(&self.reader, dentry)?;
        let own = self.reader.recorded();
        if parent == dentry {
            return Ok(None);
        }
        let (above, new) = match self.remembered((sb, parent)) {
            Some(above) => (above, 0),
            None => {
                let (above, new) = self.folder_by_itself((sb, parent))?;
                self.names.keep_folder((sb, parent), &above);
                (above, new)
            }
        };
        Ok(above.with(dentry, &name, &own).map(|folder| (Arc::new(folder), own.len() + new)))
    }

    fn folder_by_itself(&self, place: (u64, u64)) -> Result<(Arc<Folder>, usize), Stop> {
        let folder = Arc::new(self.kernel.folder(&self.reader, place)?);
        let new = folder.seen.len();
        Ok((folder, new))
    }

    /// A directory that still is as it was when it was read.
    fn remembered(&mut self, place: (u64, u64)) -> Option<Arc<Folder>> {
        self.names.folder(place).filter(|folder| still_stands(folder.seen.iter(), self.reader.memory))
    }
}

fn owned(gpa: u64, owner: Option<Owner>) -> Label {
    let label = Label::of(gpa, Kind::Anonymous);
    match owner {
        None => label.because("no process has it in its page tables"),
        Some(Owner { program, pid, address }) => {
            Label { program: Some(program), pid: Some(pid), address: Some(address), ..label }
        }
    }
}
