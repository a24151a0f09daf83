//! `vnic judge --hazard`: what happened, in one screen.

use std::fmt::Write;

use anyhow::Result;

use super::style::{BAD, DIM, GOOD, HEAD};
use crate::conductor::hazard::{Hazard, Story};

/// Each method's story, a line per step.
pub(crate) fn show(hazard: Hazard, stories: &[Story]) -> Result<()> {
    let mut text = String::new();
    let out = &mut text;
    writeln!(out, "{HEAD}{}{HEAD:#}: {}", hazard.name(), hazard.about())?;
    for story in stories {
        let (style, word) = if story.as_described { (GOOD, "as described") } else { (BAD, "not as described") };
        writeln!(out, "\n{HEAD}{}{HEAD:#}: {style}{word}{style:#}", story.method)?;
        for (at, line) in story.lines.iter().enumerate() {
            writeln!(out, "  {DIM}{}{DIM:#} {line}", at + 1)?;
        }
    }
    super::put(text)
}
