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
use guest_agent::{disk, pages};
use vnic_experiment::wire::PAGE_SIZE;

/// What the first eight bytes of a page begin with that `churn` has written; the file's number follows.
const MARK: u64 = 0x5_6e1c << 44;
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
    /// Create, rename, cut and delete files on each file system, in the background, for ever.
    Churn,
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
        What::Churn => churn(),
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
    let child = own_program().arg("keep").stdout(Stdio::piped()).spawn().context("start the keeper")?;
    for line in BufReader::new(child.stdout.context("its output")?).lines() {
        let line = line?;
        if line == "all" {
            return Ok(());
        }
        println!("{line}");
    }
    anyhow::bail!("it ended")
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
    println!("all");
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

fn churn() -> Result<()> {
    let disk = disk::mounted()?.to_owned();
    for (number, folder) in [Path::new("/tmp"), &disk, Path::new("/run"), &disk].into_iter().enumerate() {
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
