//! `vnic status` for people.

use std::fmt::{self, Write};
use std::path::Path;

use anyhow::Result;
use vnic::observe::protocol::{
    EventSuppression, FeatureSets, HardwareStatus, IotlbStatus, MigrationStatus, ProxyStatus, QueueCost, QueueStatus,
    SandboxReport, Status,
};

use comfy_table::Cell;

use super::figures;
use super::style::{self, BAD, DIM, GOOD, HEAD, PLAIN, WARN};
use super::table::{Align, NULL, paragraph, styled, table, width};

/// The counters that have a column; the others are named where they are not zero.
const COLUMNS: &[&str] = &["chains", "descriptors", "bytes", "kicks", "calls", "drops", "errors"];

/// Of who only sees the rings.
const OF_RINGS: &[&str] = &["in_flight", "avail_idx", "used_idx"];

/// How wide a line's name is.
const LABEL: usize = 10;

/// As many queues as are shown one by one whether anybody uses them or not.
const MANY: usize = 8;

/// Everything, in aligned blocks.
pub(crate) fn show(status: &Status, control: &Path) -> Result<()> {
    let devices = if status.devices.is_empty() { std::slice::from_ref(status) } else { &status.devices };
    let texts: Result<Vec<String>, fmt::Error> = devices.iter().map(|device| text(device, control)).collect();
    super::put(texts?.join("\n"))
}

fn text(status: &Status, control: &Path) -> Result<String, fmt::Error> {
    let mut text = String::new();
    let out = &mut text;
    let label = |name: &str| format!("{HEAD}{name:<LABEL$}{HEAD:#}");
    let mut about: Vec<String> = Vec::new();
    about.extend((status.device != "net").then(|| status.device.clone()));
    about.push(format!("process {}", status.pid));
    about.extend(status.proxy.as_ref().map(|proxy| format!("proxy to {}", proxy.back_end)));
    about.extend(match (status.device.as_str(), status.link.as_str()) {
        (_, "") => None,
        ("blk", image) => Some(format!("image {image}")),
        (_, link) => Some(format!("link {link}")),
    });
    about.push(format!("control {}", control.display()));
    let about = format!("({})", about.join(", "));
    let fits = LABEL + status.socket.chars().count() + 2 + about.chars().count() <= usize::from(width());
    let gap = if fits { "  ".to_owned() } else { format!("\n{:LABEL$}", "") };
    writeln!(out, "{}{}{gap}{DIM}{about}{DIM:#}", label("device"), status.socket)?;
    let waits = status.proxy.as_ref().is_some_and(|proxy| !proxy.back_end_connected);
    let (style, state) = match status.connected {
        true if waits => (WARN, "a front-end waits for the back-end"),
        true => (GOOD, "connected"),
        false => (WARN, "no front-end"),
    };
    writeln!(out, "{}{style}{state}{style:#}, {}", label("session"), served(status))?;
    if let Some(taken) = taken_over(&status.queues) {
        writeln!(out, "{}{taken}", label(""))?;
    }
    if let Some(error) = &status.last_error {
        writeln!(out, "{}{BAD}{error}{BAD:#}", label(""))?;
    }
    if let Some(sandbox) = &status.sandbox {
        writeln!(out, "{}{}", label("locked in"), locked_in(sandbox))?;
    }
    if let Some(proxy) = &status.proxy {
        write_proxy(out, proxy, &label)?;
    }
    if let Some(migration) = &status.migration {
        writeln!(out, "{}{}", label("migration"), can_move(migration))?;
    }
    write!(out, "{}", features(status))?;
    for (at, region) in status.regions.iter().enumerate() {
        writeln!(
            out,
            "{}{:#014x}  {:>9}  {DIM}front-end {:#x}, file offset {:#x}{DIM:#}",
            label(if at == 0 { "memory" } else { "" }),
            region.gpa,
            figures::bytes(region.size),
            region.user_addr,
            region.offset
        )?;
    }
    if let Some(iotlb) = &status.iotlb {
        write_iotlb(out, iotlb, &label)?;
    }
    queues(out, &status.queues)?;
    if let Some(hardware) = &status.hardware {
        write_hardware(out, hardware, &label)?;
    }
    let counted: Vec<String> = nonzero(status.link_counters.iter(), |_| true);
    if !counted.is_empty() {
        let row =
            vec![styled(if status.device == "blk" { "disk" } else { "link" }, HEAD), Cell::new(counted.join(", "))];
        write!(out, "\n{}", table(&[("", Align::Left); 2], vec![row]))?;
    }
    Ok(text)
}

