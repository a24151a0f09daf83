//! Loads kernel modules by group: the image gave each group a folder, whose files by their names are in loading order.

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};
use vnic_experiment::wire::KERNEL_MODULES;

use crate::transfer::Unsupported;

/// The groups' folders.
const FOLDER: &str = "/lib/modules";

/// The group of the file systems that only some guests mount.
pub const FILESYSTEMS: &str = "filesystems";

/// Loads the modules of a group that are not loaded yet. Loading a group twice is no error.
///
/// # Errors
/// The image has no such group, or the kernel refuses a module.
pub fn load_group(group: &str) -> Result<()> {
    let folder = Path::new(FOLDER).join(group);
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("the module group {group:?}: {}", folder.display()))?;
    files.sort_unstable();
    for path in files {
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("load {}", path.display())),
        }
    }
    Ok(())
}

/// A kernel module that the user brought; taken out again when dropped.
#[derive(Debug)]
pub(crate) struct Brought(CString);

impl Brought {
    /// Loads it by the name of its file.
    ///
    /// # Errors
    /// [`Unsupported`] where the image does not have it; else the kernel's refusal.
    pub(crate) fn load(name: &str) -> Result<Brought> {
        let path = Path::new(KERNEL_MODULES).join(format!("{name}.ko"));
        let file = File::open(&path)
            .map_err(|_| Unsupported(format!("this guest was not given the kernel module {name} (--kernel-module)")))?;
        finit_module(&file, c"", ModuleInitFlags::empty()).with_context(|| format!("load {}", path.display()))?;
        // As the kernel calls it.
        CString::new(name.replace('-', "_")).map(Brought).context("a kernel module's name")
    }
}

impl Drop for Brought {
    fn drop(&mut self) {
        // One that stays would be in every row behind this one.
        if let Err(error) = delete_module(&self.0, DeleteModuleFlags::empty()) {
            let _ = writeln!(io::stdout(), "vnic guest: the kernel module {:?} stays loaded: {error}", self.0);
        }
    }
}
