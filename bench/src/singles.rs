//! What is no frame rate: kick-to-call latency, CPU time of an idle back-end, private memory.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::backend::{Backend, Server};
use crate::latency::Pings;
use crate::outcome::spread;

/// The back-ends that are looked at.
const BACKENDS: [Backend; 3] = [Backend::Vnic("sink"), Backend::Sleepy("sink"), Backend::Dpdk("rxonly")];
/// Chains of one latency figure.
const PINGS: usize = 5000;
/// How long an idle back-end is watched.
const IDLE: Duration = Duration::from_secs(3);

/// All of it, as it is asked for.
pub(crate) const NAMES: &str = "latency, idle CPU, memory";

/// What is measured, in order; and what it is to be at most, of ours.
const WHAT: [(&str, Option<f64>); 4] = [
    ("kick to call, median, µs", None),
    ("kick to call, 99th percentile, µs", None),
    ("CPU ticks in 3 idle seconds", Some(0.0)),
    ("private memory, MiB", Some(24.0)),
];

/// Figures of one back-end, one per round.
#[derive(Debug, Serialize)]
pub(crate) struct Single {
    what: &'static str,
    backend: String,
    figures: Vec<f64>,
    /// What the median is to be, at most.
    at_most: Option<f64>,
    /// Why there are fewer than there should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_run: Option<String>,
}

impl Single {
    /// A line of the table.
    pub(crate) fn line(&self) -> String {
        let figures = spread(&self.figures)
            .map_or_else(|| "–".to_owned(), |[median, least, most]| format!("{median:.2} ({least:.2}–{most:.2})"));
        let target = match (self.at_most, spread(&self.figures)) {
            (Some(most), Some([median, ..])) if median <= most => format!("≤ {most} reached"),
            (Some(most), Some(_)) => format!("≤ {most} NOT reached"),
            _ => String::new(),
        };
        let not_run = self.not_run.as_ref().map_or_else(String::new, |why| format!(" not run: {why}"));
        format!("{:<40} {:<12} {figures:>24}  {target}{not_run}", self.what, self.backend).trim_end().to_owned()
    }
}

/// All of them, the back-ends in turn, round after round.
pub(crate) fn measure(rounds: u32, vnic: &Path, folder: &Path) -> Vec<Single> {
    let mut singles: Vec<Single> = WHAT
        .iter()
        .flat_map(|(what, most)| {
            BACKENDS.iter().map(move |backend| Single {
                what,
                backend: backend.name(),
                figures: Vec::new(),
                at_most: most.filter(|_| !matches!(backend, Backend::Dpdk(_))),
                not_run: None,
            })
        })
        .collect();
    for _ in 0..rounds {
        for backend in BACKENDS {
            let looked = Server::start(backend, 1, vnic, folder).and_then(|server| crate::on_cpu_1(|| look(&server)));
            let of_it = singles.iter_mut().filter(|single| single.backend == backend.name());
            match looked {
                Ok(figures) => of_it.zip(figures).for_each(|(single, figure)| single.figures.push(figure)),
                Err(error) => of_it.for_each(|single| single.not_run = Some(format!("{error:#}"))),
            }
        }
    }
    singles
}

/// One session with a back-end: all of [`WHAT`].
fn look(server: &Server) -> Result<[f64; 4]> {
    let mut pings = Pings::open(server.socket())?;
    let [median, high] = pings.measure(PINGS)?;
    // It may poll a while before it sleeps.
    std::thread::sleep(Duration::from_millis(500));
    let before = ticks(server.id())?;
    std::thread::sleep(IDLE);
    let idle = ticks(server.id())? - before;
    Ok([median, high, idle, private_memory(server.id())?])
}

/// Clock ticks (of 10 ms, as a rule) that a process has had, in user space and in the kernel.
fn ticks(id: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("a name in brackets")?;
    let times = fields.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().unwrap_or(f64::NAN));
    Ok(times.sum())
}

/// MiB that a process has for itself, its huge pages included, the guest's memory not.
fn private_memory(id: u32) -> Result<f64> {
    let maps = fs::read_to_string(format!("/proc/{id}/smaps"))?;
    let (mut guests, mut kib) = (false, 0.0);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { continue };
        if !first.ends_with(':') {
            guests = line.contains("/memfd:");
        } else if first.starts_with("Private_") && !guests {
            kib += words.next().and_then(|figure| figure.parse::<f64>().ok()).context("a figure")?;
        }
    }
    Ok(kib / 1024.0)
}