/// What a back-end before this one left without an answer, where there was any.
fn taken_over(queues: &[QueueStatus]) -> Option<String> {
    let sum = |name: &str| queues.iter().filter_map(|queue| queue.counters.get(name)).sum::<u64>();
    let (resumed, in_doubt) = (sum("resumed"), sum("in_doubt"));
    let style = if in_doubt > 0 { WARN } else { PLAIN };
    let [resubmitted, twice] = [resumed, in_doubt].map(figures::count);
    (resumed > 0).then(|| format!("resubmitted: {resubmitted}, {style}possibly sent twice: {twice}{style:#}"))
}

/// Whether the guest can move to another host, in words.
fn can_move(migration: &MigrationStatus) -> String {
    let MigrationStatus { cannot, stays, logging, pages_marked } = migration;
    match (cannot, stays) {
        (Some(why), _) => format!("{WARN}cannot be{WARN:#}  {DIM}{why}{DIM:#}"),
        _ if *logging => format!("under way, {} pages written since it began", figures::count(*pages_marked)),
        (None, Some(stays)) => format!("can be  {DIM}but {stays}{DIM:#}"),
        (None, None) => "can be".to_owned(),
    }
}

/// What the process has given up, in words.
fn locked_in(sandbox: &SandboxReport) -> String {
    let SandboxReport { mode, no_new_privileges, capabilities, seccomp, landlock, outside } = sandbox;
    if mode != "on" {
        let why = if mode == "log" { "the kernel logs what would be refused" } else { "--sandbox off" };
        return format!("{WARN}no{WARN:#}  {DIM}{why}{DIM:#}");
    }
    let none = |mask: &String| mask.bytes().all(|digit| digit == b'0');
    let bare = no_new_privileges.zip(capabilities.as_ref()).map(|(set, mask)| set && none(mask));
    // Without /proc the kernel says nothing of a thread.
    let parts = [
        (bare, "no privileges".to_owned(), "privileges are left", "privileges unknown (no /proc)"),
        (
            Some(landlock.is_some()),
            format!("no files (Landlock {})", landlock.unwrap_or_default()),
            "no Landlock here: files by their paths",
            "",
        ),
        (
            *seccomp,
            "few system calls (seccomp)".to_owned(),
            "no seccomp here: all system calls",
            "system calls unknown (no /proc)",
        ),
    ];
    let say = |(done, words, not, unknown): (Option<bool>, String, &str, &str)| match done {
        Some(true) => words,
        Some(false) => format!("{WARN}{not}{WARN:#}"),
        None => format!("{WARN}{unknown}{WARN:#}"),
    };
    let mut words: Vec<String> = parts.into_iter().map(say).collect();
    words.extend((!outside.is_empty()).then(|| format!("{WARN}but the thread {}{WARN:#}", outside.join(", "))));
    words.join(", ")
}

/// What both sides agreed on, and what they did not.
fn features(status: &Status) -> String {
    let FeatureSets { offered, withheld, negotiated } = &status.features;
    let refused: Vec<&str> = offered.iter().filter(|name| !negotiated.contains(name)).map(String::as_str).collect();
    let (taken, others) = match negotiated.as_slice() {
        [] => ("none yet".to_owned(), "offered"),
        names => (names.join(" "), "not taken"),
    };
    let lines = [
        ("features", "negotiated", taken, PLAIN),
        ("", others, refused.join(" "), DIM),
        ("", "withheld", withheld.join(" "), WARN),
        ("protocol", "features", status.protocol_features.join(" "), PLAIN),
    ];
    let shown = lines.into_iter().filter(|(_, _, names, _)| !names.is_empty());
    let rows =
        shown.map(|(label, what, names, style)| vec![styled(label, HEAD), styled(what, style), styled(names, style)]);
    table(&[("", Align::Left); 3], rows.collect())
}

