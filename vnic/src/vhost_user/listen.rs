//! How a session's socket comes about: as a server, as a client, or inherited.
//!
//! Place: `serve` waits in its own poll loop. Nothing here waits but [`Connector::connect`], which can be cancelled.
//!
//! Operation: "vhost-user protocol, Backend program conventions": `--socket-path` and `--fd`. A socket file that is left over
//! from a process that died is replaced; one that somebody listens on, or a file that is no socket, is not touched.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, connect as connect_to, getsockname,
    getsockopt, listen, socket, sockopt,
};

/// Why there is no socket to serve.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The directory of the socket is missing.
    #[error("{}: the directory {} does not exist", path.display(), directory.display())]
    NoDirectory {
        /// The socket's path.
        path: PathBuf,
        /// What is missing.
        directory: PathBuf,
    },
    /// Somebody serves this socket already.
    #[error("{}: another process listens on it", .0.display())]
    InUse(PathBuf),
    /// There is a file, and it is no socket.
    #[error("{}: exists and is no socket", .0.display())]
    NotASocket(PathBuf),
    /// A path that no socket address can hold.
    #[error("{}: {length} bytes are too long for a socket's path (107 at most)", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
    /// An inherited file that is no Unix stream socket.
    #[error("file descriptor {fd} is no Unix stream socket")]
    NotAStream {
        /// Its number.
        fd: i32,
    },
    /// A system call failed.
    #[error("cannot {action} {what}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ListenError {
    pub(crate) fn io(action: &'static str, path: &Path, errno: Errno) -> Self {
        ListenError::Io { action, what: path.display().to_string(), source: errno.into() }
    }
}

/// A listening Unix stream socket. The file that it made goes with it.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    made: Option<SocketFile>,
}

/// A socket's file, known by more than its name: it may have been replaced since.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// A socket that was there when the process started (`--fd`).
#[derive(Debug)]
pub enum Inherited {
    /// Front-ends connect to it.
    Listening(Listener),
    /// A front-end is at the other end.
    Connected(OwnedFd),
}

impl Listener {
    /// Listens at `path`.
    ///
    /// # Errors
    /// One clear sentence for each thing that can be in the way.
    pub fn bind(path: &Path) -> Result<Self, ListenError> {
        let address = address(path)?;
        let socket = new_socket(path)?;
        let bound = match bind(socket.as_raw_fd(), &address) {
            Err(Errno::EADDRINUSE) => {
                remove_stale(path, &address)?;
                bind(socket.as_raw_fd(), &address)
            }
            other => other,
        };
        bound.map_err(|errno| ListenError::io("listen at", path, errno))?;
        let made = fs::symlink_metadata(path).ok().map(|meta| SocketFile {
            path: path.to_owned(),
            device: meta.dev(),
            inode: meta.ino(),
        });
        let listener = Listener { socket, made };
        listen(&listener.socket, Backlog::new(8).unwrap_or(Backlog::MAXCONN))
            .map_err(|errno| ListenError::io("listen at", path, errno))?;
        Ok(listener)
    }

    /// The file that it made.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.made.as_ref().map(|file| file.path.as_path())
    }

    /// A front-end that has connected, or `None` if there is none. Never waits, except for a moment, or for `cancel`, where the
    /// host has nothing to take one with: it is still there then.
    ///
    /// # Errors
    /// The socket failed. One connection that broke off is none.
    pub fn accept(&self, cancel: BorrowedFd<'_>) -> Result<Option<OwnedFd>, ListenError> {
        match accept4(self.socket.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(fd) => Ok(Some(own(fd))),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => Ok(None),
            Err(errno) if is_want(errno) => {
                tracing::warn!("a front-end has to wait: {errno}");
                // Whoever waits for `cancel` sees it.
                let _ = readable_within(cancel, NO_FILES);
                Ok(None)
            }
            Err(errno) => Err(ListenError::Io {
                action: "accept a connection on",
                what: "the vhost-user socket".to_owned(),
                source: errno.into(),
            }),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(file) = &self.made
            && let Ok(meta) = fs::symlink_metadata(&file.path)
            && (meta.dev(), meta.ino()) == (file.device, file.inode)
        {
            // It is gone either way; there is nobody left to tell.
            let _ = fs::remove_file(&file.path);
        }
    }
}

impl Inherited {
    /// Takes over a socket that the parent process opened.
    ///
    /// # Errors
    /// It is no Unix stream socket.
    pub fn new(fd: OwnedFd) -> Result<Self, ListenError> {
        let number = fd.as_raw_fd();
        let is_unix = getsockname::<UnixAddr>(number).is_ok();
        let is_stream = getsockopt(&fd, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream);
        if !is_unix || !is_stream {
            return Err(ListenError::NotAStream { fd: number });
        }
        if getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false) {
            set_nonblocking(&fd)?;
            Ok(Inherited::Listening(Listener { socket: fd, made: None }))
        } else {
            Ok(Inherited::Connected(fd))
        }
    }
}

