//! What the guest's IOMMU costs, once the IOTLB is warm: the same pump against the same back-end, with and without.
//!
//! `scripts/bench.sh --iommu` runs it. Rounds are interleaved; only ratios within a round are compared. The translations are
//! single pages, as a guest's IOMMU has them of a page cache, or huge ones.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

#[expect(dead_code, reason = "DPDK's back-end is no part of this comparison")]
#[path = "../side_by_side/backend.rs"]
mod backend;
#[expect(dead_code, reason = "latency is no part of this comparison")]
#[path = "../side_by_side/front_end.rs"]
mod front_end;
#[expect(dead_code, reason = "latency is no part of this comparison")]
#[path = "../side_by_side/outcome.rs"]
mod outcome;
#[path = "../side_by_side/pump.rs"]
mod pump;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use vnic::spec::{Feature, Features};

use backend::{Backend, Server};
use outcome::{Outcome, Runs};
use pump::Shape;

const USAGE: &str = "usage: iommu --vnic PROGRAM --out FOLDER [--rounds N] [--seconds S]";

/// What the ratio is to be, at least.
const TARGET: f64 = 0.9;
const SHAPES: [Shape; 3] =
    [Shape { segment: 64, segments: 1 }, Shape { segment: 1518, segments: 1 }, Shape { segment: 2048, segments: 4 }];
/// The IOMMU's translations in bytes; the last is the yardstick.
const IOMMUS: [(&str, Option<u64>); 3] =
    [("IOMMU 4 KiB", Some(4 << 10)), ("IOMMU 2 MiB", Some(2 << 20)), ("no IOMMU", None)];

struct Args {
    vnic: PathBuf,
    out: PathBuf,
    rounds: usize,
    seconds: f64,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut args = Args { vnic: PathBuf::new(), out: PathBuf::new(), rounds: 5, seconds: 0.5 };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} wants a value; {USAGE}"));
            match word.as_str() {
                "--vnic" => args.vnic = value()?.into(),
                "--out" => args.out = value()?.into(),
                "--rounds" => args.rounds = value()?.parse().context("--rounds wants a number")?,
                "--seconds" => args.seconds = value()?.parse().context("--seconds wants a number")?,
                // Cargo says this to every benchmark.
                "--bench" => {}
                other => bail!("unknown word {other}; {USAGE}"),
            }
        }
        if args.vnic.as_os_str().is_empty() || args.out.as_os_str().is_empty() {
            bail!("{USAGE}");
        }
        Ok(args)
    }
}

fn main() -> Result<()> {
    // `cargo test --benches` and a bare `cargo bench` are not for this program.
    if std::env::args().len() <= 2 && std::env::args().nth(1).is_none_or(|word| word == "--bench") {
        println!("run scripts/bench.sh --iommu");
        return Ok(());
    }
    let args = Args::parse()?;
    fs::create_dir_all(&args.out)?;
    let mut outcomes = Vec::new();
    println!("{}", Outcome::head());
    for (format, features) in [("split", Features::NONE), ("packed", Features::of(&[Feature::RingPacked]))] {
        for shape in SHAPES {
            let outcome = measure(format!("pump, {shape} {format}"), shape, features, &args);
            outcome.lines().iter().for_each(|line| println!("{line}"));
            outcomes.push(outcome);
        }
    }
    fs::write(args.out.join("iommu.json"), serde_json::to_vec_pretty(&outcomes)?)?;
    Ok(())
}

fn measure(case: String, shape: Shape, features: Features, args: &Args) -> Outcome {
    let mut rates = vec![Vec::new(); IOMMUS.len()];
    let mut not_run = None;
    'rounds: for _ in 0..args.rounds {
        for ((name, translations), rates) in IOMMUS.iter().zip(&mut rates) {
            match once(args, shape, features, *translations) {
                Ok(rate) => rates.push(rate),
                Err(error) => {
                    not_run = Some(format!("{name}: {error:#}"));
                    break 'rounds;
                }
            }
        }
    }
    let runs = IOMMUS.iter().zip(rates).map(|((name, translations), frames_per_second)| Runs {
        backend: (*name).to_owned(),
        frames_per_second,
        idle: None,
        trace_lost: None,
        ratio: None,
        target: translations.map(|_| TARGET),
    });
    let mut outcome = Outcome { case, runs: runs.collect(), not_run };
    if outcome.not_run.is_none() {
        outcome.compare();
    }
    outcome
}

/// One run: a fresh back-end on CPU 0, the pump on CPU 1. Frames per second.
fn once(args: &Args, shape: Shape, features: Features, translations: Option<u64>) -> Result<f64> {
    let server = Server::start(Backend::Vnic("sink"), 1, &args.vnic, &args.out)?;
    // A thread of its own: processes would inherit its CPU.
    let pump = || {
        pin(1).context("CPU 1 is for the driver; this machine needs two")?;
        pump::run(server.socket(), shape, features, translations, args.seconds)
    };
    let pumped = std::thread::scope(|scope| scope.spawn(pump).join());
    let pumped = pumped.map_err(|_| anyhow!("the pump panicked"))??;
    if pumped.waited < 0.5 {
        eprintln!("    the pump waited only {:.0} % of the time: it is the limit", pumped.waited * 100.0);
    }
    Ok(pumped.chains_per_second)
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
