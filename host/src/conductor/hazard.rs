//! Shows a hazard: the agent does what it is about; this side holds the NIC, or looks at what it was handed, where that is needed.
//!
//! Operation: see [`vnic_experiment::wire`], step 4. `truncate` and `lease` are the guest's alone; `mutate` changes the file
//! while the device holds what was sent; `observer` is two transfers, told apart by what the NIC was handed.

use std::path::Path;

use anyhow::{Result, bail};
use vnic_experiment::wire::{Event, Request};

use super::held::Held;
use super::row::{Memory, Transfer};
use super::{Conductor, LEFT_OUT, Outcome, Plan, port};
use crate::control::Client;

/// A hazard by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Hazard {
    /// Another process truncates the file in mid-transfer
    Truncate,
    /// The same with a lease on the file: a signal comes before the truncation
    Lease,
    /// The program changes the file while the device holds what was sent
    Mutate,
    /// tcpdump in the guest turns MSG_ZEROCOPY into a copy, and leaves sendfile alone
    Observer,
}

impl Hazard {
    /// As the agent knows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Hazard::Truncate => "truncate",
            Hazard::Lease => "lease",
            Hazard::Mutate => "mutate",
            Hazard::Observer => "observer",
        }
    }

    /// The methods it is shown with.
    pub(crate) fn methods(self) -> &'static [&'static str] {
        match self {
            // One story: the guest goes through mapping, write and sendfile.
            Hazard::Truncate => &["sendfile"],
            Hazard::Lease => &["sendfile"],
            Hazard::Mutate => &["sendfile", "read-write"],
            Hazard::Observer => &["msg-zerocopy", "sendfile"],
        }
    }

    /// What it is, in a sentence.
    pub(crate) fn about(self) -> &'static str {
        match self {
            Hazard::Truncate => "another process truncates the file in mid-transfer",
            Hazard::Lease => "the same with a lease on the file: the signal comes before the truncation",
            Hazard::Mutate => {
                "the program changes the file after its call returned, while the device holds the buffers"
            }
            Hazard::Observer => "a packet capture runs in the guest; the device's own capture disturbs nothing",
        }
    }
}

/// What happened.
#[derive(Debug)]
pub(crate) struct Story {
    /// The method it happened to.
    pub(crate) method: String,
    /// Did it go as described?
    pub(crate) as_described: bool,
    /// A line per step.
    pub(crate) lines: Vec<String>,
}

/// Shows a hazard with each of the methods.
pub(crate) fn show(
    record: &Path,
    control: Client,
    plan: &Plan,
    hazard: Hazard,
    methods: &[String],
) -> Result<Vec<Story>> {
    let (mut conductor, _, _) = Conductor::meet(record, control, plan)?;
    let mut stories = Vec::new();
    let mut ended = Ok(());
    for method in methods {
        match conductor.hazard(hazard, method) {
            Ok(story) => stories.push(story),
            Err(error) => {
                ended = Err(error.context(format!("the hazard {} with {method}", hazard.name())));
                break;
            }
        }
    }
    let off = conductor.power_off();
    ended.and(off)?;
    Ok(stories)
}

impl Conductor<'_> {
    fn hazard(&mut self, hazard: Hazard, method: &str) -> Result<Story> {
        self.progress.say(&format!("{} with {method}: {}", hazard.name(), hazard.about()));
        let (name, method) = (hazard.name().to_owned(), method.to_owned());
        self.port.send(&Request::Hazard { name, method: method.clone(), to: self.plan.to })?;
        let mut seen = match hazard {
            Hazard::Truncate | Hazard::Lease => Seen::default(),
            Hazard::Mutate => self.mutate()?,
            Hazard::Observer => self.observe(&method)?,
        };
        let last = match seen.last.take() {
            Some(event) => event,
            None => self.wait("the hazard to be shown")?,
        };
        let (as_described, story) = match last {
            Event::Shown { as_described, story } => (as_described, story),
            Event::Failed { error } => (false, vec![format!("it could not be shown: {error}")]),
            Event::Unsupported { why } => (false, vec![format!("this guest cannot show it: {why}")]),
            other => return Err(port::out_of_turn("a hazard", &other)),
        };
        let lines = story.into_iter().chain(seen.lines).collect();
        Ok(Story { method, as_described: as_described && seen.as_described, lines })
    }

    /// Holds the transmitq while the program sends and changes its file.
    fn mutate(&mut self) -> Result<Seen> {
        match self.wait("the guest to prepare the hazard")? {
            Event::TransferBegin { .. } => {}
            other => return Ok(Seen::last(other)),
        }
        let held = Held::transmitqs(self.control.path())?;
        self.port.send(&Request::Go)?;
        let paused = self.wait_for_pause()?;
        let in_time = paused.is_some();
        held.release()?;
        match paused.map_or_else(|| self.wait("the program to change the file"), Ok)? {
            Event::Paused { .. } => self.port.send(&Request::Go)?,
            other => return Ok(Seen::last(other)),
        }
        let line = "the device held the buffers from before the call until after the change, then let them go";
        let line = if in_time { line } else { "the program did not come back while the device held the buffers" };
        Ok(Seen { as_described: in_time, lines: vec![line.to_owned()], last: None })
    }

    /// Two transfers, the second with an observer in the guest, and what the NIC was handed in each. The kernel's own
    /// accounting tells that the observer made it copy; what the NIC was handed is told too, because it need not be that
    /// copy: Linux copies for the capture, and may still hand the NIC the file's own pages.
    fn observe(&mut self, method: &str) -> Result<Seen> {
        let mut seen = Seen::default();
        for (when, observed) in
            [("with nobody looking on in the guest", false), ("with a capture open in the guest", true)]
        {
            let transfer = match self.watched_transfer(Memory::Unknown(LEFT_OUT.to_owned()), None, None)? {
                Outcome::Done(transfer) => transfer,
                Outcome::Failed(error) => return Ok(Seen::last(Event::Failed { error })),
                Outcome::Unsupported(why) => return Ok(Seen::last(Event::Unsupported { why })),
            };
            let (share, mut line) = gathered(&transfer)?;
            let from_file = share >= 0.999;
            if observed && method == "msg-zerocopy" {
                if from_file {
                    line.push_str(": the copy was the capture's");
                }
            } else {
                seen.as_described &= from_file;
            }
            seen.lines.push(format!("{when}, the NIC was handed {line}"));
        }
        Ok(seen)
    }
}

/// The share of a transfer that the NIC gathered from the file's own pages, also in words.
fn gathered(transfer: &Transfer) -> Result<(f64, String)> {
    match transfer.cached() {
        Some((cached, payload)) if payload > 0 => {
            let share = cached as f64 / payload as f64;
            Ok((share, format!("{:.1} % of the payload in the file's own pages", share * 100.0)))
        }
        _ => bail!("the device saw no payload of the transfer"),
    }
}

/// What this side saw of a hazard.
#[derive(Debug)]
struct Seen {
    as_described: bool,
    lines: Vec<String>,
    /// The agent's last word, where it came early.
    last: Option<Event>,
}

impl Default for Seen {
    fn default() -> Self {
        Seen { as_described: true, lines: Vec::new(), last: None }
    }
}

impl Seen {
    fn last(event: Event) -> Self {
        Seen { last: Some(event), ..Seen::default() }
    }
}
