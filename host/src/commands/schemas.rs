//! `vnic schemas`: the schemas of what `--json` prints, written into a folder by whoever packs vnic. `docs/schema` has them.
//!
//! They are made from the types that are printed, so that neither can change without the other.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use vnic::observe::protocol::{Life, Reply, Report, Request, Status, TraceEvent};
use vnic_experiment::run::Run;
use vnic_experiment::scan::ScanReport;

use super::{doctor, report, rings, serve};
use crate::control::Page;
use crate::trouble::Trouble;
use crate::{Finding, views};

/// Options of `vnic schemas`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where they go, a file each; the folder is made
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// A line of `vnic trace --json`.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is wanted: each kind of line is printed by itself")]
enum TraceLine {
    Event(TraceEvent),
    Trouble(Trouble),
}

/// Each schema: its file's name, and what is of that form.
fn all() -> Vec<(&'static str, &'static str, Schema)> {
    vec![
        ("status", "`vnic status --json`", of::<Status>()),
        ("rings", "`vnic rings --json`; with `--every`, each line", of::<rings::Document<'_>>()),
        ("trace", "Each line of `vnic trace --json`", of::<TraceLine>()),
        ("top", "`vnic top --json`; each line where it goes on", of::<Report>()),
        ("page", "Each line of `vnic page --json`", of::<Page>()),
        ("life", "`vnic life --json`", of::<Life>()),
        ("scan", "`vnic scan --json`", of::<ScanReport>()),
        ("run", "A run's record (run.json), which `vnic judge` and `vnic verdict` write", of::<Run>()),
        ("report", "`vnic report RUN.json --json`", of::<report::Document<'_>>()),
        ("comparison", "`vnic report RUN.json LATER.json --json`", of::<report::Comparison<'_>>()),
        ("doctor", "`vnic doctor --json`", of::<doctor::Document<'_>>()),
        ("capabilities", "`vnic serve --print-capabilities`", of::<serve::Capabilities>()),
        ("qemu-args", "`vnic qemu-args --json`", of::<Vec<String>>()),
        ("request", "What the control socket is asked, a line each", request()),
        ("reply", "What it answers, a line each", of::<Reply>()),
    ]
}

/// As it is printed: what may be left out is not required.
fn of<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12().for_serialize().into_generator().into_root_schema_for::<T>()
}

/// As it is read: what has a default may be left out.
fn request() -> Schema {
    SchemaSettings::draft2020_12().for_deserialize().into_generator().into_root_schema_for::<Request>()
}

/// Writes them.
pub(super) fn run(args: &Args) -> Result<Finding> {
    let folder = args.folder.display();
    fs::create_dir_all(&args.folder).with_context(|| format!("{folder}: cannot be made"))?;
    for (name, title, mut schema) in all() {
        schema.insert("title".to_owned(), title.into());
        let path = args.folder.join(format!("{name}.json"));
        let text = serde_json::to_string_pretty(&schema)? + "\n";
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    views::sentence(&format!("JSON schemas (draft 2020-12) are in {folder}"))?;
    Ok(Finding::Fine)
}
