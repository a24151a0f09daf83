//! Pages whose owner is known, for who looks at the guest's memory from outside: files, a program's own memory; at rest, or
//! under constant change.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use guest_agent::buffer::PageBuffer;
use guest_agent::owned::Kept;
use guest_agent::transfer::Unsupported;
use guest_agent::{disk, pages, sweep};
use vnic_experiment::wire::PAGE_SIZE;

/// What the first eight bytes of a page begin with that `churn` has written; the file's number follows.
const MARK: u64 = 0x5_6e1c << 44;
/// The last line of who keeps pages.
const ALL: &str = "all";
/// Pages of each file at rest.
const PAGES: usize = 300;

/// Has pages whose owner is known.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make files, prints where their pages and the program's own are (`file PATH PAGE GPA`, `program PID ADDRESS GPA`), and
    /// keep all of it in the background.
    Hold,
    /// The process in the background.
    Keep,
    /// Have pages of one kind, print whose they are (an `Owned` as JSON a line), and keep them in the background. Exits with 3
    /// where this kernel has none, and says why.
    Show {
        /// `tmpfs`, `forked`, …
        kind: String,
    },
    /// The process in the background.
    KeepKind {
        /// As of `show`.
        kind: String,
    },
    /// Read in the background what the kernel says that every page is used for; once more when there is /run/flags.go. Leaves
    /// in /run/flags where it is the same: `FIRST-PAGE COUNT FLAGS`, a line each.
    Flags,
    /// The process in the background.
    ReadFlags,
    /// Create, rename, cut and delete files in these folders, in the background, for ever.
    Churn {
        /// Or on each file system that every guest has.
        folders: Vec<PathBuf>,
    },
    /// One of the processes that do.
    Worker {
        /// In this folder.
        folder: PathBuf,
        /// Files are numbered from here.
        first: u64,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().what {
        What::Hold => hold(),
        What::Keep => keep(),
        What::Show { kind } => show(&kind),
        What::KeepKind { kind } => keep_kind(&kind),
        What::Flags => in_background(&["read-flags"]),
        What::ReadFlags => sweep::read(),
        What::Churn { folders } => churn(folders),
        What::Worker { folder, first } => work(&folder, first),
    }
}

fn own_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// Starts what keeps the pages, and shows what it says of them.
fn hold() -> Result<()> {
    in_background(&["keep"])
}

fn show(kind: &str) -> Result<()> {
    in_background(&["keep-kind", kind])
}

/// Starts this program with these words, and shows what it says until it has said all.
fn in_background(words: &[&str]) -> Result<()> {
    let mut child = own_program().args(words).stdout(Stdio::piped()).spawn().context("start the keeper")?;
    for line in BufReader::new(child.stdout.take().context("its output")?).lines() {
        let line = line?;
        if line == ALL {
            return Ok(());
        }
        println!("{line}");
    }
    process::exit(child.wait()?.code().unwrap_or(1))
}

fn keep_kind(kind: &str) -> Result<()> {
    let kept = match Kept::of(kind) {
        Err(error) => {
            println!("{error:#}");
            process::exit(if error.is::<Unsupported>() { 3 } else { 1 });
        }
        Ok(kept) => kept,
    };
    for page in &kept.pages {
        println!("{}", serde_json::to_string(page)?);
    }
    println!("{ALL}");
    loop {
        nix::unistd::pause();
    }
}

fn keep() -> Result<()> {
    let disk = disk::mounted()?.to_owned();
    let mut open = Vec::new();
    for folder in [Path::new("/tmp"), &disk] {
        let within = folder.join("a folder").join("below");
        fs::create_dir_all(&within)?;
        for path in [folder.join("kept.bin"), within.join("kept too")] {
            open.push(at_rest(&path, &path)?);
        }
        let gone = folder.join("gone");
        open.push(at_rest(&gone, Path::new(&format!("{} (deleted)", gone.display())))?);
    }
    let mut own = PageBuffer::new(PAGES * PAGE_SIZE as usize)?;
    own.bytes_mut().fill(7);
    let address = own.bytes().as_ptr() as u64;
    for (page, gpa) in (0..).zip(pages::frames(address, PAGES)?) {
        println!("program {} {:#x} {gpa:#x}", process::id(), address + page * PAGE_SIZE);
    }
    println!("{ALL}");
    loop {
        nix::unistd::pause();
    }
}

/// A file of many pages, called `name` from outside.
fn at_rest(path: &Path, name: &Path) -> Result<File> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    for page in 0..PAGES {
        file.write_all(&[page as u8; PAGE_SIZE as usize])?;
    }
    // Dirty pages of a disk's file system may move before they are written.
    file.sync_all()?;
    if name != path {
        fs::remove_file(path)?;
    }
    for run in pages::page_runs(&file)? {
        for at in 0..run.count {
            println!("file {} {} {:#x}", name.display(), run.page + at, run.gpa + at * PAGE_SIZE);
        }
    }
    Ok(file)
}

fn churn(mut folders: Vec<PathBuf>) -> Result<()> {
    if folders.is_empty() {
        let disk = disk::mounted()?;
        folders = [Path::new("/tmp"), disk, Path::new("/run"), disk].map(PathBuf::from).to_vec();
    }
    for (number, folder) in folders.iter().enumerate() {
        let folder = folder.join(format!("churn{number}"));
        fs::create_dir_all(&folder)?;
        let first = ((number as u64 + 1) << 32).to_string();
        own_program().arg("worker").arg(folder).arg(first).stdout(Stdio::null()).spawn().context("start a worker")?;
    }
    Ok(())
}

/// Files called `fNUMBER.ANYTHING`, each page of which begins and ends with the file's number and its own.
fn work(folder: &Path, first: u64) -> Result<()> {
    let (mut state, mut number) = (first | 1, first);
    let mut random = move |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut names: Vec<PathBuf> = Vec::new();
    loop {
        if names.len() < 24 {
            number += 1;
            let path = folder.join(format!("f{number:x}.0"));
            let mut file = File::create(&path)?;
            for page in 0..1 + random(20) {
                let words = [(MARK | number).to_le_bytes(), page.to_le_bytes()].concat();
                file.write_all(&words.repeat(PAGE_SIZE as usize / words.len()))?;
            }
            names.push(path);
            continue;
        }
        let at = random(names.len() as u64) as usize;
        match random(4) {
            0 => File::options().write(true).open(&names[at])?.set_len(PAGE_SIZE)?,
            1 => {
                let other = names[at].with_extension(random(1000).to_string());
                fs::rename(&names[at], &other)?;
                // The name may have been its own already.
                names[at] = other;
            }
            _ => fs::remove_file(names.swap_remove(at))?,
        }
        ensure!(number >> 32 == first >> 32, "the numbers are used up");
    }
}
