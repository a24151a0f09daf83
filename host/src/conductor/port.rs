//! The host's end of the record port: one JSON object per line, each wait with a name and a deadline.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use vnic_experiment::wire::{Event, Request};

use super::interrupt;

/// How long QEMU may take to make its socket.
const CONNECT: Duration = Duration::from_secs(30);
/// How long between two looks for it.
const RETRY: Duration = Duration::from_millis(20);
/// How often a wait looks up to show progress.
const TICK: Duration = Duration::from_millis(200);
/// The longest line an agent may send: the pages of a 16 GiB file fit.
const LINE: usize = 256 << 20;

/// What is waited for, and how long.
#[derive(Debug)]
pub(super) struct Wait {
    /// `the guest's agent to come up`.
    pub(super) what: &'static str,
    /// At most.
    pub(super) limit: Duration,
}

/// A connection to the guest's agent.
#[derive(Debug)]
pub(super) struct Port {
    stream: UnixStream,
    path: PathBuf,
    received: Vec<u8>,
    /// How much of `received` is known to hold no line end.
    searched: usize,
}

/// What came out of one look at the socket.
enum Look {
    Line(Vec<u8>),
    Nothing,
    Closed,
}

/// The agent said something that was not its turn to say.
pub(super) fn out_of_turn(during: &str, event: &Event) -> anyhow::Error {
    match event {
        Event::Failed { error } => anyhow!("the guest failed while {during}: {error}"),
        other => anyhow!("the guest's agent spoke out of turn while {during}: {other:?}"),
    }
}

impl Port {
    /// Connects to QEMU's socket, which may still be on its way.
    pub(super) fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + CONNECT;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                        && Instant::now() < deadline =>
                {
                    // A socket that is not there yet cannot be waited on.
                    std::thread::sleep(RETRY);
                }
                Err(error) => {
                    bail!("cannot connect to the guest's record port {}: {error}; is QEMU running?", path.display())
                }
            }
        };
        stream
            .set_read_timeout(Some(TICK))
            .and_then(|()| stream.set_write_timeout(Some(CONNECT)))
            .map_err(|error| anyhow!("cannot set a timeout on {}: {error}", path.display()))?;
        Ok(Port { stream, path: path.to_owned(), received: Vec::new(), searched: 0 })
    }

    /// Sends one request.
    pub(super) fn send(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream
            .write_all(&line)
            .map_err(|error| anyhow!("the guest's record port {}: {error}", self.path.display()))
    }

    /// Waits for the next event; calls `tick` a few times a second meanwhile.
    pub(super) fn wait(&mut self, wait: &Wait, tick: &mut dyn FnMut()) -> Result<Event> {
        match self.wait_until(wait, tick)? {
            Some(event) => Ok(event),
            None => bail!("waited {} s in vain for {}", wait.limit.as_secs(), wait.what),
        }
    }

    /// The same; `None` when the deadline passed.
    pub(super) fn wait_until(&mut self, wait: &Wait, tick: &mut dyn FnMut()) -> Result<Option<Event>> {
        let deadline = Instant::now() + wait.limit;
        loop {
            match self.look()? {
                Look::Line(line) if line.trim_ascii().is_empty() => {}
                Look::Line(line) => return parse(&line).map(Some),
                Look::Closed => bail!("the guest's record port closed while waiting for {}; did QEMU end?", wait.what),
                Look::Nothing if interrupt::came() => bail!("interrupted while waiting for {}", wait.what),
                Look::Nothing if Instant::now() >= deadline => return Ok(None),
                Look::Nothing => {}
            }
            tick();
        }
    }

    /// Waits for the other side to close. It gets `again` for each line it still says.
    pub(super) fn wait_closed(&mut self, wait: &Wait, again: &Request) -> Result<()> {
        let deadline = Instant::now() + wait.limit;
        loop {
            match self.look()? {
                Look::Closed => return Ok(()),
                // It may close before it reads this.
                Look::Line(_) if self.send(again).is_err() => return Ok(()),
                _ if Instant::now() >= deadline => bail!("waited {} s in vain for {}", wait.limit.as_secs(), wait.what),
                _ => {}
            }
        }
    }

    fn look(&mut self) -> Result<Look> {
        loop {
            if let Some(at) = self.received[self.searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.received.split_off(self.searched + at + 1);
                self.searched = 0;
                return Ok(Look::Line(std::mem::replace(&mut self.received, rest)));
            }
            self.searched = self.received.len();
            if self.searched > LINE {
                bail!("the guest's agent sent a line of more than {LINE} bytes");
            }
            let mut buffer = [0; 64 << 10];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(Look::Closed),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) =>
                {
                    return Ok(Look::Nothing);
                }
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Look::Closed),
                Err(error) => bail!("the guest's record port {}: {error}", self.path.display()),
            }
        }
    }
}

fn parse(line: &[u8]) -> Result<Event> {
    let mut event = serde_json::from_slice(line).map_err(|error| {
        let text = String::from_utf8_lossy(line);
        let start: String = text.trim().chars().take(80).collect();
        anyhow!("the guest's agent does not speak vnic's protocol ({error}): {}", plain(&start))
    })?;
    match &mut event {
        Event::Ready { kernel: text, .. } | Event::Failed { error: text } | Event::Unsupported { why: text } => {
            *text = plain(text);
        }
        Event::Shown { story, .. } => story.iter_mut().for_each(|line| *line = plain(line)),
        Event::TransferEnd { accounts, .. } => {
            accounts.reasons.values_mut().chain(&mut accounts.notes).for_each(|text| *text = plain(text));
            plain_names(&mut accounts.copied_bytes);
            plain_names(&mut accounts.claims);
        }
        _ => {}
    }
    Ok(event)
}

/// A guest's words without what would steer a terminal.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The same with the names of figures.
fn plain_names<T>(figures: &mut BTreeMap<String, T>) {
    *figures = std::mem::take(figures).into_iter().map(|(name, figure)| (plain(&name), figure)).collect();
}

#[cfg(test)]
mod tests {
    use vnic_experiment::wire::{Accounts, Receipt};

    use super::*;

    #[test]
    fn whatever_a_guest_says_of_a_transfer_cannot_steer_a_terminal() {
        let word = || "\u{1b}[2Jzero-copy\u{7}".to_owned();
        let accounts = Accounts {
            copied_bytes: [(word(), Some(1))].into(),
            claims: [(word(), 2)].into(),
            reasons: [("syscalls".to_owned(), word())].into(),
            notes: vec![word()],
            ..Accounts::default()
        };
        let receipt = Receipt { bytes: 1, sha256: "ab".repeat(32) };
        let said = Event::TransferEnd { bytes_sent: 1, seconds: 0.5, receipt, pages: Vec::new(), accounts };
        let Ok(Event::TransferEnd { accounts, .. }) = parse(&serde_json::to_vec(&said).unwrap()) else {
            panic!("it is an event");
        };
        let heard = [
            accounts.copied_bytes.keys().collect::<Vec<_>>(),
            accounts.claims.keys().collect(),
            accounts.reasons.values().collect(),
            accounts.notes.iter().collect(),
        ];
        assert_eq!(heard, [[" [2Jzero-copy "]; 4]);
    }
}
