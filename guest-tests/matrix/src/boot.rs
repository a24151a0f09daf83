//! One guest, for all cells of a kernel and a file system that are not there.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use guest_launcher::children::{Signals, tail};
use guest_launcher::{Failure, repository, shown, vnic};
use vnic_experiment::row::Row;
use vnic_experiment::run::{FileInfo, Method, Run, Verdict};

use crate::cell::{Cell, Origin};
use crate::work::Limits;

/// What the conductor says of rows that it did not come to.
const NOT_RUN: &str = "not run: ";
/// Of the guest's and of the programs' beside it, in a cell that failed.
const LOGS: [&str; 4] = ["console.log", "qemu.log", "serve.log", "run-qemu.log"];
/// Of what a guest said that did not come up.
const SAID: usize = 3;

/// The cells that one guest is booted for: of one kernel, on one file system.
#[derive(Debug, Clone)]
pub(crate) struct Boot {
    pub(crate) cells: Vec<Cell>,
    /// How often it has come to nothing.
    pub(crate) failed: u32,
}

/// What a boot came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Cells are there, but for these.
    Done { left: Vec<Cell> },
    /// Another program is at it.
    Taken,
    /// No guest, or no word of it: why.
    Nothing(String),
}

impl Boot {
    /// Groups cells, in their order.
    pub(crate) fn group(cells: impl IntoIterator<Item = Cell>) -> Vec<Boot> {
        let mut boots: Vec<Boot> = Vec::new();
        for cell in cells {
            let alike = |boot: &&mut Boot| boot.name() == name(&cell);
            match boots.iter_mut().find(alike) {
                Some(boot) => boot.cells.push(cell),
                None => boots.push(Boot { cells: vec![cell], failed: 0 }),
            }
        }
        boots
    }

    pub(crate) fn name(&self) -> String {
        self.cells.first().map(name).unwrap_or_default()
    }

    /// The command that measures them.
    fn command(&self, run_dir: &Path, modules: &[PathBuf]) -> Vec<String> {
        let Some(first) = self.cells.first() else { return Vec::new() };
        let round: Vec<&str> = self.cells.iter().map(|cell| cell.row.as_str()).collect();
        let rows = vec![round.join(","); first.size.rounds];
        let script = repository().join("scripts/run-qemu.sh");
        let mut words = vec![script.display().to_string()];
        let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
        add("--kernel", first.kernel.image.display().to_string());
        add("--modules", first.kernel.modules.display().to_string());
        add("--filesystem", first.filesystem.clone());
        add("--size", first.size.bytes.to_string());
        add("--transfer", rows.join(","));
        add("--run-dir", run_dir.display().to_string());
        for module in modules {
            add("--kernel-module", module.display().to_string());
        }
        words
    }

    /// Takes along the kernel modules that its rows name. Rows whose module cannot be had are recorded as such, and leave.
    fn modules(&mut self, folder: &Path) -> Result<Vec<PathBuf>> {
        let mut found: BTreeMap<String, Result<PathBuf, String>> = BTreeMap::new();
        let mut there = Vec::new();
        for cell in std::mem::take(&mut self.cells) {
            let Some(name) = Row::parse(&cell.row)?.module else {
                there.push(cell);
                continue;
            };
            match found.entry(name).or_insert_with_key(|name| cell.kernel.module(name)) {
                Ok(_) => there.push(cell),
                Err(why) => cell.put(folder, &unmeasured(&cell, why, None), &origin(&cell, &[]), &[])?,
            }
        }
        self.cells = there;
        Ok(found.into_values().filter_map(Result::ok).collect())
    }

