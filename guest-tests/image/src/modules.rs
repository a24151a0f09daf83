//! Which kernel modules the guest gets, and in which order they load.
//!
//! Operation: [`WANTED`] names modules by purpose. A name that `modules.builtin` lists needs no file; every other is
//! looked for in the module tree, and what it `depends=` on (its own `.modinfo` section says; unlike `modules.dep`
//! that is there before anyone ran depmod) comes before it.
//!
//! Limits: `softdep` and request_module() are not followed; [`WANTED`] names those modules itself.

use std::collections::BTreeSet;
use std::collections::btree_map::{BTreeMap, Entry};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::archive::{Access, Archive, Node};

/// Where the image has the groups' folders.
const FOLDER: &str = "/lib/modules";

/// Modules of one purpose.
#[derive(Debug)]
pub struct Group {
    /// Its name, for `vnic.modules=`.
    pub name: &'static str,
    /// Whether a guest is of any use without it.
    pub required: bool,
    /// Whether only those guests get it that are to have it.
    pub extra: bool,
    /// In loading order as far as the files do not say it.
    pub modules: &'static [&'static str],
}

/// What the guest gets, where the kernel has it.
pub const WANTED: &[Group] = &[
    Group { name: "base", required: true, extra: false, modules: &["virtio_pci", "virtio_net", "virtio_console"] },
    // ext4 asks for the crc32c algorithm by request_module.
    Group { name: "disk", required: false, extra: false, modules: &["virtio_blk", "crc32c_generic", "ext4"] },
    Group { name: "filesystems", required: false, extra: false, modules: &["xfs", "overlay"] },
    // The cipher of kTLS and of AF_ALG, asked for by request_module.
    Group {
        name: "tls",
        required: false,
        extra: false,
        modules: &["aesni_intel", "ctr", "ghash_generic", "gcm", "tls", "algif_aead"],
    },
    Group { name: "capture", required: false, extra: false, modules: &["af_packet"] },
    Group { name: "rng", required: false, extra: false, modules: &["virtio_rng"] },
    Group {
        name: "vfio",
        required: false,
        extra: false,
        modules: &["irqbypass", "vfio", "vfio_iommu_type1", "vfio_virqfd", "vfio_pci_core", "vfio_pci"],
    },
    // Checksums and compression, asked for by request_module.
    extra("btrfs", &["crc32c_generic", "xxhash_generic", "btrfs"]),
    extra("squashfs", &["squashfs"]),
    extra("erofs", &["erofs"]),
    extra("fuse", &["fuse"]),
    // Server and client; the client's version 4 is asked for by request_module.
    extra("nfs", &["nfsd", "nfs", "nfsv4"]),
];

/// A group of modules for guests that are to have it.
const fn extra(name: &'static str, modules: &'static [&'static str]) -> Group {
    Group { name, required: false, extra: true, modules }
}

/// Do only those guests get this group that are to have it?
#[must_use]
pub fn is_extra(group: &str) -> bool {
    WANTED.iter().any(|known| known.name == group && known.extra)
}

/// A module as the image gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// With `_` for `-`, as the kernel has it.
    pub name: String,
    /// Decompressed.
    pub content: Vec<u8>,
}

/// The modules for an image.
#[derive(Debug, Default)]
pub struct Selection {
    /// Each once, in an order that works for all groups.
    pub modules: Vec<Module>,
    /// Names of the modules to load for each group, dependencies first.
    pub groups: Vec<(&'static str, Vec<String>)>,
    /// Wanted and neither built in nor in the tree.
    pub missing: Vec<&'static str>,
    /// The files they came from.
    pub sources: Vec<PathBuf>,
}

impl Selection {
    /// Chooses from `/lib/modules/VERSION`, with these groups among the extra ones.
    ///
    /// # Errors
    /// The tree is unreadable, or lacks what every guest needs.
    pub fn from_tree(tree: &Path, extra: &[&str]) -> Result<Selection> {
        let files = files_of(tree)?;
        let builtin = builtin_of(tree)?;
        ensure!(!files.is_empty(), "{} holds no kernel modules", tree.display());
        let mut selection = Selection::default();
        let mut loaded: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for group in WANTED.iter().filter(|group| !group.extra || extra.contains(&group.name)) {
            let mut order = Vec::new();
            for &name in group.modules {
                if builtin.contains(name) {
                    continue;
                }
                if !files.contains_key(name) {
                    // Debian's 6.12 has no vfio_virqfd of its own any more: not every kernel has every name.
                    ensure!(!group.required, "{} has no module {name}, and it is not built in", tree.display());
                    selection.missing.push(name);
                    continue;
                }
                selection.add(name, &files, &builtin, &mut loaded, &mut order, 0)?;
            }
            selection.groups.push((group.name, order));
        }
        Ok(selection)
    }

