//! `vnic judge`: conducts a transfer run in a guest and leaves its record, or shows a hazard.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use sha2::{Digest, Sha256};
use vnic_experiment::filesystem::Filesystems;
use vnic_experiment::row::{BadRow, PROGRAM, Row};
use vnic_experiment::run::{KernelModule, Run};
use vnic_experiment::verdict;
use vnic_experiment::wire::hex;

use super::ControlArgs;
use crate::conductor::Witnesses;
use crate::conductor::hazard::Hazard;
use crate::{Finding, conductor, views};

/// Options of `vnic judge`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The socket of QEMU's side of the guest's record port
    #[arg(long, value_name = "SOCK")]
    record: PathBuf,
    #[command(flatten)]
    control: ControlArgs,
    /// Where to leave the run's record
    #[arg(long, value_name = "FILE", required_unless_present = "hazard")]
    output: Option<PathBuf>,
    /// Rows to run, with commas between. `all`: every method, without scatter-gather and without checksum too;
    /// `textbook`: read-write, mmap-write, sendfile, sendfile-no-sg, splice. vfio-userspace, which needs an IOMMU in the
    /// guest, is in neither, nor is `program`, which needs --program
    #[arg(long, value_name = "LIST", value_parser = parse_rows, required_unless_present = "hazard")]
    transfer: Option<Rows>,
    /// Show a hazard in place of a run
    #[arg(long, value_enum, value_name = "NAME", conflicts_with_all = ["transfer", "output", "bytes", "witness"])]
    hazard: Option<Hazard>,
    /// With these methods, in place of the hazard's usual ones
    #[arg(long, value_name = "LIST", value_delimiter = ',', requires = "hazard")]
    method: Vec<String>,
    /// Bytes of the file
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), required_unless_present = "hazard")]
    bytes: Option<u64>,
    /// Bytes per system call
    #[arg(long, value_name = "N", default_value_t = 65536, value_parser = clap::value_parser!(u64).range(1..))]
    chunk: u64,
    /// Where the guest makes the file, with commas between, every row on each: tmpfs, ext4, xfs, …
    #[arg(long, value_name = "LIST", default_value = "tmpfs")]
    filesystem: Filesystems,
    /// Who is asked, with commas between
    #[arg(
        long,
        value_enum,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "device,guest,memory,introspection"
    )]
    witness: Vec<Witness>,
    /// The socket of QEMU's plugin that counts the CPU's accesses to the file's pages: a witness more
    #[arg(long, value_name = "SOCK", conflicts_with = "hazard")]
    touches: Option<PathBuf>,
    /// What the row `program` is to run in the guest, with its arguments: the file is its standard input, the connection its
    /// standard output
    #[arg(long, value_name = "COMMAND", value_parser = parse_command)]
    program: Option<Argv>,
    /// A kernel module that the guest was given, for the rows that name it (sendfile+copy-splice: copy-splice.ko)
    #[arg(long, value_name = "FILE", value_parser = parse_module)]
    kernel_module: Vec<KernelModule>,
    /// The receiver, as the guest sees it
    #[arg(long, value_name = "ADDR:PORT", default_value = "10.0.2.2:9000")]
    to: SocketAddr,
    /// The accelerator the guest runs under, for the record
    #[arg(long, value_enum)]
    kernel_accel: Option<Accel>,
    /// QEMU's version, for the record
    #[arg(long, value_name = "S")]
    qemu_version: Option<String>,
}

/// A module by its file.
fn parse_module(path: &str) -> Result<KernelModule, String> {
    let content = fs::read(path).map_err(|error| format!("cannot read it: {error}"))?;
    let name = Path::new(path).file_stem().unwrap_or_default().display().to_string();
    Ok(KernelModule { name, sha256: hex(&Sha256::digest(&content)) })
}

#[derive(Debug, Clone)]
struct Rows(Vec<Row>);

/// A program and its arguments.
#[derive(Debug, Clone)]
struct Argv(Vec<String>);

fn parse_command(text: &str) -> Result<Argv, &'static str> {
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    if words.is_empty() { Err("no program is named") } else { Ok(Argv(words)) }
}

