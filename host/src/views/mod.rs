//! What people and programs read: the only place that writes to standard output.
//!
//! Text on a terminal has colour; anywhere else it has none. `--json` is one document, or one object per line for
//! streams.

use std::fmt;
use std::io::{self, BufWriter, StdoutLock, Write};

use anstream::AutoStream;
use anyhow::Result;
use serde::Serialize;

pub(crate) mod changes;
pub(crate) mod classic;
pub(crate) mod doctor;
pub(crate) mod figures;
pub(crate) mod hardware;
pub(crate) mod hazard;
pub(crate) mod headers;
pub(crate) mod html;
mod last_page;
pub(crate) mod life;
pub(crate) mod notation;
pub(crate) mod page;
pub(crate) mod report;
pub(crate) mod rings;
pub(crate) mod scan;
pub(crate) mod status;
pub(crate) mod style;
mod table;
pub(crate) mod top;
pub(crate) mod trace;
pub(crate) mod verdict;

/// Standard output with colour where it is a terminal.
fn out() -> BufWriter<AutoStream<StdoutLock<'static>>> {
    BufWriter::new(AutoStream::auto(io::stdout()).lock())
}

/// One JSON document.
pub(crate) fn json(document: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(document)?;
    text.push('\n');
    put(&text)
}

/// One JSON object on a line.
pub(crate) fn json_line(object: &impl Serialize) -> Result<()> {
    put(serde_json::to_string(object)? + "\n")
}

/// One sentence.
pub(crate) fn sentence(text: &str) -> Result<()> {
    put(format!("{text}\n"))
}

/// Text as it is.
pub(crate) fn put(text: impl fmt::Display) -> Result<()> {
    let mut out = out();
    write!(out, "{text}")?;
    out.flush()?;
    Ok(())
}
