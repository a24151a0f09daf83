//! The `vnic` command: serves the device, shows what its rings do, judges transfers.
//!
//! | module | one sentence |
//! |---|---|
//! | [`commands`] | one file per subcommand: its options, what it does, what its exit code means |
//! | [`control`] | the client of a device's control socket |
//! | [`judge`] | conducts a run: the guest's agent on one side, the device on the other |
//! | [`doctor`] | looks at this machine |
//! | [`views`] | the only place that writes to standard output |
//!
//! Exit codes: 0 fine, 1 the thing looked at is broken, 2 could not look or bad usage. A reader who closes the pipe early
//! is no error.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

mod commands;
mod control;
mod doctor;
mod judge;
mod views;

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
    let cli = commands::Cli::parse();
    let filter = EnvFilter::try_from_env("VNIC_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).without_time().with_target(false).init();
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

/// Did whoever reads our output stop reading? (Errors of sockets never come as bare I/O errors: [`control`] and
/// [`judge`] put them into sentences.)
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>())
        .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}
