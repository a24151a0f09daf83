//! The thread that connects to the far end, again whenever that is gone: the data path waits for nobody.
//!
//! Operation: the port asks for a connection; the thread dials until it has one, longer apart each time, and hands the
//! socket over with a wake-up. It ends with the port.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::sandbox::{self, Role};

/// The first pause after a connection that could not be made, or ended as soon as this.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

/// How a connection is made.
pub(super) trait Dial: std::fmt::Debug + Send + 'static {
    /// One attempt, for the guest with this MAC address. It ends in bounded time.
    fn dial(&mut self, guest: Mac) -> io::Result<UnixStream>;

    /// What it takes, as a thread's role.
    const ROLE: Role;
}

/// The port's side.
#[derive(Debug)]
pub(super) struct Connector {
    /// `None` only while it is dropped.
    requests: Option<Sender<Mac>>,
    sockets: Receiver<UnixStream>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl Connector {
    /// Starts the thread, which dials once it is [asked to](Connector::request).
    pub(super) fn start<D: Dial>(name: String, dial: D) -> io::Result<Self> {
        let (requests, asked) = channel();
        let (deliver, sockets) = channel();
        let wake = Arc::new(EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let waker = Arc::clone(&wake);
        let body = move || {
            if sandbox::enters(D::ROLE) && run(&name, dial, &asked, &deliver, &waker).is_none() {
                tracing::debug!(link = name, "connector ends");
            }
        };
        let thread = std::thread::Builder::new().name("link-connector".into()).spawn(body)?;
        Ok(Connector { requests: Some(requests), sockets, wake, thread: Some(thread) })
    }

    /// Asks for a connection; [`Connector::socket`] has it some time later.
    pub(super) fn request(&self, guest: Mac) {
        if let Some(requests) = &self.requests {
            // Without a thread there is no connection, ever: it ends only with this.
            let _ = requests.send(guest);
        }
    }

    /// The connection that was asked for, once.
    pub(super) fn socket(&self) -> Option<UnixStream> {
        self.sockets.try_recv().ok()
    }

    /// Becomes readable with each new connection; never read.
    pub(super) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `None`: the port is gone.
fn run(
    name: &str,
    mut dial: impl Dial,
    asked: &Receiver<Mac>,
    deliver: &Sender<UnixStream>,
    wake: &EventFd,
) -> Option<std::convert::Infallible> {
    let mut pause = SHORTEST_PAUSE;
    let mut delivered = Instant::now();
    loop {
        let guest = asked.recv().ok()?;
        if delivered.elapsed() < pause {
            rest(asked, pause)?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        } else {
            pause = SHORTEST_PAUSE;
        }
        let mut told = false;
        let socket = loop {
            match dial.dial(guest) {
                Ok(socket) => break socket,
                Err(error) if !std::mem::replace(&mut told, true) => {
                    tracing::warn!(link = name, %error, "the far end is gone; trying again");
                }
                Err(_) => {}
            }
            rest(asked, pause)?;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        tracing::info!(link = name, "connected again");
        delivered = Instant::now();
        deliver.send(socket).ok()?;
        let _ = wake.write(1);
    }
}

/// Waits so long; `None`: the port is gone meanwhile.
fn rest(asked: &Receiver<Mac>, pause: Duration) -> Option<()> {
    match asked.recv_timeout(pause) {
        // Asked twice: one connection answers both.
        Ok(_) | Err(RecvTimeoutError::Timeout) => Some(()),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}
