//! `vnic trace`: a line per chain.

use std::io::{BufWriter, StdoutLock, Write};

use anstream::AutoStream;
use anyhow::Result;
use vnic::observe::protocol::TraceEvent;

use super::notation;

/// Lines as they come; [`Trace::flush`] when the stream pauses.
pub(crate) struct Trace {
    out: BufWriter<AutoStream<StdoutLock<'static>>>,
    json: bool,
}

impl Trace {
    /// Text, or one JSON object per line.
    pub(crate) fn new(json: bool) -> Self {
        Trace { out: super::out(), json }
    }

    /// One event, one line.
    pub(crate) fn event(&mut self, event: &TraceEvent) -> Result<()> {
        if self.json {
            writeln!(self.out, "{}", serde_json::to_string(event)?)?;
        } else {
            writeln!(self.out, "{}", notation::paint(&event.to_string()))?;
        }
        Ok(())
    }

    /// Brings what is written to its reader.
    pub(crate) fn flush(&mut self) -> Result<()> {
        Ok(self.out.flush()?)
    }
}
