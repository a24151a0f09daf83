//! The hazards of sending a file without copying it, each shown: one file per hazard, readable as a sequence of steps.
//!
//! Place: the agent calls [`show`]. Nothing here depends on time: each step waits, with a deadline, for what it needs.

mod child;
mod lease;
mod mutate;
mod observer;
mod truncate;

use std::net::SocketAddr;

use anyhow::{Result, bail};
use vnic_experiment::wire::Event;

use crate::stage::Stage;
use crate::transfer::Unsupported;

pub use child::{Child, act};

/// What happened.
#[derive(Debug, Default)]
pub struct Story {
    lines: Vec<String>,
    otherwise: bool,
}

impl Story {
    /// A step that was taken.
    fn step(&mut self, line: impl Into<String>) {
        self.lines.push(line.into());
    }

    /// A step that went as described, or otherwise.
    fn check(&mut self, as_described: bool, line: impl Into<String>) {
        let line = line.into();
        self.lines.push(if as_described { line } else { format!("NOT AS DESCRIBED: {line}") });
        self.otherwise |= !as_described;
    }

    /// The story as the host gets it.
    #[must_use]
    pub fn told(self) -> Event {
        Event::Shown { as_described: !self.otherwise, story: self.lines }
    }
}

/// Shows the hazard of this name.
///
/// # Errors
/// [`Unsupported`] where it is unknown or cannot happen to this method; else what failed.
pub fn show(name: &str, method: &str, to: SocketAddr, stage: &mut dyn Stage) -> Result<Story> {
    match name {
        "truncate" => truncate::show(to),
        "lease" => lease::show(to),
        "mutate" => mutate::show(method, to, stage),
        "observer" => observer::show(method, to, stage),
        _ => bail!(Unsupported(format!("no hazard is called {name:?}; there are truncate, lease, mutate, observer"))),
    }
}
