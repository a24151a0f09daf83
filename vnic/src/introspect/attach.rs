//! Finding the kernel that runs in the guest's memory, among what else there is: the remains of kernels before it, and
//! whatever a guest forges.
//!
//! Operation:
//! 1. The notes (VMCOREINFO) of kernels are looked for at the start of every page with content.
//! 2. Of each: its page tables must lead from its code's address to where the code is.
//! 3. Its types (BTF) are looked for behind its code, parsed, and the offsets of all members taken from them.
//! 4. Pages all over memory are looked at: of a kernel that runs, the file pages lead to inodes that lead back. Of one that
//!    is dead, whose notes, tables and types may all still be there, they lead to something else.
//!
//! Invariants: work is counted, not timed. The notes' search is one look at each page; all that comes of what it found ends
//! with [`Work::bytes`] and [`Work::sampled`].

use std::io;

use memchr::memmem::Finder;

use super::GuestPhysical;
use super::btf::{self, Btf, BtfError, Header};
use super::kernel::{Kernel, Use};
use super::layout::{Layout, Missing, NAMES};
use super::space::{IMAGE, Reader, Space, Stop, Translations, is_physical};
use super::vmcoreinfo::{self, Found, VmCoreInfo};

/// How far behind the start of its code a kernel's types are looked for.
const TYPES_WITHIN: u64 = 64 << 20;
/// Bytes read at a time.
const WINDOW: usize = 64 << 10;
/// Bytes that are read in the search for types, over all kernels.
pub(super) const MAX_BYTES: u64 = 512 << 20;
/// Pages that are looked at to tell a kernel that runs from a dead one.
const SAMPLE: u64 = 3000;
/// The same, where the first look found no file's page.
pub(super) const LARGE_SAMPLE: u64 = 60_000;
/// Pages that are looked at for all kernels together.
const MAX_SAMPLED: u64 = vmcoreinfo::MAX_TEXTS as u64 * (SAMPLE + LARGE_SAMPLE);
/// Steps for each of these.
const SAMPLE_STEPS: u32 = 64;

/// Why there is no kernel to look into.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The host does not say which pages exist.
    #[error("cannot tell which pages of the guest's memory exist: {0}")]
    Memory(#[from] io::Error),
    /// No notes of a kernel.
    #[error("no Linux found in the guest's memory")]
    NoLinux,
    /// Notes, but page tables that do not lead to the kernel: remains.
    #[error("Linux {release} was here, and runs no more: its page tables lead elsewhere")]
    NoTables {
        /// `uname -r`.
        release: String,
    },
    /// A kernel without BTF.
    #[error("Linux {release} without BTF: files have no names")]
    NoBtf {
        /// `uname -r`.
        release: String,
    },
    /// Its BTF cannot be read.
    #[error("Linux {release}: its BTF cannot be read: {error}")]
    Btf {
        /// `uname -r`.
        release: String,
        /// Why.
        error: BtfError,
    },
    /// Its structures are others than those that are known.
    #[error("Linux {release} is not known here: {missing}")]
    Unknown {
        /// `uname -r`.
        release: String,
        /// What it lacks.
        missing: Missing,
    },
    /// Everything is there, but file pages do not lead to files.
    #[error("Linux {release} was here, and runs no more: of {pages} file pages {bad} lead nowhere")]
    Dead {
        /// `uname -r`.
        release: String,
        /// Pages that look like a file's.
        pages: u64,
        /// Of them, those that lead to no inode that leads back.
        bad: u64,
    },
    /// Too early: not one file page yet.
    #[error("Linux {release} has no file in memory yet")]
    Early {
        /// `uname -r`.
        release: String,
    },
}

impl AttachError {
    /// Of several, the one that came furthest says most.
    pub(crate) fn rank(&self) -> u32 {
        match self {
            AttachError::Memory(_) | AttachError::NoLinux => 0,
            AttachError::NoTables { .. } => 1,
            AttachError::NoBtf { .. } => 2,
            AttachError::Btf { .. } => 3,
            AttachError::Unknown { .. } => 4,
            AttachError::Dead { .. } => 5,
            AttachError::Early { .. } => 6,
        }
    }
}

/// What an attachment, successful or not, has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// Pages looked at for notes.
    pub pages: u64,
    /// Different notes found.
    pub kernels: u64,
    /// Bytes read for types.
    pub bytes: u64,
    /// Pages looked at to see whether the kernel runs.
    pub sampled: u64,
    /// The number of a page among them that was a file's.
    pub file_page: Option<u64>,
}

/// Finds the kernel that runs, among those that left these notes.
pub(super) fn find(memory: &impl GuestPhysical, found: &Found, work: &mut Work) -> Result<Kernel, AttachError> {
    work.pages = found.pages;
    work.kernels = found.kernels.len() as u64;
    let mut best = AttachError::NoLinux;
    // The newest notes tend to lie behind the older ones' remains; nothing depends on it.
    for notes in found.kernels.iter().rev() {
        if work.sampled > MAX_SAMPLED {
            break;
        }
        match open(memory, notes, work) {
            Ok(kernel) => return Ok(kernel),
            Err(error) if error.rank() > best.rank() => best = error,
            Err(_) => {}
        }
    }
    Err(best)
}

