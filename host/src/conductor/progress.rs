//! Progress on standard error: a bar on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};
use vnic_experiment::row::Row;
use vnic_experiment::run::Method;

use super::Plan;

/// What is shown while a run goes on.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    rows: usize,
    done: usize,
    /// What the device had sent when the row began.
    base: Option<u64>,
}

impl Progress {
    /// Nothing done yet.
    pub(super) fn new(plan: &Plan) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(plan.bytes);
            let style = ProgressStyle::with_template(
                "{spinner} {msg:36} {wide_bar:.green} {binary_bytes}/{binary_total_bytes}",
            );
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar
        });
        Progress { bar, rows: plan.rows.len() * plan.filesystems.len(), done: 0, base: None }
    }

    /// Is it worth asking the device how far it is?
    pub(super) fn shows_bytes(&self) -> bool {
        self.bar.is_some()
    }

    /// Something happened.
    pub(super) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => anstream::eprintln!("{text}"),
        }
    }

    /// A row begins.
    pub(super) fn started(&mut self, row: &Row) {
        self.base = None;
        if let Some(bar) = &self.bar {
            bar.set_position(0);
            bar.set_message(format!("[{}/{}] {row}", self.done + 1, self.rows));
        }
    }

    /// Time went by; the device has sent this much since it started.
    pub(super) fn tick(&mut self, transmitted: Option<u64>) {
        let Some(bar) = &self.bar else { return };
        if let Some(transmitted) = transmitted {
            let base = *self.base.get_or_insert(transmitted);
            // Headers are counted too: never show more than all.
            bar.set_position(transmitted.saturating_sub(base).min(bar.length().unwrap_or_default()));
        }
        bar.tick();
    }

    /// A row is over.
    pub(super) fn finished(&mut self, method: &Method) {
        self.done += 1;
        let verdict =
            method.verdict.map_or_else(|| format!("no verdict: {}", method.why), |verdict| verdict.to_string());
        let seconds = method.seconds.map_or_else(String::new, |seconds| format!(" in {seconds:.2} s"));
        let line = format!("[{}/{}] {}: {verdict}{seconds}", self.done, self.rows, method.method);
        match &self.bar {
            Some(bar) => bar.println(line),
            None => anstream::eprintln!("{line}"),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
