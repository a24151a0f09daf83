//! Another process, which a hazard has do one thing: this program started once more.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::process::{self, Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use vnic_driver::mapping::Mapping;

/// How long a child may take, milliseconds.
const DEADLINE_MS: u16 = 30_000;

/// The other process; killed when dropped.
#[derive(Debug)]
pub struct Child(process::Child);

impl Child {
    /// Starts a process that truncates a file.
    ///
    /// # Errors
    /// It does not start.
    pub fn truncates(path: &Path, length: u64) -> Result<Child> {
        Child::start(&["truncate", &path.display().to_string(), &length.to_string()])
    }

    /// Starts a process that maps a file and, when told to, touches its last page. It has mapped it on return.
    ///
    /// # Errors
    /// It does not start.
    pub fn touches(path: &Path) -> Result<Child> {
        let mut child = Child::start(&["touch", &path.display().to_string()])?;
        let mut line = String::new();
        BufReader::new(child.0.stdout.as_mut().context("its output")?).read_line(&mut line)?;
        if line != MAPPED {
            bail!("the other process did not map the file: {line:?}");
        }
        Ok(child)
    }

    fn start(arguments: &[&str]) -> Result<Child> {
        let child = Command::new("/proc/self/exe")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start another process")?;
        Ok(Child(child))
    }

    /// Tells it to go on, where it waits for that.
    ///
    /// # Errors
    /// It has ended.
    pub fn go(&mut self) -> Result<()> {
        self.0.stdin.take().context("told once already")?.write_all(b"\n").context("tell the other process")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end within the deadline.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        let pid = self.0.id().cast_signed();
        // SAFETY: pidfd_open takes two integers.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("pidfd_open");
        }
        // SAFETY: the kernel just opened this descriptor for us, and nothing else owns it.
        let ended = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) };
        if poll(&mut [PollFd::new(ended.as_fd(), PollFlags::POLLIN)], PollTimeout::from(DEADLINE_MS))? == 0 {
            bail!("the other process hangs");
        }
        Ok(self.0.wait()?)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const MAPPED: &str = "mapped\n";

/// What this program does when it is the other process.
///
/// # Errors
/// What failed; unknown arguments.
pub fn act(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["truncate", path, length] => {
            let file = OpenOptions::new().write(true).open(path)?;
            Ok(file.set_len(length.parse()?)?)
        }
        ["touch", path] => {
            let mapping = Mapping::of_file(&File::open(path)?, 0, fs::metadata(path)?.len())?;
            io::stdout().write_all(MAPPED.as_bytes())?;
            io::stdout().flush()?;
            let _ = io::stdin().read(&mut [0])?;
            mapping.touch_page(mapping.pages() - 1);
            Ok(())
        }
        _ => bail!("unknown arguments {words:?}"),
    }
}
