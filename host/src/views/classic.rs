//! The textbook's table as measured: switches and copies of each row, with the textbook's figure where it differs.
//!
//! Words: a mode switch is an entry to the kernel or a return from it; a context switch is another task's turn. Copies are
//! per payload byte sent. CPU time is the sending thread's own, in user mode and in the kernel. The textbook counts for one
//! piece of data; so mode switches are per chunk where a method works in chunks, and in all where one call sends the file.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use vnic_experiment::row::{PROGRAM, Row, USERSPACE};
use vnic_experiment::run::{Method, NicState, Run};
use vnic_experiment::verdict;

use comfy_table::Cell;

use super::figures;
use super::table::{Align, NULL, table as aligned};

/// What the textbook says of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Textbook {
    mode_switches: u64,
    cpu_copies: u64,
    dma_copies: u64,
}

/// For what mode switches are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Per {
    /// One chunk.
    Chunk,
    /// The whole transfer.
    Transfer,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub(crate) struct Line<'a> {
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    filesystem: Option<&'a str>,
    nic: NicState,
    mode_switches: Option<f64>,
    pub(super) mode_switches_per: Per,
    page_faults: Option<u64>,
    /// What [`Per`] counts in this transfer.
    #[serde(skip)]
    pieces: u64,
    context_switches: Option<u64>,
    cpu_copies: Option<f64>,
    /// Copies per payload byte by each of the kernel's functions that made some.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) copied_by: BTreeMap<&'a str, f64>,
    dma_copies: Option<f64>,
    /// Of `dma_copies`, the disk's.
    disk_copies: Option<f64>,
    physical_instances: Option<u64>,
    pub(super) cpu_seconds_per_gib: Option<f64>,
    kernel_claims: &'a BTreeMap<String, u64>,
    textbook: Option<Textbook>,
}

/// Bytes of a GiB.
const GIB: f64 = (1_u64 << 30) as f64;

/// The heads of the columns behind the row's name, each with the paths of what it shows.
pub(super) const HEADS: [(&str, &str); 7] = [
    ("CPU copies", "cpu_copies"),
    ("DMA copies", "dma_copies"),
    ("mode switches", "guest.mode_switches"),
    ("by faults", "guest.page_faults"),
    ("context switches", "guest.context_switches.voluntary"),
    ("instances", "memory.physical_instances"),
    ("CPU s/GiB", "guest.user_us"),
];

/// What stands above the table.
pub(super) const TITLE: &str = "The textbook's table, as measured [and what the textbook says where it differs]";

/// What the textbook says of this row: of a method, and of `sendfile` also by what the NIC can. Its file is on a disk.
fn textbook(method: &Method) -> Option<Textbook> {
    let of = |mode_switches, cpu_copies| Some(Textbook { mode_switches, cpu_copies, dma_copies: 2 });
    match base(&method.method).as_str() {
        "read-write" => of(4, 2),
        "mmap-write" => of(4, 1),
        "sendfile" if method.nic.sg => of(2, 0),
        "sendfile" => of(2, 1),
        _ => None,
    }
}

/// The method of a row.
fn base(row: &str) -> String {
    Row::parse(row).map_or_else(|_| row.to_owned(), |row| row.method)
}

impl<'a> Line<'a> {
    fn new(method: &'a Method, chunk: Option<u64>) -> Self {
        let in_one_call = matches!(base(&method.method).as_str(), "sendfile" | PROGRAM | USERSPACE);
        let chunks = chunk.filter(|chunk| *chunk > 0 && !in_one_call).zip(method.bytes_sent);
        let chunks = chunks.map(|(chunk, bytes)| bytes.div_ceil(chunk)).filter(|chunks| *chunks > 0);
        let switches = method.guest.mode_switches.map(|count| count as f64 / chunks.unwrap_or(1) as f64);
        let tasks = &method.guest.context_switches;
        let cpu_us = method.guest.user_us.zip(method.guest.system_us).map(|(user, system)| user.saturating_add(system));
        let sent = method.bytes_sent.filter(|bytes| *bytes > 0);
        Line {
            method: &method.method,
            filesystem: method.filesystem.as_deref(),
            nic: method.nic,
            mode_switches: switches,
            mode_switches_per: if chunks.is_some() { Per::Chunk } else { Per::Transfer },
            page_faults: method.guest.page_faults,
            pieces: chunks.unwrap_or(1),
            context_switches: tasks.voluntary.zip(tasks.involuntary).map(|(own, others)| own.saturating_add(others)),
            cpu_copies: method.cpu_copies,
            copied_by: verdict::copied_by(method).collect(),
            dma_copies: method.dma_copies,
            disk_copies: verdict::disk_copies(method).ok(),
            physical_instances: method.memory.physical_instances,
            cpu_seconds_per_gib: cpu_us.zip(sent).map(|(us, bytes)| us as f64 / 1e6 * GIB / bytes as f64),
            kernel_claims: &method.guest.claims,
            textbook: textbook(method),
        }
    }

