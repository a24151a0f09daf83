//! The guest kernel's own books of a transfer: what the program cost, and which of the kernel's functions copied how much.
//!
//! Operation, all on the thread that sends:
//! 1. [`Books::open`], then [`Books::start`] right before the method.
//! 2. [`Books::drain`] after every piece; [`Books::suspend`] and [`Books::start`] around a pause.
//! 3. [`Books::suspend`] when the method has returned. TCP may still be sending, and copying where the NIC cannot gather.
//! 4. [`Books::close`] when the receiver has everything.
//!
//! A figure that cannot be had is `None`, and the reason says why; the transfer goes on all the same.

mod breakpoint;
mod copies;
mod disk_reads;
mod perf;
mod program;
mod sums;
mod symbols;
mod tracefs;

use std::fs::File;
use std::io;

use vnic_experiment::row::Way;
use vnic_experiment::wire;

use copies::Copies;
use disk_reads::DiskReads;
use program::Program;

/// Who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// The thread that keeps the books.
    ThisThread,
    /// A program that this thread starts, with all that it starts in turn.
    Child,
}

/// What the books are about.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The file that is sent.
    pub file: &'a File,
    /// How much of it.
    pub bytes: u64,
    /// How its bytes get to the socket.
    pub way: Way,
    /// Who sends.
    pub sender: Sender,
    /// Keep the books of copies, too? They slow a transfer down.
    pub with_copies: bool,
}

/// Books that are open.
#[derive(Debug)]
pub struct Books {
    program: Program,
    disk: DiskReads,
    /// `None` where nobody asked for them: they slow a transfer down.
    copies: Option<Copies>,
}

impl Books {
    /// Books that wait for [`Books::start`].
    #[must_use]
    pub fn open(subject: &Subject<'_>) -> Books {
        let Subject { file, bytes, way, sender, with_copies } = *subject;
        Books {
            copies: with_copies.then(|| Copies::open(bytes, way, sender)),
            program: Program::new(sender),
            disk: DiskReads::of(file),
        }
    }

    /// The books count from here, the program's until the next [`Books::suspend`].
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

    /// The program's books count no more until the next start.
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
    pub fn close(self) -> wire::Books {
        let mut books = wire::Books::default();
        match self.copies {
            Some(copies) => copies.close(&mut books),
            None => {
                for function in copies::names() {
                    books.copied_bytes.insert(function.to_owned(), None);
                    books.reasons.insert(format!("copied_bytes.{function}"), "the books were not asked for".to_owned());
                }
            }
        }
        self.program.close(&mut books);
        self.disk.close(&mut books);
        books
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// Not with the copies: that would put breakpoints into the kernel that runs the tests.
    fn books_of(sender: Sender) -> Books {
        let file = &crate::file::unlinked_temporary().expect("a temporary file");
        Books::open(&Subject { file, bytes: 1 << 20, way: Way::PageCache, sender, with_copies: false })
    }

    /// A figure, or a line for `scripts/test.sh` to count that says why this machine has none.
    fn counted(books: &wire::Books, name: &str, figure: Option<u64>) -> Option<u64> {
        if figure.is_none() {
            let why = books.reasons.get(name).unwrap_or_else(|| panic!("no figure and no reason: {name}"));
            let _ = writeln!(io::stderr(), "SKIP: {name} of a program on this machine: {why}");
        }
        figure
    }

    fn books() -> Books {
        books_of(Sender::ThisThread)
    }

    #[test]
    fn a_program_that_is_started_is_counted_and_its_starter_is_not() {
        let mut books = books_of(Sender::Child);
        books.start().expect("started");
        for _ in 0..1000 {
            let _ = nix::unistd::getppid();
        }
        let ended = std::process::Command::new("true").status().expect("true");
        assert!(ended.success());
        books.suspend().expect("suspended");
        let books = books.close();
        if let Some(calls) = counted(&books, "syscalls", books.syscalls) {
            assert!((1..900).contains(&calls), "{calls}");
        }
        if let Some(faults) = counted(&books, "page_faults", books.page_faults) {
            assert!(faults > 0);
        }
        assert!(books.user_us.is_some() && books.voluntary_switches.is_some());
    }

    #[test]
    fn what_is_not_counted_says_why() {
        let mut books = books();
        books.start().expect("started");
        books.drain();
        books.suspend().expect("suspended");
        books.sent();
        let books = books.close();
        assert_eq!(books.copied_bytes.len(), 5);
        for (function, count) in &books.copied_bytes {
            assert_eq!(*count, None);
            assert!(books.reasons.contains_key(&format!("copied_bytes.{function}")));
        }
        assert_eq!(books.syscalls.is_none(), books.reasons.contains_key("syscalls"));
        assert_eq!(books.page_faults.is_none(), books.reasons.contains_key("page_faults"));
        assert_eq!(books.mode_switches.is_none(), books.reasons.contains_key("mode_switches"));
    }

    #[test]
    fn waiting_counts_as_a_voluntary_switch() {
        let mut books = books();
        books.start().expect("started");
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || drop(sender));
        assert!(receiver.recv().is_err());
        other.join().expect("the other thread ends");
        books.suspend().expect("suspended");
        let books = books.close();
        assert!(books.voluntary_switches.is_some());
        assert!(books.user_us.is_some() && books.system_us.is_some());
    }

    #[test]
    fn a_known_number_of_system_calls_is_counted() {
        let mut books = books();
        let count = |books: &mut Books, calls: u32| {
            books.start().expect("started");
            for _ in 0..calls {
                let _ = nix::unistd::getppid();
            }
            books.suspend().expect("suspended");
        };
        count(&mut books, 5);
        count(&mut books, 7);
        let books = books.close();
        // Two calls of getrusage less one per span's bookkeeping: only what stands between counts.
        if let Some(calls) = counted(&books, "syscalls", books.syscalls) {
            assert_eq!(calls, 12);
        }
    }
}
