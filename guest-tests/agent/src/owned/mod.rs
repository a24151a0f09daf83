//! Pages whose owner is known: of each kind that who tells the owner from outside must tell apart.
//!
//! What it says of a file comes from `/proc/self/fd` and `/proc/self/pagemap`; of a page's kind, from `/proc/kpageflags`.

mod files;
mod programs;

use std::fs::{self, File};
use std::path::Path;
use std::process;

use anyhow::{Context, Result, ensure};
use vnic_experiment::owned::{Owned, Owner};
use vnic_experiment::wire::PAGE_SIZE;

use crate::buffer::PageBuffer;
use crate::pages;
use crate::transfer::Unsupported;

/// Bits of `/proc/kpageflags`.
const ANONYMOUS: u64 = 1 << 12;
const COMPOUND: u64 = 1 << 15 | 1 << 16;
const MERGED: u64 = 1 << 21;
const HUGE: u64 = 1 << 22;

/// Pages of a file or a buffer.
const PAGES: usize = 300;

/// What has pages of a kind.
type Makes = fn(&mut Kept) -> Result<()>;

/// The kinds there are.
const KINDS: &[(&str, Makes)] = &[
    ("tmpfs", files::tmpfs),
    ("tmpfs, huge pages", files::huge_tmpfs),
    ("ext4", files::ext4),
    ("ext4, large folios", files::large_ext4),
    ("xfs", files::xfs),
    ("xfs, large folios", files::large_xfs),
    ("overlayfs", files::overlay),
    ("rootfs", files::rootfs),
    ("deleted", files::deleted),
    ("never named", files::never_named),
    ("memfd", files::memfd),
    ("hard links", files::hard_links),
    ("bind mount", files::bind_mount),
    ("anonymous", programs::private),
    ("anonymous, huge pages", programs::huge),
    ("shared anonymous", programs::shared),
    ("private copy of a file", programs::copy),
    ("forked", programs::forked),
    ("merged (KSM)", programs::merged),
];

/// Pages, and all that must stay so that they do.
#[derive(Debug, Default)]
pub struct Kept {
    /// The pages.
    pub pages: Vec<Owned>,
    files: Vec<File>,
    buffers: Vec<PageBuffer>,
    mappings: Vec<vnic_driver::mapping::Mapping>,
}

impl Kept {
    /// Makes pages of a kind.
    ///
    /// # Errors
    /// [`Unsupported`], where this kernel has no such pages; else what failed.
    pub fn of(kind: &str) -> Result<Kept> {
        let known = KINDS.iter().find(|(name, _)| *name == kind);
        let (_, make) = known.with_context(|| format!("there is no kind of pages called {kind}"))?;
        let mut kept = Kept::default();
        make(&mut kept)?;
        ensure!(!kept.pages.is_empty(), Unsupported("this kernel gives none".to_owned()));
        Ok(kept)
    }

    /// All pages of a file that is open here, under the name that the kernel has for it, or under these.
    fn add_file(&mut self, file: File, filesystem: &str, names: &[&Path]) -> Result<()> {
        let (own, deleted) = own_name(&file)?;
        let names = match names {
            [] => vec![own],
            names => names.iter().map(|name| name.display().to_string()).collect(),
        };
        let runs = pages::page_runs(&file)?;
        let each = runs.iter().flat_map(|run| (0..run.count).map(|at| (run.page + at, run.gpa + at * PAGE_SIZE)));
        let (numbers, addresses): (Vec<u64>, Vec<u64>) = each.unzip();
        for ((page, gpa), flags) in numbers.into_iter().zip(&addresses).zip(pages::flags(&addresses)?) {
            ensure!(flags & ANONYMOUS == 0, "page {page} of {names:?} is no file's by its flags, {flags:#x}");
            let by = Owner::File { names: names.clone(), filesystem: filesystem.to_owned(), page, deleted };
            self.pages.push(Owned { gpa: *gpa, by });
        }
        self.files.push(file);
        Ok(())
    }

    /// Pages at this address of this process and of others.
    fn add_program(&mut self, address: u64, count: usize, others: &[u32], wanted: u64) -> Result<()> {
        let name = fs::read_to_string("/proc/self/comm").context("/proc/self/comm")?.trim_end().to_owned();
        let addresses = pages::frames(address, count)?;
        for ((at, gpa), flags) in (0..).zip(&addresses).zip(pages::flags(&addresses)?) {
            ensure!(flags & ANONYMOUS != 0, "{gpa:#x} is no program's by its flags, {flags:#x}");
            if flags & wanted == wanted {
                let pids = std::iter::once(process::id()).chain(others.iter().copied());
                let places = pids.map(|pid| (pid, address + at * PAGE_SIZE)).collect();
                self.pages.push(Owned { gpa: *gpa, by: Owner::Program { name: name.clone(), places } });
            }
        }
        Ok(())
    }

    /// Only those pages stay that are in a block of several.
    fn only_large(&mut self) -> Result<()> {
        let addresses: Vec<u64> = self.pages.iter().map(|page| page.gpa).collect();
        let mut flags = pages::flags(&addresses)?.into_iter();
        self.pages.retain(|_| flags.next().is_some_and(|flags| flags & COMPOUND != 0));
        Ok(())
    }
}

/// What the kernel calls an open file, and whether the file has a name.
fn own_name(file: &File) -> Result<(String, bool)> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let name = fs::read_link(&link).with_context(|| link.clone())?.display().to_string();
    Ok(name.strip_suffix(" (deleted)").map_or((name.clone(), false), |name| (name.to_owned(), true)))
}
