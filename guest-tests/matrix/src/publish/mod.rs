//! What came out of all cells, to be read: a table in Markdown, a page with a grid, a file for spreadsheets, and one for queries.

mod changes;
mod csv;
mod html;
mod markdown;
mod what_if;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use guest_launcher::vnic;
use vnic_experiment::filesystem::FILESYSTEMS;
use vnic_experiment::row::{Row, TABLE};
use vnic_experiment::run::{Method, Run, Verdict};

use crate::cell::{Origin, State};

/// The files' name, before the dot.
const NAME: &str = "zero-copy-table";

/// A cell with all that is known of it.
#[derive(Debug, Clone)]
pub(crate) struct Filled {
    pub(crate) origin: Origin,
    pub(crate) run: Run,
}

impl Filled {
    /// Its row, of the first round.
    fn row(&self) -> &Method {
        &self.run.methods[0]
    }

    /// In a word or a figure.
    fn short(&self) -> String {
        let row = self.row();
        match (State::of(row), row.cpu_copies) {
            (State::Measured { verdict: Verdict::WitnessesDisagree, .. }, _) => "disagree".to_owned(),
            (State::Measured { .. }, Some(copies)) => format!("{copies:.2}"),
            (State::Measured { verdict, .. }, None) => verdict.name().to_owned(),
            (State::Lacking(_), _) => "–".to_owned(),
            (State::Failed(_) | State::Open, _) => "failed".to_owned(),
        }
    }
}

/// All cells, and what their grid has across and down.
#[derive(Debug)]
pub(crate) struct Table {
    cells: Vec<Filled>,
    /// Of several rounds: for times.
    rounds: Vec<Filled>,
    /// Older ones first.
    kernels: Vec<String>,
    filesystems: Vec<String>,
    /// Without what the NIC lacks: `sendfile` stands for `sendfile-no-sg`, too.
    rows: Vec<String>,
}

impl Table {
    /// Reads every cell of a folder.
    fn read(folder: &Path, bytes: u64) -> Result<Table> {
        let mut all = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| format!("{}: was anything run?", folder.display()))? {
            let path = entry?.path();
            let (origin, run) = (path.join("cell.json"), path.join("run.json"));
            if origin.exists() && run.exists() {
                let text = |file: &Path| fs::read(file).with_context(|| file.display().to_string());
                let cell = Filled {
                    origin: serde_json::from_slice(&text(&origin)?).with_context(|| origin.display().to_string())?,
                    run: serde_json::from_slice(&text(&run)?).with_context(|| run.display().to_string())?,
                };
                ensure!(!cell.run.methods.is_empty(), "{} has no row", run.display());
                all.push(cell);
            }
        }
        let (rounds, mut cells): (Vec<Filled>, Vec<Filled>) =
            all.into_iter().partition(|cell| cell.run.methods.len() > 1);
        cells.retain(|cell| cell.origin.bytes == bytes);
        ensure!(!cells.is_empty(), "there is no cell of {bytes} bytes in {}", folder.display());
        let names: BTreeSet<&str> = cells.iter().map(|cell| cell.origin.kernel.as_str()).collect();
        let mut kernels: Vec<String> = names.into_iter().map(str::to_owned).collect();
        kernels.sort_by_key(|name| version(name));
        let there = |is: &dyn Fn(&Filled) -> bool| cells.iter().any(is);
        let filesystems = FILESYSTEMS.iter().map(|known| known.name.to_owned());
        let filesystems = filesystems.filter(|name| there(&|cell| cell.origin.filesystem == *name)).collect();
        let rows = Row::parse_list(TABLE)?.into_iter().map(|row| row.name).filter(|name| !name.ends_with(NO_SG));
        let rows = rows.filter(|name| there(&|cell| cell.origin.row == *name)).collect();
        Ok(Table { cells, rounds, kernels, filesystems, rows })
    }

    fn cell(&self, kernel: &str, filesystem: &str, row: &str) -> Option<&Filled> {
        let is = |cell: &&Filled| {
            (cell.origin.kernel.as_str(), cell.origin.filesystem.as_str(), cell.origin.row.as_str())
                == (kernel, filesystem, row)
        };
        self.cells.iter().find(is)
    }
}

/// What stands in a cell that was not run.
const NOT_RUN: &str = "not run";
/// And why, in words.
const WHY_NOT_RUN: &str = "no guest has run it yet; `scripts/matrix.sh` goes on with it";

/// A kernel, a file system, and rows.
type Missing<'a> = (&'a str, &'a str, Vec<String>);

impl Table {
    /// What the table could have and does not, by kernel and file system.
    fn missing(&self) -> Vec<Missing<'_>> {
        let rows: Vec<String> = Row::parse_list(TABLE).into_iter().flatten().map(|row| row.name).collect();
        let mut missing = Vec::new();
        for kernel in &self.kernels {
            for filesystem in FILESYSTEMS.iter().map(|known| known.name) {
                let there: BTreeSet<&str> = self
                    .cells
                    .iter()
                    .filter(|cell| cell.origin.kernel == *kernel && cell.origin.filesystem == filesystem)
                    .map(|cell| cell.origin.row.as_str())
                    .collect();
                let open: Vec<String> = rows.iter().filter(|row| !there.contains(row.as_str())).cloned().collect();
                if !open.is_empty() {
                    missing.push((kernel.as_str(), filesystem, open));
                }
            }
        }
        missing
    }
}

/// Of a row on a NIC without scatter-gather.
const NO_SG: &str = "-no-sg";

/// Rows on a NIC with scatter-gather, or without it.
fn on_nic(row: &str, suffix: &str) -> String {
    // A cold row, or one that names a module, has no counterpart without.
    format!("{row}{suffix}")
}

/// The numbers at the start of a kernel's release, to sort by.
fn version(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse().ok()).collect()
}

/// Writes all of it into a folder.
pub(crate) fn publish(cells: &Path, bytes: u64, to: &Path) -> Result<String> {
    let table = Table::read(cells, bytes)?;
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    let file = |ending: &str| to.join(format!("{NAME}.{ending}"));
    for (ending, text) in [("md", markdown::page(&table)), ("html", html::page(&table)), ("csv", csv::lines(&table))] {
        fs::write(file(ending), text).with_context(|| file(ending).display().to_string())?;
    }
    let vnic = vnic().map_err(|failure| anyhow::anyhow!("{failure}"))?;
    // By their names, as everywhere.
    let mut records: Vec<_> =
        fs::read_dir(cells)?.filter_map(|entry| Some(entry.ok()?.path().join("run.json"))).collect();
    records.retain(|record| record.exists());
    records.sort_unstable();
    let parquet = file("parquet");
    let _ = fs::remove_file(&parquet);
    let done = Command::new(vnic)
        .arg("report")
        .args(&records)
        .arg("--parquet")
        .arg(&parquet)
        .output()
        .context("vnic report")?;
    ensure!(done.status.success(), "vnic report --parquet: {}", String::from_utf8_lossy(&done.stderr).trim_end());
    Ok(format!("{} cells are in {} (.html, .csv, .parquet)", table.cells.len(), file("md").display()))
}

#[cfg(test)]
mod tests;
