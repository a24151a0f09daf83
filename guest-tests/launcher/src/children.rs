//! Children that end with this program, and signals that end it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::poll::{PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::{Failure, shown};

/// How long between two looks at a condition that cannot be waited on.
const LOOK_AGAIN_MS: u16 = 50;
const COMES_UP: Duration = Duration::from_secs(10);
/// From SIGTERM on; then it is killed.
const ENDS: Duration = Duration::from_secs(10);

/// A command that gets SIGTERM when this program ends, however it ends.
pub fn dies_with_us(words: &[impl AsRef<str>]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).args(words.iter().map(AsRef::as_ref));
    command
}

/// SIGINT, SIGTERM and SIGHUP, unless whoever started us has them ignored.
pub struct Signals(Arc<AtomicBool>);

impl Signals {
    /// From now on they are only noted here. By handlers, which children do not inherit as they would a mask.
    ///
    /// # Errors
    /// The host does not let us.
    pub fn watch() -> Result<Signals> {
        let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).map(str::trim);
        let ignored = ignored.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
        let came = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            if ignored >> (signal - 1) & 1 == 0 {
                signal_hook::flag::register(signal, Arc::clone(&came)).context("signals cannot be watched")?;
            }
        }
        Ok(Signals(came))
    }

    /// Looks until there is something, or a signal asks for the end.
    ///
    /// # Errors
    /// It asks, or looking fails.
    pub fn until<T>(&self, mut look: impl FnMut() -> Result<Option<T>, Failure>) -> Result<T, Failure> {
        loop {
            if self.0.load(Ordering::Relaxed) {
                return Err(Failure::Interrupted);
            }
            if let Some(found) = look()? {
                return Ok(found);
            }
            look_again();
        }
    }

    /// Runs a command to its end, on this terminal.
    ///
    /// # Errors
    /// It does not start, or a signal asks for the end.
    pub fn run(&self, words: &[String]) -> Result<ExitStatus, Failure> {
        eprintln!("+ {}", shown(words));
        let mut child = Child::of(dies_with_us(words), &words[0])?;
        self.until(|| Ok(child.ended()?))
    }

    /// Runs a command to its end, its output into a file.
    ///
    /// # Errors
    /// It does not start, or a signal asks for the end.
    pub fn run_into(&self, words: &[String], log: &Path) -> Result<ExitStatus, Failure> {
        let mut child = Child::of(into(words, log)?, &words[0])?;
        self.until(|| Ok(child.ended()?))
    }

    /// Starts a command whose output goes to a file, and waits until it is up.
    ///
    /// # Errors
    /// It ends or takes too long, or a signal asks for the end.
    pub fn start(&self, words: &[String], log: &Path, up: impl Fn() -> bool) -> Result<Child, Failure> {
        eprintln!("+ {}", shown(words));
        let mut child = Child::of(into(words, log)?, &words[0])?;
        let start = Instant::now();
        self.until(|| {
            if up() {
                return Ok(Some(()));
            }
            if child.ended()?.is_some() || start.elapsed() > COMES_UP {
                let last = tail(log, 5);
                return Err(anyhow!("{} does not come up: {last}", words[0]).into());
            }
            Ok(None)
        })?;
        Ok(child)
    }
}

/// A command that reads nothing and writes into this file.
fn into(words: &[String], log: &Path) -> Result<Command> {
    let output = File::create(log).with_context(|| log.display().to_string())?;
    let errors = output.try_clone().context("a log for the child")?;
    let mut command = dies_with_us(words);
    // In a group of its own: ^C is for the judge, who lets go of what it holds, then for us.
    command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
    Ok(command)
}

/// The last lines of a file.
pub fn tail(file: &Path, count: usize) -> String {
    let text = fs::read(file).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Ended when dropped.
pub struct Child {
    child: process::Child,
    name: String,
}

impl Child {
    fn of(mut command: Command, name: &str) -> Result<Child> {
        let child = command.spawn().with_context(|| format!("{name} does not start"))?;
        Ok(Child { child, name: name.to_owned() })
    }

    /// Its process: `setpriv`'s, which is then the program's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its status, once it has ended.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("{} cannot be waited for", self.name))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let start = Instant::now();
        if matches!(self.ended(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        }
        while matches!(self.ended(), Ok(None)) {
            if start.elapsed() > ENDS {
                eprintln!("{} does not end: it is killed", self.name);
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            look_again();
        }
    }
}

/// A signal only means an earlier look.
fn look_again() {
    let _ = poll(&mut [], PollTimeout::from(LOOK_AGAIN_MS));
}