/// How long to wait where the host has no file descriptor left to take somebody with.
pub(crate) const NO_FILES: Duration = Duration::from_millis(100);

/// The first pause between two attempts to connect, and the longest; each is twice the one before.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A connection that was lost sooner than this is a failed attempt like any other: a front-end that hangs up on us at once
/// must not make us spin.
const SETTLED: Duration = Duration::from_secs(1);

/// Connects to a front-end that listens, and again whenever it has gone.
#[derive(Debug)]
pub struct Connector {
    path: PathBuf,
    pause: Duration,
    connected: Option<Instant>,
}

impl Connector {
    /// A client of the front-end at `path`.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Connector { path: path.to_owned(), pause: PAUSES.0, connected: None }
    }

    /// Tries again and again until the front-end is there. `None`: `cancel` became readable.
    ///
    /// # Errors
    /// What waiting does not mend: no directory, no permission, a file that is no socket.
    pub fn connect(&mut self, cancel: BorrowedFd<'_>) -> Result<Option<OwnedFd>, ListenError> {
        let address = address(&self.path)?;
        let mut pause = self.pause_before(Instant::now());
        loop {
            if readable_within(cancel, pause).map_err(|errno| ListenError::io("wait for", &self.path, errno))? {
                return Ok(None);
            }
            let socket = match new_socket(&self.path) {
                Err(ListenError::Io { source, .. })
                    if source.raw_os_error().is_some_and(|raw| is_want(Errno::from_raw(raw))) =>
                {
                    pause = NO_FILES;
                    continue;
                }
                socket => socket?,
            };
            match connect_to(socket.as_raw_fd(), &address) {
                Ok(()) => {
                    self.connected = Some(Instant::now());
                    return Ok(Some(socket));
                }
                // Not there yet, not listening any more, or too busy.
                Err(Errno::ENOENT | Errno::ECONNREFUSED | Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(ListenError::io("connect to", &self.path, errno)),
            }
            if fs::symlink_metadata(&self.path).is_ok_and(|meta| !meta.file_type().is_socket()) {
                return Err(ListenError::NotASocket(self.path.clone()));
            }
            pause = self.next_pause();
        }
    }

    /// How long to wait before the first attempt at `now`.
    pub(super) fn pause_before(&mut self, now: Instant) -> Duration {
        match self.connected {
            Some(at) if now.saturating_duration_since(at) < SETTLED => self.next_pause(),
            _ => {
                self.pause = PAUSES.0;
                Duration::ZERO
            }
        }
    }

    fn next_pause(&mut self) -> Duration {
        let now = self.pause;
        self.pause = now.saturating_mul(2).min(PAUSES.1);
        now
    }
}

/// Is it that the host has no more files or memory, and may have some later?
fn is_want(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM)
}

/// Waits for `pause`; `true`: `fd` became readable before it was over.
fn readable_within(fd: BorrowedFd<'_>, pause: Duration) -> Result<bool, Errno> {
    let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
        Ok(ready) => Ok(ready > 0),
        // A pause cut short is no harm.
        Err(Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno),
    }
}

fn address(path: &Path) -> Result<UnixAddr, ListenError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if !directory.is_dir() {
        return Err(ListenError::NoDirectory { path: path.to_owned(), directory: directory.to_owned() });
    }
    UnixAddr::new(path).map_err(|_| ListenError::PathTooLong { path: path.to_owned(), length: path.as_os_str().len() })
}

fn new_socket(path: &Path) -> Result<OwnedFd, ListenError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|errno| ListenError::io("open a socket for", path, errno))
}

/// Removes the socket file of a process that is no more.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<(), ListenError> {
    let meta = fs::symlink_metadata(path).map_err(|source| ListenError::Io {
        action: "look at",
        what: path.display().to_string(),
        source,
    })?;
    if !meta.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match connect_to(new_socket(path)?.as_raw_fd(), address) {
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map_err(|source| ListenError::Io {
            action: "remove the abandoned",
            what: path.display().to_string(),
            source,
        }),
        Ok(()) | Err(Errno::EAGAIN) => Err(ListenError::InUse(path.to_owned())),
        Err(errno) => Err(ListenError::io("replace", path, errno)),
    }
}

fn set_nonblocking(fd: &OwnedFd) -> Result<(), ListenError> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_GETFL)
        .and_then(|flags| fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK)))
        .map(drop)
        .map_err(|errno| ListenError::Io {
            action: "make non-blocking",
            what: "the inherited socket".to_owned(),
            source: errno.into(),
        })
}

fn own(fd: i32) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: `accept4` has just made it, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