    /// Boots, and records what came of it.
    pub(crate) fn run(mut self, folder: &Path, signals: &Signals, limits: &Limits) -> Result<(Boot, Outcome), Failure> {
        let Some(_lock) = self.lock(folder)? else { return Ok((self, Outcome::Taken)) };
        // Another program may have been at it until now.
        self.cells = limits.open(folder, std::mem::take(&mut self.cells))?;
        let modules = self.modules(folder)?;
        if self.cells.is_empty() {
            return Ok((self, Outcome::Done { left: Vec::new() }));
        }
        let run_dir = run_dir(&folder.join(".boot"))?;
        let command = self.command(&run_dir, &modules);
        let log = run_dir.join("run-qemu.log");
        let ended = signals.run_into(&command, &log);
        let interrupted = matches!(ended, Err(Failure::Interrupted));
        if !interrupted {
            ended?;
        }
        let outcome = self.record(folder, &run_dir, &command, interrupted)?;
        let outcome = outcome.unwrap_or_else(|| Outcome::Nothing(tail(&log, SAID)));
        if let Outcome::Nothing(why) = &outcome
            && self.failed > 0
            && !interrupted
        {
            self.give_up(folder, &run_dir, &command, why)?;
        }
        let _ = fs::remove_dir_all(&run_dir);
        if interrupted { Err(Failure::Interrupted) } else { Ok((self, outcome)) }
    }

    /// Takes it for this program; none, where another is at it.
    fn lock(&self, folder: &Path) -> Result<Option<File>> {
        let folder = folder.join(".locks");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let path = folder.join(self.name());
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error).with_context(|| path.display().to_string()),
        }
    }

    /// Records the rows that were run; none, where there is no word of any.
    fn record(&self, folder: &Path, run_dir: &Path, command: &[String], interrupted: bool) -> Result<Option<Outcome>> {
        let path = run_dir.join("run.json");
        let Ok(text) = fs::read(&path) else { return Ok(None) };
        let run: Run = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
        let is_run = |row: &Method| !row.why.starts_with(NOT_RUN);
        let mut ran: Vec<&Method> = run.methods.iter().filter(|row| is_run(row)).collect();
        // The last one of those that were cut short is the signal's doing.
        if interrupted && ran.last().is_some_and(|last| last.verdict.is_none()) {
            ran.pop();
        }
        let mut left = Vec::new();
        for cell in &self.cells {
            let rows: Vec<Method> = ran.iter().filter(|row| row.method == cell.row).map(|row| (*row).clone()).collect();
            if rows.len() < cell.size.rounds {
                left.push(cell.clone());
                continue;
            }
            let failed = rows.iter().any(|row| row.verdict.is_none() && row.expected.is_some());
            let logs = if failed { logs(run_dir) } else { Vec::new() };
            let file = FileInfo { filesystem: cell.filesystem.clone(), ..run.file.clone() };
            let run = Run { methods: rows, file, ..run.clone() };
            cell.put(folder, &run, &origin(cell, command), &logs)?;
        }
        Ok((left.len() < self.cells.len()).then_some(Outcome::Done { left }))
    }

    /// Records of every cell that there was no guest for it.
    fn give_up(&self, folder: &Path, run_dir: &Path, command: &[String], why: &str) -> Result<()> {
        for cell in &self.cells {
            let expected = Row::parse(&cell.row)?.expected(true);
            let run = unmeasured(cell, &format!("there was no guest: {why}"), expected);
            cell.put(folder, &run, &origin(cell, command), &logs(run_dir))?;
        }
        Ok(())
    }
}

/// A folder that no other guest has, whichever machine it is on. Its name is short: a socket's path takes a hundred bytes at most.
fn run_dir(folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut names = (0_u32..).map(|number| folder.join(number.to_string()));
    let made = names.find_map(|name| match fs::create_dir(&name) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => None,
        made => Some(made.map(|()| name)),
    });
    made.context("all folders are taken")?.with_context(|| folder.display().to_string())
}

/// The record of a cell without a guest.
fn unmeasured(cell: &Cell, why: &str, expected: Option<Verdict>) -> Run {
    let reasons = BTreeMap::from([("verdict".to_owned(), why.to_owned())]);
    let method = Method { method: cell.row.clone(), why: why.to_owned(), expected, reasons, ..Method::default() };
    Run {
        kernel: cell.kernel.name.clone(),
        qemu: None,
        accel: None,
        file: FileInfo { bytes: cell.size.bytes, filesystem: cell.filesystem.clone(), chunk: None },
        kernel_modules: Vec::new(),
        methods: vec![method],
        watched: None,
        reasons: BTreeMap::new(),
    }
}

fn name(cell: &Cell) -> String {
    format!("{},{}", cell.kernel.name, cell.filesystem)
}

fn logs(run_dir: &Path) -> Vec<PathBuf> {
    LOGS.map(|name| run_dir.join(name)).to_vec()
}

