//! A trace, written for the tools that people have.
//!
//! Place: `vnic trace` hands every chain that is wanted to each [`Export`], as it comes; [`run`] ends when there are enough, the
//! device ends or a signal comes, and what was written is complete then.

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use nix::sys::signal::{SigSet, Signal};
use vnic::observe::protocol::TraceEvent;

use crate::control::{Client, Hangup, Wanted};
use crate::filter::Filter;

pub(crate) mod perfetto;

/// What a trace is handed on to.
pub(crate) trait Export {
    /// Of each chain also this.
    fn wanted(&self) -> Wanted;

    /// The next event, in the order in which the device was done with the chains.
    fn event(&mut self, event: &TraceEvent) -> Result<()>;

    /// No more comes for the moment: what was written may be read.
    fn flush(&mut self) -> Result<()>;

    /// No more comes. Returns what was written where, and how to open it, in a sentence.
    fn end(self: Box<Self>) -> Result<String>;
}

/// Follows all chains that `filter` admits, so many of them, and with `labels`. Returns what was written.
pub(crate) fn run(
    client: Client,
    filter: &Filter,
    labels: bool,
    count: Option<u64>,
    mut exports: Vec<Box<dyn Export>>,
) -> Result<Vec<String>> {
    let wanted = Wanted {
        labels: labels || exports.iter().any(|export| export.wanted().labels),
        headers: exports.iter().any(|export| export.wanted().headers),
    };
    // Before there are threads: in others, a signal would end the process.
    end_by_signal(client.hangup()?)?;
    let progress = if io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    progress.enable_steady_tick(Duration::from_millis(250));
    let mut trace = client.trace(wanted)?;
    let mut left = count.unwrap_or(u64::MAX);
    let mut written = 0_u64;
    let ended = loop {
        let event = match trace.next() {
            Ok(Some(event)) => event,
            Ok(None) => break Ok(()),
            // What was written until then is complete, too.
            Err(error) => break Err(error),
        };
        let counts = match &event {
            TraceEvent::Chain(chain) => filter.admits(chain),
            TraceEvent::Lost { queue, .. } => filter.is_of(queue),
        };
        if counts {
            exports.iter_mut().try_for_each(|export| export.event(&event))?;
            let is_chain = matches!(event, TraceEvent::Chain(_));
            (left, written) = (left - u64::from(is_chain), written + u64::from(is_chain));
        }
        if left == 0 {
            break Ok(());
        }
        if !trace.has_more() {
            exports.iter_mut().try_for_each(|export| export.flush())?;
            progress.set_message(format!("{written} chains written; Ctrl-C ends it"));
        }
    };
    progress.finish_and_clear();
    let written = exports.into_iter().map(Export::end).collect::<Result<Vec<String>>>()?;
    ended.map_err(|error: anyhow::Error| error.context(format!("{}; then the trace broke off", written.join("; "))))?;
    Ok(written)
}

/// SIGINT and SIGTERM end the trace, so that what is written is complete; a second one ends the process.
fn end_by_signal(hangup: Hangup) -> Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
    signals.thread_block().context("cannot watch for signals")?;
    // It ends with the process.
    thread::spawn(move || {
        if signals.wait().is_ok() {
            drop(hangup);
            // Only one thread has to take the next.
            let _ = signals.thread_unblock();
            thread::park();
        }
    });
    Ok(())
}
