//! Starts another kernel in this one's place: the machine stays, and so does what is in its memory.
//!
//! `kexec KERNEL INITRAMFS COMMAND-LINE`, each a file on a disk or the disk itself, whose end then is zeros.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Parser;
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;

/// Starts another kernel in this one's place.
#[derive(Debug, Parser)]
struct Arguments {
    /// A bzImage
    kernel: PathBuf,
    /// Its first file system
    initramfs: PathBuf,
    /// Its command line
    command_line: String,
}

fn main() -> Result<()> {
    let Arguments { kernel, initramfs, command_line } = Arguments::parse();
    // The kernel reads files only, no devices.
    let copied = |from: PathBuf, to: &str| -> Result<File> {
        let copy = || io::copy(&mut File::open(&from)?, &mut File::create(to)?).and_then(|_| File::open(to));
        copy().with_context(|| format!("copy {} to {to}", from.display()))
    };
    let (kernel, initramfs) = (copied(kernel, "/tmp/kernel")?, copied(initramfs, "/tmp/initramfs")?);
    let command_line = CString::new(command_line)?;
    let length = command_line.as_bytes_with_nul().len();
    let fds = [kernel.as_raw_fd(), initramfs.as_raw_fd()];
    // SAFETY: two descriptors that are open, and a text of this length with a 0 at its end.
    if unsafe { libc::syscall(libc::SYS_kexec_file_load, fds[0], fds[1], length, command_line.as_ptr(), 0_u64) } < 0 {
        return Err(io::Error::last_os_error()).context("the kernel does not take another one");
    }
    sync();
    reboot(RebootMode::RB_KEXEC)?;
    Ok(())
}
