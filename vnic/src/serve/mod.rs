//! `vnic serve`: the process, from its options to its last front-end.
//!
//! Operation, in three steps:
//! 1. *Prepare*: signals are blocked, to be read from a file; everything is opened: links, sockets, capture, control socket.
//! 2. *Enter*: the threads start: a device's workers and its session's thread, the control socket's. From here on none is
//!    added, and nothing is opened but what front-ends hand over.
//! 3. *Run*: front-ends are served one after the other. SIGINT, SIGTERM, or the end of any session's thread end all: queues
//!    are stopped, threads joined, sockets removed.
//!
//! | file | |
//! |---|---|
//! | [`options`] | what `serve` is told |
//! | `server` | a device's sessions |
//! | [`control`] | the control socket, with `status`, `trace`, `metrics` |
//!
//! A device of your own: [`Process::add`].

pub(crate) mod client;
pub mod control;
mod error;
mod hardware;
mod life;
pub(crate) mod looking;
pub(crate) mod metrics;
mod migration;
pub mod options;
pub(crate) mod server;
pub(crate) mod status;
#[cfg(test)]
mod taken_over;
pub(crate) mod top;
pub(crate) mod trace;

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::backend::{About, Backend, DataPath, DeviceModel, NamedCounters, Notices, Plan, PollMode, Shared, Workers};
use crate::blk::{Blk, DiskOptions, Image, ImageError};
use crate::link::peer::Pinger;
use crate::link::{self, AnyPort, Capture, Share};
use crate::net::features;
use crate::nic::{self, Nic};
use crate::observe::discovery::{self, Publication};
use crate::rng::{Rng, RngDataPath};
use crate::sandbox::{self, Paths, Role};
use crate::spec::Features;
pub use client::Admitted;
pub use control::Extension;
use control::{Control, ControlSocket};
pub use error::ServeError;
use life::Lives;
pub use options::{DeviceKind, Endpoint, Options};
use server::{Server, Socket};
pub use top::{Client as TopClient, Keeping};

/// Serves front-ends until SIGINT or SIGTERM, or, over an inherited connection, until the front-end is gone.
///
/// # Errors
/// It cannot begin, or the host fails it. A front-end's or driver's fault is no error: it is counted, shown, and the
/// next one is served.
pub fn serve(options: &Options) -> Result<(), ServeError> {
    sandbox::set(options.sandbox, sandbox::Program::Serve);
    let mut process = Process::prepare(options.poll, &options.cpus)?;
    process.record_lives(options.lives && options.control_path().is_some());
    match (&options.endpoint, options.device) {
        (None, _) => {}
        (Some(endpoint), DeviceKind::Net) => process.add_nic(endpoint, options)?,
        (Some(endpoint), DeviceKind::Rng) => {
            let source = RngDataPath::open()
                .map_err(|source| ServeError::Host { action: "open the host's random bytes", source })?;
            process.add(endpoint, Rng { queue_size: options.queue_size }, source)?;
        }
    }
    for disk in &options.disks {
        process.add_disk(disk, options.queue_size)?;
    }
    process.keep_accounts(options.accounts);
    if let Some(path) = options.control_path() {
        process.listen(&path, options.extension.clone())?;
    }
    process.run()
}

