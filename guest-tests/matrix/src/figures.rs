//! What a row's record has in figures, by name; and what may be expected of them.

use std::str::FromStr;

use vnic_experiment::run::Method;

/// A figure of a row; none where it was not measured.
type Of = fn(&Method) -> Option<f64>;

/// By the names that `vnic report --parquet` has them, too.
pub(crate) const FIGURES: &[(&str, Of)] = &[
    ("cpu_copies", |row| row.cpu_copies),
    ("dma_copies", |row| row.dma_copies),
    ("physical_instances", |row| row.memory.physical_instances.map(real)),
    ("descriptors_per_mib", |row| per(row, 1 << 20, row.device.descriptors.map(real)?)),
    ("bytes_per_descriptor", |row| {
        Some(real(row.device.payload_bytes?) / real(row.device.descriptors.filter(|count| *count > 0)?))
    }),
    ("syscalls", |row| row.guest.syscalls.map(real)),
    ("mode_switches", |row| row.guest.mode_switches.map(real)),
    ("cpu_seconds_per_gib", |row| per(row, 1 << 30, real(row.guest.user_us? + row.guest.system_us?) / 1e6)),
];

fn real(count: u64) -> f64 {
    count as f64
}

/// For so many payload bytes.
fn per(row: &Method, unit: u64, figure: f64) -> Option<f64> {
    let payload = row.device.payload_bytes.or(row.bytes_sent).filter(|bytes| *bytes > 0)?;
    Some(figure * real(unit) / real(payload))
}

/// A figure by its name.
pub(crate) fn figure(row: &Method, name: &str) -> Option<f64> {
    FIGURES.iter().find(|(known, _)| *known == name).and_then(|(_, of)| of(row))
}

/// What is expected of a row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expectation {
    /// This verdict.
    Verdict(String),
    /// This relation of a figure to a number.
    Figure(&'static str, Relation, f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Relation {
    Less,
    AtMost,
    AtLeast,
    More,
}

const RELATIONS: [(&str, Relation); 4] =
    [("<=", Relation::AtMost), (">=", Relation::AtLeast), ("<", Relation::Less), (">", Relation::More)];
const VERDICTS: [&str; 3] = ["zero-copy", "copied", "mixed"];

impl FromStr for Expectation {
    type Err = String;

    fn from_str(text: &str) -> Result<Expectation, String> {
        if VERDICTS.contains(&text.trim()) {
            return Ok(Expectation::Verdict(text.trim().to_owned()));
        }
        let names = || FIGURES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let what = || {
            format!("it is zero-copy, copied, mixed, or a figure with <, <=, >=, > and a number; figures: {}", names())
        };
        let (relation, (name, number)) =
            RELATIONS.iter().find_map(|(sign, relation)| Some((*relation, text.split_once(sign)?))).ok_or_else(what)?;
        let (name, _) = FIGURES.iter().find(|(known, _)| *known == name.trim()).ok_or_else(what)?;
        Ok(Expectation::Figure(name, relation, number.trim().parse().map_err(|_| what())?))
    }
}

impl Expectation {
    /// Is it so? None where the row does not say.
    pub(crate) fn is_met(&self, row: &Method) -> Option<bool> {
        let verdict = row.verdict?;
        Some(match self {
            Expectation::Verdict(name) => verdict.name() == name,
            Expectation::Figure(name, relation, number) => {
                let figure = figure(row, name)?;
                match relation {
                    Relation::Less => figure < *number,
                    Relation::AtMost => figure <= *number,
                    Relation::AtLeast => figure >= *number,
                    Relation::More => figure > *number,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use vnic_experiment::run::{DeviceAccounts, Verdict};

    use super::*;

    #[test]
    fn an_expectation_is_a_verdict_or_a_relation_and_holds_of_what_was_measured_only() {
        let device =
            DeviceAccounts { descriptors: Some(128), payload_bytes: Some(2 << 20), ..DeviceAccounts::default() };
        let row = Method { verdict: Some(Verdict::ZeroCopy), device, ..Method::default() };
        for (text, met) in [
            ("zero-copy", Some(true)),
            ("copied", Some(false)),
            ("descriptors_per_mib < 64", Some(false)),
            ("descriptors_per_mib <= 64", Some(true)),
            ("descriptors_per_mib>=65", Some(false)),
            ("descriptors_per_mib > 63.5", Some(true)),
            ("cpu_copies < 1", None),
        ] {
            assert_eq!(text.parse::<Expectation>().unwrap().is_met(&row), met, "{text}");
        }
        assert_eq!("copied".parse::<Expectation>().unwrap().is_met(&Method::default()), None);
        for bad in ["", "zero", "descriptors < 1", "cpu_copies < x", "cpu_copies = 1"] {
            assert!(bad.parse::<Expectation>().unwrap_err().contains("descriptors_per_mib"), "{bad}");
        }
    }
}
