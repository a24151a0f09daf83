//! What is measured, and what is expected of it.

use vnic::spec::{Feature, Features};

use crate::backend::Backend;
use crate::pump::Shape;
use crate::testpmd::Mode;

/// Who drives the back-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    /// See [`crate::pump`].
    Pump,
    /// See [`crate::testpmd`].
    Dpdk(Mode),
}

/// One comparison: the same driver against each of the back-ends, in turn.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) driver: Driver,
    pub(crate) shape: Shape,
    pub(crate) format: Format,
    /// Queue pairs.
    pub(crate) pairs: u16,
    /// The last is the yardstick.
    pub(crate) backends: Vec<Backend>,
    /// The ratios that are to be reached, of all back-ends but the last.
    pub(crate) targets: Vec<Option<f64>>,
}

/// The pump against `vnic serve` in two ways or more: what of [`Case`] is the same in all of its runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pumped {
    pub(crate) link: &'static str,
    pub(crate) shape: Shape,
    pub(crate) format: Format,
    /// What differs.
    pub(crate) what: &'static str,
}

impl Pumped {
    pub(crate) fn name(self) -> String {
        format!("pump, {} {}, {}, {}", self.shape, self.format.name(), self.link, self.what)
    }
}

/// A ring's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Split,
    Packed,
    InOrder,
    PackedInOrder,
}

impl Format {
    pub(crate) const ALL: [Format; 4] = [Format::Split, Format::Packed, Format::InOrder, Format::PackedInOrder];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Format::Split => "split",
            Format::Packed => "packed",
            Format::InOrder => "split in order",
            Format::PackedInOrder => "packed in order",
        }
    }

    pub(crate) const fn features(self) -> Features {
        match self {
            Format::Split => Features::NONE,
            Format::Packed => Features::of(&[Feature::RingPacked]),
            Format::InOrder => Features::of(&[Feature::InOrder]),
            Format::PackedInOrder => Features::of(&[Feature::RingPacked, Feature::InOrder]),
        }
    }
}

pub(crate) const SHAPES: [Shape; 3] =
    [Shape { segment: 64, segments: 1 }, Shape { segment: 1518, segments: 1 }, Shape { segment: 2048, segments: 4 }];

impl Case {
    /// This case with another build as the yardstick, once for each of our links.
    pub(crate) fn against_other_build(&self) -> Vec<Case> {
        let ours = self.backends.iter().filter_map(|backend| match backend {
            Backend::Vnic(link) => Some(vec![*backend, Backend::Other(link)]),
            _ => None,
        });
        ours.map(|backends| Case { backends, targets: vec![None], ..self.clone() }).collect()
    }

    pub(crate) fn name(&self) -> String {
        let driver = match self.driver {
            Driver::Pump => "pump",
            Driver::Dpdk(Mode::Transmit) => "DPDK's driver",
            Driver::Dpdk(Mode::BothWays) => "DPDK's driver, both ways",
        };
        let pairs = if self.pairs == 1 { String::new() } else { format!(", {} pairs", self.pairs) };
        let traced = self.backends.iter().any(|backend| matches!(backend, Backend::Traced(_)));
        let modelled = self.backends.iter().any(|backend| matches!(backend, Backend::Modelled(_)));
        let unlocked = self.backends.iter().any(|backend| matches!(backend, Backend::Unlocked(_)));
        let proxied = self.backends.iter().any(|backend| matches!(backend, Backend::Proxied(_)));
        let looks = [
            (traced, ", tracer on"),
            (modelled, ", with a model of hardware"),
            (unlocked, ", locked in"),
            (proxied, ", through a proxy"),
        ];
        let looked = looks.iter().find(|(on, _)| *on).map_or("", |(_, words)| words);
        format!("{driver}, {} {}{pairs}{looked}", self.shape, self.format.name())
    }
}

/// Ratios that are to be reached: pump on sink and sink:copy, DPDK's driver on the same.
fn targets(shape: Shape, format: Format) -> [Option<f64>; 4] {
    match (shape.segment, format) {
        (64, Format::Split) => [Some(6.0), Some(3.5), Some(1.1), Some(1.1)],
        (64, Format::Packed) => [Some(4.0), Some(2.5), Some(1.0), Some(1.0)],
        (1518, Format::Split) => [Some(12.0), Some(2.0), Some(1.0), Some(1.0)],
        (2048, Format::Split) => [Some(12.0), Some(1.25), Some(2.0), Some(1.4)],
        _ => [None; 4],
    }
}

/// What is to be left of a rate while somebody looks, or while there is an account for a model of hardware.
pub(crate) const UNDER_TOP: f64 = 0.97;

/// What is to be left of it while the process is locked in.
const LOCKED_IN: f64 = 0.99;
/// And while every message goes through `vnic proxy`: frames do not.
pub(crate) const THROUGH_PROXY: f64 = 0.98;

/// The cases with a target, or `all` there are.
pub(crate) fn cases(all: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let sinks = [Backend::Vnic("sink"), Backend::Vnic("sink:copy"), Backend::Dpdk("rxonly")];
    for driver in [Driver::Pump, Driver::Dpdk(Mode::Transmit)] {
        for shape in SHAPES {
            for format in Format::ALL {
                let [pump, pump_copy, dpdk, dpdk_copy] = targets(shape, format);
                let targets = if driver == Driver::Pump { vec![pump, pump_copy] } else { vec![dpdk, dpdk_copy] };
                if all || targets.iter().any(Option::is_some) {
                    cases.push(Case { driver, shape, format, pairs: 1, backends: sinks.to_vec(), targets });
                }
            }
        }
    }
    let loops = vec![Backend::Vnic("loopback"), Backend::Dpdk("io")];
    for format in if all { &Format::ALL[..] } else { &[Format::Split] } {
        cases.push(Case {
            driver: Driver::Dpdk(Mode::BothWays),
            shape: SHAPES[0],
            format: *format,
            pairs: 1,
            backends: loops.clone(),
            targets: vec![Some(1.2)],
        });
    }
    // One driver's CPU for both pairs.
    let (shape, format) = (SHAPES[0], Format::Split);
    let driver = Driver::Dpdk(Mode::Transmit);
    cases.push(Case { driver, shape, format, pairs: 2, backends: sinks.to_vec(), targets: vec![None; 2] });
    for (driver, target) in [(Driver::Pump, 0.5), (driver, 0.9)] {
        let backends = vec![Backend::Traced("sink"), Backend::Vnic("sink")];
        cases.push(Case { driver, shape, format, pairs: 1, backends, targets: vec![Some(target)] });
    }
    let backends = vec![Backend::Proxied("rxonly"), Backend::Dpdk("rxonly")];
    cases.push(Case { driver, shape, format, pairs: 1, backends, targets: vec![Some(THROUGH_PROXY)] });
    let driver = Driver::Pump;
    let backends = vec![Backend::Vnic("sink"), Backend::Unlocked("sink")];
    for driver in [Driver::Pump, Driver::Dpdk(Mode::Transmit)] {
        cases.push(Case {
            driver,
            shape,
            format,
            pairs: 1,
            backends: backends.clone(),
            targets: vec![Some(LOCKED_IN)],
        });
    }
    // Paced, what there is to be seen is its own rate.
    let backends = vec![Backend::Modelled("sink"), Backend::Paced("sink"), Backend::Vnic("sink")];
    for shape in SHAPES {
        let targets = vec![Some(UNDER_TOP), None];
        cases.push(Case { driver, shape, format, pairs: 1, backends: backends.clone(), targets });
    }
    cases
}
