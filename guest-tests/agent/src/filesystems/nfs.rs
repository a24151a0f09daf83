//! NFS over the guest's own loopback: its kernel's server exports a folder of the disk, its kernel's client mounts that.
//!
//! Operation: no program of nfs-utils is here. What `exportfs` and `mountd` would answer when the server asks, namely who the
//! client is, what is exported, and what a file handle's number stands for, is written into the server's caches beforehand
//! (`net/sunrpc/cache.c`), for longer than the guest lives. Without `nfsdcld` the server knows of no clients from before, and
//! waits a while for them, before it lets anyone open a file: as shortly as it can be told to.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{is_mounted, load, mounted};

/// Where the client mounts it.
const MOUNTED_AT: &str = "/nfs";
/// Where the server is controlled.
const CONTROL: &str = "/proc/fs/nfsd";
/// The client and its server are one.
const OPTIONS: &str = "vers=4.2,proto=tcp,port=2049,addr=127.0.0.1,clientaddr=127.0.0.1,sec=sys";
/// Seconds, of which the server takes no fewer.
const GRACE: &str = "10";
/// The end of 32 bits' seconds: never.
const EXPIRY: u32 = i32::MAX as u32;
/// `NFSEXP_FSID | NFSEXP_NOSUBTREECHECK | NFSEXP_INSECURE_PORT` (uapi/linux/nfsd/export.h); root is root.
const FLAGS: u32 = 0x2000 | 0x400 | 0x2;
/// `FSID_NUM`: the file system's number is its identity, and 0 is the root of what is exported.
const FSID_NUM: u32 = 1;

/// The folder where files of `below` are seen through NFS.
pub(super) fn over(below: &Path) -> Result<PathBuf> {
    load("nfs", "nfs")?;
    if !is_mounted(MOUNTED_AT)? {
        serve(below)?;
    }
    mounted("127.0.0.1:/", "nfs4", MOUNTED_AT, Some(OPTIONS))
}

fn serve(below: &Path) -> Result<()> {
    mounted("nfsd", "nfsd", CONTROL, None)?;
    let folder = below.display();
    tell("/proc/net/rpc/auth.unix.ip/channel", &format!("nfsd 127.0.0.1 {EXPIRY} guest"))?;
    tell("/proc/net/rpc/nfsd.fh/channel", &format!("guest {FSID_NUM} \\x00000000 {EXPIRY} {folder}"))?;
    tell("/proc/net/rpc/nfsd.export/channel", &format!("guest {folder} {EXPIRY} {FLAGS} 65534 65534 0"))?;
    // The older ones have more servers beside them, which register with a program that is not here.
    control("versions", "-2 -3 +4 +4.1 +4.2")?;
    control("nfsv4gracetime", GRACE)?;
    control("portlist", "tcp 2049")?;
    control("threads", "4")
}

fn control(file: &str, words: &str) -> Result<()> {
    tell(&format!("{CONTROL}/{file}"), words)
}

fn tell(path: &str, words: &str) -> Result<()> {
    fs::write(path, format!("{words}\n")).with_context(|| format!("write {words:?} to {path}"))
}
