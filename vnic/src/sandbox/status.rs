//! What this kernel can do, and what was given up, by the kernel's own word.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::sync::OnceLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mode, files};

/// What this kernel can take from a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Possible {
    /// The version of Landlock, as far as it is used.
    pub landlock: Option<u8>,
    /// Filters of system calls.
    pub seccomp: bool,
}

impl Possible {
    /// Asked once.
    #[must_use]
    pub fn on_this_kernel() -> Self {
        static ASKED: OnceLock<Possible> = OnceLock::new();
        *ASKED.get_or_init(|| {
            let actions = std::fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail");
            // A kernel without filters has no such file. Where nothing of `/proc` can be read, they are tried.
            let seccomp = match &actions {
                Ok(actions) => {
                    let has = |action| actions.split_whitespace().any(|other| other == action);
                    ["kill_process", "errno", "log"].into_iter().all(has)
                }
                Err(_) => !std::path::Path::new("/proc/sys/kernel").exists(),
            };
            Possible { landlock: files::version(), seccomp }
        })
    }
}

/// What a process has given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Report {
    /// How much it was to give up: `on`, `log` or `off`.
    pub mode: String,
    /// No program it starts can have more rights than it has. `null`: it could not be read.
    pub no_new_privileges: Option<bool>,
    /// The capabilities that are left, as the kernel prints them: `0000000000000000` is none. `null`: it could not be read.
    pub capabilities: Option<String>,
    /// System calls pass a filter, of each thread's own. `null`: it could not be read.
    pub seccomp: Option<bool>,
    /// The version of Landlock by which the file system was given up; `null`: it was not, or this kernel has none.
    pub landlock: Option<u8>,
    /// Threads that gave up nothing, by name.
    pub outside: Vec<String>,
}

/// `/proc/thread-self/status`, opened while there are files to open.
#[derive(Debug)]
pub(super) struct Kernel(Option<File>);

impl Kernel {
    pub(super) fn open() -> Self {
        Kernel(File::open("/proc/thread-self/status").ok())
    }

    /// What the kernel says of this thread.
    pub(super) fn report(&mut self, mode: Mode, outside: Vec<String>) -> Report {
        let status = self.read().unwrap_or_default();
        Report {
            mode: mode.name().to_owned(),
            no_new_privileges: field(&status, "NoNewPrivs").map(|set| set == "1"),
            capabilities: field(&status, "CapEff").map(str::to_owned),
            seccomp: field(&status, "Seccomp").map(|mode| mode == "2"),
            landlock: Possible::on_this_kernel().landlock.filter(|_| mode == Mode::On),
            outside,
        }
    }

    fn read(&mut self) -> io::Result<String> {
        let Some(file) = &mut self.0 else { return Ok(String::new()) };
        file.rewind()?;
        let mut status = String::new();
        file.read_to_string(&mut status)?;
        Ok(status)
    }
}

/// The value of a field of `/proc/PID/status`.
fn field<'s>(status: &'s str, name: &str) -> Option<&'s str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_what_a_thread_has_given_up() {
        let status = "Name:\tvnic\nCapEff:\t000001ffffffffff\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";
        assert_eq!(field(status, "CapEff"), Some("000001ffffffffff"));
        assert_eq!(field(status, "Seccomp"), Some("2"));
        assert_eq!(field(status, "Cap"), None);
    }

    #[test]
    fn a_process_that_is_not_locked_in_says_so() {
        let report = Kernel::open().report(Mode::Off, Vec::new());
        assert_eq!((report.mode.as_str(), report.landlock, report.seccomp), ("off", None, Some(false)));
        assert_eq!(report.capabilities.map(|mask| mask.len()), Some(16));
    }

    #[test]
    fn where_the_kernel_cannot_be_asked_nothing_is_said_to_be_given_up_or_left() {
        let report = Kernel(None).report(Mode::On, Vec::new());
        assert_eq!((report.no_new_privileges, report.capabilities, report.seccomp), (None, None, None));
    }
}
