//! Clocks that are others than this machine's, which stay as they are.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use guest_fixture::Agent;

/// Most of a step, seconds: ten days.
const MOST: i64 = 864_000;

/// A program that runs `vnic` in a time namespace of its own, whose monotonic clock is a step away from this machine's.
///
/// # Panics
/// It cannot be written.
#[track_caller]
pub(crate) fn elsewhen(folder: &Path, rng: &mut Rng) -> PathBuf {
    let offset = rng.i64(0..MOST);
    let program = folder.join("vnic-elsewhen");
    let vnic = guest_fixture::vnic().display();
    let text = format!("#!/bin/sh\nexec unshare --time --monotonic {offset} --boottime {offset} '{vnic}' \"$@\"\n");
    fs::write(&program, text).expect("a script");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).expect("a script can be run");
    program
}

/// Is the process in a time namespace of its own?
pub(crate) fn is_elsewhen(pid: u32) -> bool {
    let of = |process: &str| fs::read_link(format!("/proc/{process}/ns/time")).ok();
    of(&pid.to_string()) != of("self")
}

/// The guest's clock goes forward or back.
///
/// # Panics
/// The guest has no such program.
#[track_caller]
pub(crate) fn step_guest(agent: &mut Agent, rng: &mut Rng) {
    let now: i64 = agent.run(&["date", "+%s"]).trim().parse().expect("a number");
    let then = (now + rng.i64(-MOST..MOST)).max(1);
    agent.run(&["date", "-s", &format!("@{then}")]);
}