fn parse_rows(list: &str) -> Result<Rows, BadRow> {
    Row::parse_list(list).map(Rows)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Witness {
    /// The descriptors the NIC was handed, against the file's pages
    Device,
    /// The guest kernel's accounts
    Guest,
    /// The guest's memory, read from outside while the first chunk is held
    Memory,
    /// The guest kernel's structures, read from outside: whose the pages are that the payload lay in
    Introspection,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Accel {
    Kvm,
    Tcg,
}

fn name_of(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Conducts the run; broken if a verdict is not the expected one or a digest is wrong. The record is left even if the run
/// came to an early end: what was not measured then is `null` with that reason. A hazard is broken if it did not go as
/// described.
pub(super) fn run(args: Args) -> Result<Finding> {
    let asked = |witness| args.witness.contains(&witness);
    let rows = args.transfer.map(|rows| rows.0).unwrap_or_default();
    if args.program.is_none() && rows.iter().any(|row| row.method == PROGRAM) {
        bail!("say what the row `{PROGRAM}` is to run with --program COMMAND");
    }
    let is_there = |name: &String| args.kernel_module.iter().any(|module| module.name == *name);
    if let Some((row, name)) =
        rows.iter().find_map(|row| Some((row, row.module.as_ref().filter(|name| !is_there(name))?)))
    {
        bail!("the row {row} wants the kernel module {name}: bring it with --kernel-module {name}.ko");
    }
    let plan = conductor::Plan {
        rows,
        bytes: args.bytes.unwrap_or_default(),
        chunk: args.chunk,
        filesystems: args.filesystem.0.iter().map(|filesystem| filesystem.name.to_owned()).collect(),
        witnesses: Witnesses {
            device: asked(Witness::Device),
            guest: asked(Witness::Guest),
            memory: asked(Witness::Memory),
            introspection: asked(Witness::Introspection),
        },
        kernel_modules: args.kernel_module,
        program: args.program.map(|argv| argv.0).unwrap_or_default(),
        touches: args.touches,
        to: args.to,
        accel: args.kernel_accel.map(name_of),
        qemu: args.qemu_version,
    };
    if let Some(hazard) = args.hazard {
        let usual = || hazard.methods().iter().map(|method| (*method).to_owned()).collect();
        let methods: Vec<String> = if args.method.is_empty() { usual() } else { args.method };
        let stories = conductor::hazard::show(&args.record, args.control.open()?, &plan, hazard, &methods)?;
        views::hazard::show(hazard, &stories)?;
        return Ok(Finding::fine_if(stories.iter().all(|story| story.as_described)));
    }
    let Some(output) = args.output else { bail!("say where to leave the record with --output FILE") };
    let folder = folder_of(&output)?;
    let control = args.control.open()?;
    let (run, ended) = conductor::conduct(&args.record, control, &plan)?;
    write_whole(&folder, &output, &run)?;
    ended?;
    Ok(Finding::fine_if(run.methods.iter().all(|method| verdict::surprises(method).is_empty())))
}

/// The folder the record goes to; looked at before the run, not after it.
fn folder_of(output: &Path) -> Result<PathBuf> {
    let folder = match output.parent() {
        Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
        Some(parent) => parent.to_owned(),
        None => bail!("{} is no file name; say where to leave the record with --output FILE", output.display()),
    };
    if !folder.is_dir() {
        bail!("the folder {} does not exist; make it, or name another file with --output", folder.display());
    }
    Ok(folder)
}

/// Nobody ever sees half a record: it is written beside its place and then moved there.
fn write_whole(folder: &Path, output: &Path, run: &Run) -> Result<()> {
    let beside = folder.join(format!(".run.json.{}", std::process::id()));
    let mut text = serde_json::to_vec_pretty(run)?;
    text.push(b'\n');
    let written = File::create(&beside)
        .and_then(|mut file| {
            file.write_all(&text)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&beside, output));
    if written.is_err() {
        // The error below is what counts; a leftover beside it is only untidy.
        let _ = fs::remove_file(&beside);
    }
    written.with_context(|| format!("cannot leave the run's record in {}", output.display()))
}
