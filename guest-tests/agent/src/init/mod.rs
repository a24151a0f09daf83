//! PID 1 of the guest.
//!
//! Operation:
//! 1. Mount what programs expect ([`mounts`]), write the kernel settings that keep the guest quiet.
//! 2. Load the modules of the groups asked for ([`modules`]).
//! 3. Bring the NIC up: 10.0.2.15/24, gateway 10.0.2.2, fec0::15/64, as QEMU's own user network has it.
//! 4. Do what `vnic.run=` on the kernel command line says: `agent`, `shell` (the default), or a command for the shell.
//! 5. Reap children until that one ends, then sync and power off.
//!
//! Limits: a step that fails is printed and the next is tried, so that a shell is there to look into it; only a
//! missing program for step 4 ends the guest early.

mod cmdline;
mod mounts;
mod shell;

use std::convert::Infallible;
use std::fs;
use std::io::{self, Write};
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::{Pid, getpid, sync};

use crate::modules;
use crate::network;
use cmdline::{CommandLine, Task};

/// The line the host waits for to know that a kernel booted this far; nothing else prints it.
pub const UP: &str = "vnic guest: up";

/// Settings under /proc/sys: no duplicate address detection to wait for, no router to ask, no other traffic.
const SETTINGS: &[(&str, &str)] = &[
    ("net/ipv6/conf/all/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/dad_transmits", "0"),
    ("net/ipv6/conf/default/router_solicitations", "0"),
    ("net/ipv6/conf/default/mldv2_unsolicited_report_interval", "0"),
];

/// Runs as PID 1; ends with the machine.
///
/// # Errors
/// Only where it is not PID 1, or the kernel does not power off.
pub fn run() -> Result<Infallible> {
    if getpid() != Pid::from_raw(1) {
        bail!("this is the guest's PID 1; run-qemu.sh boots it");
    }
    step("mount", mounts::mount_all());
    for (setting, value) in SETTINGS {
        step(setting, fs::write(format!("/proc/sys/{setting}"), value).with_context(|| format!("write {value}")));
    }
    let line = step("read the kernel command line", CommandLine::read()).unwrap_or_default();
    if !line.tracing {
        step("take tracefs away", mounts::unmount(mounts::TRACEFS));
    }
    for group in &line.modules {
        step("load modules", modules::load_group(group));
    }
    if line.network {
        step("bring the network up", network::up());
    }
    say(UP);
    let done = match &line.task {
        Task::Agent => status_of(Command::new("/bin/agent")),
        Task::Shell => shell::run().and_then(wait_for),
        Task::Command(command) => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", command]);
            status_of(shell)
        }
    };
    match done {
        Ok(status) => say(&format!("vnic guest: {} ended: {status}", line.task)),
        Err(error) => say(&format!("vnic guest: {}: {error:#}", line.task)),
    }
    sync();
    reboot(RebootMode::RB_POWER_OFF).context("power off")
}

/// Prints a failure, and goes on.
fn step<T>(what: &str, result: Result<T>) -> Option<T> {
    result.inspect_err(|error| say(&format!("vnic guest: could not {what}: {error:#}"))).ok()
}

/// A line on the console. That the console is gone must not end PID 1.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn status_of(mut command: Command) -> Result<String> {
    let child = command.spawn().with_context(|| format!("start {}", command.get_program().display()))?;
    wait_for(Pid::from_raw(child.id().cast_signed()))
}

/// Reaps children, orphans included, until `child` ends.
fn wait_for(child: Pid) -> Result<String> {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid == child => {
                return Ok(ExitStatus::to_string(&std::os::unix::process::ExitStatusExt::from_raw(code << 8)));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return Ok(format!("killed by {signal}")),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for children"),
        }
    }
}
