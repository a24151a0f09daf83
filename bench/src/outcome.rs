//! What came of it: medians, ratios, the table, the record.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

/// What a figure counts, per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    /// Frames of the wire, or chains where those are the same.
    Frames,
    /// The same, for each second that the workers had a CPU.
    FramesOfWorker,
    /// Bytes of the file.
    Bytes,
    /// The same, for each second that the workers had a CPU.
    BytesOfWorker,
    /// Requests for a disk.
    Requests,
}

/// Runs of one back-end in one case.
#[derive(Debug, Serialize)]
pub(crate) struct Runs {
    pub(crate) backend: String,
    /// Of the outcome's unit per second, one figure per round.
    pub(crate) figures: Vec<f64>,
    /// Share of its time in which our back-end had nothing to do, the median; `null` for DPDK's, which does not say.
    pub(crate) idle: Option<f64>,
    /// Share of the chains that a tracer beside it lost, the median; `null` where none ran.
    pub(crate) trace_lost: Option<f64>,
    /// Median of the rounds' ratios to the yardstick in the same round, with the smallest and the largest.
    pub(crate) ratio: Option<[f64; 3]>,
    /// Where the true median of the ratios lies with 95 %; `null` of fewer than six.
    pub(crate) confidence: Option<[f64; 2]>,
    /// What the ratio is to be, at least.
    pub(crate) target: Option<f64>,
}

/// A case with its runs, or why there are none.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    pub(crate) case: String,
    pub(crate) unit: Unit,
    pub(crate) runs: Vec<Runs>,
    /// Why it was not run to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) not_run: Option<String>,
}

/// Median, smallest, largest; `None` of nothing.
pub(crate) fn spread(figures: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    let median = if sorted.len().is_multiple_of(2) { (upper + sorted.get(middle - 1)?) / 2.0 } else { upper };
    Some([median, *sorted.first()?, *sorted.last()?])
}

/// Between which two of the figures the median of all there could be lies with a probability of 95 %, whatever their
/// distribution: each of them is above or below it with the same chance.
fn confidence(figures: &[f64]) -> Option<[f64; 2]> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len();
    // Of the binomial distribution, in logarithms: its terms are too small for a number, and its factors too large.
    let mut term = -(count as f64) * 2_f64.ln();
    let (mut tail, mut out) = (term.exp(), None);
    for below in 0..count / 2 {
        if 2.0 * tail > 0.05 {
            break;
        }
        out = Some([*sorted.get(below)?, *sorted.get(count - 1 - below)?]);
        term += ((count - below) as f64).ln() - ((below + 1) as f64).ln();
        tail += term.exp();
    }
    out
}

/// The figure that so large a share of them does not exceed; NaN of nothing.
pub(crate) fn percentile(figures: &[f64], share: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at).or(sorted.last()).copied().unwrap_or(f64::NAN)
}

impl Runs {
    /// Of a back-end, so far without a figure.
    pub(crate) fn of(backend: impl Into<String>, target: Option<f64>) -> Self {
        Runs {
            backend: backend.into(),
            figures: Vec::new(),
            idle: None,
            trace_lost: None,
            ratio: None,
            confidence: None,
            target,
        }
    }
}

impl Outcome {
    /// Has each of the back-ends run once a round, in turn, by its place among them, and compares. The first that cannot ends
    /// it.
    pub(crate) fn of_rounds(
        (case, unit): (String, Unit),
        mut runs: Vec<Runs>,
        rounds: u32,
        mut once: impl FnMut(usize) -> Result<f64>,
    ) -> Self {
        let mut not_run = None;
        let count = runs.len();
        // Each is the first of a round in turn: what runs after another finds the machine as that one left it.
        for step in 0..rounds as usize * count {
            let at = (step / count + step) % count;
            match once(at) {
                Ok(figure) => runs[at].figures.push(figure),
                Err(error) => {
                    not_run = Some(format!("{}: {error:#}", runs[at].backend));
                    break;
                }
            }
        }
        let mut outcome = Outcome { case, unit, runs, not_run };
        outcome.compare();
        outcome
    }

