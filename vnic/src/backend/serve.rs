//! `serve`: the session thread, from the options to the last front-end.
//!
//! Operation:
//! 1. Signals are blocked, to be read from a file; the link is opened; workers and control socket start.
//! 2. Front-ends are served one after the other. Between messages the thread waits for a message, a signal or a
//!    worker's notice.
//! 3. SIGINT or SIGTERM ends it: the session ends, queues are stopped, threads joined, sockets removed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::control::ControlSocket;
use super::device::{Limits, NicDevice};
use super::options::{Endpoint, Options};
use super::shared::{About, Shared};
use super::worker::{Notice, Notices};
use super::workers::Workers;
use crate::link::capture::CaptureError;
use crate::link::{self, AnyPort, Capture, LinkKind, OpenError, Share};
use crate::net::features;
use crate::observe::discovery;
use crate::spec::Features;
use crate::vhost_user::listen::{Connector, Inherited, ListenError, Listener};
use crate::vhost_user::{Handled, Session, SessionError};

/// Why `serve` cannot begin, or cannot go on: one sentence.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The link.
    #[error(transparent)]
    Link(#[from] OpenError),
    /// The capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// More workers than the link has ports for.
    #[error("the link {link} has one worker: name one CPU with --cpu, not {cpus}")]
    OneWorker {
        /// The link.
        link: LinkKind,
        /// How many CPUs were named.
        cpus: usize,
    },
    /// More workers than queue pairs.
    #[error(
        "--cpu names {cpus} CPUs, and only {pairs} would have a queue pair to serve: name fewer, or offer more with --queue-pairs"
    )]
    IdleWorkers {
        /// How many CPUs were named.
        cpus: usize,
        /// Queue pairs offered.
        pairs: u16,
    },
    /// The vhost-user socket.
    #[error(transparent)]
    Socket(#[from] ListenError),
    /// The control socket.
    #[error("cannot listen on the control socket {}: {source}", path.display())]
    Control {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The workers.
    #[error("cannot start the workers: {0}")]
    Workers(io::Error),
    /// A worker ended by itself.
    #[error("a worker failed: {0}")]
    Worker(String),
    /// A host resource is missing.
    #[error("cannot {action}: {source}")]
    Host {
        /// What was tried.
        action: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ServeError {
    fn host(action: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| ServeError::Host { action, source: errno.into() }
    }
}

/// Serves front-ends until SIGINT or SIGTERM, or, over an inherited connection, until the front-end is gone.
///
/// # Errors
/// It cannot begin, or the host fails it. A front-end's or driver's fault is no error: it is counted, shown, and the
/// next one is served.
pub fn serve(options: &Options) -> Result<(), ServeError> {
    if options.cpus.len() > 1 && !options.link.takes_many_workers() {
        return Err(ServeError::OneWorker { link: options.link.clone(), cpus: options.cpus.len() });
    }
    if options.cpus.len() > usize::from(options.queue_pairs) {
        return Err(ServeError::IdleWorkers { cpus: options.cpus.len(), pairs: options.queue_pairs });
    }
    let signals = block_signals()?;
    let workers = options.cpus.len().max(1);
    let pairs = usize::from(options.queue_pairs);
    let ports = (0..workers)
        .map(|worker| link::open_share(&options.link, Share { pairs, worker, workers }))
        .collect::<Result<Vec<_>, _>>()?;
    let socket = Socket::open(&options.endpoint)?;

    let lacking = ports.iter().fold(Features::NONE, |all, port| Features(all.0 | port.lacks().0));
    let possible = features::possible(options.queue_pairs, lacking);
    let offered = features::offered_without(possible, options.withhold);
    let about = About {
        socket: options.endpoint.to_string(),
        link: options.link.to_string(),
        offered,
        withheld: possible.minus(offered),
    };
    // Its thread is one of ours: after the signals are blocked.
    let capture = options.capture.as_deref().map(Capture::create).transpose()?;
    let counters = ports.iter().map(AnyPort::counters).chain(capture.as_ref().map(Capture::counters)).collect();
    let mut shared = Shared::new(about, options.queue_pairs.saturating_mul(2), counters);
    shared.pinger = ports.iter().find_map(AnyPort::pinger);
    let shared = Arc::new(shared);
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let wake = Arc::new(EventFd::from_flags(flags).map_err(ServeError::host("make an eventfd"))?);
    let (channel, inbox) = channel();
    let notices = Notices { channel, wake: wake.clone() };
    let workers = Workers::start(ports, &shared, &notices, options.poll, &options.cpus, capture.as_ref());
    // The workers alone keep it open.
    drop(capture);
    let workers = Arc::new(workers.map_err(ServeError::Workers)?);

    let control = options.control_path();
    let listening = control.as_ref().map(|path| {
        let socket = ControlSocket::bind(path);
        let extension = options.extension.clone();
        let serving =
            socket.and_then(|socket| socket.serve(shared.clone(), workers.clone(), extension).map(|()| socket));
        serving.map_err(|source| ServeError::Control { path: path.clone(), source })
    });
    let _control = listening.transpose()?;
    let _published = control.as_ref().and_then(|path| match discovery::publish(path) {
        Ok(published) => Some(published),
        Err(error) => {
            tracing::warn!(%error, "commands without --control will not find this device");
            None
        }
    });

    let limits = Limits { queue_pairs: options.queue_pairs, queue_size: options.queue_size };
    let device = NicDevice::new(shared.clone(), workers.clone(), limits);
    let outcome = Server { shared, device, signals, wake, inbox }.run(socket);
    // The control socket's threads go on until the process ends, and have them too. The capture is complete when this returns.
    workers.end();
    outcome
}

/// Blocks SIGINT and SIGTERM for this thread and those it starts; they are read from the file instead.
fn block_signals() -> Result<SignalFd, ServeError> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.thread_block().map_err(ServeError::host("block signals"))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    SignalFd::with_flags(&set, flags).map_err(ServeError::host("make a signalfd"))
}

/// Where front-ends come from.
enum Socket {
    Listening(Listener),
    Connecting(PathBuf),
    Connected(OwnedFd),
}

impl Socket {
    fn open(endpoint: &Endpoint) -> Result<Self, ServeError> {
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
}

/// Why a session, or the wait for one, ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The front-end is gone.
    Session,
    /// A signal said so.
    Signal,
}

struct Server {
    shared: Arc<Shared>,
    device: NicDevice,
    signals: SignalFd,
    wake: Arc<EventFd>,
    inbox: Receiver<Notice>,
}

impl Server {
    fn run(mut self, socket: Socket) -> Result<(), ServeError> {
        match socket {
            Socket::Connected(fd) => self.session(fd).map(drop),
            Socket::Connecting(path) => {
                let mut connector = Connector::new(&path);
                while let Some(fd) = connector.connect(self.signals.as_fd())? {
                    if self.session(fd)? == End::Signal {
                        break;
                    }
                }
                Ok(())
            }
            Socket::Listening(listener) => loop {
                let [incoming, signal, _notice] = wait([listener.as_fd(), self.signals.as_fd(), self.wake.as_fd()])?;
                if signal {
                    return Ok(());
                }
                self.read_notices()?;
                if incoming
                    && let Some(fd) = listener.accept()?
                    && self.session(fd)? == End::Signal
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
        let waiting = socket.try_clone().map_err(|source| ServeError::Host { action: "duplicate a file", source })?;
        let mut session = Session::new(socket, &self.device);
        let end = self.messages(&mut session, waiting.as_fd());
        session.end(&mut self.device);
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
            let [message, signal, notice] = wait([socket, self.signals.as_fd(), self.wake.as_fd()])?;
            if signal {
                return Ok(End::Signal);
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
fn wait<const N: usize>(fds: [BorrowedFd<'_>; N]) -> Result<[bool; N], ServeError> {
    let mut waited = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    match poll(&mut waited, PollTimeout::NONE) {
        Ok(_) | Err(Errno::EINTR) => Ok(waited.map(|fd| fd.any().unwrap_or(false))),
        Err(errno) => Err(ServeError::Host { action: "wait for a message", source: errno.into() }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use super::super::options::PollMode;
    use super::super::workers::Plan;
    use super::*;
    use crate::link::{LinkCounters, Port};
    use crate::memory::testing::{GuestRam, USER_BASE};
    use crate::spec::Feature;
    use crate::spec::vhost_user::{VringAddr, VringState};
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
        let about = About { offered: features::OFFERED, ..About::default() };
        let shared = Arc::new(Shared::new(about, 2, Vec::new()));
        let (channel, inbox) = channel();
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
        let notices = Notices { channel, wake: wake.clone() };
        let port = Told { begin, end: late_notice.then(|| notices.clone()), receiving: false };
        let plan = Plan { shared: &shared, notices: &notices, poll: PollMode::Adaptive, capture: None };
        let workers = Arc::new(Workers::on_ports([port], &plan).unwrap());
        let device = NicDevice::new(shared.clone(), workers, Limits { queue_pairs: 1, queue_size: 256 });
        let signals = SignalFd::with_flags(&SigSet::empty(), SfdFlags::SFD_NONBLOCK).unwrap();
        Server { shared, device, signals, wake, inbox }
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
        (end, front_end.read_to_end(&mut Vec::new()).unwrap())
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
