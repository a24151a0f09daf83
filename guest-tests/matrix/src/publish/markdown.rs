//! The table as Markdown: a grid of CPU copies per kernel, what changed between kernels, what cannot be done and why.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Filled, NO_SG, NOT_RUN, Table, WHY_NOT_RUN, changes, on_nic, what_if};
use crate::cell::State;

const HEAD: &str = "\
# Is sendfile still zero-copy?

Every cell is a transfer in a guest of this kernel, by this method, from this file system: **how often the CPU copied each payload byte**, by
the guest kernel's own books, where what the card was handed, the guest's memory and its kernel's structures, both read from outside, do not
contradict ([Methods and hazards](methods.md#four-witnesses)). **0.00** is zero-copy. `–`: this kernel or file system cannot do that, below it
says why; so it does for what was not run. In rows over UDP 0.02 are the 24 bytes in front of each datagram's 1,024. Made by `scripts/matrix.sh`; [the same with its evidence](zero-copy-table.html), as [CSV](zero-copy-table.csv), as
[Parquet](zero-copy-table.parquet).
";

/// A figure as it stands in the grid.
fn shown(cell: Option<&Filled>) -> String {
    match cell.map(Filled::short) {
        None => NOT_RUN.to_owned(),
        Some(text) if text == "0.00" => "**0.00**".to_owned(),
        Some(text) => text,
    }
}

/// The range of what cells were made with.
fn made(table: &Table) -> String {
    let mut days: Vec<String> = table.cells.iter().map(|cell| day(cell.origin.date)).collect();
    days.sort_unstable();
    days.dedup();
    let mut qemus: Vec<&str> = table.cells.iter().filter_map(|cell| cell.run.qemu.as_deref()).collect();
    qemus.sort_unstable();
    qemus.dedup();
    let mut accels: Vec<&str> = table.cells.iter().filter_map(|cell| cell.run.accel.as_deref()).collect();
    accels.sort_unstable();
    accels.dedup();
    let bytes = table.cells.first().map_or(0, |cell| cell.origin.bytes);
    let (first, last) = (days.first().cloned().unwrap_or_default(), days.last().cloned().unwrap_or_default());
    let when = if first == last { first } else { format!("{first} to {last}") };
    let size = bytes as f64 / f64::from(1 << 20);
    format!(
        "{} cells, files of {size} MiB, {when}, vnic {}, QEMU {} ({}).\n",
        table.cells.len(),
        env!("CARGO_PKG_VERSION"),
        qemus.join(", "),
        accels.join(", ")
    )
}

/// Days since 1970 as a date of the Gregorian calendar (the algorithm is Howard Hinnant's `civil_from_days`).
fn day(seconds: u64) -> String {
    let days = seconds / 86_400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + u64::from(month <= 2))
}

fn grid(text: &mut String, table: &Table, kernel: &str, suffix: &str) {
    let _ = writeln!(text, "\n| | {} |", table.filesystems.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(table.filesystems.len()));
    for row in &table.rows {
        let name = on_nic(row, suffix);
        let cells: Vec<Option<&Filled>> =
            table.filesystems.iter().map(|filesystem| table.cell(kernel, filesystem, &name)).collect();
        if cells.iter().any(Option::is_some) {
            let cells: Vec<String> = cells.into_iter().map(shown).collect();
            let _ = writeln!(text, "| `{row}` | {} |", cells.join(" | "));
        }
    }
}

/// Cells in words: rows, then where.
fn places<'a>(cells: impl Iterator<Item = &'a Filled>) -> String {
    let mut rows: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for cell in cells {
        let filesystems = rows.entry(&cell.origin.row).or_default();
        if !filesystems.contains(&cell.origin.filesystem.as_str()) {
            filesystems.push(&cell.origin.filesystem);
        }
    }
    let rows = rows.into_iter().map(|(row, filesystems)| format!("`{row}` ({})", filesystems.join(", ")));
    rows.collect::<Vec<_>>().join("; ")
}

fn changed(text: &mut String, table: &Table, from: &str, to: &str) {
    let found = changes::between(table, from, to);
    let _ = writeln!(text, "\n### From {from} to {to}\n");
    if found.is_empty() {
        let _ = writeln!(text, "Nothing.");
    }
    for change in found {
        let _ = writeln!(text, "- `{}`: {} ({})", change.row, change.what, change.filesystems.join(", "));
    }
}

