//! What the copy costs, and what the user's buffer: ratios of CPU time, round by round.

use vnic_experiment::row::WHAT_IF;

use super::Table;
use crate::figures::figure;

/// A ratio of times over several rounds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Ratio {
    pub(super) median: f64,
    pub(super) least: f64,
    pub(super) most: f64,
}

/// What a kernel's rows say on a file system.
#[derive(Debug, PartialEq)]
pub(super) struct WhatIf {
    pub(super) kernel: String,
    pub(super) filesystem: String,
    pub(super) accel: String,
    pub(super) rounds: usize,
    /// `sendfile` that copies to `sendfile`: what the copy costs.
    pub(super) copy: Ratio,
    /// `read` and `write` to `sendfile` that copies: what the user's buffer costs.
    pub(super) buffer: Ratio,
    /// `read` and `write` to `sendfile`: both.
    pub(super) both: Ratio,
}

/// Of each round's pair of times.
fn ratio(of: &[f64], to: &[f64]) -> Option<Ratio> {
    let mut ratios: Vec<f64> = of.iter().zip(to).filter(|(_, to)| **to > 0.0).map(|(of, to)| of / to).collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let (least, most) = (*ratios.first()?, *ratios.last()?);
    Some(Ratio { median: ratios[ratios.len() / 2], least, most })
}

/// Wherever all three rows were run several times.
pub(super) fn lines(table: &Table) -> Vec<WhatIf> {
    let mut lines = Vec::new();
    for cell in table.rounds.iter().filter(|cell| cell.origin.row == WHAT_IF[0]) {
        let origin = &cell.origin;
        let times = |row: &str| -> Option<Vec<f64>> {
            let is = |other: &&super::Filled| {
                (&other.origin.kernel, &other.origin.filesystem, other.origin.bytes, other.origin.row.as_str())
                    == (&origin.kernel, &origin.filesystem, origin.bytes, row)
            };
            let cell = table.rounds.iter().find(is)?;
            cell.run.methods.iter().map(|row| figure(row, "cpu_seconds_per_gib")).collect()
        };
        let rows = (times("sendfile"), times(WHAT_IF[0]), times("read-write"));
        let (Some(sendfile), Some(copies), Some(read_write)) = rows else { continue };
        let ratios = (ratio(&copies, &sendfile), ratio(&read_write, &copies), ratio(&read_write, &sendfile));
        let (Some(copy), Some(buffer), Some(both)) = ratios else { continue };
        let accel = cell.run.accel.clone().unwrap_or_default();
        let (kernel, filesystem) = (origin.kernel.clone(), origin.filesystem.clone());
        lines.push(WhatIf { kernel, filesystem, accel, rounds: copies.len(), copy, buffer, both });
    }
    lines.sort_by_key(|line| (super::version(&line.kernel), line.filesystem.clone()));
    lines
}
