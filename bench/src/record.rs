//! What is left on disk: `bench.json`, renewed after each comparison, so that a run that is cut short leaves what it has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::outcome::Outcome;
use crate::singles::Single;

/// A run's results.
#[derive(Debug, Serialize)]
pub(crate) struct Record {
    #[serde(skip)]
    path: PathBuf,
    /// The CPU's name.
    machine: Option<String>,
    cpus: Option<usize>,
    kernel: Option<String>,
    /// DPDK's version, where it is installed.
    dpdk: Option<String>,
    /// The same of `qemu-storage-daemon`.
    qemu: Option<String>,
    /// When the run began, UTC.
    date: Option<String>,
    pub(crate) side_by_side: Vec<Outcome>,
    pub(crate) looking: Vec<Outcome>,
    pub(crate) iommu: Vec<Outcome>,
    pub(crate) dirty_log: Vec<Outcome>,
    latency_idle_memory: Vec<Single>,
    pub(crate) guest_sendfile: Vec<Outcome>,
    pub(crate) guest_paced: Vec<Outcome>,
    pub(crate) disk: Vec<Outcome>,
}

impl Record {
    pub(crate) fn new(folder: &Path) -> Self {
        Record {
            path: folder.join("bench.json"),
            machine: cpu_name(),
            cpus: std::thread::available_parallelism().ok().map(usize::from),
            kernel: said("uname", &["-r"]),
            dpdk: said("dpkg-query", &["-W", "-f", "${Version}", "dpdk-dev"]),
            qemu: said("dpkg-query", &["-W", "-f", "${Version}", "qemu-system-common"]),
            date: said("date", &["-u", "+%FT%TZ"]),
            side_by_side: Vec::new(),
            looking: Vec::new(),
            iommu: Vec::new(),
            dirty_log: Vec::new(),
            latency_idle_memory: Vec::new(),
            guest_sendfile: Vec::new(),
            guest_paced: Vec::new(),
            disk: Vec::new(),
        }
    }

    /// Prints an outcome, and keeps it in `list`.
    pub(crate) fn add(&mut self, list: fn(&mut Record) -> &mut Vec<Outcome>, outcome: Outcome) -> Result<()> {
        outcome.print();
        list(self).push(outcome);
        self.write()
    }

    pub(crate) fn singles(&mut self, singles: Vec<Single>) -> Result<()> {
        singles.iter().for_each(|single| println!("{}", single.line()));
        self.latency_idle_memory = singles;
        self.write()
    }

    /// All comparisons.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.side_by_side
            .iter()
            .chain(&self.looking)
            .chain(&self.iommu)
            .chain(&self.dirty_log)
            .chain(&self.guest_sendfile)
            .chain(&self.guest_paced)
            .chain(&self.disk)
    }

    fn write(&self) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        fs::write(&self.path, text).with_context(|| format!("write {}", self.path.display()))
    }
}

fn cpu_name() -> Option<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpus.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// What a program printed, if it could be run.
fn said(program: &str, words: &[&str]) -> Option<String> {
    let output = Command::new(program).args(words).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
