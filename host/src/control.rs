//! The client of a device's control socket.
//!
//! Place: every command that looks at a device opens one [`Client`]. Its errors are whole sentences that say what to do
//! next; none of them is a bare I/O error.

use std::cell::Cell;
use std::fmt::Debug;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, io};

use anyhow::{Result, anyhow, bail};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vnic::observe::discovery;
use vnic::observe::protocol::{Label, Life, LifeOf, Reply, Report, Request, RingSnapshot, Status, Step, TraceEvent};
use vnic_experiment::control as experiment;
use vnic_experiment::flow::FlowAccounts;
use vnic_experiment::scan::ScanReport;
use vnic_experiment::wire::PageRun;

/// How long a device may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long it may take to find the guest's kernel.
const ATTACH: Duration = Duration::from_secs(30);

/// How long it may take to look through the guest's memory.
const SCAN: Duration = Duration::from_secs(60);

/// The longest line a device may send.
const LINE: u64 = 64 << 20;

/// What is known of a page.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Page {
    #[serde(flatten)]
    pub(crate) label: Label,
    /// Where in the file the address is, bytes; `null` where it is no file's.
    pub(crate) offset: Option<u64>,
    /// The names of the flags that the guest's kernel has set.
    pub(crate) flags: Vec<String>,
    /// When a device last had it, and what for; `null` where that is not recorded, or none had.
    pub(crate) last_use: Option<Step>,
}

/// A connection to a device's control socket.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
    /// What was asked last has no answer, and may get it still: nothing more can be asked.
    broken: Cell<bool>,
    /// This side has ended it.
    hung_up: Arc<AtomicBool>,
}

/// Ends a connection from another thread, when it is dropped.
#[derive(Debug)]
pub(crate) struct Hangup {
    stream: UnixStream,
    hung_up: Arc<AtomicBool>,
}

impl Drop for Hangup {
    fn drop(&mut self) {
        // One that is closed already is as good.
        self.hung_up.store(true, Ordering::Release);
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Which control sockets there are: the one in `VNIC_CONTROL`, or those of the devices that run, of which there is one at least.
fn there() -> Result<Vec<PathBuf>> {
    if let Some(path) = env::var_os("VNIC_CONTROL").filter(|path| !path.is_empty()) {
        return Ok(vec![path.into()]);
    }
    let mut served = discovery::find().map_err(|error| anyhow!("cannot look for running devices: {error}"))?;
    served.sort();
    if served.is_empty() {
        bail!("no `vnic serve` of yours is running; start one, or name its control socket with --control PATH");
    }
    Ok(served)
}

/// Which control socket: the one that is named, or the only one there is.
fn choose(named: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = named {
        return Ok(path.to_owned());
    }
    match there()?.as_slice() {
        [one] => Ok(one.clone()),
        several => {
            let list: Vec<String> = several.iter().map(|path| format!("--control {}", path.display())).collect();
            bail!("{} devices are running; say which one: {}", several.len(), list.join(", or "))
        }
    }
}

impl Client {
    /// Connects to the device that is meant.
    pub(crate) fn open(named: Option<&Path>) -> Result<Self> {
        let path = choose(named)?;
        let stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => anyhow!(
                "nobody serves the control socket {}; start `vnic serve`, or name another with --control PATH",
                path.display()
            ),
            _ => anyhow!("cannot connect to the control socket {}: {error}", path.display()),
        })?;
        let client = Client { stream: BufReader::new(stream), path, broken: Cell::new(false), hung_up: Arc::default() };
        client.set_timeout(Some(ANSWER))?;
        Ok(client)
    }

    /// Connects to all devices that are meant: those that are named, or all that there are.
    pub(crate) fn open_all(named: &[PathBuf]) -> Result<Vec<Self>> {
        let paths = if named.is_empty() { there()? } else { named.to_vec() };
        paths.iter().map(|path| Client::open(Some(path))).collect()
    }

