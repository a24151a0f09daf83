//! One whole transfer: file and connection prepared, sent by a method, confirmed by the receiver.
//!
//! Operation: [`Prepared::new`] sets the NIC, makes the file, notes its pages and connects; between that and
//! [`Prepared::send`] whoever watches the NIC can get ready. `send` runs the method with the accounts open, shuts down the
//! write side, reads the receipt and notes the pages again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use vnic_experiment::row::{PROGRAM, path_kind_of};
use vnic_experiment::run::NicState;
use vnic_experiment::wire::{self, Event, Flow, PageRun, Receipt, TransferSpec};

use super::accounting::{Accounts, Sender, Subject};
use super::connection::Connection;
use super::file::TestFile;
use super::filesystems;
use super::nic::{self, Nic};
use super::pages::{page_runs, resident_page_runs};
use super::tls_records::Stream;
use crate::methods::{self, Follower, Job, Method, Nobody};
use crate::modules::{Brought, load_group};

/// What a request cannot be: known, and impossible in this guest.
#[derive(Debug)]
pub struct Unsupported(pub String);

impl std::fmt::Display for Unsupported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unsupported {}

/// A transfer that can start.
#[derive(Debug)]
pub struct Prepared {
    method: &'static Method,
    spec: TransferSpec,
    made: TestFile,
    connection: Connection,
    /// What the receiver will get, where that is not the file's bytes; `None` inside where it cannot be foretold.
    stream: Option<Option<Stream>>,
    /// The kernel module that it is to be done with, for as long as it takes.
    module: Option<Brought>,
    /// The connection.
    pub flow: Flow,
    /// The NIC's switches, read back.
    pub nic: NicState,
    /// The file's pages before.
    pub pages: Vec<PageRun>,
}

/// A transfer that is over.
#[derive(Debug)]
pub struct Done {
    /// Bytes the method says it sent.
    pub bytes_sent: u64,
    /// From the first call to the receiver's receipt.
    pub took: Duration,
    /// What the receiver got.
    pub receipt: Receipt,
    /// The file's pages after.
    pub pages: Vec<PageRun>,
    /// The kernel's accounts.
    pub accounts: wire::Accounts,
    /// What was sent. Until it goes, the host can see whose pages went out.
    pub made: TestFile,
}

impl Done {
    /// As the host gets it.
    #[must_use]
    pub fn told(&self) -> Event {
        Event::TransferEnd {
            bytes_sent: self.bytes_sent,
            seconds: self.took.as_secs_f64(),
            receipt: self.receipt.clone(),
            pages: self.pages.clone(),
            accounts: self.accounts.clone(),
        }
    }
}

/// Called once when the first chunk is taken, with its bytes.
pub type Pause<'a> = &'a mut dyn FnMut(u64) -> Result<()>;

impl Prepared {
    /// Prepares a transfer.
    ///
    /// # Errors
    /// [`Unsupported`] where this guest cannot do it; else what failed.
    pub fn new(spec: TransferSpec) -> Result<Prepared> {
        let Some(method) = methods::by_name(&spec.method) else {
            let names: Vec<&str> = methods::METHODS.iter().map(|method| method.name).collect();
            bail!(Unsupported(format!("no method is called {:?}; there are {}", spec.method, names.join(", "))));
        };
        ensure!(spec.chunk > 0, "a chunk of 0 bytes never gets anywhere");
        let nic = Nic::open(nic::NAME)?.apply(spec.nic)?;
        if let Some(group) = method.modules {
            // Where they are missing or built in, the method itself finds out what it can do.
            let _ = load_group(group);
        }
        let made = filesystems::make(&spec.filesystem, spec.offset, spec.bytes)?;
        let room = (spec.pause || method.chunk_fits).then_some(spec.chunk);
        let connection = Connection::open(spec.over, spec.to, method.datagrams, room)?;
        let flow = connection.flow;
        let module = spec.module.as_deref().map(Brought::load).transpose()?;
        let mut prepared =
            Prepared { method, spec, made, connection, stream: None, module, flow, nic, pages: Vec::new() };
        let job = prepared.job(&Nobody)?;
        (method.available)(&job).map_err(unsupported)?;
        let stream = method.stream.map(|stream| stream(&job).ok());
        prepared.stream = stream;
        prepared.pages = prepared.first_pages()?;
        Ok(prepared)
    }

    /// The file's pages before the transfer. Where they are better not in memory, they are dropped from it.
    fn first_pages(&self) -> Result<Vec<PageRun>> {
        let cold = self.spec.cold;
        if cold && self.method.bypasses_page_cache {
            bail!(Unsupported(format!("{} passes the page cache by: a cold file is the same to it", self.method.name)));
        }
        if cold && self.spec.filesystem.starts_with("tmpfs") {
            bail!(Unsupported("a tmpfs file is nothing but page cache: it is never cold".to_owned()));
        }
        if self.spares_pages() {
            // Written back when it was made: clean pages go.
            posix_fadvise(&self.made.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)
                .context("drop the file's pages")?;
        }
        let pages = self.pages_now()?;
        ensure!(!cold || pages.is_empty(), "the kernel keeps {} runs of the file's pages in memory", pages.len());
        Ok(pages)
    }

