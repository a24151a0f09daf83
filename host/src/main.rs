//! The `vnic` command: serves the device, shows what its rings do, conducts and judges transfers.
//!
//! | module | one sentence |
//! |---|---|
//! | [`allocator`] | what it may keep in a process that stays |
//! | [`commands`] | one file per subcommand: its options, what it does, what its exit code means |
//! | [`control`] | the client of a device's control socket |
//! | [`conductor`] | conducts a run: the guest's agent on one side, the device on the other |
//! | [`export`] | a trace, written for the tools that people have |
//! | [`doctor`] | looks at this machine |
//! | [`parquet`] | chains and records as files for DuckDB, Spark and the like |
//! | [`views`] | what is printed: with the two below the only place that writes to standard output |
//! | [`screen`] | a full screen, and what comes from its keyboard |
//! | [`watch`] | a device on such a screen, live |
//!
//! Exit codes: 0 fine, 1 the thing looked at is broken, 2 could not look or bad usage. A reader who closes the pipe early
//! is no error.

use std::error::Error as _;
use std::io;
use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ErrorKind};
use tracing_subscriber::EnvFilter;

mod address;
mod allocator;
mod commands;
mod conductor;
mod control;
mod doctor;
mod export;
mod filter;
mod labels;
mod parquet;
mod screen;
mod trouble;
mod views;
mod watch;

/// What a command found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    /// All is well.
    Fine,
    /// The thing looked at is broken.
    Broken,
}

impl Finding {
    /// Fine if `good`.
    fn fine_if(good: bool) -> Self {
        if good { Finding::Fine } else { Finding::Broken }
    }
}

fn main() -> ExitCode {
    let cli = match commands::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let filter = EnvFilter::try_from_env("VNIC_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours);
    log.without_time().with_target(false).init();
    match cli.run() {
        Ok(Finding::Fine) => ExitCode::SUCCESS,
        Ok(Finding::Broken) => ExitCode::from(1),
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("vnic: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Says what is wrong with the arguments: one sentence where a value is, clap's own words otherwise (help is one of them).
fn refuse(error: &clap::Error) -> ExitCode {
    let about = |kind| error.get(kind).map(ToString::to_string);
    match (error.kind(), about(ContextKind::InvalidArg), error.source()) {
        (ErrorKind::ValueValidation, Some(option), Some(reason)) => {
            // `--withhold <FEATURE,…>`: the name is enough.
            let option = option.split(' ').next().unwrap_or_default();
            anstream::eprintln!("vnic: {option}: {reason}");
        }
        // A reader who closed the pipe has had enough of the help.
        _ => drop(error.print()),
    }
    if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

/// Did whoever reads our output stop reading? (Errors of sockets never come as bare I/O errors: [`control`] and
/// [`conductor`] put them into sentences.)
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
