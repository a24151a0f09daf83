//! KVM only if a guest really comes up with it: that /dev/kvm opens says little. What was learnt is remembered.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::children::dies_with_us;
use crate::machine::{Accelerator, Machine, Task};
use crate::repository;

/// From the repository's root; `vnic doctor` reads it too.
const REMEMBERED: &str = "target/run/accel";
/// What the guest's PID 1 says.
const UP: &[u8] = b"vnic guest: up";

/// The one that was asked for, is remembered, or is found by trying with this machine's kernel.
pub(crate) fn choose(asked: Option<Accelerator>, machine: &Machine) -> Result<Accelerator> {
    let file = repository().join(REMEMBERED);
    let asked = asked.map(Ok).or_else(|| {
        let name =
            std::env::var("ACCEL").ok().filter(|name| !name.is_empty()).or_else(|| fs::read_to_string(&file).ok())?;
        Some(name.trim().parse())
    });
    if let Some(known) = asked {
        return known.map_err(|why| anyhow::anyhow!("ACCEL or {}: {why}", file.display()));
    }
    let mut chosen = Accelerator::Tcg;
    if OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok() {
        eprintln!("Trying whether a guest boots with KVM (once, at most 15 s) …");
        if boots(machine)? {
            chosen = Accelerator::Kvm;
        }
    }
    match chosen {
        Accelerator::Kvm => eprintln!("It does: guests run with KVM. (Remembered in {REMEMBERED}.)"),
        Accelerator::Tcg => eprintln!(
            "No KVM that boots a guest: guests run under TCG, with the same figures in more seconds. (Remembered in {REMEMBERED}.)"
        ),
    }
    fs::create_dir_all(repository().join("target/run"))?;
    fs::write(&file, format!("{}\n", chosen.name())).with_context(|| file.display().to_string())?;
    Ok(chosen)
}

fn boots(machine: &Machine) -> Result<bool> {
    let probe = Machine {
        accelerator: Accelerator::Kvm,
        nic: None,
        disk: None,
        disk_socket: None,
        task: Task::Probe,
        append: None,
        ..machine.clone()
    };
    let mut command = dies_with_us(&[vec!["timeout".to_owned(), "15".to_owned()], probe.command()].concat());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("setpriv and timeout (util-linux, coreutils)")?;
    let console = child.stdout.take().context("its console")?;
    let mut lines = BufReader::new(console).split(b'\n').map_while(Result::ok);
    let up = lines.any(|line| line.windows(UP.len()).any(|words| words == UP));
    // `timeout` hands it on to QEMU.
    let _ = kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM);
    child.wait()?;
    Ok(up)
}
