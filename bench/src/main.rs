//! This NIC beside others: the same work for each in turn, round after round, in one run.
//!
//! `scripts/bench.sh` installs what it needs and runs it. Rounds are interleaved, as the machine's speed changes from
//! minute to minute; only ratios within a round are compared. A comparison that cannot be run says why.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod backend;
mod case;
mod dirty;
mod disk;
mod iommu;
mod latency;
mod looking;
mod outcome;
mod paced;
mod plot;
mod pump;
mod record;
mod sendfile;
mod side_by_side;
mod singles;
mod testpmd;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use clap::Parser;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use outcome::{Outcome, Progress};
use record::Record;

/// The benchmarks. Leaves bench.json and ratios.svg in the folder.
#[derive(Debug, Parser)]
struct Args {
    /// The `vnic` program, a release build
    #[arg(long, value_name = "PROGRAM")]
    vnic: PathBuf,
    /// For the results, and the logs and sockets of what runs meanwhile
    #[arg(long, value_name = "FOLDER")]
    out: PathBuf,
    /// Of each comparison
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Of each run that counts frames
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// Of each run that DPDK's driver drives, at least
    #[arg(long, default_value_t = 0)]
    frames: u64,
    /// The comparisons whose name has these words
    #[arg(long, value_name = "WORDS", default_value = "")]
    only: String,
    /// Every ring format and frame size, also those without a target
    #[arg(long)]
    all: bool,
    /// Only what drives a disk
    #[arg(long)]
    disk: bool,
    /// Another build of vnic, as the yardstick in the place of DPDK's back-end
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
}

impl Args {
    /// Is a comparison of this name asked for?
    fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    fs::create_dir_all(&args.out)?;
    let mut record = Record::new(&args.out);
    println!("{}", Outcome::head());
    if args.disk {
        disk::measure_all(&args, |outcome| record.add(|record| &mut record.disk, outcome))?;
        return plot::draw(record.outcomes(), &args.out.join("ratios.svg"));
    }
    let cases = side_by_side::cases(&args);
    let (looking, iommu, dirty, sendfile, paced) = match args.against {
        // Those have yardsticks of their own.
        Some(_) => (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new()),
        None => (
            looking::cases(&args),
            iommu::cases(&args),
            dirty::cases(&args),
            sendfile::cases(&args),
            paced::cases(&args),
        ),
    };
    let all = cases.len() + looking.len() + iommu.len() + dirty.len() + sendfile.len() + paced.len();
    let mut progress = Progress::new(all);
    for case in &cases {
        progress.next(&case.name());
        record.add(|record| &mut record.side_by_side, side_by_side::measure(case, &args))?;
    }
    for case in looking {
        progress.next(&case.name());
        record.add(|record| &mut record.looking, looking::measure(case, &args))?;
    }
    for case in &iommu {
        progress.next(&case.name());
        record.add(|record| &mut record.iommu, iommu::measure(case, &args))?;
    }
    for case in &dirty {
        progress.next(&case.name());
        record.add(|record| &mut record.dirty_log, dirty::measure(case, &args))?;
    }
    if args.against.is_none() && singles::NAMES.contains(&args.only) {
        record.singles(singles::measure(args.rounds, &args.vnic, &args.out))?;
    }
    for case in &sendfile {
        progress.next(&case.name());
        record.add(|record| &mut record.guest_sendfile, sendfile::measure(case, &args))?;
    }
    for case in &paced {
        progress.next(&case.name());
        record.add(|record| &mut record.guest_paced, paced::measure(*case, &args))?;
    }
    plot::draw(record.outcomes(), &args.out.join("ratios.svg"))
}

/// Does what may panic, as the guest tests' fixtures do about what they cannot do.
fn caught<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        Err(anyhow!(said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()))
    })
}

/// Does the driver's work on CPU 1, on a thread of its own: processes started later would inherit the CPU.
fn on_cpu_1<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pinned = || {
        let mut set = CpuSet::new();
        set.set(1)?;
        sched_setaffinity(Pid::from_raw(0), &set).context("CPU 1 is for the driver; this machine needs two")?;
        work()
    };
    let worked = std::thread::scope(|scope| scope.spawn(pinned).join());
    worked.map_err(|_| anyhow!("the driver's thread panicked"))?
}
