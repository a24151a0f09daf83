//! A process that stands still for a while.

use std::fs;

use guest_fixture::{Deadline, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const STOPS: Deadline = Deadline::secs("every thread of a process to stand still", 20);

/// Goes on when dropped.
pub(crate) struct Stopped(Pid);

impl Stopped {
    /// # Panics
    /// The process is gone.
    #[track_caller]
    pub(crate) fn new(pid: u32) -> Stopped {
        let pid = Pid::from_raw(pid.cast_signed());
        kill(pid, Signal::SIGSTOP).expect("a child can be stopped");
        let stopped = Stopped(pid);
        // A thread on another CPU goes on until it is interrupted.
        until(STOPS, || {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process is there");
            let stands = |thread: fs::DirEntry| {
                fs::read_to_string(thread.path().join("status")).is_ok_and(|status| status.contains("State:\tT"))
            };
            threads.flatten().all(stands).then_some(())
        });
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // One that was killed meanwhile needs no signal.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}
