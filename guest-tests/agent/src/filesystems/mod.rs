//! Where a file is made on each file system: mounted when a transfer asks for it, and once.
//!
//! Those that are read-only get their file by their own packer, which is of the host's: the file is made in memory, packed onto
//! the disk, and taken from memory before the disk is mounted. What the packing left in the page cache of the disk itself goes, too:
//! whoever looks for the file's bytes in memory is to find only those of the file.
//!
//! Those that a server has, another program or another part of the kernel, show a folder of the disk's ext4 once more: the file is
//! made there, taken from memory, and opened through the server.

mod fuse;
mod nfs;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::mount::{MsFlags, mount, umount};

use crate::disk::{self, DEVICE, MOUNTED_AT};
use crate::file::TestFile;
use crate::modules::load_group;
use crate::transfer::Unsupported;

/// Where the files to be packed are made.
const UNPACKED: &str = "/tmp/unpacked";
/// Where what was packed is mounted.
const PACKED: &str = "/packed";

/// A packer's command, before the names of the disk and of the folder.
const SQUASHFS: &[&str] = &["mksquashfs", UNPACKED, DEVICE, "-noappend", "-no-progress", "-quiet"];
const EROFS: &[&str] = &["mkfs.erofs", "--quiet", DEVICE, UNPACKED];

/// Makes a file of `offset + bytes` bytes on a file system; its digest is of the last `bytes`.
///
/// # Errors
/// [`Unsupported`] where this guest does not have the file system; else what failed.
pub(crate) fn make(filesystem: &str, offset: u64, bytes: u64) -> Result<TestFile> {
    match filesystem {
        "squashfs" => packed(filesystem, SQUASHFS, offset, bytes),
        "erofs" => packed(filesystem, EROFS, offset, bytes),
        "fuse" => served(fuse::over, offset, bytes),
        "nfs" => served(nfs::over, offset, bytes),
        _ => TestFile::create(&folder_of(filesystem)?, offset, bytes),
    }
}

/// The folder of a file system that can be written to.
///
/// # Errors
/// As [`make`].
pub(crate) fn folder_of(filesystem: &str) -> Result<PathBuf> {
    match filesystem {
        "tmpfs" => Ok("/tmp".into()),
        "tmpfs-huge" => mounted("none", "tmpfs", "/huge", Some("size=75%,huge=always")),
        "ext4" => disk::mounted().map(Path::to_owned).map_err(|error| Unsupported(format!("{error:#}")).into()),
        "xfs" => on_disk("filesystems", "xfs", None),
        "btrfs" => on_disk("btrfs", "btrfs", None),
        "btrfs-zstd" => on_disk("btrfs", "btrfs", Some("compress-force=zstd")),
        "overlayfs" => overlay(),
        other => bail!(Unsupported(format!("no file can be made on {other} in this guest"))),
    }
}

/// The disk's own file system.
fn on_disk(group: &str, kind: &str, options: Option<&str>) -> Result<PathBuf> {
    load("disk", kind)?;
    load(group, kind)?;
    mounted(DEVICE, kind, MOUNTED_AT, options)
}

/// Over the disk's ext4.
fn overlay() -> Result<PathBuf> {
    load("filesystems", "overlay")?;
    let disk = folder_of("ext4")?;
    for part in ["lower", "upper", "work"] {
        fs::create_dir_all(disk.join(part)).context("a folder on the disk")?;
    }
    let at = disk.display();
    mounted("none", "overlay", "/merged", Some(&format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work")))
}

/// Loads a file system's modules; that one is missing shows when it is mounted.
fn load(group: &str, kind: &str) -> Result<()> {
    load_group(group).map_err(|error| Unsupported(format!("this guest has no {kind}: {error:#}")).into())
}

/// A file of the disk's, seen through the file system that `over` puts over its folder.
fn served(over: impl Fn(&Path) -> Result<PathBuf>, offset: u64, bytes: u64) -> Result<TestFile> {
    let below = folder_of("ext4")?.join("served");
    fs::create_dir_all(&below).context("a folder on the disk")?;
    let at = over(&below)?;
    let made = TestFile::create(&below, offset, bytes)?;
    posix_fadvise(&made.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).context("drop the file's pages")?;
    made.seen_in(&at)
}

fn is_mounted(at: &str) -> Result<bool> {
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some(at)))
}

/// Mounts a file system, unless that is done.
fn mounted(what: &str, kind: &str, at: &str, options: Option<&str>) -> Result<PathBuf> {
    let path = PathBuf::from(at);
    if is_mounted(at)? {
        return Ok(path);
    }
    fs::create_dir_all(&path).with_context(|| format!("make {at}"))?;
    mount_at(what, kind, &path, MsFlags::MS_NOATIME, options)?;
    Ok(path)
}

fn mount_at(what: &str, kind: &str, at: &Path, flags: MsFlags, options: Option<&str>) -> Result<()> {
    match mount(Some(what), at, Some(kind), flags, options) {
        Ok(()) => Ok(()),
        Err(Errno::ENODEV) => bail!(Unsupported(format!("this kernel has no {kind}"))),
        Err(error) => {
            Err(error).with_context(|| format!("mount {what} as {kind} ({})", options.unwrap_or("no options")))
        }
    }
}

/// A file on a read-only file system.
fn packed(kind: &str, packer: &[&str], offset: u64, bytes: u64) -> Result<TestFile> {
    load("disk", kind)?;
    load(kind, kind)?;
    let at = Path::new(PACKED);
    // The last one, whose file is closed.
    match umount(at) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(error).context("unmount what was packed before"),
    }
    for folder in [UNPACKED, PACKED] {
        fs::create_dir_all(folder).with_context(|| format!("make {folder}"))?;
    }
    ensure!(Path::new(DEVICE).exists(), "this guest has no disk");
    let unpacked = TestFile::create(Path::new(UNPACKED), offset, bytes)?;
    let packed = Command::new(packer[0]).args(&packer[1..]).output();
    let packed = match packed {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!(Unsupported(format!("this guest has no {}", packer[0])))
        }
        packed => packed.with_context(|| format!("run {}", packer[0]))?,
    };
    let complaint = String::from_utf8_lossy(&packed.stderr);
    ensure!(packed.status.success(), "{} ended with {}: {}", packer[0], packed.status, complaint.trim_end());
    let disk = File::open(DEVICE).with_context(|| DEVICE.to_owned())?;
    disk.sync_all().context("write the disk")?;
    posix_fadvise(&disk, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).context("drop the disk's pages")?;
    mount_at(DEVICE, kind, at, MsFlags::MS_RDONLY, None)?;
    unpacked.moved_to(at)
}
