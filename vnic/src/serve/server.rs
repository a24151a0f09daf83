//! One device's front-ends, one after the other, on a thread of its own.
//!
//! Between messages the thread waits for a message, a worker's notice, or the end of the process.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::error::ServeError;
use super::options::Endpoint;
use crate::backend::{Backend, Notice, Shared};
use crate::vhost_user::listen::{Connector, Inherited, Listener};
use crate::vhost_user::{Handled, Session, SessionError};

/// Where front-ends come from.
pub(super) enum Socket {
    Listening(Listener),
    Connecting(PathBuf),
    Connected(OwnedFd),
}

impl Socket {
    pub(super) fn open(endpoint: &Endpoint) -> Result<Self, ServeError> {
        Ok(match endpoint {
            Endpoint::Listen(path) => Socket::Listening(Listener::bind(path)?),
            Endpoint::Connect(path) => Socket::Connecting(path.clone()),
            Endpoint::Fd(fd) => {
                // SAFETY: the number is the user's word that the parent process opened it for us; nothing else in this
                // process knows it. `Inherited` checks what it is.
                let inherited = Inherited::new(unsafe { OwnedFd::from_raw_fd(*fd) })?;
                match inherited {
                    Inherited::Listening(listener) => Socket::Listening(listener),
                    Inherited::Connected(fd) => Socket::Connected(fd),
                }
            }
        })
    }

    /// Its path, where it made a file.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Socket::Listening(listener) => listener.path(),
            Socket::Connecting(_) | Socket::Connected(_) => None,
        }
    }
}

/// Why a session, or the wait for one, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The front-end is gone.
    Session,
    /// The process is to end.
    Process,
}

pub(super) struct Server {
    pub(super) shared: Arc<Shared>,
    pub(super) device: Backend,
    /// Readable once the process is to end.
    pub(super) stop: Arc<EventFd>,
    /// Readable once there is a notice.
    pub(super) wake: Arc<EventFd>,
    pub(super) inbox: Receiver<Notice>,
}

impl Server {
    pub(super) fn run(mut self, socket: Socket) -> Result<(), ServeError> {
        match socket {
            Socket::Connected(fd) => self.session(fd).map(drop),
            Socket::Connecting(path) => {
                let mut connector = Connector::new(&path);
                while let Some(fd) = connector.connect(self.stop.as_fd())? {
                    if self.session(fd)? == End::Process {
                        break;
                    }
                }
                Ok(())
            }
            Socket::Listening(listener) => loop {
                let [incoming, stop, _notice] = wait([listener.as_fd(), self.stop.as_fd(), self.wake.as_fd()])?;
                if stop {
                    return Ok(());
                }
                self.read_notices()?;
                if incoming
                    && let Some(fd) = listener.accept(self.stop.as_fd())?
                    && self.session(fd)? == End::Process
                {
                    return Ok(());
                }
            },
        }
    }

    /// One front-end, from its first message to its end.
    fn session(&mut self, socket: OwnedFd) -> Result<End, ServeError> {
        {
            let mut view = self.shared.view();
            view.connected = true;
            view.sessions += 1;
        }
        tracing::info!("front-end connected");
        let end = match socket.try_clone() {
            Ok(waiting) => {
                let mut session = Session::new(socket, &self.device);
                let end = self.messages(&mut session, waiting.as_fd());
                session.end(&mut self.device);
                end
            }
            // It finds its session closed, and comes again.
            Err(source) => {
                self.note(&ServeError::Host { action: "duplicate a file", source });
                Ok(End::Session)
            }
        };
        self.shared.labels.forget();
        // No queue is left: what a worker said of lost memory is this session's, and is not to end the next.
        let last_notices = self.read_notices();
        let mut view = self.shared.view();
        view.connected = false;
        view.protocol_features.clear();
        tracing::info!("front-end gone");
        last_notices.and(end)
    }

    fn messages(&mut self, session: &mut Session, socket: BorrowedFd<'_>) -> Result<End, ServeError> {
        loop {
            let [message, stop, notice] = wait([socket, self.stop.as_fd(), self.wake.as_fd()])?;
            if stop {
                return Ok(End::Process);
            }
            if notice && self.read_notices()? {
                self.note(&SessionError::MemoryLost);
                return Ok(End::Session);
            }
            if !message {
                continue;
            }
            match session.handle(&mut self.device) {
                Ok(Handled::Nothing | Handled::Done(_)) => {}
                Ok(Handled::Refused(error)) => self.note(&error),
                Ok(Handled::Closed) => return Ok(End::Session),
                Err(error) => {
                    self.note(&error);
                    return Ok(End::Session);
                }
            }
            let names = session.protocol_features().names();
            self.shared.view().protocol_features = names;
        }
    }

    /// Reads what the workers had to say. Returns whether the guest's memory is lost.
    fn read_notices(&self) -> Result<bool, ServeError> {
        // The eventfd only wakes; the channel says what happened.
        let _ = self.wake.read();
        let mut lost = false;
        while let Ok(notice) = self.inbox.try_recv() {
            match notice {
                Notice::MemoryLost => lost = true,
                Notice::Failed(reason) => return Err(ServeError::Worker(reason)),
            }
        }
        Ok(lost)
    }