    /// The socket's path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What ends the connection.
    pub(crate) fn hangup(&self) -> Result<Hangup> {
        let stream = self.stream.get_ref().try_clone().map_err(|error| self.failed(&error))?;
        Ok(Hangup { stream, hung_up: self.hung_up.clone() })
    }

    /// Is it of no more use?
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.get()
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        let stream = self.stream.get_ref();
        stream
            .set_read_timeout(timeout)
            .and_then(|()| stream.set_write_timeout(timeout))
            .map_err(|error| anyhow!("cannot set a timeout on {}: {error}", self.path.display()))
    }

    fn failed(&self, error: &io::Error) -> anyhow::Error {
        self.broken.set(true);
        let path = self.path.display();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                anyhow!(
                    "the device behind {path} did not answer within {} s; is its process stopped?",
                    ANSWER.as_secs()
                )
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                anyhow!("the device behind {path} closed the connection; did `vnic serve` end?")
            }
            _ => anyhow!("the control socket {path} failed: {error}"),
        }
    }

    /// One line from the device; `None` when it closed the connection, or this side did, be it in the middle of a line.
    fn line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let read = self.stream.by_ref().take(LINE).read_until(b'\n', &mut line);
        match read {
            Ok(0) => Ok(None),
            Ok(_) | Err(_) if !line.ends_with(b"\n") && self.hung_up.load(Ordering::Acquire) => Ok(None),
            Ok(_) if line.ends_with(b"\n") => Ok(Some(
                String::from_utf8(line)
                    .map_err(|_| anyhow!("{} does not speak vnic's protocol", self.path.display()))?,
            )),
            Ok(_) => Err(self.failed(&io::ErrorKind::ConnectionReset.into())),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn parse<T: DeserializeOwned>(&self, line: &str) -> Result<T> {
        serde_json::from_str(line)
            .map_err(|error| anyhow!("{} does not speak vnic's protocol: {error}", self.path.display()))
    }

    /// Asks, and waits for the answer. What the device calls an error is one here.
    pub(crate) fn ask<R: DeserializeOwned>(&mut self, request: &impl Serialize) -> Result<R> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let stream = self.stream.get_mut();
        if let Err(error) = stream.write_all(&line) {
            return Err(self.failed(&error));
        }
        let Some(line) = self.line()? else {
            return Err(self.failed(&io::ErrorKind::ConnectionReset.into()));
        };
        match self.parse(&line) {
            Ok(Reply::Error { message }) => Err(anyhow!(message)),
            _ => self.parse(&line),
        }
    }

    /// Is there a line that was received but not yet read?
    fn has_more(&self) -> bool {
        self.stream.buffer().contains(&b'\n')
    }

    fn unexpected(&self, reply: &impl Debug) -> anyhow::Error {
        anyhow!("{} gave another answer than was asked for: {reply:?}", self.path.display())
    }

    /// The whole state.
    pub(crate) fn status(&mut self) -> Result<Status> {
        match self.ask(&Request::Status)? {
            Reply::Status(status) => Ok(*status),
            other => Err(self.unexpected(&other)),
        }
    }

    /// A snapshot of the rings, or of one.
    pub(crate) fn rings(&mut self, queue: Option<String>) -> Result<Vec<RingSnapshot>> {
        match self.ask(&Request::Rings { queue })? {
            Reply::Rings { rings } => Ok(rings),
            other => Err(self.unexpected(&other)),
        }
    }

    /// What is known of the pages at these guest-physical addresses.
    pub(crate) fn page(&mut self, addresses: Vec<u64>) -> Result<Vec<Page>> {
        let (labels, mut flags, mut last_uses) = match self.ask(&Request::Page { addresses })? {
            Reply::Page { labels, flags, last_uses } => (labels, flags, last_uses),
            other => return Err(self.unexpected(&other)),
        };
        flags.resize(labels.len(), Vec::new());
        last_uses.resize(labels.len(), None);
        let pages = labels.into_iter().zip(flags).zip(last_uses);
        Ok(pages.map(|((label, flags), last_use)| Page { offset: label.offset(), label, flags, last_use }).collect())
    }

    /// What has happened to a page, or to a file's.
    pub(crate) fn life(&mut self, of: LifeOf) -> Result<Life> {
        match self.ask(&Request::Life(of))? {
            Reply::Life(life) => Ok(*life),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Something to be done.
    pub(crate) fn order(&mut self, request: &impl Serialize) -> Result<()> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    /// How often what a held queue was given stands in the guest's memory.
    pub(crate) fn scan(&mut self, queue: &str) -> Result<ScanReport> {
        self.set_timeout(Some(SCAN))?;
        let reply = self.ask(&experiment::Request::Scan { queue: queue.to_owned() })?;
        self.set_timeout(Some(ANSWER))?;
        match reply {
            experiment::Reply::Scan(report) => Ok(report),
            other => Err(self.unexpected(&other)),
        }
    }

    /// The accounts of the watched flow; with what the guest's kernel says of its pages, if `introspect`.
    pub(crate) fn end_watch(&mut self, pages: Vec<PageRun>, introspect: bool) -> Result<FlowAccounts> {
        self.set_timeout(Some(SCAN))?;
        let reply = self.ask(&experiment::Request::EndWatch { pages, introspect })?;
        self.set_timeout(Some(ANSWER))?;
        match reply {
            experiment::Reply::FlowAccounts(accounts) => Ok(*accounts),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Starts a trace: from now on the connection carries events only.
    pub(crate) fn trace(mut self, Wanted { labels, headers }: Wanted) -> Result<Trace> {
        self.set_timeout(Some(ATTACH))?;
        self.order(&Request::Trace { labels, headers })?;
        self.set_timeout(None)?;
        Ok(Trace(self))
    }
}

impl Client {
    /// From now on the connection carries reports of what is sent, so often: of all that was sent so far, or since now.
    pub(crate) fn top(mut self, every: Duration, since: Since) -> Result<Top> {
        self.set_timeout(Some(ATTACH))?;
        let every_ms = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
        self.order(&Request::Top { every_ms, so_far: since == Since::Start })?;
        self.set_timeout(None)?;
        Ok(Top(self))
    }

    /// The first report: of so long a time, or at once.
    pub(crate) fn report(self, time: Duration, since: Since) -> Result<Report> {
        let mut top = self.top(time, since)?;
        top.next()?.ok_or_else(|| top.0.failed(&io::ErrorKind::ConnectionReset.into()))
    }
}

/// From when on what is sent counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// As long as the device is served, where it keeps that.
    Start,
    /// From now on.
    Now,
}

/// Reports of what is sent.
#[derive(Debug)]
pub(crate) struct Top(Client);

impl Top {
    /// What can be waited on for the next one.
    pub(crate) fn news(&self) -> Result<OwnedFd> {
        let copy = self.0.stream.get_ref().try_clone();
        Ok(copy.map_err(|error| self.0.failed(&error))?.into())
    }

    /// Are there reports that were received but not yet read?
    pub(crate) fn has_more(&self) -> bool {
        self.0.has_more()
    }

    /// The next report; `None` when the device ended.
    pub(crate) fn next(&mut self) -> Result<Option<Report>> {
        let Some(line) = self.0.line()? else { return Ok(None) };
        match self.0.parse(&line)? {
            Reply::Top(report) => Ok(Some(*report)),
            Reply::Error { message } => Err(anyhow!(message)),
            other => Err(self.0.unexpected(&other)),
        }
    }
}

/// What a trace tells of a chain beside the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wanted {
    /// Whose memory its buffers are.
    pub(crate) labels: bool,
    /// The headers of its frame.
    pub(crate) headers: bool,
}

/// A running trace.
#[derive(Debug)]
pub(crate) struct Trace(Client);

impl Trace {
    /// Are there events that were received but not yet read?
    pub(crate) fn has_more(&self) -> bool {
        self.0.has_more()
    }

    /// The next event; `None` when the device ended.
    pub(crate) fn next(&mut self) -> Result<Option<TraceEvent>> {
        match self.0.line()? {
            Some(line) => Ok(Some(self.0.parse(&line)?)),
            None => Ok(None),
        }
    }
}