    /// Is a page that is not in memory to stay away?
    fn spares_pages(&self) -> bool {
        self.method.bypasses_page_cache || self.spec.cold
    }

    fn job<'a>(&'a self, follower: &'a dyn Follower) -> Result<Job<'a>> {
        Ok(Job {
            file: &self.made.file,
            socket: &self.connection.socket,
            transfer: self.connection.transfer,
            offset: self.spec.offset,
            bytes: self.spec.bytes,
            chunk: usize::try_from(self.spec.chunk).context("chunk")?,
            first_chunk_apart: self.spec.pause,
            program: &self.spec.program,
            follower,
        })
    }

    fn pages_now(&self) -> Result<Vec<PageRun>> {
        if self.spares_pages() { resident_page_runs(&self.made.file) } else { page_runs(&self.made.file) }
    }

    /// What is to be sent.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.made.file
    }

    /// SHA-256 of the bytes the receiver is to get, from the file's content apart from the transfer; empty where it
    /// cannot be foretold.
    #[must_use]
    pub fn sha256(&self) -> &str {
        match &self.stream {
            None => &self.made.sha256,
            Some(stream) => stream.as_ref().map_or("", |stream| &stream.sha256),
        }
    }

    /// How many bytes the receiver is to get, where these are not the file's.
    #[must_use]
    pub fn stream_bytes(&self) -> Option<u64> {
        self.stream.as_ref()?.as_ref().map(|stream| stream.bytes)
    }

    /// Sends, and waits for the receipt. `pause` is called if the transfer is to pause.
    ///
    /// # Errors
    /// [`Unsupported`] where it shows only now that this guest cannot do it; else what failed, the receiver's silence
    /// and `pause` included.
    pub fn send(mut self, pause: Pause<'_>) -> Result<Done> {
        let conductor = Conductor {
            accounts: RefCell::new(Accounts::open(&Subject {
                file: &self.made.file,
                bytes: self.spec.bytes,
                path_kind: path_kind_of(self.method.name),
                sender: if self.method.name == PROGRAM { Sender::Child } else { Sender::ThisThread },
                datagrams: self.method.datagrams,
                with_copies: self.spec.accounts,
            })),
            pause: RefCell::new(self.spec.pause.then_some(pause)),
            pause_failed: RefCell::default(),
            claims: RefCell::default(),
            copied_on_write: Cell::new(None),
        };
        let job = self.job(&conductor)?;
        let start = Instant::now();
        conductor.accounts.borrow_mut().start().context("open the accounts")?;
        let sent = (self.method.send)(&job);
        conductor.accounts.borrow_mut().suspend().context("close the accounts")?;
        if let Some(error) = conductor.pause_failed.take() {
            return Err(error);
        }
        let mut bytes_sent =
            sent.map_err(unsupported).with_context(|| format!("{} to {}", self.method.name, self.spec.to))?;
        let Conductor { accounts, claims, copied_on_write, .. } = conductor;
        let mut accounts = accounts.into_inner();
        accounts.sent();
        let receipt = self.connection.receipt(bytes_sent)?;
        let took = start.elapsed();
        let mut accounts = accounts.close();
        // The receiver has all of it: nothing is on its way through the module any more.
        drop(self.module.take());
        if self.method.name == PROGRAM {
            // It does not say what it sent.
            bytes_sent = receipt.bytes;
            accounts.notes.push(format!("the program: {}", self.spec.program.join(" ")));
        }
        accounts.claims = claims.into_inner();
        if let Some(bytes) = copied_on_write.get() {
            accounts.copied_bytes.insert(wire::COPY_ON_WRITE.to_owned(), Some(bytes));
        }
        Ok(Done { bytes_sent, took, receipt, pages: self.pages_now()?, accounts, made: self.made })
    }
}

/// Follows a transfer: keeps its accounts, and stops it where it is to pause.
struct Conductor<'a> {
    accounts: RefCell<Accounts>,
    pause: RefCell<Option<Pause<'a>>>,
    /// Whole, for who knows the error.
    pause_failed: RefCell<Option<anyhow::Error>>,
    claims: RefCell<BTreeMap<String, u64>>,
    copied_on_write: Cell<Option<u64>>,
}

impl Follower for Conductor<'_> {
    fn taken(&self, sent: u64) -> io::Result<()> {
        let mut accounts = self.accounts.borrow_mut();
        accounts.drain();
        if let Some(pause) = self.pause.take() {
            accounts.suspend()?;
            if let Err(error) = pause(sent) {
                self.pause_failed.replace(Some(error));
                return Err(io::Error::other("the pause failed"));
            }
            accounts.start()?;
        }
        Ok(())
    }

    fn working(&self) {
        self.accounts.borrow_mut().drain();
    }

    fn claim(&self, what: &'static str, count: u64) {
        *self.claims.borrow_mut().entry(what.to_owned()).or_default() += count;
    }

    fn copied_on_write(&self, bytes: u64) {
        self.copied_on_write.set(Some(self.copied_on_write.get().unwrap_or_default() + bytes));
    }
}

/// An error that says "not here" as such.
fn unsupported(error: io::Error) -> anyhow::Error {
    if error.kind() == io::ErrorKind::Unsupported { Unsupported(error.to_string()).into() } else { error.into() }
}
