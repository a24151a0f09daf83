//! `vnic report`: the verdicts of a transfer run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, iter};

use anyhow::{Context, Result, anyhow, bail};
use schemars::JsonSchema;
use serde::Serialize;
use vnic::hardware::{BadModel, Model};
use vnic_experiment::run::Run;
use vnic_experiment::verdict;

use crate::parquet::{self, Finished};
use crate::views::changes::{Change, changes};
use crate::views::html::grid::Part;
use crate::{Finding, views};

/// Options of `vnic report`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The run's record: target/run/run.json
    #[arg(value_name = "RUN.json")]
    run: PathBuf,
    /// A second record: what changed from the first to it. Exits with 1 if a verdict did
    #[arg(value_name = "LATER.json", conflicts_with = "hardware")]
    later: Vec<PathBuf>,
    /// What the NIC's part would cost on these cards, with commas between: 82599, e810-like, simple, ideal, each with settings such
    /// as 82599,pcie=gen1x1,iotlb=64 [default: the one that `serve --hardware` was told]
    #[arg(long, value_name = "MODEL,…", value_parser = parse_models)]
    hardware: Option<Models>,
    /// One JSON document
    #[arg(long)]
    json: bool,
    /// Also write one self-contained page with the pictures redrawn from the measurements
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Another record, of another kernel or file system, whose verdicts stand in the page's grid, too; may be given again
    #[arg(long, value_name = "RUN.json", requires = "html", conflicts_with = "later")]
    and: Vec<PathBuf>,
    /// The rows of all records, as many as you like, into a Parquet file of this name; or into a new file of this folder
    #[arg(long, value_name = "FILE.parquet|FOLDER", conflicts_with_all = ["json", "html", "hardware"])]
    parquet: Option<PathBuf>,
}

#[derive(Debug, Clone)]
struct Models(Vec<Model>);

fn parse_models(words: &str) -> Result<Models, BadModel> {
    Model::parse_list(words).map(Models)
}

/// The document of `--json`.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Document<'a> {
    as_expected: bool,
    surprises: &'a [String],
    /// The textbook's table, as measured.
    classic: Vec<views::classic::Line<'a>>,
    /// What the chains would cost cards of hardware.
    hardware: Vec<views::hardware::WhatIf<'a>>,
    run: &'a Run,
}

/// Shows the table; broken if a verdict is not the expected one or a digest is wrong.
pub(super) fn run(args: &Args) -> Result<Finding> {
    if let Some(path) = &args.parquet {
        return into_file(args, path);
    }
    let run = read(&args.run)?;
    match &args.later[..] {
        [] => {}
        [later] => return compare(args, &run, &read(later)?),
        _ => bail!("two records are compared, not {}; --parquet takes any number", args.later.len() + 1),
    }
    let models = models(args, &run)?;
    // Of what was only watched, nothing was expected.
    let conducted = run.methods.iter().filter(|_| run.watched.is_none());
    let surprises: Vec<String> = conducted.flat_map(verdict::surprises).collect();
    if let Some(path) = &args.html {
        let others = args.and.iter().map(|path| read(path)).collect::<Result<Vec<Run>>>()?;
        let paths: Vec<&Path> = [args.run.as_path()].into_iter().chain(args.and.iter().map(PathBuf::as_path)).collect();
        let runs: Vec<&Run> = [&run].into_iter().chain(&others).collect();
        let names = names(&runs, &paths);
        let parts: Vec<Part<'_>> = names.iter().zip(runs).map(|(name, run)| Part { name, run }).collect();
        write(path, &views::html::page(&run, &parts, &surprises, &models))?;
    }
    if args.json {
        let classic = views::classic::lines(&run);
        let hardware = views::hardware::lines(&run, &models);
        let as_expected = surprises.is_empty();
        views::json(&Document { as_expected, surprises: &surprises, classic, hardware, run: &run })?;
    } else {
        views::report::show(&run, &surprises, &models)?;
    }
    Ok(Finding::fine_if(surprises.is_empty()))
}

/// What tells records apart: their kernels, if those do, else their files; nothing, where there is one.
fn names(runs: &[&Run], paths: &[&Path]) -> Vec<String> {
    let kernels: BTreeSet<&str> = runs.iter().map(|run| run.kernel.as_str()).collect();
    match runs {
        [_] => vec![String::new()],
        _ if kernels.len() == runs.len() => runs.iter().map(|run| run.kernel.clone()).collect(),
        _ => paths.iter().map(|path| path.display().to_string()).collect(),
    }
}

/// Writes the rows of all records into one file.
fn into_file(args: &Args, path: &Path) -> Result<Finding> {
    let records = iter::once(&args.run).chain(&args.later);
    let named = records.map(|path| Ok((path.display().to_string(), read(path)?)));
    let records = named.collect::<Result<Vec<_>>>()?;
    let count = records.len();
    let Some(Finished { path, rows, .. }) = parquet::write_records(path, records)? else {
        bail!("nothing was sent while these VMs were watched: there is no row to be written");
    };
    views::sentence(&format!("{}: {rows} rows of {count} records", path.display()))?;
    Ok(Finding::Fine)
}

/// The document of `--json` for two records.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Comparison<'a> {
    changes: &'a [Change],
    before: &'a Run,
    after: &'a Run,
}

/// Shows what changed; broken if a verdict did.
fn compare(args: &Args, before: &Run, after: &Run) -> Result<Finding> {
    if before.watched.is_some() || after.watched.is_some() {
        bail!(
            "flows of a VM that was watched have no counterparts in another record: compare records of conducted runs"
        );
    }
    let changes = changes(before, after);
    if let Some(path) = &args.html {
        write(path, &views::html::page_of_two(before, after, &changes))?;
    }
    if args.json {
        views::json(&Comparison { changes: &changes, before, after })?;
    } else {
        views::changes::show(before, after, &changes)?;
    }
    Ok(Finding::fine_if(!changes.iter().any(Change::is_verdict)))
}

fn write(path: &Path, page: &str) -> Result<()> {
    fs::write(path, page).with_context(|| format!("cannot write the page {}", path.display()))
}

/// The cards to be shown: those that were asked for, or the one that the run was told.
fn models(args: &Args, run: &Run) -> Result<Vec<Model>> {
    let Some(asked) = &args.hardware else {
        let told = run.methods.iter().find_map(|method| method.dma.hardware.as_ref());
        // One that this version does not know is still in the record.
        return Ok(told.and_then(|cost| cost.model.parse().ok()).into_iter().collect());
    };
    if run.methods.iter().all(|method| method.dma.shapes.is_none()) {
        let name = args.run.display();
        bail!("{name} does not have the shapes of its chains, which --hardware needs: run the transfers again");
    }
    Ok(asked.0.clone())
}

fn read(path: &Path) -> Result<Run> {
    const AGAIN: &str = "leave a whole one with `scripts/run-qemu.sh --transfer textbook`";
    let text = fs::read_to_string(path)
        .map_err(|error| anyhow!("cannot read the run's record {}: {error}; {AGAIN}", path.display()))?;
    let run: Run = serde_json::from_str(&text).map_err(|error| {
        let name = path.display();
        if error.is_eof() {
            anyhow!("the run's record {name} is cut off at line {}; {AGAIN}", error.line())
        } else {
            anyhow!("{name} is not a run's record: {error}; {AGAIN}")
        }
    })?;
    if run.methods.is_empty() && run.watched.is_none() {
        bail!("the run's record {} has no transfer in it; {AGAIN}", path.display());
    }
    Ok(run)
}