    /// Mode switches by page faults, in all.
    fn faults(&self) -> f64 {
        2.0 * self.page_faults.unwrap_or_default() as f64
    }

    /// Mode switches by system calls, for what [`Per`] says. Page faults stand apart: the textbook leaves them out.
    pub(super) fn calls(&self) -> Option<f64> {
        self.mode_switches.map(|count| (count - self.faults() / self.pieces as f64).max(0.0))
    }

    /// The cells of [`HEADS`]; `None` where a figure is missing.
    pub(super) fn cells(&self) -> [Option<String>; HEADS.len()] {
        let book = |figure: fn(&Textbook) -> u64| self.textbook.as_ref().map(figure);
        let faults = self.faults();
        let switches = self.calls().map(|calls| {
            let unit = match self.mode_switches_per {
                Per::Chunk => "a chunk",
                Per::Transfer => "in all",
            };
            beside(format!("{} {unit}", trimmed(calls)), calls, book(|book| book.mode_switches), 0.5)
        });
        let copies = |count: Option<f64>, book| count.map(|count| beside(format!("{count:.2}"), count, book, 0.05));
        [
            copies(self.cpu_copies, book(|book| book.cpu_copies)),
            copies(self.dma_copies, book(|book| book.dma_copies)).map(|text| match self.disk_copies {
                Some(disk) if disk >= 0.005 => format!("{text}, disk {disk:.2}"),
                _ => text,
            }),
            switches,
            self.page_faults.map(|_| faults.to_string()),
            self.context_switches.map(|count| count.to_string()),
            self.physical_instances.map(|count| count.to_string()),
            self.cpu_seconds_per_gib.map(|seconds| format!("{seconds:.2}")),
        ]
    }
}

/// A figure, with the textbook's behind it where the two differ.
fn beside(text: String, measured: f64, book: Option<u64>, by: f64) -> String {
    match book {
        Some(book) if (measured - book as f64).abs() >= by => format!("{text} [{book}]"),
        _ => text,
    }
}

/// Who copied, with how often where that is not once.
fn by(function: &str, count: f64) -> String {
    if (count - 1.0).abs() < 0.005 { function.to_owned() } else { format!("{count:.2} {function}") }
}

/// With as many decimals as say something.
pub(super) fn trimmed(count: f64) -> String {
    if (count - count.round()).abs() < 0.005 { format!("{count:.0}") } else { format!("{count:.2}") }
}

/// The lines of a run.
pub(crate) fn lines(run: &Run) -> Vec<Line<'_>> {
    run.methods.iter().map(|method| Line::new(method, run.file.chunk)).collect()
}

/// What stands under the table.
pub(super) const NOTE: &str = "Copies are per payload byte sent. The textbook's second copy by DMA is from the disk to the page cache: a file that is there already has none. Mode switches by page faults stand apart, since the textbook leaves them out. CPU time is the sending thread's, waiting by polling included.";

/// The table.
pub(super) fn table(run: &Run) -> String {
    let heads = HEADS.iter().map(|(head, _)| (*head, Align::Left));
    let columns: Vec<_> = std::iter::once(("method", Align::Left)).chain(heads).collect();
    let rows = run.methods.iter().zip(lines(run)).map(|(method, line)| {
        let figures = line.cells().into_iter().map(|cell| cell.unwrap_or_else(|| NULL.to_owned()));
        std::iter::once(broken_name(method)).chain(figures).map(Cell::new).collect()
    });
    aligned(&columns, rows.collect())
}

/// A row's name, with the file system where there are several.
pub(super) fn name(method: &Method) -> String {
    match &method.filesystem {
        Some(filesystem) => format!("{} ({filesystem})", method.method),
        None => method.method.clone(),
    }
}

