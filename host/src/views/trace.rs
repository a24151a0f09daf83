//! `vnic trace`: a line per chain.

use std::io::{BufWriter, IsTerminal, StdoutLock, Write, stdout};

use anstream::AutoStream;
use anyhow::Result;
use vnic::observe::protocol::{ChainEvent, TraceEvent};

use super::style::{BAD, DIM};
use super::{headers, notation, table};
use crate::trouble::Trouble;

/// What the first figure of a line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Time {
    /// Seconds since the device is served.
    #[default]
    Absolute,
    /// Seconds since the first line.
    Relative,
    /// Seconds since the line before.
    Delta,
}

/// How it is printed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Style {
    /// One JSON object per line.
    pub(crate) json: bool,
    pub(crate) time: Time,
    /// With the frames' headers.
    pub(crate) hex: bool,
}

/// Lines as they come; [`Trace::flush`] when the stream pauses.
pub(crate) struct Trace {
    out: BufWriter<AutoStream<StdoutLock<'static>>>,
    style: Style,
    /// On a terminal, how wide a line may be. Elsewhere a chain is one line, however long.
    width: Option<usize>,
    /// When the chain was that times are told from.
    since: Option<u64>,
}

impl Trace {
    /// In this style.
    pub(crate) fn new(style: Style) -> Self {
        let width = stdout().is_terminal().then(|| usize::from(table::width()));
        Trace { out: super::out(), style, width, since: None }
    }

    /// One event, one line, and what was asked for below it.
    pub(crate) fn event(&mut self, event: &TraceEvent) -> Result<()> {
        if self.style.json {
            writeln!(self.out, "{}", serde_json::to_string(event)?)?;
            return Ok(());
        }
        let mut line = event.to_string();
        if let TraceEvent::Chain(chain) = event {
            line = self.timed(chain, line);
        }
        if let Some(width) = self.width {
            line = notation::wrap(&line, width);
        }
        writeln!(self.out, "{}", notation::paint(&line))?;
        if let (true, TraceEvent::Chain(ChainEvent { headers: Some(headers), .. })) = (self.style.hex, event) {
            for line in headers::lines(headers) {
                writeln!(self.out, "    {DIM}{line}{DIM:#}")?;
            }
        }
        Ok(())
    }

    /// Something that no chain tells.
    pub(crate) fn trouble(&mut self, trouble: &Trouble) -> Result<()> {
        match self.style.json {
            true => writeln!(self.out, "{}", serde_json::to_string(trouble)?)?,
            false => writeln!(self.out, "{BAD}{trouble}{BAD:#}")?,
        }
        Ok(())
    }

    /// Brings what is written to its reader.
    pub(crate) fn flush(&mut self) -> Result<()> {
        Ok(self.out.flush()?)
    }

    /// The line with the time that is asked for in the place of its own.
    fn timed(&mut self, chain: &ChainEvent, line: String) -> String {
        let since = *self.since.get_or_insert(chain.at_ns);
        if self.style.time == Time::Delta {
            self.since = Some(chain.at_ns);
        }
        match (self.style.time, line.split_once(' ')) {
            (Time::Absolute, _) | (_, None) => line,
            (Time::Relative | Time::Delta, Some((_, rest))) => {
                // Events of several queues come in the order of their time, but for those of a moment.
                let gone = chain.at_ns.saturating_sub(since);
                format!("+{}.{:06} {rest}", gone / 1_000_000_000, gone % 1_000_000_000 / 1000)
            }
        }
    }
}