fn open(memory: &impl GuestPhysical, notes: &VmCoreInfo, work: &mut Work) -> Result<Kernel, AttachError> {
    let release = || notes.release.clone();
    let (space, vmemmap) = space(memory, notes).ok_or_else(|| AttachError::NoTables { release: release() })?;
    let (types_at, types) =
        types(memory, notes, &space, work).ok_or_else(|| AttachError::NoBtf { release: release() })?;
    let btf = Btf::parse(&types, NAMES).map_err(|error| AttachError::Btf { release: release(), error })?;
    let layout = Layout::new(&btf, notes).map_err(|missing| AttachError::Unknown { release: release(), missing })?;
    let kernel = Kernel { release: release(), space, vmemmap, layout, types: (types_at, types.len()) };
    let (mut pages, mut bad) = kernel.sample(memory, SAMPLE, work)?;
    if pages == 0 {
        (pages, bad) = kernel.sample(memory, LARGE_SAMPLE, work)?;
    }
    match (pages, bad) {
        (0, _) => Err(AttachError::Early { release: release() }),
        _ if is_dead(pages, bad) => Err(AttachError::Dead { release: release(), pages, bad }),
        _ => Ok(kernel),
    }
}

/// Of so many pages that look like a file's, so many lead nowhere: a few may have changed under the eyes.
pub(super) fn is_dead(pages: u64, bad: u64) -> bool {
    bad * 20 > pages
}

/// The kernel's address space, and where its page structures begin; `None`: page tables do not lead to its code.
fn space(memory: &impl GuestPhysical, notes: &VmCoreInfo) -> Option<(Space, u64)> {
    let in_image = |va: u64| va.wrapping_sub(IMAGE) < 1 << 30;
    [notes.swapper_pg_dir, notes.stext].into_iter().all(in_image).then_some(())?;
    let phys_base = notes.phys_base.wrapping_sub(IMAGE);
    let root = notes.swapper_pg_dir.wrapping_add(phys_base);
    let levels = if notes.five_levels { 5 } else { 4 };
    let mut space = Space { root, levels, phys_base, direct: 0, sme_mask: notes.sme_mask };
    let reader = Reader::new(memory, &space, 64);
    let code = notes.stext.wrapping_add(phys_base);
    let leads = reader.walk(root, notes.stext).ok()? == Some(code) && memory.has(code) && is_physical(code);
    leads.then_some(())?;
    // The sections' table is the kernel's own memory: it lies in the direct map, and its page table says where.
    let table = notes.mem_section;
    let direct = table.wrapping_sub(reader.walk(root, table).ok()??);
    // Where the first section's page structures are; flags in the low bits.
    let vmemmap = match notes.vmemmap {
        Some(vmemmap) => vmemmap,
        None => reader.word(reader.word(table).ok().filter(|first| *first != 0)?).ok()? & !0xfff,
    };
    let fits = space.is_canonical(direct) && space.is_canonical(vmemmap) && direct & 0xfff == 0;
    space.direct = direct;
    fits.then_some((space, vmemmap))
}

/// Where the kernel's types are, and a copy of them.
fn types(memory: &impl GuestPhysical, notes: &VmCoreInfo, space: &Space, work: &mut Work) -> Option<(u64, Vec<u8>)> {
    let start = notes.stext.wrapping_add(space.phys_base);
    let finder = Finder::new(&btf::MAGIC);
    let mut window = vec![0; WINDOW];
    let mut at = start;
    while at < start + TYPES_WITHIN && work.bytes < MAX_BYTES && memory.has(at + WINDOW as u64 - 1) {
        memory.copy(at, &mut window)?;
        work.bytes += WINDOW as u64;
        for place in finder.find_iter(&window) {
            let from = at + place as u64;
            let mut head = [0; btf::HEADER];
            let header = memory.copy(from, &mut head).and_then(|()| Header::parse(&head));
            let Some(header) = header.filter(|header| memory.has(from + header.bytes() as u64 - 1)) else { continue };
            let mut types = vec![0; header.bytes()];
            work.bytes += header.bytes() as u64;
            memory.copy(from, &mut types)?;
            return Some((from, types));
        }
        // What begins at the window's end begins the next one.
        at += (WINDOW - btf::MAGIC.len()) as u64;
    }
    None
}

impl Kernel {
    /// Looks at pages all over memory: how many look like a file's, and how many of these lead to no inode that leads back.
    pub(super) fn sample(
        &self,
        memory: &impl GuestPhysical,
        looks: u64,
        work: &mut Work,
    ) -> Result<(u64, u64), AttachError> {
        let mut all = 0;
        memory.existing(&mut |from, to| all += to / 4096 - from / 4096)?;
        let stride = (all / looks).max(1);
        let (mut pages, mut bad, mut skip) = (0, 0, 0);
        let mut known = Translations::default();
        memory.existing(&mut |from, to| {
            let (from, to) = (from / 4096, to / 4096);
            let mut number = from + skip;
            while number < to {
                work.sampled += 1;
                match self.leads_back(memory, number, &mut known) {
                    Some(true) => {
                        pages += 1;
                        work.file_page = Some(number);
                    }
                    // It may have changed meanwhile: it is asked once more.
                    Some(false) if self.leads_back(memory, number, &mut known) == Some(false) => {
                        (pages, bad) = (pages + 1, bad + 1)
                    }
                    _ => {}
                }
                number += stride;
            }
            skip = number - to;
        })?;
        Ok((pages, bad))
    }

    /// Does a file page's inode lead back to it? `None`: it does not look like one.
    fn leads_back(&self, memory: &impl GuestPhysical, number: u64, known: &mut Translations) -> Option<bool> {
        let reader = Reader::knowing(memory, &self.space, SAMPLE_STEPS, std::mem::take(known));
        let page = self.page(&reader, number);
        *known = reader.known();
        let page = page.ok()??;
        let Ok(Use::File(mapping)) = self.used_for(&reader, &page) else { return None };
        match self.inode(&reader, mapping) {
            Ok(Some(_)) => Some(true),
            Ok(None) => Some(false),
            Err(Stop::Pointer(_) | Stop::Steps) => Some(false),
        }
    }
}