/// How a device's workers are started, once.
type Start = Box<dyn FnOnce(&Plan<'_>) -> io::Result<Workers>>;

/// A device whose files are open.
struct Prepared {
    socket: Socket,
    about: About,
    model: Box<dyn DeviceModel>,
    counters: Vec<Arc<dyn NamedCounters>>,
    pinger: Option<Pinger>,
    start: Start,
}

/// A control socket that nobody answers yet.
struct Listening {
    path: PathBuf,
    socket: ControlSocket,
    extension: Option<Arc<dyn Extension>>,
}

/// A process that serves one device or several, before its threads start.
pub struct Process {
    signals: SignalFd,
    poll: PollMode,
    cpus: Vec<usize>,
    devices: Vec<Prepared>,
    control: Option<Listening>,
    keeping: Keeping,
    lives: Option<Lives>,
}

impl Process {
    /// Blocks the signals that end it, for this thread and those it starts.
    ///
    /// # Errors
    /// The host has no file for them.
    pub fn prepare(poll: PollMode, cpus: &[usize]) -> Result<Self, ServeError> {
        let (devices, control, keeping) = (Vec::new(), None, Keeping::default());
        let (signals, cpus) = (block_signals()?, cpus.to_vec());
        Ok(Process { signals, poll, cpus, devices, control, keeping, lives: None })
    }

    /// Has accounts of what is sent kept for `vnic top`, where there is a control socket.
    pub fn keep_accounts(&mut self, keeping: Keeping) {
        self.keeping = keeping;
    }

    /// Has it recorded what happens to the guest's pages, for `vnic life`, where there is a control socket; and said in the captures of
    /// devices that are added from now on.
    pub fn record_lives(&mut self, wanted: bool) {
        self.lives = wanted.then(Lives::default);
    }

    /// A device with one worker.
    ///
    /// # Errors
    /// Its socket cannot be had.
    pub fn add(
        &mut self,
        endpoint: &Endpoint,
        model: impl DeviceModel + 'static,
        data_path: impl DataPath,
    ) -> Result<(), ServeError> {
        let about =
            About { device: model.name(), socket: endpoint.to_string(), offered: model.offered(), ..About::default() };
        let start: Start = Box::new(|plan| {
            let mut workers = Workers::new(1);
            workers.add(data_path, plan).map(|()| workers)
        });
        let (counters, pinger) = (Vec::new(), None);
        self.devices.push(Prepared {
            socket: Socket::open(endpoint)?,
            about,
            model: Box::new(model),
            counters,
            pinger,
            start,
        });
        Ok(())
    }

    /// A NIC, with a worker for each CPU that was named.
    ///
    /// # Errors
    /// Its link, socket or capture cannot be had, or there are more workers than can be used.
    pub fn add_nic(&mut self, endpoint: &Endpoint, options: &Options) -> Result<(), ServeError> {
        if options.cpus.len() > 1 && !options.link.takes_many_workers() {
            return Err(ServeError::OneWorker { link: options.link.clone(), cpus: options.cpus.len() });
        }
        if options.cpus.len() > usize::from(options.queue_pairs) {
            return Err(ServeError::IdleWorkers { cpus: options.cpus.len(), pairs: options.queue_pairs });
        }
        let workers = options.cpus.len().max(1);
        let pairs = usize::from(options.queue_pairs);
        let ports = (0..workers)
            .map(|worker| link::open_share(&options.link, Share { pairs, worker, workers }))
            .collect::<Result<Vec<_>, _>>()?;
        let socket = Socket::open(endpoint)?;
        let lacking = ports.iter().fold(Features::NONE, |all, port| Features(all.0 | port.lacks().0));
        let possible = features::possible(options.queue_pairs, lacking);
        let offered = features::offered_without(possible, options.withhold);
        let model = Nic { offered, queue_pairs: options.queue_pairs, queue_size: options.queue_size };
        let about = About {
            device: model.name(),
            socket: endpoint.to_string(),
            link: options.link.to_string(),
            stays: ports.iter().find_map(AnyPort::stays),
            offered,
            withheld: possible.minus(offered),
            hardware: options.hardware.clone(),
        };
        // Its thread is one of ours: after the signals are blocked.
        let capture = options.capture.as_deref().map(Capture::create).transpose()?;
        let links = ports.iter().map(AnyPort::counters).chain(capture.as_ref().map(Capture::counters));
        let counters = links.map(|counters| counters as Arc<dyn NamedCounters>).collect();
        let pinger = ports.iter().find_map(AnyPort::pinger);
        // The workers alone keep the capture open.
        let (hardware, labels, lives) = (options.hardware.clone(), options.capture_labels, self.lives.clone());
        let start: Start = Box::new(move |plan| {
            if let Some(capture) = capture.as_ref().filter(|_| labels) {
                let whose = nic::labels(plan.shared);
                capture.label_by(match lives {
                    Some(lives) => lives.labels(whose, plan.shared.started),
                    None => whose,
                });
            }
            nic::start(ports, nic::Beside { capture: capture.as_ref(), hardware: hardware.as_ref() }, plan)
        });
        self.devices.push(Prepared { socket, about, model: Box::new(model), counters, pinger, start });
        Ok(())
    }

    /// A disk, with a worker for each CPU that was named, as far as it has queues.
    ///
    /// # Errors
    /// Its image or socket cannot be had.
    pub fn add_disk(&mut self, options: &DiskOptions, queue_size: u16) -> Result<(), ServeError> {
        let blk = Blk::new(open_image(options)?, options.queues, queue_size);
        let endpoint = Endpoint::Listen(options.socket.clone());
        let about = About {
            device: blk.name(),
            socket: endpoint.to_string(),
            link: blk.about(),
            offered: blk.offered(),
            ..About::default()
        };
        let (counters, pinger) = (vec![blk.counters()], None);
        let (socket, start) = (Socket::open(&endpoint)?, Box::new(blk.starter()));
        self.devices.push(Prepared { socket, about, model: Box::new(blk), counters, pinger, start });
        Ok(())
    }

    /// Has a control socket; what it does not know, the extension may.
    ///
    /// # Errors
    /// The path cannot be bound, or is served by someone.
    pub fn listen(&mut self, path: &Path, extension: Option<Arc<dyn Extension>>) -> Result<(), ServeError> {
        let failed = |source| ServeError::Control { path: path.to_owned(), source };
        let socket = ControlSocket::bind(path).map_err(failed)?;
        self.control = Some(Listening { path: path.to_owned(), socket, extension });
        Ok(())
    }

    /// Starts the threads, and serves until the end.
    ///
    /// # Errors
    /// The host fails it.
    pub fn run(self) -> Result<(), ServeError> {
        self.enter()?.run()
    }

    fn enter(self) -> Result<Running, ServeError> {
        let Process { signals, poll, cpus, devices, control, keeping, lives } = self;
        // Who is answered by the control socket finds all open: no file is missing that the process needs to go on.
        let (stop, ended) = (event()?, event()?);
        let kinds: Vec<_> = devices.iter().map(|device| device.about.device).collect();
        let published = control.as_ref().and_then(|control| discovery::publish_or_say(&control.path, "device"));
        let mut paths = Paths::default();
        devices.iter().filter_map(|device| device.socket.path()).for_each(|path| paths.remove(path));
        control.iter().for_each(|control| paths.remove(&control.path));
        published.iter().for_each(|published| paths.remove(published.path()));
        let locked_in = sandbox::close(&paths)?;
        let (mut servers, mut controlled) = (Vec::new(), Vec::new());
        for Prepared { socket, about, model, counters, pinger, start } in devices {
            // Of several devices of a kind, a queue's name says which one's it is.
            let alike = |device: &&control::Device| device.shared.about.device == about.device;
            let number = controlled.iter().filter(alike).count();
            let several = kinds.iter().filter(|kind| **kind == about.device).count() > 1;
            let prefix = if several { format!("{}{number}/", about.device) } else { String::new() };
            let names = (0..model.queues()).map(|index| format!("{prefix}{}", model.queue_name(index)));
            let shared = Arc::new(Shared::new(about, names, counters));
            let (channel, inbox) = channel();
            let wake = event()?;
            let notices = Notices { channel, wake: wake.clone() };
            let plan = Plan { shared: &shared, notices: &notices, poll, cpus: &cpus };
            let workers = Arc::new(start(&plan).map_err(ServeError::Workers)?);
            let device = Backend::boxed(model, shared.clone(), workers.clone());
            controlled.push(control::Device { shared: shared.clone(), workers, pinger });
            servers.push((Server { shared, device, stop: stop.clone(), wake, inbox }, socket));
        }
        let control = match control {
            Some(Listening { path, socket, extension }) => {
                let devices = controlled.clone();
                socket
                    .serve(Control::new(devices, extension).keeping(keeping).recording(lives).locked_in(locked_in))
                    .map_err(|source| ServeError::Control { path: path.clone(), source })?;
                Some((published, socket))
            }
            None => None,
        };
        Ok(Running { signals, stop, ended, servers, devices: controlled, _control: control })
    }
}

/// A process whose workers are at work.
struct Running {
    signals: SignalFd,
    stop: Arc<EventFd>,
    /// Readable once a session's thread has ended.
    ended: Arc<EventFd>,
    servers: Vec<(Server, Socket)>,
    devices: Vec<control::Device>,
    _control: Option<(Option<Publication>, ControlSocket)>,
}

impl Running {
    fn run(self) -> Result<(), ServeError> {
        let Running { signals, stop, ended, servers, devices, _control } = self;
        let outcome = std::thread::scope(|scope| {
            let mut sessions = Vec::new();
            for (server, socket) in servers {
                let ended = ended.clone();
                let session = move || {
                    let _ended = Ended(ended);
                    sandbox::enter(Role::Session { connects: matches!(socket, Socket::Connecting(_)) })?;
                    server.run(socket)
                };
                sessions.push(std::thread::Builder::new().name("session".to_owned()).spawn_scoped(scope, session));
            }
            let mut outcome = sandbox::enter(Role::Main).map_err(ServeError::from);
            while outcome.is_ok()
                && sessions.iter().all(Result::is_ok)
                && let Ok([false, false]) = server::wait([signals.as_fd(), ended.as_fd()])
            {}
            let _ = stop.write(1);
            for session in sessions {
                let ended = session.map_err(|source| ServeError::Host { action: "start a thread", source })?;
                let said = ended.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                outcome = outcome.and(said);
            }
            outcome
        });
        // The control socket's threads go on until the process ends, and have them too. The capture is complete when this
        // returns.
        devices.iter().for_each(|device| device.workers.end());
        outcome
    }
}

/// Tells that a session's thread ends, however it does.
struct Ended(Arc<EventFd>);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.write(1);
    }
}

