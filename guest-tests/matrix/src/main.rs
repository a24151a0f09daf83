//! The command behind `scripts/matrix.sh`: every way to send a file, on several kernels and file systems.
//!
//! | module | one sentence |
//! |---|---|
//! | [`plan`] | which cells are asked for |
//! | [`kernel`] | kernels by name: Debian's, and one's own |
//! | [`cell`] | what goes into a cell, and its record on disk |
//! | [`boot`] | one guest, for all cells of a kernel and a file system that are not there |
//! | [`figures`] | what a record has in figures, and what may be expected of them |
//! | [`publish`](mod@publish) | all cells to be read: Markdown, a page, CSV, Parquet |
//! | [`work`] | several guests at a time, and how far they are |

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a program for people")]

mod boot;
mod cell;
mod figures;
mod kernel;
mod plan;
mod publish;
mod work;

use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use guest_launcher::children::Signals;
use guest_launcher::{Failure, repository};

use crate::cell::{Size, State};
use crate::figures::Expectation;
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
    /// Measures each row so often, in rounds, for times that have a spread
    #[arg(long, value_name = "N", default_value = "1")]
    rounds: NonZero<usize>,
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
    /// Only writes what came out of all cells of --size to this folder: zero-copy-table.md, .html, .csv, .parquet
    #[arg(long, value_name = "DIR", conflicts_with = "list")]
    publish: Option<PathBuf>,
    /// What every cell is to show: a verdict (zero-copy, copied, mixed) or a figure's relation (descriptors_per_mib < 64). Exits with 0
    /// if so, with 1 if not, with 125 where one was not measured: as `git bisect run` wants it
    #[arg(long, value_name = "WHAT", conflicts_with = "list")]
    expect: Option<Expectation>,
    /// Also the newest kernel that any suite of Debian's has today
    #[arg(long)]
    newest: bool,
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
        Ok(code) => ExitCode::from(code),
        Err(Failure::Interrupted) => ExitCode::from(130),
        Err(failure) => {
            eprintln!("matrix.sh: {failure}");
            ExitCode::from(2)
        }
    }
}

/// A cell that `git bisect` is to pass over.
const SKIP: u8 = 125;

/// The exit code.
fn run(options: &Options) -> Result<u8, Failure> {
    let folder = options.folder.clone().unwrap_or_else(|| repository().join("target/matrix"));
    if let Some(to) = &options.publish {
        eprintln!("{}", publish::publish(&folder, options.size, to)?);
        return Ok(0);
    }
    let mut kernels = Kernel::all(&options.kernels)?;
    if options.newest {
        kernels.extend(Some(Kernel::newest()?).filter(|newest| !kernels.contains(newest)));
    }
    let size = Size { bytes: options.size, rounds: options.rounds.get() };
    let cells = plan::cells(&kernels, &options.filesystems, &options.rows, size)?;
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
    let Some(expectation) = &options.expect else { return Ok(u8::from(!states.iter().all(State::is_fine))) };
    let mut met = true;
    for cell in &cells {
        let Some(is_met) = cell.row(&folder)?.as_ref().and_then(|row| expectation.is_met(row)) else { return Ok(SKIP) };
        eprintln!("{cell}: {}", if is_met { "as expected" } else { "other than expected" });
        met &= is_met;
    }
    Ok(u8::from(!met))
}