/// The same for a column that must leave room for others: what the NIC lacks stands on a line of its own.
pub(super) fn broken_name(method: &Method) -> String {
    let base = base(&method.method);
    let name = name(method);
    match name.split_at_checked(base.len()) {
        Some((base, rest)) if method.method.len() > BROAD => format!("{base}\n{}", rest.trim_start()),
        _ => name,
    }
}

/// The longest name on one line.
const BROAD: usize = 18;

/// What is to be known of rows beside their figures, each said once for all the rows it is true of: who copied, what was
/// noted, what the kernel claims.
pub(super) fn notes(run: &Run) -> Vec<String> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for (method, line) in run.methods.iter().zip(lines(run)) {
        let copied: Vec<_> = line.copied_by.iter().map(|(function, count)| by(function, *count)).collect();
        let copied =
            (line.cpu_copies.is_some() && !copied.is_empty()).then(|| format!("copied by {}", copied.join(" + ")));
        let claims: Vec<_> = line.kernel_claims.iter().map(|(claim, count)| format!("{claim} {count}")).collect();
        let claims = (!claims.is_empty()).then(|| format!("the kernel claims {}", claims.join(", ")));
        for note in copied
            .into_iter()
            .chain(method.notes.iter().cloned())
            .chain(claims)
            .chain(from_disk(method))
            .chain(touched(method))
        {
            match found.iter_mut().find(|(known, _)| *known == note) {
                Some((_, rows)) => rows.push(name(method)),
                None => found.push((note, vec![name(method)])),
            }
        }
    }
    found.into_iter().map(|(note, rows)| format!("{}: {note}", rows.join(", "))).collect()
}

/// What the CPU did in the file's pages, and whether that can be believed.
fn touched(method: &Method) -> Option<String> {
    let touches = method.touches.as_ref()?;
    let control = &touches.control;
    Some(format!(
        "the CPU loaded {} bytes of the file's pages and stored {} (control: of {} bytes read it counted {} before and {} after)",
        touches.loaded, touches.stored, control.pages, control.before, control.after
    ))
}

/// What the disk's own rings have to say of the file's way into memory.
fn from_disk(method: &Method) -> Option<String> {
    let (disk, payload) = (method.dma.disk.as_ref()?, method.device.payload_bytes?);
    let share = figures::percent(disk.payload_bytes_in_pages_read, payload).filter(|_| disk.bytes > 0)?;
    Some(format!(
        "{share} of the payload lay in frames that the disk had filled: {} by {} descriptors of {} reads",
        figures::bytes(disk.bytes),
        figures::count(disk.descriptors),
        figures::count(disk.requests)
    ))
}

/// What is missing in the table and why: rows, columns, reason, each reason once.
pub(super) fn missing(run: &Run) -> Vec<String> {
    let mut found: Vec<(&str, Vec<&str>, Vec<String>)> = Vec::new();
    for (method, line) in run.methods.iter().zip(lines(run)) {
        for ((head, path), cell) in HEADS.iter().zip(line.cells()) {
            if cell.is_some() {
                continue;
            }
            let Some(reason) = method.reasons.get(*path) else { continue };
            let at = match found.iter().position(|(known, _, _)| known == reason) {
                Some(at) => at,
                None => {
                    found.push((reason, Vec::new(), Vec::new()));
                    found.len() - 1
                }
            };
            let Some((_, heads, rows)) = found.get_mut(at) else { continue };
            if !heads.contains(head) {
                heads.push(head);
            }
            if rows.last() != Some(&name(method)) {
                rows.push(name(method));
            }
        }
    }
    found
        .into_iter()
        .map(|(reason, heads, rows)| format!("{}: {}: {reason}", rows.join(", "), heads.join(", ")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_textbooks_figure_stands_beside_ours_only_where_they_differ() {
        assert_eq!(beside("2.00".to_owned(), 2.004, Some(2), 0.05), "2.00");
        assert_eq!(beside("3.00".to_owned(), 3.0, Some(2), 0.05), "3.00 [2]");
        assert_eq!(beside("1.00".to_owned(), 1.0, None, 0.05), "1.00");
    }

    #[test]
    fn whole_counts_have_no_decimals() {
        assert_eq!((trimmed(4.0), trimmed(4.0039), trimmed(4.02)), ("4".into(), "4".into(), "4.02".into()));
    }

    #[test]
    fn a_suffix_is_no_other_method() {
        for (row, method) in [("sendfile-no-sg", "sendfile"), ("read-write-no-csum", "read-write"), ("cow", "cow")] {
            assert_eq!(base(row), method);
        }
    }
}