    /// Adds a module and what it needs; `order` gets the names, dependencies first.
    fn add(
        &mut self,
        name: &str,
        files: &BTreeMap<String, PathBuf>,
        builtin: &BTreeSet<String>,
        loaded: &mut BTreeMap<String, Vec<String>>,
        order: &mut Vec<String>,
        depth: usize,
    ) -> Result<()> {
        ensure!(depth < 32, "the modules' dependencies go round in a circle at {name}");
        let depends = match loaded.get(name) {
            Some(depends) => depends.clone(),
            None => {
                let path =
                    files.get(name).with_context(|| format!("a module needs {name}, which is not in the tree"))?;
                let content = read_module(path)?;
                let depends = depends_of(&content).with_context(|| path.display().to_string())?;
                for needed in &depends {
                    if !builtin.contains(needed) {
                        self.add(needed, files, builtin, loaded, order, depth + 1)?;
                    }
                }
                self.modules.push(Module { name: name.to_owned(), content });
                self.sources.push(path.clone());
                loaded.insert(name.to_owned(), depends.clone());
                depends
            }
        };
        for needed in &depends {
            if !builtin.contains(needed) && !order.contains(needed) {
                self.add(needed, files, builtin, loaded, order, depth + 1)?;
            }
        }
        if !order.iter().any(|have| have == name) {
            order.push(name.to_owned());
        }
        Ok(())
    }

    /// Gives each group a folder in the image, whose files by their names are in loading order: all that PID 1 needs to know.
    /// What several groups need is a link in all but the first.
    pub fn add_to(&self, archive: &mut Archive) {
        let mut places: BTreeMap<&str, String> = BTreeMap::new();
        for (group, names) in &self.groups {
            archive.add(&format!("{FOLDER}/{group}"), Node::Folder);
            for (index, name) in names.iter().enumerate() {
                let place = format!("{FOLDER}/{group}/{index:02}-{name}.ko");
                let node = match places.entry(name) {
                    Entry::Occupied(first) => Node::Link(first.get().clone()),
                    Entry::Vacant(unplaced) => {
                        unplaced.insert(place.clone());
                        let module = self.modules.iter().find(|module| module.name == *name);
                        Node::File(module.map(|module| module.content.clone()).unwrap_or_default(), Access::Data)
                    }
                };
                archive.add(&place, node);
            }
        }
    }
}

/// The kernel's name of a module file: `vfio-pci.ko.xz` → `vfio_pci`.
fn module_name(path: &Path) -> Option<String> {
    let (name, suffix) = path.file_name()?.to_str()?.split_once(".ko")?;
    matches!(suffix, "" | ".xz" | ".zst" | ".gz").then(|| name.replace('-', "_"))
}

/// Every module file below the tree, by name.
fn files_of(tree: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))? {
            let entry = entry?;
            // `build` and `source` link out of the tree, to headers: links are not followed.
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Some(name) = module_name(&entry.path()) {
                files.insert(name, entry.path());
            }
        }
    }
    Ok(files)
}

/// Names of what is built into the kernel.
fn builtin_of(tree: &Path) -> Result<BTreeSet<String>> {
    let path = tree.join("modules.builtin");
    let list = fs::read_to_string(&path)
        .with_context(|| format!("{}: is this a /lib/modules/VERSION folder?", path.display()))?;
    Ok(list.lines().filter_map(|line| module_name(Path::new(line))).collect())
}

/// A module's content; compressed ones are unpacked by the tool for it.
fn read_module(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return fs::read(path).with_context(|| format!("read {}", path.display())),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => bail!("{} is not a module", path.display()),
    };
    let unpacked = Command::new(tool)
        .args(["-dc", "--"])
        .arg(path)
        .output()
        .with_context(|| format!("unpack {} with {tool}: is it installed?", path.display()))?;
    let complaint = String::from_utf8_lossy(&unpacked.stderr);
    ensure!(unpacked.status.success(), "{tool} could not unpack {}: {}", path.display(), complaint.trim_end());
    Ok(unpacked.stdout)
}

/// The `depends=` of a module's `.modinfo` section, which is a sequence of `key=value` strings ended by NUL.
fn depends_of(content: &[u8]) -> Result<Vec<String>> {
    const KEY: &[u8] = b"\0depends=";
    let at = content.windows(KEY.len()).position(|window| window == KEY).context("no depends= in its .modinfo")?;
    let value = &content[at + KEY.len()..];
    let end = value.iter().position(|&byte| byte == 0).context("its .modinfo does not end")?;
    let names = std::str::from_utf8(&value[..end]).context("its .modinfo")?;
    Ok(names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect())
}

#[cfg(test)]
mod tests;
