//! What goes into a cell, and its record on disk.
//!
//! Operation: a cell's folder is named by what went in. In it, `run.json` is the record as `vnic report` reads it, with this one
//! row; `cell.json` says how it came about. Of a cell that failed the guest's console and what the programs beside it said are
//! there, too. A folder appears whole: it is written beside its place and then moved there.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use vnic_experiment::run::{Method, Run, Verdict};
use vnic_experiment::verdict;

use crate::kernel::Kernel;

/// What goes in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) kernel: Kernel,
    pub(crate) filesystem: String,
    pub(crate) row: String,
    pub(crate) size: Size,
}

/// How much is sent, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    /// Rows of its record.
    pub(crate) rounds: usize,
}

/// `cell.json`: how it came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Origin {
    pub(crate) kernel: String,
    pub(crate) filesystem: String,
    pub(crate) row: String,
    pub(crate) bytes: u64,
    /// The version, and the commit where it is known.
    pub(crate) vnic: String,
    /// When it was written, in seconds since 1970.
    pub(crate) date: u64,
    /// The command that measured it, among other rows perhaps.
    pub(crate) command: String,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    /// Nothing yet.
    Open,
    /// A verdict.
    Measured {
        verdict: Verdict,
        /// What is not as it should be.
        surprises: Vec<String>,
    },
    /// This kernel or file system cannot do that: why.
    Lacking(String),
    /// It could not be measured: why.
    Failed(String),
}

impl State {
    /// There, and none whose witnesses disagree?
    pub(crate) fn is_fine(&self) -> bool {
        match self {
            State::Measured { verdict, .. } => *verdict != Verdict::WitnessesDisagree,
            State::Lacking(_) => true,
            State::Open | State::Failed(_) => false,
        }
    }

    /// Of a row of a record.
    pub(crate) fn of(row: &Method) -> State {
        match row.verdict {
            Some(verdict) => State::Measured { verdict, surprises: verdict::surprises(row) },
            None if row.expected.is_none() => State::Lacking(row.why.clone()),
            None => State::Failed(row.why.clone()),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            State::Open => f.write_str("not run"),
            State::Measured { verdict, surprises } if surprises.is_empty() => write!(f, "{verdict}"),
            State::Measured { verdict, .. } => write!(f, "{verdict} (surprising)"),
            State::Lacking(why) => write!(f, "cannot: {why}"),
            State::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { kernel, filesystem, row, size } = self;
        let version = env!("CARGO_PKG_VERSION");
        f.pad(&format!("{},{filesystem},{row},{},vnic-{version}", kernel.name, size))
    }
}

/// As people write it: 4M, or 4Mx7 where it was sent seven times.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes {
            bytes if bytes.is_multiple_of(1 << 20) => write!(f, "{}M", bytes >> 20),
            bytes if bytes.is_multiple_of(1 << 10) => write!(f, "{}K", bytes >> 10),
            bytes => write!(f, "{bytes}"),
        }?;
        if self.rounds == 1 { Ok(()) } else { write!(f, "x{}", self.rounds) }
    }
}

impl Cell {
    pub(crate) fn place(&self, folder: &Path) -> PathBuf {
        folder.join(self.to_string())
    }

    /// What came out.
    pub(crate) fn state(&self, folder: &Path) -> Result<State> {
        Ok(self.row(folder)?.as_ref().map_or(State::Open, State::of))
    }

    /// Its row, of the first round; an unreadable record is an error, and not taken for none.
    pub(crate) fn row(&self, folder: &Path) -> Result<Option<Method>> {
        let path = self.place(folder).join("run.json");
        if !path.exists() {
            return Ok(None);
        }
        let shown = || format!("{} (delete its folder, and it is run again)", path.display());
        let text = fs::read(&path).with_context(shown)?;
        let run: Run = serde_json::from_slice(&text).with_context(shown)?;
        run.methods.into_iter().next().context("there is no row in it").with_context(shown).map(Some)
    }

    /// Leaves its record, in place of an earlier one; of one that failed with these logs.
    pub(crate) fn put(&self, folder: &Path, run: &Run, origin: &Origin, logs: &[PathBuf]) -> Result<()> {
        let place = self.place(folder);
        let unfinished = folder.join(format!(".{self}.{}", std::process::id()));
        let write = || -> Result<()> {
            fs::create_dir_all(&unfinished)?;
            let json = |name: &str, text: serde_json::Result<Vec<u8>>| -> Result<()> {
                Ok(fs::write(unfinished.join(name), [text?, b"\n".to_vec()].concat())?)
            };
            json("cell.json", serde_json::to_vec_pretty(origin))?;
            json("run.json", serde_json::to_vec_pretty(run))?;
            for log in logs {
                // One that was not made says nothing.
                let _ = fs::copy(log, unfinished.join(log.file_name().unwrap_or_default()));
            }
            if place.exists() {
                fs::remove_dir_all(&place)?;
            }
            Ok(fs::rename(&unfinished, &place)?)
        };
        write().with_context(|| place.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use vnic_experiment::run::FileInfo;

    use super::*;

    fn cell() -> Cell {
        let kernel = Kernel { name: "6.1.0".to_owned(), image: "i".into(), modules: "m".into() };
        Cell {
            kernel,
            filesystem: "ext4".to_owned(),
            row: "sendfile-no-sg".to_owned(),
            size: Size { bytes: 4 << 20, rounds: 1 },
        }
    }

    #[test]
    fn a_cell_is_found_again_where_its_name_says_and_a_broken_record_is_no_empty_cell() {
        let folder = std::env::temp_dir().join(format!("vnic-matrix-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let cell = cell();
        assert!(cell.to_string().starts_with("6.1.0,ext4,sendfile-no-sg,4M,vnic-"), "{cell}");
        assert_eq!(Size { bytes: 5000, rounds: 7 }.to_string(), "5000x7");
        assert_eq!(cell.state(&folder).unwrap(), State::Open);
        let method = Method {
            verdict: Some(Verdict::Copied),
            expected: Some(Verdict::Copied),
            sha256_ok: Some(true),
            ..Method::default()
        };
        let file = FileInfo { bytes: 4 << 20, filesystem: "ext4".to_owned(), chunk: None };
        let mut run = Run {
            kernel: "6.1.0".to_owned(),
            qemu: None,
            accel: None,
            file,
            kernel_modules: Vec::new(),
            methods: vec![method],
            watched: None,
            reasons: BTreeMap::new(),
        };
        let origin = Origin {
            kernel: "6.1.0".to_owned(),
            filesystem: "ext4".to_owned(),
            row: cell.row.clone(),
            bytes: cell.size.bytes,
            vnic: "0".to_owned(),
            date: 1,
            command: "x".to_owned(),
        };
        for _ in 0..2 {
            cell.put(&folder, &run, &origin, &[]).unwrap();
        }
        let fine = State::Measured { verdict: Verdict::Copied, surprises: Vec::new() };
        assert_eq!(cell.state(&folder).unwrap(), fine);
        run.methods[0].verdict = None;
        cell.put(&folder, &run, &origin, &[]).unwrap();
        assert_eq!(cell.state(&folder).unwrap(), State::Failed(String::new()));
        fs::write(cell.place(&folder).join("run.json"), "{").unwrap();
        assert!(cell.state(&folder).is_err());
        fs::remove_dir_all(folder).unwrap();
    }
}