fn write_iotlb(out: &mut String, iotlb: &IotlbStatus, label: &dyn Fn(&str) -> String) -> fmt::Result {
    let IotlbStatus { entries, bytes, hits, misses, updates, invalidations, evicted, first } = iotlb;
    let [entries_text, hits, misses, updates, invalidations] =
        [entries, hits, misses, updates, invalidations].map(|count| figures::count(*count));
    writeln!(
        out,
        "{}{entries_text} translations of {}  {DIM}hits {hits}, misses {misses}, updates {updates}, invalidations {invalidations}{}{DIM:#}",
        label("IOTLB"),
        figures::bytes(*bytes),
        if *evicted > 0 { format!(", given up {}", figures::count(*evicted)) } else { String::new() }
    )?;
    for entry in first {
        let may = [(entry.read, 'R'), (entry.write, 'W')];
        let may: String = may.iter().map(|(may, letter)| if *may { *letter } else { '-' }).collect();
        writeln!(
            out,
            "{}{:#014x}  {:>9}  {may}  {DIM}at {:#014x}{DIM:#}",
            label(""),
            entry.iova,
            figures::bytes(entry.size),
            entry.gpa
        )?;
    }
    let more = entries.saturating_sub(first.len() as u64);
    if more > 0 {
        writeln!(out, "{}{DIM}and {} more{DIM:#}", label(""), figures::count(more))?;
    }
    Ok(())
}

/// What went through a proxy, and who drives the device.
fn write_proxy(out: &mut String, proxy: &ProxyStatus, label: &dyn Fn(&str) -> String) -> fmt::Result {
    let count = |name: &str| proxy.counters.get(name).copied().unwrap_or_default();
    writeln!(
        out,
        "{}{} messages of the front-end, {} of the back-end, {} files",
        label("passed on"),
        figures::count(count("front_end_messages")),
        figures::count(count("back_end_messages")),
        figures::count(count("files")),
    )?;
    for (name, what) in [
        ("not_understood", "were not understood, and passed on all the same"),
        ("refused", "were refused by the back-end"),
    ] {
        if count(name) > 0 {
            writeln!(out, "{}{BAD}{} of them {what}{BAD:#}", label(""), figures::count(count(name)))?;
        }
    }
    match &proxy.kernel {
        Some(kernel) => writeln!(out, "{}{kernel}", label("guest")),
        None => Ok(()),
    }
}

/// What the chains would cost a card of hardware.
fn write_hardware(out: &mut String, hardware: &HardwareStatus, label: &dyn Fn(&str) -> String) -> fmt::Result {
    let HardwareStatus { model, paced, queues } = hardware;
    let how = if *paced { "paced as this card would be" } else { "what it would cost this card" };
    writeln!(out, "\n{}{model}  {DIM}{how}{DIM:#}", label("hardware"))?;
    if queues.is_empty() {
        return Ok(());
    }
    let columns = [("queue", Align::Left), ("looked at", Align::Right)];
    let columns = [&columns[..], &super::hardware::COLUMNS].concat();
    let row = |queue: &QueueCost| {
        let cost = &queue.cost;
        let share = figures::percent(cost.chains, queue.chains);
        let cells = [queue.queue.clone(), share.unwrap_or_else(|| NULL.to_owned())]
            .into_iter()
            .chain(super::hardware::cells(cost));
        cells.map(Cell::new).collect()
    };
    write!(out, "{}", table(&columns, queues.iter().map(row).collect()))
}

fn served(status: &Status) -> String {
    match (status.sessions, status.connected) {
        (0, _) => "none served yet".to_owned(),
        (1, true) => "the first".to_owned(),
        (count, true) => format!("the {count}{} so far", ordinal(count)),
        (count, false) => format!("{count} served so far"),
    }
}

fn ordinal(count: u64) -> &'static str {
    match (count % 10, count % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    }
}

fn nonzero<'a>(counters: impl Iterator<Item = (&'a String, &'a u64)>, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    counters
        .filter(|(name, count)| **count > 0 && wanted(name))
        .map(|(name, count)| format!("{name} {}", figures::count(*count)))
        .collect()
}

