//! The launcher: whatever ends it, nothing it started is left; kernels in packages of either layout.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use guest_fixture::{Child, Deadline, Folder, available, judged_run, note, repository, skip, until, vnic};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const STARTS: Deadline = Deadline::secs("the launcher to start vnic serve and QEMU", 120);
const ENDS: Deadline = Deadline::secs("the launcher to end", 30);
const ARE_GONE: Deadline = Deadline::secs("its children to be gone", 30);

/// A process, with what it was started as, which tells it from a later one of the same number.
fn process(id: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    // Nobody may have waited for what has ended.
    (!rest.starts_with('Z')).then(|| rest.split(' ').nth(19).unwrap_or_default().to_owned())
}

/// Processes that should be gone, killed if they are not: a test that fails leaves nothing either.
struct Left(Vec<(String, String)>);

impl Left {
    fn are_gone(&self) -> bool {
        self.0.iter().all(|(id, start)| process(id).as_ref() != Some(start))
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        for (id, start) in &self.0 {
            if process(id).as_ref() == Some(start) {
                let _ = kill(Pid::from_raw(id.parse().expect("a process")), Signal::SIGKILL);
            }
        }
    }
}

#[test]
fn however_the_launcher_ends_nothing_it_started_is_left() {
    // What takes long the first time is not the launcher's end.
    available(&[]).expect("a guest's kernel and programs");
    let folder = Folder::new();
    // It never opens the record port: a run to be judged waits for that.
    let qemu = folder.path().join("qemu");
    fs::write(&qemu, "#!/bin/sh\n[ \"$1\" != --version ] || exec echo QEMU emulator version 10.0.2\nexec sleep 1000\n")
        .expect("a QEMU");
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).expect("it can run");
    for task in [["--command", "x"], ["--transfer", "sendfile"]] {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGKILL] {
            note(&format!("{} {signal}", task[0]));
            // The tests may themselves run with signals ignored (nohup), and the launcher would leave them so.
            let mut command = Command::new("env");
            command.arg("--default-signal=INT,TERM,HUP").arg(repository().join("scripts/run-qemu.sh"));
            command.args(task).arg("--run-dir").arg(folder.path());
            command.env("VNIC", vnic()).env("QEMU", &qemu).env("ACCEL", "tcg");
            let mut launcher = Child::start("launcher", folder.path(), command);
            let id = launcher.id();
            let children = until(STARTS, || {
                assert!(launcher.ended().is_none(), "it ended by itself: {}", launcher.output());
                let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
                let children: Vec<_> =
                    children.split_whitespace().filter_map(|id| Some((id.to_owned(), process(id)?))).collect();
                let is = |id: &str, name| {
                    fs::read_to_string(format!("/proc/{id}/comm")).is_ok_and(|comm| comm.trim() == name)
                };
                let there = |name| children.iter().any(|(id, _)| is(id, name));
                (there("vnic") && there("sleep")).then_some(children)
            });
            let left = Left(children);
            assert_eq!(left.0.len(), 2);
            kill(Pid::from_raw(id.cast_signed()), signal).expect("it is there");
            let status = launcher.wait(ENDS);
            if signal != Signal::SIGKILL {
                assert_eq!(status.code(), Some(130), "{}", launcher.output());
                assert!(!launcher.output().contains("does not end"), "{}", launcher.output());
                assert!(!folder.path().join("vnic.sock.control").exists(), "a socket is left");
            }
            until(ARE_GONE, || left.are_gone().then_some(()));
        }
    }
}

#[test]
fn a_kernel_in_debians_newer_packages_boots_and_its_sendfile_is_zero_copy() {
    const SUITE: [&str; 2] = ["--debian-kernel", "trixie-backports"];
    if let Err(why) = available(&SUITE) {
        return skip(&why);
    }
    let folder = Folder::new();
    let run = judged_run(folder.path(), "sendfile", &SUITE);
    let major: u32 = run.kernel.split('.').next().and_then(|major| major.parse().ok()).expect("a version");
    assert!(major >= 7, "{}", run.kernel);
    assert_eq!(run.methods.len(), 1);
}
