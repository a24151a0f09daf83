//! Loads kernel modules by group: the image gave each group a folder, whose files by their names are in loading order.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

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
