//! This NIC's back-end and DPDK's, side by side: the same driver against each in turn, round after round, in one run.
//!
//! `scripts/bench.sh` installs what it needs and runs it. The back-end has CPU 0, the driver CPU 1. Rounds are
//! interleaved, as the machine's speed changes from minute to minute; only ratios within a round are compared.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod backend;
mod case;
mod front_end;
mod latency;
mod outcome;
mod plot;
mod pump;
mod singles;
mod testpmd;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use backend::{Backend, Server};
use case::{Case, Driver};
use outcome::{Outcome, Runs, spread};

const USAGE: &str = "usage: side_by_side --vnic PROGRAM --out FOLDER [--rounds N] [--seconds S] [--only WORDS] [--all] \
                     [--against PROGRAM]";

/// What to do.
struct Args {
    vnic: PathBuf,
    out: PathBuf,
    rounds: usize,
    seconds: f64,
    only: String,
    all: bool,
    /// Another build of `vnic`, to be the yardstick in DPDK's place.
    against: Option<PathBuf>,
}

impl Args {
    fn parse() -> Result<Self> {
        let mut args = Args {
            vnic: PathBuf::new(),
            out: PathBuf::new(),
            rounds: 5,
            seconds: 0.5,
            only: String::new(),
            all: false,
            against: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} wants a value; {USAGE}"));
            match word.as_str() {
                "--vnic" => args.vnic = value()?.into(),
                "--out" => args.out = value()?.into(),
                "--rounds" => args.rounds = value()?.parse().context("--rounds wants a number")?,
                "--seconds" => args.seconds = value()?.parse().context("--seconds wants a number")?,
                "--only" => args.only = value()?,
                "--all" => args.all = true,
                "--against" => args.against = Some(value()?.into()),
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
        println!("run scripts/bench.sh");
        return Ok(());
    }
    let args = Args::parse()?;
    fs::create_dir_all(&args.out)?;
    let mut cases: Vec<Case> =
        case::cases(args.all).into_iter().filter(|case| case.name().contains(&args.only)).collect();
    if args.against.is_some() {
        cases = cases.iter().flat_map(Case::against_other_build).collect();
    }
    let mut outcomes = Vec::new();
    fs::write(args.out.join("side_by_side.json"), "[]")?;
    println!("{}", Outcome::head());
    let started = Instant::now();
    for (at, case) in cases.iter().enumerate() {
        let minutes = started.elapsed().as_secs() / 60;
        eprintln!("[{}/{}] {} ({minutes} min so far)", at + 1, cases.len(), case.name());
        let outcome = measure(case, &args);
        outcome.lines().iter().for_each(|line| println!("{line}"));
        outcomes.push(outcome);
        // After each case: a run that is cut short leaves what it has.
        fs::write(args.out.join("side_by_side.json"), serde_json::to_vec_pretty(&outcomes)?)?;
    }
    // Words that say what there is to say: latency, idle time, memory.
    if args.against.is_none() && "latency, idle CPU, memory".contains(&args.only) {
        let singles = singles::measure(args.rounds, &args.vnic, &args.out);
        singles.iter().for_each(|single| println!("{}", single.line()));
        fs::write(args.out.join("singles.json"), serde_json::to_vec_pretty(&singles)?)?;
    }
    plot::draw(&outcomes, &args.out.join("side_by_side.svg"))
}

fn measure(case: &Case, args: &Args) -> Outcome {
    let mut figures: BTreeMap<usize, [Vec<f64>; 3]> = BTreeMap::new();
    let mut not_run = None;
    'rounds: for _ in 0..args.rounds {
        for (at, backend) in case.backends.iter().enumerate() {
            match once(case, *backend, args) {
                Ok(run) => {
                    let [rates, idles, losts] = figures.entry(at).or_default();
                    rates.push(run.frames_per_second);
                    idles.extend(run.idle);
                    losts.extend(run.trace_lost);
                }
                Err(error) => {
                    not_run = Some(format!("{}: {error:#}", backend.name()));
                    break 'rounds;
                }
            }
        }
    }
    let runs = figures.into_iter().map(|(at, [frames_per_second, idles, losts])| Runs {
        backend: case.backends.get(at).map_or_else(String::new, |backend| backend.name()),
        frames_per_second,
        idle: spread(&idles).map(|[median, ..]| median),
        trace_lost: spread(&losts).map(|[median, ..]| median),
        ratio: None,
        target: case.targets.get(at).copied().flatten(),
    });
    let mut outcome = Outcome { case: case.name(), runs: runs.collect(), not_run };
    if outcome.runs.len() == case.backends.len() {
        outcome.compare();
    }
    outcome
}

/// What one run came to.
struct Run {
    frames_per_second: f64,
    idle: Option<f64>,
    trace_lost: Option<f64>,
}

/// One run: a fresh back-end, a fresh driver.
fn once(case: &Case, backend: Backend, args: &Args) -> Result<Run> {
    let program = match (backend, &args.against) {
        (Backend::Other(_), Some(other)) => other,
        _ => &args.vnic,
    };
    let server = Server::start(backend, case.pairs, program, &args.out)?;
    let features = case.format.features();
    match case.driver {
        Driver::Pump => {
            // A thread of its own: processes would inherit its CPU.
            let pump = || {
                pin(1).context("CPU 1 is for the driver; this machine needs two")?;
                pump::run(server.socket(), case.shape, features, None, args.seconds)
            };
            let pumped = std::thread::scope(|scope| scope.spawn(pump).join());
            let pumped = pumped.map_err(|_| anyhow!("the pump panicked"))??;
            if pumped.waited < 0.5 {
                eprintln!("    the pump waited only {:.0} % of the time: it is the limit", pumped.waited * 100.0);
            }
            let trace_lost = server.trace_lost();
            Ok(Run { frames_per_second: pumped.chains_per_second, idle: None, trace_lost })
        }
        Driver::Dpdk(mode) => {
            let idle = || server.idle_ns();
            let drove =
                testpmd::run(server.socket(), case.pairs, case.shape, features, mode, 2.0 * args.seconds, idle)?;
            let trace_lost = server.trace_lost();
            Ok(Run { frames_per_second: drove.frames_per_second, idle: drove.idle, trace_lost })
        }
    }
}

fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}