fn origin(cell: &Cell, command: &[String]) -> Origin {
    Origin {
        kernel: cell.kernel.name.clone(),
        filesystem: cell.filesystem.clone(),
        row: cell.row.clone(),
        bytes: cell.size.bytes,
        vnic: version(),
        date: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        command: shown(command),
    }
}

/// The version, and the commit where git knows it.
fn version() -> String {
    let version = env!("CARGO_PKG_VERSION");
    let git = Command::new("git").arg("-C").arg(repository()).args(["describe", "--always", "--dirty"]).output();
    match git.ok().filter(|git| git.status.success()).and_then(|git| String::from_utf8(git.stdout).ok()) {
        Some(commit) => format!("{version} ({})", commit.trim()),
        None => version.to_owned(),
    }
}

/// Sees to it that what every boot needs is built once, and not by each.
pub(crate) fn built() -> Result<(), Failure> {
    vnic().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cell::Size;
    use crate::kernel::Kernel;

    /// Of one byte, sent once.
    fn cell(kernel: &str, filesystem: &str, row: &str) -> Cell {
        let kernel = Kernel { name: kernel.to_owned(), image: "i".into(), modules: "m".into() };
        Cell { kernel, filesystem: filesystem.to_owned(), row: row.to_owned(), size: Size { bytes: 1, rounds: 1 } }
    }

    #[test]
    fn cells_of_a_kernel_and_a_file_system_share_a_guest() {
        let cell = |kernel: &str, filesystem: &str, row: &str| Cell {
            size: Size { bytes: 1, rounds: 2 },
            ..cell(kernel, filesystem, row)
        };
        let cells = [cell("a", "ext4", "x"), cell("a", "xfs", "x"), cell("a", "ext4", "y"), cell("b", "ext4", "x")];
        let boots = Boot::group(cells);
        let shape: Vec<(String, usize)> = boots.iter().map(|boot| (boot.name(), boot.cells.len())).collect();
        let expected = [("a,ext4", 2), ("a,xfs", 1), ("b,ext4", 1)].map(|(name, count)| (name.to_owned(), count));
        assert_eq!(shape, expected);
        let command = boots[0].command(Path::new("/r"), &["/m/copy-splice.ko".into()]);
        assert!(command.windows(2).any(|pair| pair == ["--transfer", "x,y,x,y"]), "{command:?}");
    }

    #[test]
    fn no_two_guests_have_the_same_folder() {
        let folder = std::env::temp_dir().join(format!("vnic-matrix-run-{}", std::process::id()));
        let two = [run_dir(&folder).unwrap(), run_dir(&folder).unwrap()];
        assert!(two.iter().all(|folder| folder.is_dir()) && two[0] != two[1], "{two:?}");
        fs::remove_dir_all(&folder).unwrap();
        fs::write(&folder, "").unwrap();
        assert!(run_dir(&folder).is_err());
        fs::remove_file(folder).unwrap();
    }

    #[test]
    fn a_boot_that_another_program_has_is_not_taken() {
        let folder = std::env::temp_dir().join(format!("vnic-matrix-lock-{}", std::process::id()));
        let boot = Boot { cells: vec![cell("k", "ext4", "sendfile")], failed: 0 };
        let lock = boot.lock(&folder).unwrap();
        assert!(lock.is_some());
        assert!(boot.lock(&folder).unwrap().is_none());
        drop(lock);
        assert!(boot.lock(&folder).unwrap().is_some());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_another_program_has_measured_is_not_measured_again() {
        let folder = std::env::temp_dir().join(format!("vnic-matrix-open-{}", std::process::id()));
        let cells = ["lacking", "failed", "not-run"].map(|row| cell("k", "ext4", row)).to_vec();
        for (cell, expected) in cells.iter().zip([None, Some(Verdict::ZeroCopy)]) {
            cell.put(&folder, &unmeasured(cell, "why", expected), &origin(cell, &[]), &[]).unwrap();
        }
        let rows = |again| {
            let limits = Limits { guests: 1, time: None, again };
            limits.open(&folder, cells.clone()).unwrap().into_iter().map(|cell| cell.row).collect::<Vec<_>>()
        };
        assert_eq!(rows(false), ["not-run"]);
        assert_eq!(rows(true), ["failed", "not-run"]);
        fs::remove_dir_all(folder).unwrap();
    }
}
