//! `vnic life`: a line per step.

use std::collections::BTreeSet;

use anyhow::Result;
use comfy_table::Cell;
use vnic::observe::protocol::{Life, LifeOf, Step};
use vnic_experiment::run::{Method, PageLife, PageStep, Run};

use super::figures;
use super::style::{DIM, GOOD, PLAIN, WARN};
use super::table::{Align, paragraph, paragraph_within, styled, table, table_within};

/// Behind how many chains the recorder was not shown.
const MISSED: &str = "chains went by unseen: they came faster than they are recorded";

/// Steps that are shown where nobody wants all of them.
const LAST: usize = 40;

/// What has happened, in the order of time, and what is not known of it.
pub(crate) fn show(of: &LifeOf, life: &Life, all: bool) -> Result<()> {
    super::put(text(of, life, all, super::table::width()))
}

/// The same as text, no wider than `width`.
pub(crate) fn text(of: &LifeOf, life: &Life, all: bool, width: u16) -> String {
    let paragraph = |text: String, style| paragraph_within(width, text, style);
    let name = match of {
        LifeOf::Page { gpa } => format!("the page at {gpa:#x}"),
        LifeOf::File { path } => format!("the pages of {path}"),
        LifeOf::Pages { addresses } => format!("{} pages", addresses.len()),
    };
    let mut text = String::new();
    if life.steps.is_empty() {
        text += &paragraph(format!("No device has had {name} since this is recorded."), WARN);
    } else {
        let pages: BTreeSet<u64> = life.steps.iter().map(|step| step.gpa >> 12).collect();
        let times = life.steps.iter().filter(|step| !step.what.accompanies()).count() as u64;
        let times =
            if life.left_out > 0 { format!("more than {}", figures::count(times)) } else { figures::count(times) };
        let which =
            if pages.len() > 1 { format!(", {} pages", figures::count(pages.len() as u64)) } else { String::new() };
        text += &paragraph(format!("A device has had {name} {times} times{which}:"), PLAIN);
        let shown = if all { life.steps.len() } else { LAST.min(life.steps.len()) };
        let earlier = life.left_out + (life.steps.len() - shown) as u64;
        if earlier > 0 {
            let more = if life.left_out == 0 { "; --all shows them" } else { "" };
            text += &paragraph(format!("{} steps before these{more}", figures::count(earlier)), DIM);
        }
        text += &steps(&life.steps[life.steps.len() - shown..], width);
    }
    for (count, what) in
        [(life.forgotten, "older steps of any page are forgotten: the log is full"), (life.missed_chains, MISSED)]
    {
        if count > 0 {
            text += &paragraph(format!("{} {what}", figures::count(count)), WARN);
        }
    }
    text
}

fn steps(steps: &[Step], width: u16) -> String {
    let columns = [
        ("seconds", Align::Right),
        ("address", Align::Left),
        ("bytes", Align::Right),
        ("what", Align::Left),
        ("whose", Align::Left),
    ];
    let row = |step: &Step| {
        let whose = match &step.owner {
            // It stands beside what they belong to.
            _ if step.what.accompanies() => Cell::new(""),
            Some(owner) if owner.path().is_some() => styled(owner, GOOD),
            Some(owner) => Cell::new(owner),
            None => Cell::new(""),
        };
        let seconds = step.at_ns as f64 / 1e9;
        vec![
            Cell::new(format!("{seconds:.6}")),
            Cell::new(format!("{:#x}", step.gpa)),
            Cell::new(step.bytes),
            Cell::new(step),
            whose,
        ]
    };
    table_within(width, &columns, steps.iter().map(row).collect())
}

/// The lives of pages that a run has recorded.
pub(super) fn of_rows(run: &Run) -> String {
    let lives = run.methods.iter().filter_map(|method| Some((method, method.page_life.as_ref()?)));
    lives.map(|(method, life)| of_row(method, life)).collect()
}

fn of_row(method: &Method, life: &PageLife) -> String {
    let head = format!("{}: what happened to page {} of its file, at {:#x}:", method.method, life.page, life.gpa);
    let columns = [("seconds", Align::Right), ("bytes", Align::Right), ("what", Align::Left)];
    let row =
        |step: &PageStep| vec![Cell::new(format!("{:.6}", step.seconds)), Cell::new(step.bytes), Cell::new(&step.what)];
    let mut text = format!("\n{}{}", paragraph(head, PLAIN), table(&columns, life.steps.iter().map(row).collect()));
    if life.missed_chains > 0 {
        text += &paragraph(format!("{} {MISSED}", figures::count(life.missed_chains)), WARN);
    }
    text
}
