//! Several guests at a time, and how far they are.

use std::collections::VecDeque;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use guest_launcher::Failure;
use guest_launcher::children::Signals;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::boot::{Boot, Outcome, built};
use crate::cell::{Cell, State};

/// How much is done at once, and for how long.
#[derive(Debug)]
pub(crate) struct Limits {
    /// Guests at a time.
    pub(crate) guests: usize,
    /// No guest is started later than this.
    pub(crate) time: Option<Duration>,
    /// Are failed cells run again?
    pub(crate) again: bool,
}

impl Limits {
    /// The cells that are to be run, of these.
    pub(crate) fn open(&self, folder: &Path, cells: Vec<Cell>) -> Result<Vec<Cell>> {
        let mut open = Vec::new();
        for cell in cells {
            match cell.state(folder)? {
                State::Open => open.push(cell),
                State::Failed(_) if self.again => open.push(cell),
                _ => {}
            }
        }
        Ok(open)
    }
}

/// What all workers share.
struct Work<'a> {
    folder: &'a Path,
    signals: &'a Signals,
    limits: &'a Limits,
    start: Instant,
    left: Mutex<VecDeque<Boot>>,
    bar: ProgressBar,
}

/// Runs every cell that is open.
pub(crate) fn through(folder: &Path, cells: &[Cell], signals: &Signals, limits: &Limits) -> Result<(), Failure> {
    let open = limits.open(folder, cells.to_vec())?;
    if open.is_empty() {
        return Ok(());
    }
    built()?;
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let bar = ProgressBar::new(open.len() as u64);
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} cells, {eta} left: {wide_msg}");
    bar.set_style(style.context("the progress bar")?);
    let boots = Boot::group(open);
    eprintln!("{} guests, {} at a time.", boots.len(), limits.guests);
    let work = Work { folder, signals, limits, start: Instant::now(), left: Mutex::new(boots.into()), bar };
    let done = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..limits.guests).map(|_| scope.spawn(|| work.all())).collect();
        let ended = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| Err(anyhow!("a worker panicked").into())));
        // All of them end, whatever one comes to.
        ended.collect::<Vec<_>>().into_iter().collect::<Result<Vec<()>, Failure>>()
    });
    work.bar.finish_and_clear();
    done.map(drop)
}

impl Work<'_> {
    fn next(&self) -> Option<Boot> {
        if self.limits.time.is_some_and(|time| self.start.elapsed() >= time) {
            return None;
        }
        self.left.lock().ok()?.pop_front()
    }

    /// What is to be run later.
    fn later(&self, boot: Boot) {
        if let Ok(mut left) = self.left.lock() {
            left.push_back(boot);
        }
    }

    /// One boot after the other.
    fn all(&self) -> Result<(), Failure> {
        while let Some(boot) = self.next() {
            let (name, asked) = (boot.name(), boot.cells.len());
            self.bar.set_message(name.clone());
            let start = Instant::now();
            let (boot, outcome) = boot.run(self.folder, self.signals, self.limits)?;
            let took = HumanDuration(start.elapsed());
            match outcome {
                Outcome::Done { left } => {
                    let there = asked - left.len();
                    self.bar.inc(there as u64);
                    self.say(&format!("{name}: {there} cells in {took}{}", self.time_left()));
                    if !left.is_empty() {
                        self.later(Boot { cells: left, failed: 0 });
                    }
                }
                Outcome::Taken => self.say(&format!("{name}: another matrix.sh is at it")),
                Outcome::Nothing(why) => {
                    self.say(&format!("{name}: nothing came of it: {why}"));
                    if boot.failed == 0 {
                        self.later(Boot { failed: 1, ..boot });
                    }
                }
            }
        }
        Ok(())
    }

    /// By how long the cells took so far, in words.
    fn time_left(&self) -> String {
        let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let left = all.saturating_sub(done);
        if done == 0 || left == 0 {
            return String::new();
        }
        let seconds = self.start.elapsed().as_secs_f64() / done as f64 * left as f64;
        format!("; {left} cells left, {}", HumanDuration(Duration::from_secs_f64(seconds)))
    }

    /// A line above the bar; without a terminal there is no bar.
    fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("{line}"));
    }
}
