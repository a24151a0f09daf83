//! `vnic page`: a line per page.

use std::fmt::{self, Write};

use super::style::ADDRESS;
use crate::control::Page;
use anyhow::Result;

/// The address, whose page it is, and what else is known.
pub(crate) fn show(pages: &[Page]) -> Result<()> {
    super::put(text(pages)?)
}

/// The same as text.
pub(crate) fn text(pages: &[Page]) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for Page { label, offset, flags, last_use } in pages {
        write!(text, "{ADDRESS}{:#x}{ADDRESS:#}  {label}", label.gpa)?;
        let mut more = Vec::new();
        match (&label.filesystem, &label.device) {
            (Some(filesystem), Some(device)) if device != filesystem => more.push(format!("{filesystem} on {device}")),
            (Some(filesystem), _) => more.push(filesystem.to_string()),
            _ => {}
        }
        more.extend(offset.map(|offset| format!("offset {offset}")));
        more.extend(label.inode.map(|inode| format!("inode {inode}")));
        more.extend(label.address.map(|address| format!("at {address:#x}")));
        if more.is_empty() {
            writeln!(text)?;
        } else {
            writeln!(text, " ({})", more.join(", "))?;
        }
        if !flags.is_empty() {
            writeln!(text, "  flags: {}", flags.join(" "))?;
        }
        if let Some(step) = last_use {
            writeln!(text, "  last at {:.6} s: {step}, {} bytes", step.at_ns as f64 / 1e9, step.bytes)?;
        }
    }
    Ok(text)
}