    /// Puts a front-end's fault where `vnic status` and the log show it.
    fn note(&self, fault: &dyn std::fmt::Display) {
        let fault = fault.to_string();
        tracing::warn!("{fault}");
        self.shared.view().last_error = Some(fault);
    }
}

/// Waits until one of the files is readable, closed or broken; says which.
pub(crate) fn wait<const N: usize>(fds: [BorrowedFd<'_>; N]) -> Result<[bool; N], ServeError> {
    let mut waited = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut waited, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(waited.map(|fd| fd.any().unwrap_or(false))),
        Err(errno) => Err(ServeError::Host { action: "wait for a message", source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::eventfd::EfdFlags;
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::*;
    use crate::backend::{About, Notices};
    use crate::link::{LinkCounters, Port};
    use crate::memory::testing::{GuestRam, USER_BASE};
    use crate::net::features::OFFERED;
    use crate::nic::tests::with_workers;
    use crate::nic::{self, Nic};
    use crate::spec::vhost_user::{VringAddr, VringState};
    use crate::spec::{Feature, Features};
    use crate::vhost_user::message::{Request, VringFile};
    use crate::vhost_user::socket::Connection;

    /// A link that does something once its receiveq is put into use, and something else once it no longer is.
    struct Told {
        begin: fn(),
        end: Option<Notices>,
        receiving: bool,
    }

    impl Port for Told {
        fn set_receiving(&mut self, _pair: usize, on: bool) {
            match (self.receiving, on) {
                (false, true) => (self.begin)(),
                (true, false) => {
                    if let Some(Notices { channel, wake }) = &self.end {
                        channel.send(Notice::MemoryLost).unwrap();
                        wake.write(1).unwrap();
                    }
                }
                _ => {}
            }
            self.receiving = on;
        }

        fn poll(&mut self, _now: Instant) {}

        fn counters(&self) -> Arc<LinkCounters> {
            Arc::new(LinkCounters::new(&[]))
        }
    }

    fn server(begin: fn(), late_notice: bool) -> Server {
        let about = About { offered: OFFERED, ..About::default() };
        let names = [0, 1].map(nic::queue_name);
        let mut wake = None;
        let (shared, workers, inbox) = with_workers(about, names, |workers, plan| {
            wake = Some(plan.notices.wake.clone());
            let port = Told { begin, end: late_notice.then(|| plan.notices.clone()), receiving: false };
            nic::add(workers, port, nic::Beside::default(), plan)
        });
        let device = Backend::new(Nic { offered: OFFERED, queue_pairs: 1, queue_size: 256 }, shared.clone(), workers);
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        Server { shared, device, stop, wake: wake.unwrap(), inbox }
    }

    /// All that a front-end says in one session: it starts the receiveq, asks `last`, and hangs up. Returns what it hears.
    fn session(server: &mut Server, last: &Request) -> (Result<End, ServeError>, usize) {
        let (mut front_end, back_end) = UnixStream::pair().unwrap();
        let ram = GuestRam::new(1 << 20).unwrap();
        let connection = Connection::new(front_end.try_clone().unwrap().into());
        let say = |request: &Request, fds: &[BorrowedFd<'_>]| connection.send(&request.to_bytes(0), fds).unwrap();
        say(&Request::SetFeatures(Features::of(&[Feature::Version1])), &[]);
        say(&Request::SetMemTable(ram.specs().to_vec()), &[ram.fd()]);
        say(&Request::SetVringNum(VringState { index: 0, num: 16 }), &[]);
        let [descriptor, available, used] = [0x1000, 0x2000, 0x3000].map(|gpa| USER_BASE + gpa);
        say(&Request::SetVringAddr(VringAddr { index: 0, flags: 0, descriptor, used, available, log: 0 }), &[]);
        say(&Request::SetVringKick(VringFile { index: 0, present: false }), &[]);
        say(last, &[]);
        front_end.shutdown(std::net::Shutdown::Write).unwrap();
        let end = server.session(back_end.into());
        // A session that ends before it has read all resets the connection: what was said before is heard all the same.
        let mut heard = Vec::new();
        let _ = front_end.read_to_end(&mut heard);
        (end, heard.len())
    }

    #[test]
    fn what_a_worker_says_of_lost_memory_ends_its_own_session_and_not_the_next() {
        let mut server = server(|| {}, true);
        for _ in 0..2 {
            let (end, heard) = session(&mut server, &Request::GetFeatures);
            assert_eq!((end.unwrap(), heard), (End::Session, 20), "the reply has 20 bytes");
        }
        assert_eq!(server.shared.view().last_error, None);
    }

    #[test]
    fn a_worker_that_dies_ends_the_session_unanswered_and_the_process_with_its_reason() {
        let mut server = server(|| panic!("a link with a bug"), false);
        let (end, heard) = session(&mut server, &Request::GetVringBase(VringState { index: 0, num: 0 }));
        let Err(ServeError::Worker(why)) = end else { panic!("{end:?}") };
        assert!(why.contains("a link with a bug"), "{why}");
        assert_eq!(heard, 0, "no base can be told");
    }
}
