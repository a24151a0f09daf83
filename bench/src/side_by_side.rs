//! Our back-end and DPDK's, or another build of ours: the same driver against each in turn.
//!
//! The back-end has CPU 0, the driver CPU 1; each run has a fresh pair of them.

use anyhow::Result;

use crate::backend::{Backend, Server};
use crate::case::{self, Case, Driver};
use crate::outcome::{Outcome, Runs, Unit, spread};
use crate::testpmd::{self, Length};
use crate::{Args, pump};

/// The cases that are asked for.
pub(crate) fn cases(args: &Args) -> Vec<Case> {
    let cases = case::cases(args.all).into_iter().filter(|case| args.wants(&case.name()));
    match args.against {
        Some(_) => cases.flat_map(|case| case.against_other_build()).collect(),
        None => cases.collect(),
    }
}

/// All rounds of a case.
pub(crate) fn measure(case: &Case, args: &Args) -> Outcome {
    let target = |at: usize| case.targets.get(at).copied().flatten();
    let runs = case.backends.iter().enumerate().map(|(at, backend)| Runs::of(backend.name(), target(at)));
    let mut beside = vec![[Vec::new(), Vec::new()]; case.backends.len()];
    let mut outcome = Outcome::of_rounds((case.name(), Unit::Frames), runs.collect(), args.rounds, |at| {
        let run = once(case, case.backends[at], args)?;
        let [idles, losts] = &mut beside[at];
        idles.extend(run.idle);
        losts.extend(run.trace_lost);
        Ok(run.frames_per_second)
    });
    for (runs, [idles, losts]) in outcome.runs.iter_mut().zip(&beside) {
        runs.idle = spread(idles).map(|[median, ..]| median);
        runs.trace_lost = spread(losts).map(|[median, ..]| median);
    }
    outcome
}

/// What one run came to.
struct Run {
    frames_per_second: f64,
    idle: Option<f64>,
    trace_lost: Option<f64>,
}

/// One run: a fresh back-end, a fresh driver.
fn once(case: &Case, backend: Backend, args: &Args) -> Result<Run> {
    let program = match (backend, &args.against) {
        (Backend::Other(_), Some(other)) => other,
        _ => &args.vnic,
    };
    let server = Server::start(backend, case.pairs, program, &args.out)?;
    let features = case.format.features();
    let (frames_per_second, idle) = match case.driver {
        Driver::Pump => (pump::on_cpu_1(server.socket(), case.shape, features, None, args.seconds)?, None),
        Driver::Dpdk(mode) => {
            let idle = || server.idle_ns();
            let length = Length { seconds: 2.0 * args.seconds, frames: args.frames };
            let drove = testpmd::run(server.socket(), case.pairs, case.shape, features, mode, length, idle)?;
            (drove.frames_per_second, drove.idle)
        }
    };
    Ok(Run { frames_per_second, idle, trace_lost: server.trace_lost() })
}
