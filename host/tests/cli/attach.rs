//! `vnic attach` on processes that are no VM: a sentence, exit code 2, and the process is as it was.

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::util::{Outcome, Scratch, skip, wait_for};

/// Ended when dropped.
struct Process(Child);

impl Process {
    fn start(command: &str) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("exec {command}")]);
        Process(shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn refused(outcome: &Outcome, words: &str) {
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains(words), "`{words}` is not in {outcome:?}");
    assert_eq!((outcome.stderr.lines().count(), outcome.stdout.as_str()), (1, ""), "{outcome:?}");
}

#[test]
fn a_process_that_does_not_exist_is_a_sentence() {
    let scratch = Scratch::new();
    refused(&scratch.run(&["attach", "--pid", "4194305"]), "there is no process 4194305");
    refused(&scratch.run(&["attach", "--pid", "qemu"]), "that is no process's number");
}

#[test]
fn a_small_program_is_no_vm_and_goes_on() {
    let scratch = Scratch::new();
    let mut small = Process::start("cat");
    let pid = small.pid();
    // Until then it is the shell that becomes it.
    let name = || fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "cat");
    wait_for("cat", || name().then_some(()));
    refused(&scratch.run(&["attach", "--pid", &pid]), &format!("process {pid} (cat) is no VM"));
    assert!(small.0.try_wait().unwrap().is_none(), "it has ended");
}

#[test]
fn memory_full_of_noise_has_no_linux_in_it() {
    let scratch = Scratch::new();
    let mut noise = Process::start("dd if=/dev/urandom bs=64M count=1 iflag=fullblock");
    // It writes once its buffer is full, and waits for a reader then.
    noise.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let pid = noise.pid();
    refused(&scratch.run(&["attach", "--pid", &pid]), &format!("process {pid}: no Linux found"));
    assert!(noise.0.try_wait().unwrap().is_none(), "it has ended");
}

#[test]
fn without_rights_the_one_that_is_missing_is_named() {
    if !nix::unistd::geteuid().is_root() {
        return skip("it takes root to become somebody else");
    }
    let mut small = Process::start("cat");
    let mut nobody = Command::new(env!("CARGO_BIN_EXE_vnic"));
    let outcome = nobody.args(["attach", "--pid", &small.pid()]).current_dir("/").uid(65534).gid(65534).output();
    let Ok(outcome) = outcome else {
        return skip("nobody else may run the command that was built here");
    };
    let said = String::from_utf8_lossy(&outcome.stderr);
    assert_eq!(outcome.status.code(), Some(2), "{said}");
    assert!(said.contains("belongs to the user 0") && said.contains("CAP_SYS_PTRACE"), "{said}");
    assert!(small.0.try_wait().unwrap().is_none(), "it has ended");
}

#[test]
fn a_control_socket_without_a_folder_is_a_sentence() {
    let scratch = Scratch::new();
    let small = Process::start("cat");
    let outcome = scratch.run(&["attach", "--pid", &small.pid(), "--control", "/nowhere/at/all"]);
    refused(&outcome, "--control: the folder /nowhere/at does not exist");
}
