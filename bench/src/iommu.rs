//! What the guest's IOMMU costs, once the IOTLB is warm: the same pump against the same back-end, with and without.
//!
//! The translations are single pages, as a guest's IOMMU has them of a page cache, or huge ones.

use anyhow::Result;

use crate::Args;
use crate::backend::{Backend, Server};
use crate::case::{Format, Pumped, SHAPES};
use crate::outcome::{Outcome, Runs, Unit};
use crate::pump;

/// What the ratio is to be, at least.
const TARGET: f64 = 0.9;
/// The IOMMU's translations in bytes; the last is the yardstick.
const IOMMUS: [(&str, Option<u64>); 3] =
    [("IOMMU 4 KiB", Some(4 << 10)), ("IOMMU 2 MiB", Some(2 << 20)), ("no IOMMU", None)];

/// The cases that are asked for.
pub(crate) fn cases(args: &Args) -> Vec<Pumped> {
    // A sink that touches no payload shows what a look-up costs at its worst; one that copies, what is left of that.
    let kinds = [("sink", Format::Split), ("sink:copy", Format::Split), ("sink", Format::Packed)].into_iter();
    let cases = kinds.flat_map(|(link, format)| SHAPES.map(|shape| Pumped { link, shape, format, what: "IOMMU" }));
    cases.filter(|case| args.wants(&case.name())).collect()
}

/// All rounds of a case.
pub(crate) fn measure(case: &Pumped, args: &Args) -> Outcome {
    let runs = IOMMUS.map(|(name, translations)| Runs::of(name, translations.map(|_| TARGET)));
    Outcome::of_rounds((case.name(), Unit::Frames), runs.into(), args.rounds, |at| {
        once(args, *case, IOMMUS.get(at).and_then(|(_, translations)| *translations))
    })
}

/// One run against a fresh back-end. Frames per second.
fn once(args: &Args, case: Pumped, translations: Option<u64>) -> Result<f64> {
    let server = Server::start(Backend::Vnic(case.link), 1, &args.vnic, &args.out)?;
    pump::on_cpu_1(server.socket(), case.shape, case.format.features(), translations, args.seconds)
}
