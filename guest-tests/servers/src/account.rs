//! Where a server's bytes came from, as the card's control socket tells: what `vnic top` shows.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use vnic::observe::protocol::{Reply, Request};
use vnic::provenance::Report;

/// Milliseconds between two reports.
const EVERY: u64 = 250;

/// How long the card may take to look into the guest's kernel, and to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// What the guest sends from when `ready` is called until `done` says so, and nothing more comes.
pub(crate) fn follow(control: &Path, done: &AtomicBool, ready: impl FnOnce()) -> Result<Report> {
    let stream = UnixStream::connect(control).with_context(|| control.display().to_string())?;
    stream.set_read_timeout(Some(ANSWER)).context("the control socket")?;
    let mut reader = BufReader::new(stream);
    let mut request = serde_json::to_vec(&Request::Top { every_ms: EVERY, so_far: false })?;
    request.push(b'\n');
    reader.get_mut().write_all(&request).context("the control socket")?;
    match hear(&mut reader)? {
        Reply::Done => ready(),
        other => bail!("asked for what the guest sends, got {other:?}"),
    }
    let mut last = None;
    loop {
        let over = done.load(Ordering::Acquire);
        match hear(&mut reader)? {
            Reply::Top(report) if over && last == Some(report.seen) => return Ok(*report),
            Reply::Top(report) => last = over.then_some(report.seen),
            other => bail!("waited for a report, got {other:?}"),
        }
    }
}

fn hear(reader: &mut BufReader<UnixStream>) -> Result<Reply> {
    let mut line = String::new();
    if reader.read_line(&mut line).context("the card does not answer")? == 0 {
        bail!("the card is gone");
    }
    match serde_json::from_str(&line)? {
        Reply::Error { message } => bail!(message),
        reply => Ok(reply),
    }
}
