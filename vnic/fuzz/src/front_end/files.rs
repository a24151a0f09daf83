//! The files that come with messages.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{ftruncate, write};
use vnic::memory::testing::GuestRam;

/// A file that comes with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Arbitrary)]
pub(super) enum Kind {
    Memory,
    /// A page of memory and no more.
    Short,
    Empty,
    Event,
    /// A pipe nobody writes to any more.
    Closed,
    /// The writing end of a pipe that is full.
    Full,
    /// The writing end of a pipe nobody reads.
    Broken,
    Null,
    Zero,
    Folder,
    Socket,
}

/// One of each kind, made once: what a session does with a file of these leaves it as it was. The memory and the event are the guest's own.
#[derive(Debug)]
pub(super) struct Files(Vec<(Kind, OwnedFd)>);

impl Files {
    pub(super) fn new() -> Self {
        use Kind::{Broken, Closed, Empty, Folder, Full, Null, Short, Socket, Zero};
        let kinds = [Short, Empty, Closed, Full, Broken, Null, Zero, Folder, Socket];
        Files(kinds.map(|kind| (kind, kind.make().expect("a file of any kind"))).into())
    }

    pub(super) fn one<'a>(&'a self, kind: Kind, ram: &'a GuestRam, kick: &'a OwnedFd) -> Option<BorrowedFd<'a>> {
        match kind {
            Kind::Memory => Some(ram.fd()),
            Kind::Event => Some(kick.as_fd()),
            other => self.0.iter().find(|(kind, _)| *kind == other).map(|(_, file)| file.as_fd()),
        }
    }
}

impl Kind {
    fn make(self) -> Option<OwnedFd> {
        let memory = |len: i64| {
            let file = memfd_create(c"short", MFdFlags::MFD_CLOEXEC).ok()?;
            ftruncate(&file, len).ok()?;
            Some(file)
        };
        let pipe = || std::io::pipe().ok();
        Some(match self {
            Kind::Memory | Kind::Event => return None,
            Kind::Short => memory(0x1000)?,
            Kind::Empty => memory(0)?,
            Kind::Closed => OwnedFd::from(pipe()?.0),
            Kind::Broken => OwnedFd::from(pipe()?.1),
            Kind::Full => {
                let (_eye, end) = pipe()?;
                let end = OwnedFd::from(end);
                fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).ok()?;
                while write(&end, &[0; 4096]).is_ok() {}
                end
            }
            Kind::Null => File::options().read(true).write(true).open("/dev/null").ok()?.into(),
            Kind::Zero => File::options().read(true).write(true).open("/dev/zero").ok()?.into(),
            Kind::Folder => File::open("/").ok()?.into(),
            Kind::Socket => UnixStream::pair().ok()?.0.into(),
        })
    }
}
