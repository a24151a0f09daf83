//! The ratios as bars, in an SVG file.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::outcome::Outcome;

/// Draws the median ratio of every back-end that was compared, with its spread and the line where both are alike.
pub(crate) fn draw<'o>(outcomes: impl Iterator<Item = &'o Outcome>, path: &Path) -> Result<()> {
    let bars: Vec<(String, [f64; 3])> = outcomes
        .flat_map(|outcome| {
            outcome.runs.iter().filter_map(|runs| Some((format!("{}: {}", outcome.case, runs.backend), runs.ratio?)))
        })
        .collect();
    let most = bars.iter().map(|(_, [_, _, most])| *most).fold(1.5, f64::max) * 1.05;
    let height = u32::try_from(90 + 26 * bars.len())?;
    let area = SVGBackend::new(path, (1000, height)).into_drawing_area();
    let failed = |error: DrawingAreaErrorKind<_>| anyhow!("cannot draw {}: {error}", path.display());
    area.fill(&WHITE).map_err(failed)?;
    let count = bars.len() as f64;
    let mut chart = ChartBuilder::on(&area)
        .caption("Ratios to the last back-end of each case: DPDK's vhost where it is one", ("sans-serif", 18))
        .margin(10)
        .x_label_area_size(30)
        .build_cartesian_2d(-0.9 * most..most, 0.0..count.max(1.0))
        .map_err(failed)?;
    for (at, (name, [median, least, high])) in bars.iter().enumerate() {
        let y = count - 1.0 - at as f64;
        let bar = Rectangle::new([(0.0, y + 0.2), (*median, y + 0.8)], BLUE.mix(0.5).filled());
        let spread = PathElement::new([(*least, y + 0.5), (*high, y + 0.5)], BLACK);
        let label = Text::new(format!("{name}  {median:.2}"), (-0.88 * most, y + 0.7), ("sans-serif", 13));
        chart.draw_series([bar]).map_err(failed)?;
        chart.draw_series([spread]).map_err(failed)?;
        chart.draw_series([label]).map_err(failed)?;
    }
    chart.draw_series([PathElement::new([(1.0, 0.0), (1.0, count)], RED)]).map_err(failed)?;
    area.present().map_err(failed)
}
