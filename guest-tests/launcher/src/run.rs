//! Runs a machine, with `vnic serve` and `vnic judge` beside it.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::children::{Signals, tail};
use crate::options::Netdev;
use crate::prepare::cargo;
use crate::{Failure, Machine, Options, repository};

/// Runs it to its end; the exit code. However this ends, nothing is left running.
///
/// # Errors
/// A program does not come up, or a signal came.
pub fn run(options: &Options, machine: &Machine) -> Result<u8, Failure> {
    let folder = options.folder()?;
    let [socket, control, record, disk, touches] =
        ["vnic.sock", "vnic.sock.control", "record.sock", "disk.sock", "touches.sock"].map(|name| folder.join(name));
    let vnic = match options.netdev {
        Netdev::Vhost => vnic()?.display().to_string(),
        _ => String::new(),
    };
    let signals = Signals::watch()?;
    let _removed = Removed([socket.clone(), control.clone(), record.clone(), disk, touches.clone()]);
    let _serve = match options.netdev {
        Netdev::Vhost => {
            let there = || control.exists() && (options.client || socket.exists());
            Some(signals.start(&serve(options, machine, &vnic, &folder), &folder.join("serve.log"), there)?)
        }
        _ => None,
    };
    if !options.is_judged() {
        return Ok(code(signals.run(&machine.command())?));
    }
    let run = folder.join("run.json");
    // What is there afterwards is of this run.
    let _ = fs::remove_file(&run);
    let _ = fs::remove_file(&touches);
    let _qemu = signals.start(&machine.command(), &folder.join("qemu.log"), || record.exists())?;
    let judged = code(signals.run(&judge(options, machine, &vnic, &folder))?);
    if judged == 2 {
        eprintln!("The guest's console ended with:\n{}", tail(&folder.join("console.log"), 15));
    }
    if options.hazard.is_some() || !run.exists() {
        return Ok(judged);
    }
    let report = code(signals.run(&[vnic, "report".to_owned(), run.display().to_string()])?);
    Ok(if report == 0 { judged } else { report })
}

/// `vnic serve` as these options have it.
#[must_use]
pub fn serve(options: &Options, machine: &Machine, vnic: &str, folder: &Path) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    let mut words = vec![vnic.to_owned(), "serve".to_owned()];
    words.extend(["--socket-path".to_owned(), path("vnic.sock"), "--link".to_owned(), options.link.clone()]);
    if let (Some(socket), Some(image)) = (&machine.disk_socket, &machine.disk) {
        words.extend(["--blk".to_owned(), format!("{},file={}", socket.display(), image.display())]);
        words.push("--life".to_owned());
    }
    if let Some(model) = &options.hardware {
        words.extend(["--hardware".to_owned(), model.clone()]);
    }
    words.extend(options.serve_options.split_whitespace().map(str::to_owned));
    if options.client {
        words.push("--client".to_owned());
    }
    if options.queue_pairs.get() != 1 {
        words.extend(["--queue-pairs".to_owned(), options.queue_pairs.to_string()]);
    }
    if options.hazard.as_deref() == Some("observer") {
        // The device's own capture runs along, to show that it disturbs nothing.
        words.extend(["--capture".to_owned(), path("hazard.pcapng")]);
    }
    words
}

fn judge(options: &Options, machine: &Machine, vnic: &str, folder: &Path) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    let mut words = vec![vnic.to_owned(), "judge".to_owned()];
    let mut add = |option: &str, value: &str| words.extend([option.to_owned(), value.to_owned()]);
    add("--record", &path("record.sock"));
    add("--control", &path("vnic.sock.control"));
    if let Some(hazard) = &options.hazard {
        add("--hazard", hazard);
        return words;
    }
    add("--output", &path("run.json"));
    add("--transfer", options.transfer.as_deref().unwrap_or_default());
    add("--bytes", &options.size.to_string());
    add("--filesystem", &options.filesystem.to_string());
    add("--witness", &options.witness);
    add("--kernel-accel", machine.accelerator.name());
    add("--qemu-version", &machine.qemu.version);
    for module in &options.kernel_module {
        add("--kernel-module", &module.display().to_string());
    }
    if machine.plugin.is_some() {
        add("--touches", &path("touches.sock"));
    }
    if let Some(program) = &options.program {
        add("--program", program);
    }
    words
}

/// The `vnic` command: `$VNIC`, or built now.
///
/// # Errors
/// It does not build.
pub fn vnic() -> Result<PathBuf, Failure> {
    if let Some(vnic) = std::env::var_os("VNIC").filter(|vnic| !vnic.is_empty()) {
        return Ok(vnic.into());
    }
    if !cargo(&["cargo", "build", "--release", "--locked", "--package", "vnic-host"], &[]) {
        return Err(Failure::Said("vnic does not build".to_owned()));
    }
    Ok(repository().join("target/release/vnic"))
}

/// As a shell counts it.
fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Files that are removed at the end.
struct Removed([PathBuf; 5]);

impl Drop for Removed {
    fn drop(&mut self) {
        for file in &self.0 {
            // Most are gone with who made them.
            let _ = fs::remove_file(file);
        }
    }
}