fn reasons(text: &mut String, table: &Table) {
    let mut found: BTreeMap<(&str, String), Vec<&Filled>> = BTreeMap::new();
    for cell in &table.cells {
        let (what, why) = match State::of(cell.row()) {
            State::Lacking(why) => ("cannot", why),
            State::Failed(why) => ("failed", why),
            State::Measured { surprises, .. } if !surprises.is_empty() => ("surprising", surprises.join("; ")),
            _ => continue,
        };
        found.entry((what, why)).or_default().push(cell);
    }
    for (kind, title) in [
        ("surprising", "## Other than expected"),
        ("failed", "## Could not be measured"),
        ("cannot", "## What cannot be done, and why"),
    ] {
        let of_kind: Vec<_> = found.iter().filter(|((known, _), _)| *known == kind).collect();
        if of_kind.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n{title}\n");
        for ((_, why), cells) in of_kind {
            let mut kernels: Vec<&str> = cells.iter().map(|cell| cell.origin.kernel.as_str()).collect();
            kernels.sort_by_key(|name| super::version(name));
            kernels.dedup();
            let everywhere = kernels.len() == table.kernels.len();
            let kernels = if everywhere { "every kernel".to_owned() } else { kernels.join(", ") };
            let _ = writeln!(text, "- {why}: {}; on {kernels}", places(cells.iter().copied()));
        }
    }
}

fn what_if_section(text: &mut String, table: &Table) {
    let lines = what_if::lines(table);
    if lines.is_empty() {
        return;
    }
    text.push_str(
        "\n## What if splice copied?\n\n\
        CPU time of the sender per payload byte, as ratios: median of all rounds (least–most). Under TCG a ratio says more of the emulator \
        than of a CPU, and copies weigh too much; the counts above are the same anywhere.\n\n\
        | kernel | file system | under | rounds | the copy: `sendfile+copy-splice` ÷ `sendfile` | the user's buffer: `read-write` ÷ `sendfile+copy-splice` | both: `read-write` ÷ `sendfile` |\n\
        |---|---|---|---|---|---|---|\n",
    );
    let shown = |ratio: what_if::Ratio| format!("{:.1} ({:.1}–{:.1})", ratio.median, ratio.least, ratio.most);
    for line in lines {
        let (copy, buffer, both) = (shown(line.copy), shown(line.buffer), shown(line.both));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {copy} | {buffer} | {both} |",
            line.kernel, line.filesystem, line.accel, line.rounds
        );
    }
}

fn not_run(text: &mut String, table: &Table) {
    let mut missing: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
    for (kernel, filesystem, rows) in table.missing() {
        missing.entry(rows).or_default().push(format!("{filesystem} on {kernel}"));
    }
    if missing.is_empty() {
        return;
    }
    let _ = writeln!(text, "\n## Not run\n\nOf these {WHY_NOT_RUN}.\n");
    for (rows, places) in missing {
        let rows = rows.iter().map(|row| format!("`{row}`")).collect::<Vec<_>>().join(", ");
        let _ = writeln!(text, "- {}: {rows}", places.join(", "));
    }
}

pub(super) fn page(table: &Table) -> String {
    let mut text = format!("{HEAD}\n{}\n", made(table));
    text.push_str("All of it anew: `scripts/matrix.sh && scripts/matrix.sh --publish docs`.\n");
    for kernel in table.kernels.iter().rev() {
        let _ = writeln!(text, "\n## Linux {kernel}\n\nA NIC with scatter-gather:");
        grid(&mut text, table, kernel, "");
        if table.cells.iter().any(|cell| cell.origin.kernel == *kernel && cell.origin.row.ends_with(NO_SG)) {
            let _ = writeln!(text, "\nWithout scatter-gather:");
            grid(&mut text, table, kernel, NO_SG);
        }
    }
    if table.kernels.len() > 1 {
        text.push_str(
            "\n## What changed\n\nVerdicts; copies by more than 0.05; descriptors per MiB by more than twice.\n",
        );
        for pair in table.kernels.windows(2) {
            changed(&mut text, table, &pair[0], &pair[1]);
        }
    }
    what_if_section(&mut text, table);
    reasons(&mut text, table);
    not_run(&mut text, table);
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, day) in [(0, "1970-01-01"), (951_782_400, "2000-02-29"), (1_795_996_800, "2026-11-30")] {
            assert_eq!(super::day(seconds), day);
        }
    }
}
