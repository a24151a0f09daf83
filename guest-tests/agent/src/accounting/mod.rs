//! The guest kernel's own accounts of a transfer: what the program cost, and which of the kernel's functions copied how much.
//!
//! Operation, all on the thread that sends:
//! 1. [`Accounts::open`], then [`Accounts::start`] right before the method.
//! 2. [`Accounts::drain`] after every piece; [`Accounts::suspend`] and [`Accounts::start`] around a pause.
//! 3. [`Accounts::suspend`] when the method has returned. TCP may still be sending, and copying where the NIC cannot gather.
//! 4. [`Accounts::close`] when the receiver has everything.
//!
//! A figure that cannot be had is `None`, and the reason says why; the transfer goes on all the same.

mod copies;
mod disk_reads;
mod perf;
mod program;
mod samples;
mod sums;
mod symbols;
mod tracefs;

use std::fs::File;
use std::io;

use vnic_experiment::row::PathKind;
use vnic_experiment::wire;

use copies::Copies;
use disk_reads::DiskReads;
use program::Program;

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The thread that keeps the accounts.
    ThisThread,
    /// A program that this thread starts, with all that it starts in turn.
    Child,
}

/// What the accounts are about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The file that is sent.
    pub file: &'a File,
    /// How much of it.
    pub bytes: u64,
    /// How its bytes get to the socket.
    pub path_kind: PathKind,
    /// Who sends.
    pub sender: Sender,
    /// Does it send datagrams?
    pub datagrams: bool,
    /// Keep the accounts of copies, too? They slow a transfer down.
    pub with_copies: bool,
}

/// Accounts that are open.
#[derive(Debug)]
pub struct Accounts {
    program: Program,
    disk: DiskReads,
    /// `None` where nobody asked for them: they slow a transfer down.
    copies: Option<Copies>,
}

impl Accounts {
    /// Accounts that wait for [`Accounts::start`].
    #[must_use]
    pub fn open(subject: &Subject<'_>) -> Accounts {
        let Subject { file, bytes, path_kind, sender, datagrams, with_copies } = *subject;
        Accounts {
            copies: with_copies.then(|| Copies::open(bytes, path_kind, sender, datagrams)),
            program: Program::new(sender),
            disk: DiskReads::of(file),
        }
    }

    /// The accounts count from here, the program's until the next [`Accounts::suspend`].
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn start(&mut self) -> io::Result<()> {
        // First: what it reads is no copy of the transfer's.
        self.disk.start();
        if let Some(copies) = &mut self.copies {
            copies.start();
        }
        self.program.start()
    }

    /// The program's accounts count no more until the next start.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn suspend(&mut self) -> io::Result<()> {
        self.program.stop()
    }

    /// Makes room for more records; no system call.
    pub fn drain(&mut self) {
        if let Some(copies) = &mut self.copies {
            copies.drain();
        }
    }

    /// The method has returned: what it calls from here on is no payload.
    pub fn sent(&mut self) {
        if let Some(copies) = &mut self.copies {
            copies.stop_system_calls();
        }
    }

    /// What was counted.
    #[must_use]
    pub fn close(self) -> wire::Accounts {
        let mut accounts = wire::Accounts::default();
        match self.copies {
            Some(copies) => copies.close(&mut accounts),
            None => {
                for function in copies::names() {
                    accounts.copied_bytes.insert(function.to_owned(), None);
                    accounts
                        .reasons
                        .insert(format!("copied_bytes.{function}"), "the accounts were not asked for".to_owned());
                }
            }
        }
        self.program.close(&mut accounts);
        self.disk.close(&mut accounts);
        accounts
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Not with the copies: that would put breakpoints into the kernel that runs the tests.
    fn accounts_of(sender: Sender) -> Accounts {
        let file = &crate::file::unlinked_temporary().expect("a temporary file");
        Accounts::open(&Subject {
            file,
            bytes: 1 << 20,
            path_kind: PathKind::PageCache,
            sender,
            datagrams: false,
            with_copies: false,
        })
    }

    /// A figure, or a line for `scripts/test.sh` to count that says why this machine has none.
    fn counted(accounts: &wire::Accounts, name: &str, figure: Option<u64>) -> Option<u64> {
        if figure.is_none() {
            let why = accounts.reasons.get(name).unwrap_or_else(|| panic!("no figure and no reason: {name}"));
            let _ = writeln!(io::stderr(), "SKIP: {name} of a program on this machine: {why}");
        }
        figure
    }

    fn accounts() -> Accounts {
        accounts_of(Sender::ThisThread)
    }

    #[test]
    fn a_program_that_is_started_is_counted_and_its_starter_is_not() {
        let mut accounts = accounts_of(Sender::Child);
        accounts.start().expect("started");
        for _ in 0..1000 {
            let _ = nix::unistd::getppid();
        }
        let ended = std::process::Command::new("true").status().expect("true");
        assert!(ended.success());
        accounts.suspend().expect("suspended");
        let accounts = accounts.close();
        if let Some(calls) = counted(&accounts, "syscalls", accounts.syscalls) {
            assert!((1..900).contains(&calls), "{calls}");
        }
        if let Some(faults) = counted(&accounts, "page_faults", accounts.page_faults) {
            assert!(faults > 0);
        }
        assert!(accounts.user_us.is_some() && accounts.voluntary_switches.is_some());
    }

    #[test]
    fn what_is_not_counted_says_why() {
        let mut accounts = accounts();
        accounts.start().expect("started");
        accounts.drain();
        accounts.suspend().expect("suspended");
        accounts.sent();
        let accounts = accounts.close();
        assert_eq!(accounts.copied_bytes.len(), 5);
        for (function, count) in &accounts.copied_bytes {
            assert_eq!(*count, None);
            assert!(accounts.reasons.contains_key(&format!("copied_bytes.{function}")));
        }
        assert_eq!(accounts.syscalls.is_none(), accounts.reasons.contains_key("syscalls"));
        assert_eq!(accounts.page_faults.is_none(), accounts.reasons.contains_key("page_faults"));
        assert_eq!(accounts.mode_switches.is_none(), accounts.reasons.contains_key("mode_switches"));
    }

    #[test]
    fn waiting_counts_as_a_voluntary_switch() {
        let mut accounts = accounts();
        accounts.start().expect("started");
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || drop(sender));
        assert!(receiver.recv().is_err());
        other.join().expect("the other thread ends");
        accounts.suspend().expect("suspended");
        let accounts = accounts.close();
        assert!(accounts.voluntary_switches.is_some());
        assert!(accounts.user_us.is_some() && accounts.system_us.is_some());
    }

    #[test]
    fn a_known_number_of_system_calls_is_counted() {
        let mut accounts = accounts();
        let count = |accounts: &mut Accounts, calls: u32| {
            accounts.start().expect("started");
            for _ in 0..calls {
                let _ = nix::unistd::getppid();
            }
            accounts.suspend().expect("suspended");
        };
        count(&mut accounts, 5);
        count(&mut accounts, 7);
        let accounts = accounts.close();
        // Two calls of getrusage less one per span's bookkeeping: only what stands between counts.
        if let Some(calls) = counted(&accounts, "syscalls", accounts.syscalls) {
            assert_eq!(calls, 12);
        }
    }
}
