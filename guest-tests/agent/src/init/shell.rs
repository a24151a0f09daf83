//! A shell for people on the serial console.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};
use nix::unistd::{Pid, setsid};

/// The console a controlling terminal can be made of; /dev/console itself cannot be one.
const TERMINAL: &str = "/dev/ttyS0";

const GREETING: &str = "
This guest's eth0 (10.0.2.15) is the NIC that `vnic serve` is. Try here:

  ping -c 3 10.0.2.2                                  the far end of the link
  transfer sendfile --bytes 16M --to 10.0.2.2:9000    send a file, see where its pages are
  transfer read-write --nic-off sg --to 10.0.2.2:9000 the same without scatter-gather
  transfer --help                                     the methods there are

and in a second terminal of the host: vnic status, vnic rings, vnic trace.
`exit` powers the guest off.
";

/// Starts the shell in a session of its own, so that ^C and job control work.
pub(super) fn run() -> Result<Pid> {
    let mut terminal =
        OpenOptions::new().read(true).write(true).open(TERMINAL).with_context(|| format!("open {TERMINAL}"))?;
    let _ = terminal.write_all(GREETING.replace('\n', "\r\n").as_bytes());
    let mut shell = Command::new("/bin/sh");
    shell
        .arg0("-sh")
        .env_clear()
        .env("PATH", "/bin:/sbin")
        .env("HOME", "/root")
        .env("TERM", "linux")
        .env("PS1", "guest:\\w# ")
        .current_dir("/root")
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal);
    // SAFETY: between fork and exec the closure makes two system calls and touches no lock or heap.
    unsafe {
        shell.pre_exec(|| {
            setsid()?;
            if libc::ioctl(std::io::stdin().as_raw_fd(), libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let child = shell.spawn().context("start /bin/sh")?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}
