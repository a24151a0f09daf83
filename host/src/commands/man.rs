//! `vnic man`: the manual pages, written into a folder by whoever packs vnic.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;

use super::Cli;
use crate::{Finding, views};

/// Options of `vnic man`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where vnic.1 and a page for each command go; the folder is made
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// Writes them.
pub(super) fn run(args: &Args) -> Result<Finding> {
    let folder = args.folder.display();
    fs::create_dir_all(&args.folder).with_context(|| format!("{folder}: cannot be made"))?;
    clap_mangen::generate_to(Cli::command(), &args.folder).with_context(|| format!("{folder}: cannot write"))?;
    views::sentence(&format!("manual pages are in {folder}: man -M looks one level up, man -l FILE at one"))?;
    Ok(Finding::Fine)
}
