//! `vnic completions`: what a shell reads to complete `vnic`'s commands and options.

use std::io;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::{Shell, generate};

use super::Cli;
use crate::{Finding, views};

/// Options of `vnic completions`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which shell: bash, elvish, fish, powershell or zsh
    shell: Shell,
}

/// Prints them.
pub(super) fn run(args: &Args) -> Result<Finding> {
    let mut script = Vec::new();
    generate(args.shell, &mut Cli::command(), "vnic", &mut script);
    let script = String::from_utf8(script).map_err(io::Error::other)?;
    views::put(script)?;
    Ok(Finding::Fine)
}
