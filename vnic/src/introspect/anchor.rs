//! Where a look at other structures of the kernel begins: its types, and one super block, which leads to all others.

use super::btf::Btf;
use super::kernel::Use;
use super::space::{Reader, Stop};
use super::{GuestPhysical, Introspection};

/// Pages that are looked at for one of a file.
const PAGES: u64 = 60_000;
/// Steps for each.
const STEPS: u32 = 64;

impl<M: GuestPhysical> Introspection<M> {
    /// The memory that is looked at.
    pub(crate) fn memory(&self) -> &M {
        &self.memory
    }

    /// Reads in the kernel's address space, so many at most.
    pub(crate) fn reader(&self, steps: u32) -> Reader<'_, M> {
        Reader::new(&self.memory, &self.kernel.space, steps)
    }

    /// Does the kernel's direct map lead to this page of memory?
    pub(crate) fn maps_directly(&self, gpa: u64) -> bool {
        let space = &self.kernel.space;
        let reader = self.reader(STEPS);
        space.direct.checked_add(gpa).is_some_and(|va| reader.walk(space.root, va) == Ok(Some(gpa)))
    }

    /// A copy of the kernel's types.
    pub(crate) fn types(&self) -> Option<Vec<u8>> {
        let (at, len) = self.kernel.types;
        let mut types = vec![0; len];
        self.memory.copy(at, &mut types)?;
        Some(types)
    }

    /// The super block of a file, whichever; `None`: no file is in memory.
    pub(crate) fn super_block(&self) -> Option<u64> {
        let look = |number| -> Result<Option<u64>, Stop> {
            let reader = self.reader(STEPS);
            let Some(page) = self.kernel.page(&reader, number)? else { return Ok(None) };
            let Use::File(mapping) = self.kernel.used_for(&reader, &page)? else { return Ok(None) };
            let Some(inode) = self.kernel.inode(&reader, mapping)? else { return Ok(None) };
            reader.word(inode.wrapping_add(self.kernel.layout.inode_sb)).map(Some)
        };
        // It often still is one.
        if let Some(block) = self.work.file_page.and_then(|number| look(number).ok().flatten()) {
            return Some(block);
        }
        let mut all = 0;
        self.memory.existing(&mut |from, to| all += (to - from) / 4096).ok()?;
        let stride = (all / PAGES).max(1) as usize;
        let mut found = None;
        let mut search = |from: u64, to: u64| {
            if found.is_none() {
                found = (from / 4096..to / 4096).step_by(stride).find_map(|number| look(number).ok().flatten());
            }
        };
        self.memory.existing(&mut search).ok()?;
        found
    }
}

/// The offset of the first of these members that there is, `a.b|c`, in a structure.
pub(crate) fn offset(btf: &Btf<'_>, structure: &str, members: &str) -> Option<u64> {
    members.split('|').find_map(|member| btf.offset(structure, member)).map(u64::from)
}
