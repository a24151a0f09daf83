//! What programs in the guest expect to be mounted.

use std::fs;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount, umount};

/// One line of the table.
struct Mount {
    kind: &'static str,
    at: &'static str,
    flags: MsFlags,
    options: &'static str,
}

/// In this order: later ones lie on earlier ones.
const MOUNTS: &[Mount] = &[
    Mount { kind: "proc", at: "/proc", flags: QUIET, options: "" },
    Mount { kind: "sysfs", at: "/sys", flags: QUIET, options: "" },
    Mount { kind: "devtmpfs", at: "/dev", flags: MsFlags::MS_NOSUID, options: "mode=0755" },
    Mount { kind: "devpts", at: "/dev/pts", flags: QUIET, options: "mode=0620,ptmxmode=0666" },
    // The test files. Small pages: a record of a file's pages is one entry per page of 4 KiB.
    Mount { kind: "tmpfs", at: "/tmp", flags: MsFlags::MS_NOSUID, options: "mode=1777,size=75%,huge=never" },
    Mount { kind: "tmpfs", at: "/run", flags: MsFlags::MS_NOSUID, options: "mode=0755,huge=never" },
    Mount { kind: "tracefs", at: TRACEFS, flags: QUIET, options: "" },
];

/// Where the kernel's tracing is.
pub(super) const TRACEFS: &str = "/sys/kernel/tracing";

const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC);

/// Mounts the table.
pub(super) fn mount_all() -> Result<()> {
    for entry in MOUNTS {
        fs::create_dir_all(entry.at).with_context(|| format!("make {}", entry.at))?;
        match mount(Some(entry.kind), entry.at, Some(entry.kind), entry.flags, Some(entry.options)) {
            // Busy: the kernel mounted it before us (CONFIG_DEVTMPFS_MOUNT).
            Ok(()) | Err(Errno::EBUSY) => {}
            // A kernel without tracing has no tracefs; what needs it says so then.
            Err(_) if entry.kind == "tracefs" => {}
            Err(error) => return Err(error).with_context(|| format!("mount {} at {}", entry.kind, entry.at)),
        }
    }
    Ok(())
}

/// Takes one of them away again.
pub(super) fn unmount(at: &str) -> Result<()> {
    umount(at).with_context(|| format!("unmount {at}"))
}
