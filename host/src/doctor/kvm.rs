//! KVM *that boots a guest*. `/dev/kvm` opening, even `KVM_CREATE_VM` succeeding, proves nothing: on some machines a stock
//! kernel then hangs after the BIOS. So a kernel is booted, with a deadline; or the answer is "not known".

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use std::{fs, thread};

use super::Check;
use super::qemu::Qemu;

const NAME: &str = "kvm";
const DEVICE: &str = "/dev/kvm";
/// Where the scripts keep what they learnt: `kvm` or `tcg`.
const REMEMBERED: &str = "target/run/accel";
/// A kernel that comes up does so in two or three seconds.
const DEADLINE: Duration = Duration::from_secs(20);
/// What a kernel without a root file system says when it is done booting.
const BOOTED: &[u8] = b"Kernel panic - not syncing: VFS";
const FOLLOWS_TCG: &str = "guests run under TCG: the same figures, more seconds";

/// Does a guest come up?
pub(super) fn check(qemu: Option<&Qemu>, kernel: Option<&Path>) -> Check {
    match OpenOptions::new().read(true).write(true).open(DEVICE) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let fix = format!("let this user open {DEVICE}: add it to the group kvm");
            return Check::limited(NAME, format!("{DEVICE}: {error}"), FOLLOWS_TCG, fix);
        }
        Err(error) => {
            let fix = "turn on virtualisation in the firmware, or nested virtualisation in the host, and load kvm_intel or kvm_amd";
            return Check::limited(NAME, format!("{DEVICE}: {error}"), FOLLOWS_TCG, fix.to_owned());
        }
    }
    match fs::read_to_string(REMEMBERED).as_deref().map(str::trim) {
        Ok("kvm") => {
            return Check::good(NAME, "a guest came up (remembered by the scripts)", "guests run at full speed");
        }
        Ok("tcg") => return hangs(format!("a guest did not come up (remembered in {REMEMBERED})")),
        _ => {}
    }
    let (Some(qemu), Some(kernel)) = (qemu, kernel) else {
        let what = if qemu.is_none() { "QEMU" } else { "a guest kernel" };
        return Check::limited(
            NAME,
            format!("{DEVICE} opens; whether a guest boots is not known without {what} to try it with"),
            "the scripts try KVM, and fall back to TCG by themselves",
            None,
        );
    };
    match boots(qemu, kernel) {
        Ok(took) => {
            Check::good(NAME, format!("a guest came up in {:.1} s", took.as_secs_f64()), "guests run at full speed")
        }
        Err(why) => hangs(why),
    }
}

fn hangs(found: String) -> Check {
    let fix = format!("use a machine with working (nested) virtualisation; after a change remove {REMEMBERED}");
    Check::limited(NAME, format!("{DEVICE} opens, but {found}"), FOLLOWS_TCG, fix)
}

/// A child that is gone when this is.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots `kernel` with nothing to run, and waits for it to say so.
fn boots(qemu: &Qemu, kernel: &Path) -> Result<Duration, String> {
    let start = Instant::now();
    let mut child = Command::new(&qemu.program)
        .args(["-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-serial", "stdio", "-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{} does not start: {error}", qemu.program.display()))?;
    let (console, complaints) = (child.stdout.take(), child.stderr.take());
    let _child = Reaped(child);
    let (said, heard) = mpsc::channel();
    if let Some(mut console) = console {
        // Ends with the child, whose end closes the pipe.
        thread::spawn(move || {
            let mut text = Vec::new();
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = console.read(&mut buffer) {
                text.extend_from_slice(&buffer[..count]);
                if text.windows(BOOTED.len()).any(|window| window == BOOTED) {
                    // Nobody listens any more after the deadline.
                    let _ = said.send(());
                    return;
                }
            }
        });
    }
    match heard.recv_timeout(DEADLINE) {
        Ok(()) => Ok(start.elapsed()),
        Err(mpsc::RecvTimeoutError::Timeout) => Err(format!("a guest did not come up within {} s", DEADLINE.as_secs())),
        Err(mpsc::RecvTimeoutError::Disconnected) => {
            let mut said = String::new();
            // QEMU has ended: this does not wait. What cannot be read is not said.
            let _ = complaints.map(|mut complaints| complaints.read_to_string(&mut said));
            let last = said.lines().last().map_or_else(String::new, |line| format!(": {line}"));
            Err(format!("QEMU ended before a guest came up{last}"))
        }
    }
}
