//! `vnic page`: a line per page.

use std::fmt::Write;

use anyhow::Result;
use vnic::observe::protocol::Label;

use super::style::ADDRESS;

/// The address, whose page it is, and what else is known.
pub(crate) fn show(labels: &[Label]) -> Result<()> {
    let mut text = String::new();
    for label in labels {
        write!(text, "{ADDRESS}{:#x}{ADDRESS:#}  {label}", label.gpa)?;
        let mut more = Vec::new();
        match (&label.filesystem, &label.device) {
            (Some(filesystem), Some(device)) if device != filesystem => more.push(format!("{filesystem} on {device}")),
            (Some(filesystem), _) => more.push(filesystem.to_string()),
            _ => {}
        }
        more.extend(label.inode.map(|inode| format!("inode {inode}")));
        more.extend(label.address.map(|address| format!("at {address:#x}")));
        if more.is_empty() {
            writeln!(text)?;
        } else {
            writeln!(text, " ({})", more.join(", "))?;
        }
    }
    super::put(text)
}
