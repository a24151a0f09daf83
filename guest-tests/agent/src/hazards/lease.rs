//! `lease`: the cure. With `F_SETLEASE` the kernel warns by a signal before another process may truncate the file, and
//! keeps that process waiting until the lease is given back (or `fs.lease-break-time`, 45 s, is over).

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::sys::sendfile::sendfile64;

use super::{Child, Story};
use crate::connection::{connect, read_receipt};
use crate::filesystems;

const BYTES: u64 = 1 << 20;
const CHUNK: usize = 65536;
/// From `asm-generic/fcntl.h`.
const F_SETSIG: libc::c_int = 10;
/// How long the warning may take.
const SIGNAL_DEADLINE_S: libc::time_t = 30;

pub(super) fn show(to: SocketAddr) -> Result<Story> {
    let mut story = Story::default();
    let made = filesystems::make("tmpfs", 0, BYTES)?;
    let file = made.file.as_raw_fd();
    let signal = libc::SIGRTMIN() + 1;
    let waiter = BlockedSignal::new(signal)?;
    fcntl(file, F_SETSIG, signal).context("F_SETSIG")?;
    fcntl(file, libc::F_SETLEASE, libc::F_RDLCK).context("F_SETLEASE")?;
    story.step(format!("the sender takes a read lease on the file, with signal {signal} as the warning"));

    let socket = connect(to, Some(BYTES))?;
    let mut offset = 0;
    let mut sent = sendfile64(&socket, &made.file, Some(&mut offset), CHUNK)? as u64;
    story.step(format!("sendfile takes {sent} bytes"));
    let mut other = Child::truncates(made.path(), 4096)?;
    story.step("another process wants to truncate the file to 4096 bytes");

    let warned = waiter.wait()?;
    story.check(warned == file, format!("the signal arrives, for file descriptor {warned} (the file is {file})"));
    let length = made.file.metadata()?.len();
    story.check(length == BYTES, format!("the file still has {length} bytes"));
    while sent < BYTES {
        let taken = sendfile64(&socket, &made.file, Some(&mut offset), usize::try_from(BYTES - sent)?)?;
        ensure!(taken > 0, "sendfile finds the end after {sent} bytes");
        sent += taken as u64;
    }
    socket.shutdown(Shutdown::Write).context("shut down the write side")?;
    let receipt = read_receipt(&socket)?;
    let whole = receipt.bytes == BYTES && receipt.sha256 == made.sha256;
    story.check(whole, format!("the transfer finishes: the receiver has {} bytes, the file's own", receipt.bytes));

    fcntl(file, libc::F_SETLEASE, libc::F_UNLCK).context("give the lease back")?;
    let status = other.wait()?;
    let length = made.file.metadata()?.len();
    story.check(
        status.success() && length == 4096,
        format!("the lease is given back; the other process ends with {status}, the file has {length} bytes"),
    );
    Ok(story)
}

fn fcntl(file: i32, command: i32, argument: i32) -> io::Result<()> {
    // SAFETY: the commands used here take an integer.
    if unsafe { libc::fcntl(file, command, argument) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A signal that is waited for in place of being delivered. nix has no real-time signals.
struct BlockedSignal {
    signals: libc::sigset_t,
    before: libc::sigset_t,
}

impl BlockedSignal {
    fn new(signal: i32) -> io::Result<BlockedSignal> {
        // SAFETY: a sigset_t is plain data for which zero is a value; the calls write to the two that live here.
        unsafe {
            let mut blocked = BlockedSignal { signals: std::mem::zeroed(), before: std::mem::zeroed() };
            libc::sigemptyset(&raw mut blocked.signals);
            libc::sigaddset(&raw mut blocked.signals, signal);
            match libc::pthread_sigmask(libc::SIG_BLOCK, &raw const blocked.signals, &raw mut blocked.before) {
                0 => Ok(blocked),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }

    /// Waits for the signal; returns the file descriptor that it is about.
    fn wait(&self) -> Result<i32> {
        let deadline = libc::timespec { tv_sec: SIGNAL_DEADLINE_S, tv_nsec: 0 };
        // SAFETY: siginfo_t is plain data; the kernel fills it and reads the other two, all of which live here.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            if libc::sigtimedwait(&raw const self.signals, &raw mut info, &raw const deadline) < 0 {
                return Err(io::Error::last_os_error()).context("wait for the lease's signal");
            }
            // si_band (a long) and si_fd follow the three integers at the front, 8-aligned (sigaction(2), SIGPOLL).
            Ok((&raw const info).cast::<u8>().add(24).cast::<i32>().read())
        }
    }
}

impl Drop for BlockedSignal {
    fn drop(&mut self) {
        // SAFETY: `before` is what pthread_sigmask wrote.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}
