//! What a transfer costs the program: system calls, page faults, context switches, CPU time.
//!
//! Operation: CPU time and context switches come from `getrusage`, the others from perf counters of this thread; a perf
//! counter, because `getrusage` does not tell faults in user mode from those the kernel takes on the program's behalf.
//! The accounts are kept in one or more spans: from [`Program::start`] to [`Program::stop`].
//!
//! A program that this thread starts has counters of its own from its first instruction on, with what it starts in turn;
//! the kernel adds them to ours. Its CPU time and context switches are known when it has been waited for.
//!
//! Limits: what helper threads do (io_uring's workers) is not counted.

use std::fs::{self, File};
use std::io;

use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use vnic_experiment::wire;

use super::Sender;
use super::perf::{self, Attr, Scope};
use super::tracefs;

/// The accounts of this thread.
#[derive(Debug)]
pub(super) struct Program {
    user_faults: Result<File, String>,
    kernel_faults: Result<File, String>,
    syscalls: Result<File, String>,
    sender: Sender,
    /// When the span began; `None` between spans.
    since: Option<Usage>,
    spans: u64,
    sums: Sums,
}

/// Of the spans that are over.
#[derive(Debug, Default, Clone, Copy)]
struct Sums {
    voluntary: i64,
    involuntary: i64,
    user_us: i64,
    system_us: i64,
}

impl Program {
    /// Accounts that wait for [`Program::start`].
    pub(super) fn new(sender: Sender) -> Program {
        let flags = match sender {
            Sender::ThisThread => 0,
            Sender::Child => perf::INHERIT | perf::ENABLE_ON_EXEC,
        };
        let faults = |without| {
            let (config, flags) = (perf::COUNT_PAGE_FAULTS, flags | without);
            counter(Attr { kind: perf::TYPE_SOFTWARE, config, flags, ..Attr::default() }, "page faults")
        };
        Program {
            user_faults: faults(perf::EXCLUDE_KERNEL),
            kernel_faults: faults(perf::EXCLUDE_USER),
            syscalls: count_syscalls(flags),
            sender,
            since: None,
            spans: 0,
            sums: Sums::default(),
        }
    }

    /// Begins a span. The system calls' counter is switched on last, and off first.
    pub(super) fn start(&mut self) -> io::Result<()> {
        if self.sender == Sender::Child {
            self.since = Some(self.usage()?);
            return Ok(());
        }
        for counter in [&self.user_faults, &self.kernel_faults].into_iter().flatten() {
            perf::enable(counter)?;
        }
        self.since = Some(self.usage()?);
        self.spans += 1;
        self.syscalls.as_ref().map_or(Ok(()), perf::enable)
    }

    fn usage(&self) -> io::Result<Usage> {
        Ok(getrusage(match self.sender {
            Sender::ThisThread => UsageWho::RUSAGE_THREAD,
            Sender::Child => UsageWho::RUSAGE_CHILDREN,
        })?)
    }

    /// Ends the span.
    pub(super) fn stop(&mut self) -> io::Result<()> {
        self.syscalls.as_ref().map_or(Ok(()), perf::disable)?;
        let now = self.usage()?;
        for counter in [&self.user_faults, &self.kernel_faults].into_iter().flatten() {
            perf::disable(counter)?;
        }
        if let Some(since) = self.since.take() {
            let us = |of: fn(&Usage) -> nix::sys::time::TimeVal| (of(&now) - of(&since)).num_microseconds();
            self.sums.voluntary += now.voluntary_context_switches() - since.voluntary_context_switches();
            self.sums.involuntary += now.involuntary_context_switches() - since.involuntary_context_switches();
            self.sums.user_us += us(Usage::user_time);
            self.sums.system_us += us(Usage::system_time);
        }
        Ok(())
    }

    /// Writes what was counted into the record.
    pub(super) fn close(self, accounts: &mut wire::Accounts) {
        let mut figure = |name: &str, counter: Result<File, String>| {
            let counted = counter.and_then(|counter| perf::count(&counter).map_err(|error| error.to_string()));
            counted.map_err(|why| accounts.reasons.insert(name.to_owned(), why)).ok()
        };
        let page_faults = figure("page_faults", self.user_faults);
        let kernel_page_faults = figure("kernel_page_faults", self.kernel_faults);
        // Each span's last system call is the one that switched the counter off.
        let syscalls = figure("syscalls", self.syscalls).map(|count| count.saturating_sub(self.spans));
        accounts.page_faults = page_faults;
        accounts.kernel_page_faults = kernel_page_faults;
        accounts.syscalls = syscalls;
        accounts.mode_switches = syscalls.zip(page_faults).map(|(calls, faults)| 2 * (calls + faults));
        if accounts.mode_switches.is_none() {
            let why = "it is two per system call and user page fault, and one of these was not counted";
            accounts.reasons.insert("mode_switches".to_owned(), why.to_owned());
        }
        accounts.voluntary_switches = u64::try_from(self.sums.voluntary).ok();
        accounts.involuntary_switches = u64::try_from(self.sums.involuntary).ok();
        accounts.user_us = u64::try_from(self.sums.user_us).ok();
        accounts.system_us = u64::try_from(self.sums.system_us).ok();
    }
}

fn counter(attr: Attr, what: &str) -> Result<File, String> {
    let attr = Attr { flags: attr.flags | perf::DISABLED, ..attr };
    perf::open(attr, Scope::ThisThread).map_err(|error| format!("the perf counter of {what}: {error}"))
}

/// A counter of the tracepoint `raw_syscalls:sys_enter`.
fn count_syscalls(flags: u64) -> Result<File, String> {
    let path = tracefs::ROOT.to_owned() + "/events/raw_syscalls/sys_enter/id";
    let id = fs::read_to_string(&path).map_err(|error| format!("tracefs has no raw_syscalls:sys_enter: {error}"))?;
    let config = id.trim().parse().map_err(|_| format!("{path} holds {id:?}"))?;
    counter(Attr { kind: perf::TYPE_TRACEPOINT, config, flags, ..Attr::default() }, "system calls")
}