fn queues(out: &mut String, queues: &[QueueStatus]) -> fmt::Result {
    if queues.is_empty() {
        return Ok(());
    }
    let mut columns = vec![("queue", Align::Left), ("state", Align::Left), ("size", Align::Right)];
    let counted = |name: &&&str| queues.iter().any(|queue| queue.counters.contains_key(**name));
    let shown_here: Vec<&str> = match COLUMNS.iter().any(|name| counted(&name)) {
        true => COLUMNS.to_vec(),
        false => OF_RINGS.iter().filter(counted).copied().collect(),
    };
    columns.extend(shown_here.iter().map(|name| (*name, Align::Right)));
    // A device of many pairs, of which the driver uses few: what never did anything is only counted.
    let idle = |queue: &&QueueStatus| {
        matches!(queue.state.as_str(), "off" | "unused") && queue.counters.values().all(|count| *count == 0)
    };
    let quiet = if queues.len() > MANY { queues.iter().filter(idle).count() } else { 0 };
    let shown = queues.iter().filter(|queue| quiet == 0 || !idle(queue)).map(|queue| {
        let state = styled(&queue.state, style::of_state(&queue.state));
        let mut cells = vec![Cell::new(&queue.queue), state, Cell::new(queue.size)];
        cells.extend(shown_here.iter().map(|name| match queue.counters.get(*name) {
            Some(count) if *count > 0 && matches!(*name, "drops" | "errors") => styled(figures::count(*count), BAD),
            Some(count) => Cell::new(figures::count(*count)),
            None => Cell::new("–"),
        }));
        cells
    });
    write!(out, "\n{}", table(&columns, shown.collect()))?;
    if quiet > 0 {
        writeln!(out, "{DIM}{quiet} more queues were never used{DIM:#}")?;
    }
    for queue in queues {
        let mut say = |words: &str, style| write!(out, "{}", paragraph(format!("{}: {words}", queue.queue), style));
        if let Some(waits) = &queue.waits {
            say(waits, WARN)?;
        }
        if let Some(error) = &queue.error {
            say(error, BAD)?;
        }
        let mut others = nonzero(queue.counters.iter(), |name| !shown_here.contains(&name));
        if let Some(EventSuppression { kick, call }) = queue.event_suppression {
            others.push(format!("device wants a kick {kick}, driver wants a call {call}"));
        }
        if !others.is_empty() {
            say(&others.join(", "), DIM)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_queues_those_that_were_never_used_are_only_counted() {
        let queue = |at: usize, chains| QueueStatus {
            queue: format!("transmitq{at}"),
            state: "off".to_owned(),
            waits: None,
            error: None,
            size: 0,
            event_suppression: None,
            counters: [("chains".to_owned(), chains)].into(),
        };
        let shown = |count: usize| {
            let mut text = String::new();
            let all: Vec<QueueStatus> = (0..count).map(|at| queue(at, u64::from(at == 5))).collect();
            queues(&mut text, &all).unwrap();
            text
        };
        assert!(shown(8).contains("transmitq7") && !shown(8).contains("never used"));
        let many = shown(256);
        assert!(many.contains("transmitq5") && !many.contains("transmitq7"), "{many}");
        assert!(many.contains("255 more queues were never used"), "{many}");
    }

    #[test]
    fn what_is_in_doubt_after_a_death_is_said_and_whether_the_guest_can_move() {
        let queue = |resumed: u64, in_doubt: u64| QueueStatus {
            queue: "transmitq0".to_owned(),
            state: "running".to_owned(),
            waits: None,
            error: None,
            size: 256,
            event_suppression: None,
            counters: [("resumed".to_owned(), resumed), ("in_doubt".to_owned(), in_doubt)].into(),
        };
        assert_eq!(taken_over(&[queue(0, 0)]), None);
        let taken = taken_over(&[queue(7, 0), queue(5, 3)]).unwrap();
        assert!(taken.starts_with("resubmitted: 12, ") && taken.contains("possibly sent twice: 3"), "{taken}");
        let migration = MigrationStatus { cannot: None, stays: None, logging: false, pages_marked: 0 };
        assert_eq!(can_move(&migration), "can be");
        let under_way = can_move(&MigrationStatus { logging: true, pages_marked: 5, ..migration.clone() });
        assert_eq!(under_way, "under way, 5 pages written since it began");
        let stays = Some("connections with the peer end".to_owned());
        assert!(
            can_move(&MigrationStatus { stays, ..migration.clone() }).contains("but connections with the peer end")
        );
        assert!(can_move(&MigrationStatus { cannot: Some("why".to_owned()), ..migration }).contains("cannot be"));
    }

    #[test]
    fn ordinals() {
        for (count, ending) in
            [(1, "st"), (2, "nd"), (3, "rd"), (4, "th"), (11, "th"), (12, "th"), (21, "st"), (113, "th")]
        {
            assert_eq!(ordinal(count), ending, "{count}");
        }
    }
}
