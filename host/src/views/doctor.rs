//! `vnic doctor` for people.

use std::fmt::{self, Write};

use anyhow::Result;

use super::style::{BAD, DIM, GOOD, HEAD, WARN};
use crate::doctor::{Check, State};

/// Three lines per check at most: found, what follows, how to fix it.
pub(crate) fn show(checks: &[Check], can_run: bool) -> Result<()> {
    super::put(text(checks, can_run)?)
}

fn text(checks: &[Check], can_run: bool) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for check in checks {
        let (style, sign) = match check.state {
            State::Good => (GOOD, "ok"),
            State::Limited => (WARN, "--"),
            State::Missing => (BAD, "NO"),
        };
        writeln!(text, "{style}{sign}{style:#}  {HEAD}{:<14}{HEAD:#} {}", check.name, check.found)?;
        writeln!(text, "{:19}{DIM}{}{DIM:#}", "", check.follows)?;
        if let Some(fix) = &check.fix {
            writeln!(text, "{:19}{DIM}to change that: {fix}{DIM:#}", "")?;
        }
    }
    let (style, sentence) = if can_run {
        (GOOD, "The demo can run here: scripts/demo.sh")
    } else {
        (BAD, "The demo cannot run here yet: see the lines marked NO.")
    };
    writeln!(text, "\n{style}{sentence}{style:#}")?;
    Ok(text)
}
