//! The command behind `scripts/soak.sh`: everything at once, and nothing grows.
//!
//! Operation: three actors on threads of their own, each with a `vnic serve`, choose what to do next from the seed, over and over:
//!
//! | actor | what is behind its device |
//! |---|---|
//! | [`hostile`] | a driver of ours without a guest, which breaks the rules; the device lives through all of it |
//! | [`resident`] | a guest that sends files to the device's own far end; the device lives through all of it |
//! | [`mover`] | a guest with one endless stream, which moves between two QEMUs and whose devices are killed |
//!
//! First each does everything once, then what comes. What is done must work; every wait has a deadline; what failed ends the run with
//! what the children said. At the end private memory, threads and files of the devices are compared with those after the first round.

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a program for people")]

mod clock;
mod figures;
mod hostile;
mod looks;
mod mover;
mod resident;
mod run;
mod stopped;

use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use clap::Parser;
use run::Run;

/// Has everything happen at once for a while: transfers, hold and release, watch, attach, trace, migration, kills, memory that comes and
/// goes or is cut short, queue resets, full disks, no file descriptors, SIGSTOP of either side, clock steps. Private memory, files and
/// threads of the devices must be at the end what they were. Needs root.
///
/// Exit codes: 0; 1 something did not work, or has grown; 2 bad usage.
#[derive(Debug, Parser)]
#[command(name = "soak.sh")]
struct Options {
    /// How long
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    minutes: u64,
    /// What is done next is chosen from this number; by default any, which is printed
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Only these of the actors
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = ["hostile", "resident", "mover"])]
    only: Vec<String>,
}

/// Plays until the run is over; what came of its devices.
type Play = fn(&Arc<Run>) -> String;

const ACTORS: [(&str, Play); 3] = [("hostile", hostile::play), ("resident", resident::play), ("mover", mover::play)];

fn main() -> ExitCode {
    let options = Options::parse();
    if !guest_fixture::is_root() {
        eprintln!("soak.sh: taps, namespaces and another process's limits need root: run it with sudo");
        return ExitCode::from(2);
    }
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    eprintln!("soak: {} minutes, seed {seed}", options.minutes);
    // Built before anybody waits for it.
    let _ = guest_fixture::vnic();
    let run = Arc::new(Run::new(seed, options.minutes));
    let wanted = |name: &str| options.only.is_empty() || options.only.iter().any(|only| only == name);
    let actors: Vec<_> = ACTORS
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, play)| {
            let run = run.clone();
            let actor = move || {
                // Whatever ends it, the others need not go on.
                let _end = run.ends();
                play(&run)
            };
            (name, thread::Builder::new().name(name.to_owned()).spawn(actor))
        })
        .collect();
    let mut failed = Vec::new();
    for (name, actor) in actors {
        match actor.map(thread::JoinHandle::join) {
            Ok(Ok(figures)) => println!("{name}: {figures}"),
            Ok(Err(_)) | Err(_) => failed.push(name),
        }
    }
    println!("soak: {:.0} minutes, seed {seed}: {}", run.minutes(), run.summary());
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "soak: FAILED: {}; what was said stands above, and the logs in the folders named there",
        failed.join(", ")
    );
    ExitCode::FAILURE
}
