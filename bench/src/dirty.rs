//! What the log of dirty pages costs while it is on: the same pump against the same back-end, with and without.

use anyhow::Result;
use vnic::spec::Feature;

use crate::Args;
use crate::backend::{Backend, Server};
use crate::case::{Format, Pumped, SHAPES};
use crate::outcome::{Outcome, Runs, Unit};
use crate::pump;

/// What is to be left of the rate while the guest is on its way.
const TARGET: f64 = 0.7;

/// The cases that are asked for.
pub(crate) fn cases(args: &Args) -> Vec<Pumped> {
    let formats = [Format::Split, Format::Packed].into_iter();
    let cases = formats.flat_map(|format| {
        ["sink:copy", "sink"].map(|link| Pumped { link, shape: SHAPES[0], format, what: "dirty log" })
    });
    cases.filter(|case| args.wants(&case.name())).collect()
}

/// All rounds of a case.
pub(crate) fn measure(case: &Pumped, args: &Args) -> Outcome {
    let runs = vec![Runs::of("log on", Some(TARGET)), Runs::of("log off", None)];
    Outcome::of_rounds((case.name(), Unit::Frames), runs, args.rounds, |at| once(args, *case, at == 0))
}

/// One run against a fresh back-end. Frames per second.
fn once(args: &Args, case: Pumped, logs: bool) -> Result<f64> {
    let server = Server::start(Backend::Vnic(case.link), 1, &args.vnic, &args.out)?;
    let features = case.format.features();
    let features = if logs { features.with(Feature::LogAll) } else { features };
    pump::on_cpu_1(server.socket(), case.shape, features, None, args.seconds)
}
