//! The terminal as something that is written to, so that a signal ends even a write that it does not take.
//!
//! Operation: the terminal is opened a second time, where that may be, for writes that do not wait: whoever else has it open is not
//! concerned. While it takes nothing it is waited for, and for a signal that ends the program with it.
//!
//! Limits: a terminal of another user's (behind `su`) cannot be opened again. Writes to it wait, and signals for them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{FlushArg, tcflush};

use super::Signals;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Tty<'s> {
    file: Option<File>,
    /// `None`: what it does not take at once is lost.
    signals: Option<&'s Signals>,
}

impl<'s> Tty<'s> {
    /// The terminal at the standard output, written to until one of these signals comes.
    pub(super) fn new(signals: &'s Signals) -> Self {
        Tty { file: reopened().ok(), signals: Some(signals) }
    }

    /// The same for what is to be written in the end: it waits for nothing, and what the terminal has not taken yet is thrown away.
    pub(super) fn last() -> Self {
        let file = reopened().ok();
        if let Some(file) = &file
            && is_full(file)
        {
            // One that refuses even that gets what it takes.
            let _ = tcflush(file, FlushArg::TCOFLUSH);
        }
        Tty { file, signals: None }
    }
}

fn reopened() -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    File::options().write(true).custom_flags(flags.bits()).open("/proc/self/fd/1")
}

fn is_full(file: &File) -> bool {
    let mut files = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
    matches!(poll(&mut files, PollTimeout::ZERO), Ok(0))
}

impl Write for Tty<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return io::stdout().write(bytes) };
        loop {
            match file.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            let Some(signals) = self.signals else { return Err(io::ErrorKind::WouldBlock.into()) };
            let ready =
                [PollFd::new(file.as_fd(), PollFlags::POLLOUT), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
            match poll(&mut { ready }, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if signals.end()? {
                return Err(io::Error::other("a signal came before the terminal took it"));
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.file.is_none() { io::stdout().flush() } else { Ok(()) }
    }
}
