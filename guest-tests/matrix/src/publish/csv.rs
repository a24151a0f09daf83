//! A line a cell, for spreadsheets (RFC 4180).

use std::fmt::Write as _;

use super::{Filled, Table};
use crate::figures::FIGURES;

const WORDS: [&str; 11] =
    ["kernel", "filesystem", "row", "bytes", "verdict", "expected", "qemu", "accel", "vnic", "date", "sha256_ok"];

/// Quoted where it must be.
fn field(text: &str) -> String {
    match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    }
}

fn line(cell: &Filled) -> String {
    let (origin, row) = (&cell.origin, cell.row());
    let word = |text: Option<&str>| text.unwrap_or_default().to_owned();
    let mut fields = vec![
        origin.kernel.clone(),
        origin.filesystem.clone(),
        origin.row.clone(),
        origin.bytes.to_string(),
        word(row.verdict.map(|verdict| verdict.name())),
        word(row.expected.map(|verdict| verdict.name())),
        word(cell.run.qemu.as_deref()),
        word(cell.run.accel.as_deref()),
        origin.vnic.clone(),
        origin.date.to_string(),
        row.sha256_ok.map(|ok| ok.to_string()).unwrap_or_default(),
    ];
    fields.extend(FIGURES.iter().map(|(_, of)| of(row).map(|figure| format!("{figure:.4}")).unwrap_or_default()));
    let copied =
        row.guest.copied_bytes.iter().filter_map(|(name, bytes)| Some((name, bytes.filter(|bytes| *bytes > 0)?)));
    fields.push(copied.map(|(name, bytes)| format!("{name}={bytes}")).collect::<Vec<_>>().join(" "));
    fields.push(row.guest.claims.iter().map(|(what, count)| format!("{what}: {count}")).collect::<Vec<_>>().join("; "));
    fields.push(row.why.clone());
    fields.iter().map(|text| field(text)).collect::<Vec<_>>().join(",")
}

pub(super) fn lines(table: &Table) -> String {
    let names =
        WORDS.into_iter().chain(FIGURES.iter().map(|(name, _)| *name)).chain(["copied_by", "kernel_claims", "why"]);
    let mut text = names.collect::<Vec<_>>().join(",") + "\n";
    for kernel in &table.kernels {
        for cell in table.cells.iter().filter(|cell| cell.origin.kernel == *kernel) {
            let _ = writeln!(text, "{}", line(cell));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_field_with_a_comma_is_one_field() {
        assert_eq!(super::field("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(super::field("plain"), "plain");
    }
}
