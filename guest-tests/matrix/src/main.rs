//! The command behind `scripts/matrix.sh`: every way to send a file, on several kernels and file systems.
//!
//! | module | one sentence |
//! |---|---|
//! | [`plan`] | which cells are asked for |
//! | [`kernel`] | kernels by name: Debian's, and one's own |
//! | [`cell`] | what goes into a cell, and its record on disk |
//! | [`boot`] | one guest, for all cells of a kernel and a file system that are not there |
//! | [`work`] | several guests at a time, and how far they are |

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a program for people")]

mod boot;
mod cell;
mod kernel;
mod plan;
mod work;

use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use guest_launcher::children::Signals;
use guest_launcher::{Failure, repository};

use crate::cell::State;
use crate::kernel::Kernel;
use crate::plan::Patterns;

/// Sends a file by every method (row), on each kernel and file system, each on a NIC with scatter-gather and without: a cell
/// each, with its record in a folder named by what went in. Cells that are there are not run again: what was cut short goes on,
/// and what is new is added. Leaves target/matrix.
///
/// Exit codes: 0 every cell asked for is there; 1 some could not be measured, or their witnesses disagree; 2 bad usage; 130 a
/// signal.
#[derive(Debug, Parser)]
#[command(name = "matrix.sh")]
struct Options {
    /// Versions or suites of Debian's, or NAME=BZIMAGE,MODULES for one of your own (several with more --kernels)
    #[arg(long, value_name = "LIST", default_values = ["5.10,6.1,6.12,7.2,7.3"])]
    kernels: Vec<String>,
    /// File systems, `*` for any letters
    #[arg(long, value_name = "LIST", default_value = "*")]
    filesystems: Patterns,
    /// Rows, `*` for any letters; those that a pattern only reaches are the table's
    #[arg(long, value_name = "LIST", default_value = "*")]
    rows: Patterns,
    /// Of the file that is sent
    #[arg(long, value_name = "BYTES", default_value = "4M", value_parser = parse_size)]
    size: u64,
    /// Guests at a time
    #[arg(long, value_name = "N", default_value = "2")]
    guests: NonZero<usize>,
    /// Starts no guest after so many minutes: what is left is for the next run
    #[arg(long, value_name = "MINUTES")]
    minutes: Option<u64>,
    /// Runs those again that could not be measured
    #[arg(long)]
    again: bool,
    /// Only says which cells there are, a line each: what goes in, and what came out
    #[arg(long)]
    list: bool,
    /// Where the cells are [default: target/matrix]
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

fn parse_size(text: &str) -> Result<u64, &'static str> {
    let size = parse_size::Config::new().with_binary().parse_size(text);
    size.ok().filter(|bytes| *bytes > 0).ok_or("this is no size: write 65536, 64K or 4M")
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(Failure::Interrupted) => ExitCode::from(130),
        Err(failure) => {
            eprintln!("matrix.sh: {failure}");
            ExitCode::from(2)
        }
    }
}

/// Is every cell there, and as it should be?
fn run(options: &Options) -> Result<bool, Failure> {
    let folder = options.folder.clone().unwrap_or_else(|| repository().join("target/matrix"));
    let kernels = Kernel::all(&options.kernels)?;
    let cells = plan::cells(&kernels, &options.filesystems, &options.rows, options.size)?;
    if !options.list {
        let signals = Signals::watch()?;
        let limits = work::Limits {
            guests: options.guests.get(),
            time: options.minutes.map(|minutes| Duration::from_secs(60 * minutes)),
            again: options.again,
        };
        work::through(&folder, &cells, &signals, &limits)?;
    }
    let states: Vec<State> = cells.iter().map(|cell| cell.state(&folder)).collect::<anyhow::Result<_>>()?;
    if options.list {
        for (cell, state) in cells.iter().zip(&states) {
            println!("{cell}  {state}");
        }
    }
    eprintln!("{} in {}", plan::sums(&states), folder.display());
    Ok(states.iter().all(State::is_fine))
}
