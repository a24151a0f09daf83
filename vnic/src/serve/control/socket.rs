//! The socket and its clients, each of whom a thread talks with to the end.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::sys::socket::{Shutdown, shutdown};

use super::{Control, Served, Source};
use crate::backend::{Shared, guest};
use crate::observe::protocol::{Reply, Request};
use crate::serve::client::{Admitted, send, start};
use crate::serve::trace::Wanted;
use crate::serve::{metrics, top, trace};
use crate::vhost_user::listen::NO_FILES;

/// Most clients at a time.
pub const MAX_CLIENTS: usize = 16;
/// Longest request line, bytes: the pages of a very fragmented 1 GiB file.
const MAX_LINE: u64 = 64 << 20;

/// Talks with the clients of a source.
#[derive(Debug, Clone)]
pub struct Server {
    source: Arc<dyn Source>,
    clients: Arc<AtomicUsize>,
}

/// The listening socket. When dropped it is removed from the file system, and no new client is heard.
#[derive(Debug)]
pub struct ControlSocket {
    path: PathBuf,
    listener: Arc<UnixListener>,
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        // Whoever waits for a client is told that there will be none.
        let _ = shutdown(self.listener.as_raw_fd(), Shutdown::Both);
    }
}

impl ControlSocket {
    /// Listens on `path`; a socket nobody serves any more is replaced.
    ///
    /// # Errors
    /// The path cannot be bound, or is served by someone.
    pub fn bind(path: &Path) -> io::Result<ControlSocket> {
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process serves it"));
        }
        match std::fs::symlink_metadata(path) {
            Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is there")),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) => {}
        }
        Ok(ControlSocket { path: path.to_owned(), listener: Arc::new(UnixListener::bind(path)?) })
    }

    /// Answers for devices. What is returned talks with clients that come by another way.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn serve(&self, control: Control) -> io::Result<Server> {
        let (tracing, clients) = channel();
        let traced: Vec<Arc<Shared>> = control.devices.iter().map(|device| device.shared.clone()).collect();
        let keeper = top::Kept::start(control.keeping, traced.clone(), |shared| guest::Served::boxed(shared))?;
        if let Some(lives) = control.lives.clone() {
            let devices = traced.clone();
            start("life", move || lives.record(&devices))?;
        }
        start("trace", move || trace::serve(&traced, &clients, &|shared| guest::Served::boxed(shared)))?;
        self.serve_source(Arc::new(Served { control, tracing, keeper }))
    }

    /// Answers from threads of its own, all of which are there when this returns; otherwise as [`serve`](ControlSocket::serve).
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn serve_source(&self, source: Arc<dyn Source>) -> io::Result<Server> {
        let server = Server { source, clients: Arc::default() };
        // One more than there may be clients: it tells the next one so.
        for _ in 0..=MAX_CLIENTS {
            let (server, listener) = (server.clone(), self.listener.clone());
            start("control", move || {
                while let Some((stream, _)) = accepted(|| listener.accept(), || std::thread::sleep(NO_FILES)) {
                    server.admit(stream);
                }
            })?;
        }
        Ok(server)
    }
}

/// The next client; `None`: there will be no more. Where the host has nothing to take one with, it pauses in between.
pub(super) fn accepted<T>(mut accept: impl FnMut() -> io::Result<T>, mut pause: impl FnMut()) -> Option<T> {
    loop {
        match accept() {
            Ok(client) => return Some(client),
            // What a socket says that was shut down.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return None,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted) => {}
            Err(_) => pause(),
        }
    }
}

impl Server {
    /// Talks with a client to its end, unless there are too many.
    pub fn admit(&self, mut stream: UnixStream) {
        let others = self.clients.fetch_add(1, Ordering::Relaxed);
        let admitted = Admitted(self.clients.clone());
        if others >= MAX_CLIENTS {
            let message = format!("{MAX_CLIENTS} clients are connected already; close one and try again");
            let _ = send(&mut stream, &Reply::Error { message });
            return;
        }
        // A client that goes away mid-sentence is nobody's trouble.
        let _ = self.talk(stream, admitted);
    }

    fn talk(&self, mut stream: UnixStream, admitted: Admitted) -> io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?);
        loop {
            let mut line = String::new();
            if lines.by_ref().take(MAX_LINE).read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.starts_with("GET ") {
                return metrics::serve_http(&mut stream, &mut lines, &line, || self.source.metrics());
            }
            match serde_json::from_str(&line) {
                Ok(Request::Trace { labels, headers }) => {
                    self.source.trace(stream, admitted, Wanted { labels, headers });
                    return Ok(());
                }
                Ok(Request::Top { every_ms, so_far }) => {
                    let every = Duration::from_millis(every_ms);
                    self.source.top(top::Client { stream, admitted, every, so_far });
                    return Ok(());
                }
                Ok(request) => send(&mut stream, &self.source.answer(request))?,
                Err(error) => match serde_json::from_str(&line).ok().and_then(|other| self.source.extended(&other)) {
                    Some(answer) => send(&mut stream, &answer)?,
                    None => send(&mut stream, &Reply::Error { message: format!("not a request: {error}") })?,
                },
            }
        }
    }
}
