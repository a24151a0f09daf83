//! The control socket: answers those who look, without disturbing what they look at.
//!
//! Place: one thread accepts, one thread per client talks, both beside the data path. Limits: [`MAX_CLIENTS`] at a time;
//! a further one is told so.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::metrics;
use super::shared::{QueueState, Shared};
use super::status;
use super::trace;
use super::workers::Workers;
use crate::observe::flow::{FilePages, FlowWatch};
use crate::observe::protocol::{FlowBooks, Reply, Request};
use crate::observe::scan;
use crate::record::wire::{Flow, PageRun};
use crate::spec::Feature;

/// Most clients at a time.
pub const MAX_CLIENTS: usize = 16;
/// Longest request line, bytes: the pages of a very fragmented 1 GiB file.
const MAX_LINE: u64 = 64 << 20;

/// How long the guest's IOMMU has for the translations of what a held queue was given.
const TRANSLATED: Duration = Duration::from_secs(2);
/// How long between two looks for them.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What every client's thread works on.
#[derive(Debug)]
pub struct Control {
    /// The device's shared state.
    pub shared: Arc<Shared>,
    /// Its workers.
    pub workers: Arc<Workers>,
    clients: AtomicUsize,
}

/// The listening socket; removed from the file system when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Control {
    /// Listens on `path` (a socket nobody serves any more is replaced) and answers from a thread of its own.
    ///
    /// # Errors
    /// The path cannot be bound, or is served by someone.
    pub fn listen(path: &Path, shared: Arc<Shared>, workers: Arc<Workers>) -> std::io::Result<ControlSocket> {
        if UnixStream::connect(path).is_ok() {
            return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another process serves it"));
        }
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => {
                return Err(std::io::Error::new(
                    std::io::ErrorKind::AlreadyExists,
                    "a file that is no socket is there",
                ));
            }
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        let control = Arc::new(Control { shared, workers, clients: AtomicUsize::new(0) });
        std::thread::Builder::new().name("control".into()).spawn(move || {
            for stream in listener.incoming().flatten() {
                control.clone().admit(stream);
            }
        })?;
        Ok(ControlSocket { path: path.to_owned() })
    }

    fn admit(self: Arc<Self>, mut stream: UnixStream) {
        if self.clients.fetch_add(1, Ordering::Relaxed) >= MAX_CLIENTS {
            self.clients.fetch_sub(1, Ordering::Relaxed);
            let message = format!("{MAX_CLIENTS} clients are connected already; close one and try again");
            let _ = send(&mut stream, &Reply::Error { message });
            return;
        }
        let control = self.clone();
        let talk = move || {
            // A client that goes away mid-sentence is nobody's trouble.
            let _ = control.talk(stream);
            control.clients.fetch_sub(1, Ordering::Relaxed);
        };
        if std::thread::Builder::new().name("client".into()).spawn(talk).is_err() {
            self.clients.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn talk(&self, mut stream: UnixStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?);
        loop {
            let mut line = String::new();
            if lines.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.starts_with("GET ") {
                return metrics::serve_http(&mut stream, &mut lines, &line, &self.shared);
            }
            match serde_json::from_str(&line) {
                Ok(Request::Trace) => {
                    send(&mut stream, &Reply::Done)?;
                    return trace::follow(&mut stream, &self.shared);
                }
                Ok(request) => send(&mut stream, &self.answer(request))?,
                Err(error) => {
                    send(&mut stream, &Reply::Error { message: format!("not a request: {error}") })?;
                }
            }
        }
    }

    fn answer(&self, request: Request) -> Reply {
        match request {
            Request::Status => Reply::Status(Box::new(status::status(&self.shared))),
            Request::Rings { queue } => self.rings(queue.as_deref()),
            Request::Scan { queue } => self.scan(&queue),
            Request::Hold { queue } => self.hold(&queue, true),
            Request::Release { queue } => self.hold(&queue, false),
            Request::Ping { to } => self.ping(to),
            Request::WatchFlow { flow, pages, later } => self.watch(flow, &pages, later),
            Request::EndWatch { pages } => self.end_watch(&pages),
            Request::Trace => Reply::Done,
        }
    }

    fn rings(&self, queue: Option<&str>) -> Reply {
        match queue.map(|name| self.shared.index_of(name).ok_or(name)) {
            None => Reply::Rings { rings: status::rings(&self.shared, None) },
            Some(Ok(index)) => {
                self.look_over(index);
                Reply::Rings { rings: status::rings(&self.shared, Some(index)) }
            }
            Some(Err(name)) => self.no_queue(name),
        }
    }

    /// Behind an IOMMU: has the translations fetched of what a held queue was given, as far as they come.
    fn look_over(&self, index: u16) {
        let held = self.shared.queues.get(usize::from(index)).is_some_and(|queue| queue.state() == QueueState::Held);
        if !held || !self.shared.view().negotiated.has(Feature::AccessPlatform) {
            return;
        }
        let deadline = Instant::now() + TRANSLATED;
        while !self.workers.look_over(index) && Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn ping(&self, to: IpAddr) -> Reply {
        let Some(pinger) = &self.shared.pinger else {
            return Reply::Error {
                message: format!("the link {} pings nobody: only peer does", self.shared.about.link),
            };
        };
        match pinger.ping(to) {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Error { message: error.to_string() },
        }
    }

    fn hold(&self, name: &str, on: bool) -> Reply {
        match self.shared.index_of(name) {
            Some(index) if self.workers.hold(index, on) => Reply::Done,
            Some(_) => not_set_up(name),
            None => self.no_queue(name),
        }
    }

    fn scan(&self, name: &str) -> Reply {
        let Some(index) = self.shared.index_of(name) else { return self.no_queue(name) };
        self.look_over(index);
        let memory = status::memory(&self.shared);
        let look = || status::rings(&self.shared, Some(index)).into_iter().next();
        match (look(), memory) {
            (Some(ring), Some(memory)) => match scan::scan(&ring, look, &memory) {
                Ok(report) => Reply::Scan(report),
                Err(error) => Reply::Error { message: format!("cannot look through the guest's memory: {error}") },
            },
            _ => not_set_up(name),
        }
    }

    fn watch(&self, flow: Flow, runs: &[PageRun], later: bool) -> Reply {
        let pages = match FilePages::new(runs) {
            Ok(pages) => Arc::new(pages),
            Err(error) => return Reply::Error { message: error.to_string() },
        };
        self.shared.view().pages = Some(pages.clone());
        let watch = FlowWatch::new(flow, pages);
        self.workers.watch(Some(&if later { watch.remembering() } else { watch }));
        Reply::Done
    }

    fn end_watch(&self, runs: &[PageRun]) -> Reply {
        self.shared.view().pages = None;
        let mut parts = self.workers.watch(None);
        match FilePages::new(runs) {
            Ok(pages) => parts.iter_mut().for_each(|part| part.settle(&pages)),
            Err(error) => return Reply::Error { message: error.to_string() },
        }
        Reply::FlowBooks(parts.iter().fold(FlowBooks::default(), |sum, part| sum.plus(&part.books())))
    }

    fn no_queue(&self, name: &str) -> Reply {
        let names: Vec<&str> = self.shared.queues.iter().map(|queue| queue.name.as_str()).collect();
        Reply::Error { message: format!("there is no queue `{name}`; this device has {}", names.join(", ")) }
    }
}

fn not_set_up(name: &str) -> Reply {
    Reply::Error { message: format!("{name} is not set up: no driver uses it at the moment") }
}

/// Writes one line of JSON.
pub fn send(stream: &mut (impl Write + AsFd), value: &impl serde::Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line)
}
