//! The command behind `scripts/introspection.sh`: what is said of a guest's pages from outside, against what the guest says
//! itself, on several kernels.
//!
//! | module | one sentence |
//! |---|---|
//! | [`guest`] | a guest of a kernel, with what is looked at in it |
//! | [`rest`] | pages at rest, of each kind, and all of memory |
//! | [`reboot`] | another kernel in the same machine |
//! | [`attach`] | `vnic attach` to QEMU's own devices: devices, pages, and what of a file that is sent it sees |
//! | [`tally`] | right, wrong, unsettled; the table |

#![expect(clippy::print_stderr, clippy::print_stdout, reason = "a program for people")]

mod attach;
mod guest;
mod reboot;
mod rest;
mod tally;

use std::panic;
use std::process::ExitCode;

use clap::Parser;
use guest_fixture::Deadline;
use guest_launcher::repository;

use crate::guest::{Guest, SPLIT, WHOLE};
use crate::tally::{Line, Tally};

/// For the look-ups under churn.
const CHURN: Deadline = Deadline::secs("too few look-ups", 400);

/// Boots guests of each kernel, has them make pages whose owner they know (of files on each file system, of programs), and
/// compares what is said of them from outside with the guest's own /proc/self/pagemap and /proc/kpageflags; at rest, while
/// files come and go, and after a reboot into another kernel. `vnic attach` looks into a VM of each that is nothing of ours. Leaves target/introspection/introspection.json.
///
/// Exit codes: 0; 1 something said was wrong, or a guest failed; 2 bad usage.
#[derive(Debug, Parser)]
#[command(name = "introspection.sh")]
struct Options {
    /// Kernels: the newest of a version that Debian has, or that of a suite
    #[arg(value_name = "KERNEL", default_values = ["5.10", "6.1", "6.12", "7.3"])]
    kernels: Vec<String>,
    /// Look-ups while files come and go, on each kernel; 0: none
    #[arg(long, value_name = "N", default_value = "100000")]
    churn: u64,
    /// Only these: rest, split (3 GiB around the PCI hole), attach (split rings, packed ones; root), reboot (from each kernel into the next)
    #[arg(long, value_name = "PART,…", value_delimiter = ',', default_value = "rest,split,attach,reboot", value_parser = ["rest", "split", "attach", "reboot"])]
    only: Vec<String>,
    /// As JSON, one object a line of the table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let asked = |part: &str| options.only.iter().any(|only| only == part);
    let mut lines = Vec::new();
    let mut failed = false;
    let mut part = |what: &str, run: &mut dyn FnMut() -> Vec<Line>| {
        eprintln!("== {what}");
        // What the fixture cannot go on with is a panic that has said why.
        match panic::catch_unwind(panic::AssertUnwindSafe(run)) {
            Ok(some) => {
                for line in &some {
                    eprintln!("{line}");
                }
                lines.extend(some);
            }
            Err(_) => failed = true,
        }
    };
    for kernel in &options.kernels {
        if asked("rest") {
            part(&format!("{kernel}, {}", WHOLE.memory), &mut || {
                let mut guest = Guest::boot(kernel, WHOLE);
                let mut lines = rest::all(&mut guest);
                if options.churn > 0 {
                    lines.extend(under_churn(&mut guest, options.churn));
                }
                guest.power_off();
                lines
            });
        }
        if asked("split") {
            part(&format!("{kernel}, {}", SPLIT.memory), &mut || {
                let mut guest = Guest::boot(kernel, SPLIT);
                let lines = rest::all(&mut guest);
                guest.power_off();
                lines
            });
        }
    }
    if asked("attach") {
        for (kernel, rings) in options.kernels.iter().flat_map(|kernel| attach::RINGS.map(|rings| (kernel, rings))) {
            part(&format!("{kernel}, attached to, {rings} rings"), &mut || attach::looks(kernel, rings));
        }
    }
    if asked("reboot") {
        let next = options.kernels.iter().cycle().skip(1);
        for (from, to) in options.kernels.iter().zip(next).filter(|(from, to)| from != to) {
            part(&format!("{from} starts {to}"), &mut || reboot::into_another(from, to));
        }
    }
    if options.json {
        for line in &lines {
            println!("{}", serde_json::to_string(line).unwrap_or_default());
        }
    } else {
        print!("{}", tally::table(&lines));
    }
    let record = repository().join("target/introspection/introspection.json");
    match tally::write(&lines, &record) {
        Ok(()) => eprintln!("{}", record.display()),
        Err(error) => eprintln!("introspection.sh: {error:#}"),
    }
    let wrong = lines.iter().any(|line| line.tally.wrong > 0);
    ExitCode::from(u8::from(failed || wrong || lines.is_empty()))
}

fn under_churn(guest: &mut Guest, looks: u64) -> Vec<Line> {
    let folders = guest.churn();
    let words: Vec<&str> = ["pages", "churn"].into_iter().chain(folders.iter().map(String::as_str)).collect();
    guest.agent.run(&words);
    let mut eyes = guest.watched.eyes();
    let churned = guest.watched.churned(&mut eyes, looks, CHURN);
    for wrong in churned.wrong.iter().take(tally::SHOWN) {
        eprintln!("wrong: {wrong}");
    }
    // Which of its file systems a page that would not stand still is of is not known.
    let (wrong, unsettled) = (churned.wrong.len() as u64, churned.unsettled);
    let each = churned.settled.into_iter().map(|(filesystem, right)| {
        let tally = Tally { right, ..Tally::default() };
        guest.line(&format!("{filesystem}, under churn"), tally, None)
    });
    let mut lines: Vec<Line> = each.collect();
    if let Some(last) = lines.last_mut() {
        last.tally.right = last.tally.right.saturating_sub(wrong);
        (last.tally.wrong, last.tally.unsettled) = (wrong, unsettled);
        last.note = Some("unsettled: of all file systems".to_owned());
    }
    lines
}
