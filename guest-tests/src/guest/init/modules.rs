//! Loads kernel modules by the image's list, which `mkinitramfs` wrote in dependency order.

use std::fs::{self, File};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::image::modules::{LIST_PATH, parse_list};

/// Loads the modules of a group that are not loaded yet. Loading a group twice is no error.
///
/// # Errors
/// The list is missing, knows no such group, or the kernel refuses a module.
pub fn load_group(group: &str) -> Result<()> {
    let list = fs::read_to_string(LIST_PATH).with_context(|| format!("the image's module list {LIST_PATH}"))?;
    let list = parse_list(&list);
    let Some(files) = list.get(group) else {
        let groups: Vec<&str> = list.keys().copied().collect();
        bail!("no module group is called {group:?}; there are {}", groups.join(", "));
    };
    for path in files {
        let file = File::open(path).with_context(|| format!("open {path}"))?;
        match finit_module(&file, c"", ModuleInitFlags::empty()) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(error).with_context(|| format!("load {path}")),
        }
    }
    Ok(())
}
