//! Files of each kind.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vnic_experiment::wire::PAGE_SIZE;

use super::{Kept, PAGES};
use crate::modules::load_group;
use crate::transfer::Unsupported;
use crate::{disk, modules};

const TMPFS: &str = "/tmp";
/// Bytes of a file that is to have large blocks of pages.
const LARGE: usize = 4 << 20;

pub(super) fn tmpfs(kept: &mut Kept) -> Result<()> {
    tree(kept, Path::new(TMPFS), "tmpfs")
}

pub(super) fn ext4(kept: &mut Kept) -> Result<()> {
    tree(kept, disk::mounted()?, "ext4")
}

pub(super) fn xfs(kept: &mut Kept) -> Result<()> {
    tree(kept, &xfs_mounted()?, "xfs")
}

/// One in the file system's root, one further down.
fn tree(kept: &mut Kept, folder: &Path, filesystem: &str) -> Result<()> {
    let below = folder.join("a folder").join("below");
    fs::create_dir_all(&below)?;
    for path in [folder.join("kept.bin"), below.join("kept too")] {
        kept.add_file(filled(&path, PAGES * PAGE_SIZE as usize)?, filesystem, &[])?;
    }
    Ok(())
}

pub(super) fn huge_tmpfs(kept: &mut Kept) -> Result<()> {
    let at = mounted("tmpfs", "tmpfs", "/huge", Some("huge=always"))?;
    kept.add_file(filled(&at.join("large"), LARGE)?, "tmpfs", &[])?;
    kept.only_large()
}

pub(super) fn large_ext4(kept: &mut Kept) -> Result<()> {
    large(kept, disk::mounted()?, "ext4")
}

pub(super) fn large_xfs(kept: &mut Kept) -> Result<()> {
    large(kept, &xfs_mounted()?, "xfs")
}

/// Written in large pieces or, where the kernel makes no blocks of those, read ahead from the disk.
fn large(kept: &mut Kept, folder: &Path, filesystem: &str) -> Result<()> {
    let path = folder.join("large");
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    file.write_all(&vec![5; LARGE])?;
    file.sync_all()?;
    kept.add_file(file, filesystem, &[])?;
    kept.only_large()?;
    if kept.pages.is_empty() {
        kept.files.clear();
        fs::write("/proc/sys/vm/drop_caches", "1").context("drop the page cache")?;
        let mut file = File::open(&path)?;
        file.read_to_end(&mut Vec::with_capacity(LARGE + 1))?;
        kept.add_file(file, filesystem, &[])?;
        kept.only_large()?;
    }
    Ok(())
}

/// One of the lower layer, one of the upper: the label has the name in the layer.
pub(super) fn overlay(kept: &mut Kept) -> Result<()> {
    let disk = disk::mounted()?;
    let [lower, upper, work] = ["lower", "upper", "work"].map(|name| disk.join(name));
    for folder in [&lower, &upper, &work] {
        fs::create_dir_all(folder)?;
    }
    drop(filled(&lower.join("below"), PAGES * PAGE_SIZE as usize)?);
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let at = mounted("overlay", "overlay", "/overlay", Some(&options))?;
    kept.add_file(File::open(at.join("below"))?, "ext4", &[&lower.join("below")])?;
    kept.add_file(filled(&at.join("above"), PAGES * PAGE_SIZE as usize)?, "ext4", &[&upper.join("above")])
}

/// What the kernel unpacked at its start.
pub(super) fn rootfs(kept: &mut Kept) -> Result<()> {
    kept.add_file(File::open("/bin/busybox")?, "rootfs", &[])
}

pub(super) fn deleted(kept: &mut Kept) -> Result<()> {
    for (folder, filesystem) in [(Path::new(TMPFS), "tmpfs"), (disk::mounted()?, "ext4")] {
        let path = folder.join("gone");
        let file = filled(&path, PAGES * PAGE_SIZE as usize)?;
        fs::remove_file(path)?;
        kept.add_file(file, filesystem, &[])?;
    }
    Ok(())
}

pub(super) fn never_named(kept: &mut Kept) -> Result<()> {
    for (folder, filesystem) in [(Path::new(TMPFS), "tmpfs"), (disk::mounted()?, "ext4")] {
        let flags = OFlag::O_TMPFILE.bits();
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(folder);
        let mut file = file.context("a file without a name")?;
        fill(&mut file, PAGES * PAGE_SIZE as usize)?;
        kept.add_file(file, filesystem, &[])?;
    }
    Ok(())
}

pub(super) fn memfd(kept: &mut Kept) -> Result<()> {
    let mut file = File::from(memfd_create("a memfd", MFdFlags::empty())?);
    fill(&mut file, PAGES * PAGE_SIZE as usize)?;
    kept.add_file(file, "tmpfs", &[])
}

pub(super) fn hard_links(kept: &mut Kept) -> Result<()> {
    for (folder, filesystem) in [(Path::new(TMPFS), "tmpfs"), (disk::mounted()?, "ext4")] {
        let (one, other) = (folder.join("one name"), folder.join("another name"));
        let _ = fs::remove_file(&other);
        let file = filled(&one, PAGES * PAGE_SIZE as usize)?;
        fs::hard_link(&one, &other)?;
        kept.add_file(file, filesystem, &[&one, &other])?;
    }
    Ok(())
}

/// The first mount's name counts.
pub(super) fn bind_mount(kept: &mut Kept) -> Result<()> {
    let [folder, at] = ["/tmp/bound", "/bound"].map(Path::new);
    for folder in [folder, at] {
        fs::create_dir_all(folder)?;
    }
    mount(Some(folder), at, None::<&str>, MsFlags::MS_BIND, None::<&str>).context("a bind mount")?;
    let file = filled(&at.join("kept.bin"), PAGES * PAGE_SIZE as usize)?;
    kept.add_file(file, "tmpfs", &[&folder.join("kept.bin")])
}

/// Where the second disk is mounted.
pub(super) fn xfs_mounted() -> Result<PathBuf> {
    mounted("/dev/vdb", "xfs", "/xfs", None)
}

fn mounted(what: &str, filesystem: &str, at: &str, options: Option<&str>) -> Result<PathBuf> {
    let path = PathBuf::from(at);
    if fs::read_to_string("/proc/mounts")?.lines().any(|line| line.split(' ').nth(1) == Some(at)) {
        return Ok(path);
    }
    disk::mounted()?;
    load_group(modules::FILESYSTEMS)?;
    fs::create_dir_all(&path)?;
    match mount(Some(what), &path, Some(filesystem), MsFlags::MS_NOATIME, options) {
        Ok(()) => Ok(path),
        Err(Errno::ENODEV) => Err(Unsupported(format!("this kernel has no {filesystem}")).into()),
        Err(Errno::ENOENT | Errno::ENXIO) => {
            Err(Unsupported(format!("this guest has no disk with {filesystem}")).into())
        }
        Err(error) => Err(error).with_context(|| format!("mount {what} as {filesystem}")),
    }
}

/// A file of so many bytes, on disk where it is a disk's: dirty pages may move before they are written.
fn filled(path: &Path, bytes: usize) -> Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    fill(&mut file, bytes)?;
    Ok(file)
}

fn fill(file: &mut File, bytes: usize) -> Result<()> {
    for page in 0..bytes / PAGE_SIZE as usize {
        file.write_all(&[page as u8; PAGE_SIZE as usize])?;
    }
    Ok(file.sync_all()?)
}