    /// Fills in the ratios to the last back-end, round by round.
    pub(crate) fn compare(&mut self) {
        let Some(yardstick) = self.runs.last().map(|last| last.figures.clone()) else { return };
        let count = self.runs.len();
        for runs in self.runs.iter_mut().take(count - 1) {
            let ratios: Vec<f64> = runs.figures.iter().zip(&yardstick).map(|(ours, theirs)| ours / theirs).collect();
            runs.ratio = spread(&ratios);
            runs.confidence = confidence(&ratios);
        }
    }

    /// Prints the lines of the table.
    pub(crate) fn print(&self) {
        self.lines().iter().for_each(|line| println!("{line}"));
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for runs in &self.runs {
            let Some([median, least, most]) = spread(&runs.figures) else { continue };
            let (unit, name) = match self.unit {
                Unit::Frames => (1e6, "Mfr/s"),
                Unit::BytesOfWorker => (1e6, "MB/CPU s"),
                Unit::FramesOfWorker => (1e6, "Mfr/CPU s"),
                Unit::Bytes => (1e6, "MB/s"),
                Unit::Requests => (1e3, "kIO/s"),
            };
            let rate = format!("{:7.2} ({:.2}–{:.2}) {name}", median / unit, least / unit, most / unit);
            let idle = runs.idle.map_or_else(|| "–".to_owned(), |idle| format!("{:.0} %", idle * 100.0));
            let ratio = runs.ratio.map_or_else(String::new, |[m, l, h]| format!("{m:5.2} ({l:.2}–{h:.2})"));
            let target = match (runs.target, runs.ratio) {
                (Some(target), Some([median, ..])) if median >= target => format!("≥ {target} reached"),
                (Some(target), Some(_)) => format!("≥ {target} NOT reached"),
                _ => String::new(),
            };
            let line = format!("{:<40} {:<12} {rate:>30} {idle:>6}  {ratio:<20} {target}", self.case, runs.backend);
            lines.push(line.trim_end().to_owned());
            if let Some([low, high]) = runs.confidence {
                let count = runs.figures.len();
                lines.push(format!("{:<40} the median of all rounds ({count}) is {low:.3} to {high:.3} with 95 %", ""));
            }
            if let Some(lost) = runs.trace_lost {
                lines.push(format!("{:<40} the tracer lost {:.1} % of its events", "", lost * 100.0));
            }
        }
        if let Some(why) = &self.not_run {
            lines.push(format!("{:<40} not run: {why}", self.case));
        }
        lines
    }

    /// The table's head.
    pub(crate) fn head() -> String {
        format!(
            "{:<40} {:<12} {:>30} {:>6}  {:<20} {}",
            "case", "back-end", "median (least–most)", "idle", "ratio to the last", "target"
        )
    }
}

/// Says on standard error which comparison is under way.
pub(crate) struct Progress {
    started: Instant,
    at: usize,
    of: usize,
}

impl Progress {
    pub(crate) fn new(of: usize) -> Self {
        Progress { started: Instant::now(), at: 0, of }
    }

    pub(crate) fn next(&mut self, case: &str) {
        self.at += 1;
        let minutes = self.started.elapsed().as_secs() / 60;
        eprintln!("[{}/{}] {case} ({minutes} min so far)", self.at, self.of);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_between_the_figures_that_the_tables_name() {
        let figures = |count: u32| -> Vec<f64> { (1..=count).rev().map(f64::from).collect() };
        // Conover, Practical Nonparametric Statistics: the sign test's limits at 95 %.
        for (count, expected) in [(5, None), (6, Some([1.0, 6.0])), (10, Some([2.0, 9.0])), (20, Some([6.0, 15.0]))] {
            assert_eq!(confidence(&figures(count)), expected, "{count}");
        }
        // By the normal distribution: 500 ± 0.98 √1000.
        assert_eq!(confidence(&figures(1000)), Some([469.0, 532.0]));
    }
}
