//! The subcommands: one file each.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::control::Client;
use crate::{Finding, allocator};

mod attach;
mod completions;
mod doctor;
mod hold;
mod judge;
mod life;
mod man;
mod page;
mod passt_starter;
mod proxy;
mod qemu_args;
mod release;
mod report;
mod rings;
mod scan;
mod schemas;
mod serve;
mod status;
mod top;
mod trace;
mod verdict;
mod watch;

/// A virtio-net device you can see into.
///
/// Serves a NIC to QEMU over vhost-user, shows what its rings do without disturbing them, and tells for a transfer which
/// bytes the NIC gathered straight from the file's page-cache pages.
///
/// Exit codes: 0 fine; 1 the thing looked at is broken (ring invariant, verdict not met); 2 could not look, or bad usage.
#[derive(Debug, Parser)]
#[command(name = "vnic", version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the device to a front-end (QEMU)
    Serve(Box<serve::Args>),
    /// Look into a VM that runs already, from outside: answers as `serve` does
    Attach(attach::Args),
    /// Stand between any front-end and any back-end: answers as `serve` does
    Proxy(proxy::Args),
    /// Session, features, memory regions, queues, counters
    Status(status::Args),
    /// One consistent snapshot of the rings, chains followed
    Rings(rings::Args),
    /// The same, live, full-screen
    Watch(watch::Args),
    /// Every chain as it passes, one line each
    Trace(trace::Args),
    /// From what the guest's frames come, live: by flow and by file, zero-copy or copied
    Top(top::Args),
    /// Whose memory a page of the guest is: a file's, a program's, the kernel's
    Page(page::Args),
    /// What has happened to a page, or to a file's: who read and wrote it, and when
    Life(life::Args),
    /// Stop returning buffers of a queue
    Hold(hold::Args),
    /// Let the buffers of a held queue go
    Release(release::Args),
    /// How often what a held queue was given stands in the guest's memory
    Scan(scan::Args),
    /// Conduct a transfer run in a guest, leave its record
    Judge(Box<judge::Args>),
    /// Watch a VM for a while, judge each of its flows: zero-copy or copied
    Verdict(verdict::Args),
    /// The verdicts of a transfer run, or of a VM that was watched
    Report(report::Args),
    /// What this machine can do, and how to fix what it can't
    Doctor(doctor::Args),
    /// QEMU's options for a VM that uses what `serve` serves, or libvirt's elements
    QemuArgs(qemu_args::Args),
    /// A script with which a shell completes commands and options
    Completions(completions::Args),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man(man::Args),
    /// Start passt for a process that is locked in
    #[command(hide = true)]
    PasstStarter(passt_starter::Args),
    /// Write the schemas of what `--json` prints into a folder
    #[command(hide = true)]
    Schemas(schemas::Args),
}

impl Cli {
    /// Does what was asked.
    pub(crate) fn run(self) -> Result<Finding> {
        if matches!(self.command, Command::Serve(_) | Command::Attach(_) | Command::Proxy(_)) {
            allocator::of_one_that_stays();
        }
        match self.command {
            Command::Serve(args) => serve::run(*args),
            Command::Attach(args) => attach::run(args),
            Command::Proxy(args) => proxy::run(args),
            Command::Status(args) => status::run(&args),
            Command::Rings(args) => rings::run(&args),
            Command::Watch(args) => watch::run(&args),
            Command::Trace(args) => trace::run(&args),
            Command::Top(args) => top::run(&args),
            Command::Page(args) => page::run(args),
            Command::Life(args) => life::run(args),
            Command::Hold(args) => hold::run(args),
            Command::Release(args) => release::run(args),
            Command::Scan(args) => scan::run(args),
            Command::Judge(args) => judge::run(*args),
            Command::Verdict(args) => verdict::run(&args),
            Command::Report(args) => report::run(&args),
            Command::Doctor(args) => doctor::run(&args),
            Command::QemuArgs(args) => qemu_args::run(&args),
            Command::Completions(args) => completions::run(&args),
            Command::Man(args) => man::run(&args),
            Command::PasstStarter(args) => passt_starter::run(&args),
            Command::Schemas(args) => schemas::run(&args),
        }
    }
}

/// Which device a command looks at.
#[derive(Debug, Args)]
struct ControlArgs {
    /// The device's control socket [default: $VNIC_CONTROL, or that of the one `vnic serve` that runs]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
}

impl ControlArgs {
    fn open(&self) -> Result<Client> {
        Client::open(self.control.as_deref())
    }
}