/// How long an image may stay locked, and how often it is tried.
const UNLOCKED_WITHIN: Duration = Duration::from_secs(5);
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// Opens an image. One whose last process was killed stays locked until the kernel is done with the writes that were under way: they
/// must not come after those of this process.
fn open_image(options: &DiskOptions) -> Result<Image, ImageError> {
    let began = Instant::now();
    let mut told = false;
    loop {
        match Image::open(options) {
            Err(ImageError::Locked { .. }) if began.elapsed() < UNLOCKED_WITHIN => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(image = %options.file.display(), "locked: waiting for whoever has it to end");
                }
                std::thread::sleep(TRY_AGAIN);
            }
            opened => return opened,
        }
    }
}

fn event() -> Result<Arc<EventFd>, ServeError> {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    Ok(Arc::new(EventFd::from_flags(flags).map_err(ServeError::host("make an eventfd"))?))
}

/// Blocks SIGINT and SIGTERM for this thread and those it starts; they are read from the file instead.
pub(crate) fn block_signals() -> Result<SignalFd, ServeError> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGINT);
    set.add(Signal::SIGTERM);
    set.thread_block().map_err(ServeError::host("block signals"))?;
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    SignalFd::with_flags(&set, flags).map_err(ServeError::host("make a signalfd"))
}

#[cfg(test)]
mod tests;
