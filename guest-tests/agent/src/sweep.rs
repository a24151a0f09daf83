//! What the kernel says that every page of memory is used for (`/proc/kpageflags`), twice: what is the same both times was so in
//! between, when somebody outside has looked.
//!
//! Operation: the program reads it for the first time when whoever started it is gone, pages and all; says so on the console;
//! and reads it again when there is a file called [`GO`]. Its own buffers are there before and after.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{Pid, getppid};

use crate::waiting::until;

/// What has it read the second time.
const GO: &str = "/run/flags.go";
/// Where it leaves what is the same.
const SAME: &str = "/run/flags";
/// On the console, when it has read the first time.
const READ: &str = "vnic guest: the pages' flags are read";
/// For the host's look, or its starter's end.
const WAITS: Duration = Duration::from_secs(300);

/// Flags that come and go while a page is what it is: referenced, dirty, active, idle, under writeback, …
const FLEETING: u64 = 1 | 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8 | 1 << 9 | 1 << 11 | 1 << 13 | 1 << 25;

/// Reads, waits, reads, and leaves what is the same.
///
/// # Errors
/// The kernel does not say, or nobody says go.
pub fn read() -> Result<()> {
    let (mut before, mut after) = (buffer()?, buffer()?);
    let mut text = String::with_capacity(4 << 20);
    // Written to, so that its pages are there from the start, too.
    text.extend(std::iter::repeat_n('.', 4 << 20));
    text.clear();
    #[expect(clippy::print_stdout, reason = "whoever started it waits for this line")]
    {
        println!("all");
    }
    wait_until(|| getppid() == Pid::from_raw(1))?;
    fill(&mut before)?;
    writeln!(OpenOptions::new().write(true).open("/dev/console")?, "{READ}").context("/dev/console")?;
    wait_until(|| Path::new(GO).exists())?;
    fill(&mut after)?;
    let mut run: Option<(usize, usize, u64)> = None;
    for (number, (one, other)) in
        before.iter().zip(&after).map(|(one, other)| (one & !FLEETING, other & !FLEETING)).enumerate()
    {
        match &mut run {
            Some((_, count, flags)) if one == other && one == *flags => *count += 1,
            _ => {
                if let Some((first, count, flags)) = run.take() {
                    writeln!(text, "{first} {count} {flags:#x}")?;
                }
                run = (one == other).then_some((number, 1, one));
            }
        }
    }
    if let Some((first, count, flags)) = run {
        writeln!(text, "{first} {count} {flags:#x}")?;
    }
    fs::write(format!("{SAME}.unfinished"), text)?;
    Ok(fs::rename(format!("{SAME}.unfinished"), SAME)?)
}

/// Room for the flags of every page there can be; all of it written to.
fn buffer() -> Result<Vec<u64>> {
    // As long as the file: it ends with the last page.
    let file = File::open("/proc/kpageflags").context("/proc/kpageflags")?;
    let mut pages = 1 << 15;
    let mut word = [0; 8];
    while file.read_at(&mut word, pages * 8)? == 8 {
        pages += 1 << 15;
    }
    Ok(vec![u64::MAX; usize::try_from(pages)?])
}

fn fill(flags: &mut [u64]) -> Result<()> {
    let file = File::open("/proc/kpageflags").context("/proc/kpageflags")?;
    let mut piece = [0; 4096];
    let mut done = 0;
    loop {
        let got = match file.read_at(&mut piece, done as u64 * 8) {
            Ok(got) => got / 8,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("/proc/kpageflags"),
        };
        for (to, from) in flags.iter_mut().skip(done).zip(piece.chunks_exact(8)).take(got) {
            *to = u64::from_le_bytes(std::array::from_fn(|at| from[at]));
        }
        done += got;
        if got == 0 || done >= flags.len() {
            return Ok(());
        }
    }
}

fn wait_until(come: impl Fn() -> bool) -> Result<()> {
    until(WAITS, || Ok(come().then_some(())))?.context("nobody came")
}
