//! A model in words: `82599`, `82599,pcie=gen1x1,iotlb=64`.

use std::str::FromStr;
use std::time::Duration;

use super::bus::{Bus, Completions, Generation};
use super::model::{Hardware, IoPage, IoTlb, Model};
use super::shapes::MOST_ENTRIES;

/// The cards that have a name.
pub const PRESETS: [&str; 4] = ["82599", "e810-like", "simple", "ideal"];

/// The keys, as they are told to who has used another.
const KEYS: &str = "driver, pcie, mps, mrrs, rcb, completions, fetch, writeback, doorbell, itr, line, max-segments, \
    max-frame-segments, min-piece, max-piece, iotlb, iotlb-page, iotlb-miss";

/// How long a look-up takes where nobody says: pcie-bench measured about this (Neugebauer et al., SIGCOMM 2018).
const MISS: Duration = Duration::from_nanos(330);

/// Words that are no model: one sentence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadModel(String);

type Result<T> = std::result::Result<T, BadModel>;

fn bad<T>(sentence: String) -> Result<T> {
    Err(BadModel(sentence))
}

/// Some parts of an IOMMU's cache, as far as they were named.
#[derive(Default)]
struct NamedIoTlb {
    entries: Option<u16>,
    page: Option<IoPage>,
    miss: Option<Duration>,
}

impl FromStr for Model {
    type Err = BadModel;

    fn from_str(words: &str) -> Result<Self> {
        let mut parts = words.split(',').map(str::trim);
        let card = parts.next().unwrap_or_default();
        let hardware = match card {
            "82599" => Some(Hardware::intel_82599()),
            "e810-like" => Some(Hardware::e810_like()),
            "simple" => Some(Hardware::simple()),
            "ideal" => None,
            _ => return bad(format!("`{card}` is no card: a model begins with one of {}", PRESETS.join(", "))),
        };
        let name = words.split(',').map(str::trim).collect::<Vec<_>>().join(",");
        let settings = settings(parts)?;
        let Some(mut hardware) = hardware else {
            return match settings.first() {
                Some((key, _)) => {
                    bad(format!("`ideal` costs nothing and takes no time: `{key}` changes nothing of it"))
                }
                None => Ok(Model { name, hardware: None }),
            };
        };
        let polled = settings.contains(&("driver", "dpdk"));
        if polled {
            hardware = hardware.polled();
        }
        let mut iotlb = NamedIoTlb::default();
        let mut segments = None;
        for (key, value) in settings {
            match key {
                "itr" if polled => {
                    return bad(format!("`itr={value}` with `driver=dpdk`: that driver takes no interrupts"));
                }
                "max-segments" => segments = Some(number(key, value, 1, u16::MAX)?),
                "iotlb" => iotlb.entries = Some(number(key, value, 1, MOST_ENTRIES as u16)?),
                "iotlb-page" => iotlb.page = Some(one_of(key, value, &[("4k", IoPage::Small), ("2m", IoPage::Huge)])?),
                "iotlb-miss" => iotlb.miss = Some(time(key, value)?),
                _ => set(&mut hardware, key, value)?,
            }
        }
        hardware.takes.segments = segments.unwrap_or(hardware.takes.segments);
        hardware.iotlb = iotlb.complete()?;
        contradictions(&hardware)?;
        Ok(Model { name, hardware: Some(hardware) })
    }
}

impl Model {
    /// Several, with commas between: a word with `=` in it is a setting of the model before.
    ///
    /// # Errors
    /// One of them is none.
    pub fn parse_list(words: &str) -> Result<Vec<Model>> {
        let mut each: Vec<String> = Vec::new();
        for word in words.split(',') {
            match each.last_mut() {
                Some(model) if word.contains('=') => *model = format!("{model},{word}"),
                _ => each.push(word.trim().to_owned()),
            }
        }
        each.iter().map(|model| model.parse()).collect()
    }
}

/// A model, and what is done by it.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The model.
    pub model: Model,
    /// Chains are done with no earlier than a card of this model would be; else their cost is only accounted.
    pub pace: bool,
}

impl FromStr for Applied {
    type Err = BadModel;

    /// `MODEL`, `MODEL:account` or `MODEL:pace`.
    fn from_str(words: &str) -> Result<Self> {
        let (model, how) = match words.split_once(':') {
            Some(both) => both,
            None => words.strip_suffix(",pace").map_or((words, "account"), |model| (model, "pace")),
        };
        let pace = match how {
            "account" => false,
            "pace" => true,
            _ => return bad(format!("`{how}` is nothing that is done by a model: it is account or pace")),
        };
        Ok(Applied { model: model.parse()?, pace })
    }
}

/// What stands behind the card, each key once.
fn settings<'w>(parts: impl Iterator<Item = &'w str>) -> Result<Vec<(&'w str, &'w str)>> {
    let mut all: Vec<(&str, &str)> = Vec::new();
    for part in parts {
        let Some((key, value)) = part.split_once('=') else {
            return bad(format!("`{part}` is no setting of a card: it has the form KEY=VALUE, such as pcie=gen3x8"));
        };
        if all.iter().any(|(known, _)| *known == key) {
            return bad(format!("`{key}` is said twice"));
        }
        all.push((key, value));
    }
    Ok(all)
}

fn set(hardware: &mut Hardware, key: &str, value: &str) -> Result<()> {
    match key {
        "driver" => one_of(key, value, &[("kernel", ()), ("dpdk", ())])?,
        "pcie" => (hardware.bus.generation, hardware.bus.lanes) = link(value)?,
        "mps" => hardware.bus.mps = power_of_two(key, value, 128, 4096)?,
        "mrrs" => hardware.bus.mrrs = power_of_two(key, value, 128, 4096)?,
        "rcb" => hardware.bus.rcb = power_of_two(key, value, 64, 512)?,
        "completions" => {
            hardware.bus.completions = one_of(key, value, &[("mps", Completions::Mps), ("rcb", Completions::Rcb)])?;
        }
        "fetch" => hardware.transmit.fetch = number(key, value, 1, 4096)?,
        "writeback" => hardware.transmit.write_back = number(key, value, 0, 4096)?,
        "doorbell" => hardware.transmit.doorbell = number(key, value, 1, 4096)?,
        "itr" => hardware.itr = time(key, value)?,
        "line" => hardware.line = Some(rate(key, value)?),
        "max-frame-segments" => hardware.takes.frame_segments = number(key, value, 1, u16::MAX)?,
        "min-piece" => hardware.takes.min_piece = number(key, value, 1, u16::MAX)?,
        "max-piece" => hardware.takes.max_piece = number(key, value, 1, u16::MAX)?.into(),
        _ => return bad(format!("`{key}` is no setting of a card: they are {KEYS}")),
    }
    Ok(())
}

impl NamedIoTlb {
    fn complete(self) -> Result<Option<IoTlb>> {
        match (self.entries, self.page, self.miss) {
            (Some(entries), page, miss) => {
                Ok(Some(IoTlb { entries, page: page.unwrap_or(IoPage::Small), miss: miss.unwrap_or(MISS) }))
            }
            (None, None, None) => Ok(None),
            _ => bad("what an IO-TLB's page or miss is means nothing without one: add iotlb=64".to_owned()),
        }
    }
}

/// What each setting allows, and all of them together do not.
fn contradictions(hardware: &Hardware) -> Result<()> {
    let Hardware { bus: Bus { mps, rcb, .. }, transmit, takes, .. } = hardware;
    if rcb > mps {
        return bad(format!("completions cannot be cut every {rcb} bytes (rcb) where none has more than {mps} (mps)"));
    }
    if transmit.write_back > transmit.fetch {
        let (write_back, fetch) = (transmit.write_back, transmit.fetch);
        return bad(format!(
            "a card that reads {fetch} descriptors at a time (fetch) never has {write_back} to write back (writeback)"
        ));
    }
    if u32::from(takes.min_piece) > takes.max_piece {
        let (min, max) = (takes.min_piece, takes.max_piece);
        return bad(format!("no piece is {min} bytes or more (min-piece) and {max} or fewer (max-piece)"));
    }
    Ok(())
}

/// `gen3x8`
fn link(value: &str) -> Result<(Generation, u8)> {
    let parsed = value.split_once('x').and_then(|(generation, lanes)| {
        let generation = Generation::ALL.into_iter().find(|one| one.to_string() == generation)?;
        let lanes = [1, 2, 4, 8, 16].into_iter().find(|one: &u8| one.to_string() == lanes)?;
        Some((generation, lanes))
    });
    parsed.ok_or_else(|| {
        BadModel(format!("pcie={value} is no link: it is gen1 to gen5 with x1, x2, x4, x8 or x16, such as gen3x8"))
    })
}

fn number(key: &str, value: &str, least: u16, most: u16) -> Result<u16> {
    match value.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => bad(format!("{key}={value} is out of range: it is a number from {least} to {most}")),
    }
}

fn power_of_two(key: &str, value: &str, least: u16, most: u16) -> Result<u16> {
    match value.parse() {
        Ok(number) if (least..=most).contains(&number) && u16::is_power_of_two(number) => Ok(number),
        _ => bad(format!("{key}={value} is none that PCI Express has: it is a power of two from {least} to {most}")),
    }
}

fn one_of<T: Copy>(key: &str, value: &str, choices: &[(&str, T)]) -> Result<T> {
    match choices.iter().find(|(name, _)| *name == value) {
        Some((_, choice)) => Ok(*choice),
        None => {
            let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
            bad(format!("{key}={value} is unknown: it is {}", names.join(" or ")))
        }
    }
}

/// `330ns`, `50us`, `1ms`
fn time(key: &str, value: &str) -> Result<Duration> {
    let units = [("ns", 1), ("us", 1000), ("ms", 1_000_000)];
    let parsed = units.into_iter().find_map(|(unit, ns)| {
        let number: u64 = value.strip_suffix(unit)?.parse().ok()?;
        Some(Duration::from_nanos(number.checked_mul(ns)?)).filter(|time| *time <= Duration::from_secs(1))
    });
    parsed.ok_or_else(|| {
        BadModel(format!("{key}={value} is no time: it has a unit and is at most a second, such as 330ns or 50us"))
    })
}

/// `10G`, `2.5G`
fn rate(key: &str, value: &str) -> Result<f64> {
    let parsed: Option<f64> = value.strip_suffix('G').and_then(|number| number.parse().ok());
    match parsed.filter(|rate| (0.0001..=1000.0).contains(rate)) {
        Some(rate) => Ok(rate),
        None => bad(format!("{key}={value} is no rate: it is in Gb/s, from 0.0001G to 1000G, such as 10G")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_has_its_settings_and_keeps_the_words() {
        let model: Model = "82599,pcie=gen1x1, mps=128,fetch=16,iotlb=64".parse().unwrap();
        assert_eq!(model.to_string(), "82599,pcie=gen1x1,mps=128,fetch=16,iotlb=64");
        let hardware = model.hardware.unwrap();
        assert_eq!((hardware.bus.generation, hardware.bus.lanes, hardware.bus.mps), (Generation::Gen1, 1, 128));
        assert_eq!((hardware.transmit.fetch, hardware.transmit.write_back), (16, 8));
        assert_eq!(hardware.iotlb, Some(IoTlb { entries: 64, page: IoPage::Small, miss: MISS }));
        for preset in PRESETS {
            assert_eq!(preset.parse::<Model>().unwrap().name, preset);
        }
        // Every key of the contract.
        let all = "82599,pcie=gen3x8,mps=256,mrrs=512,rcb=64,fetch=40,writeback=8,itr=50us,max-segments=32,iotlb=64,iotlb-miss=330ns";
        assert!(all.parse::<Model>().is_ok());
    }

    #[test]
    fn in_a_list_settings_are_those_of_the_card_before_them() {
        let models = Model::parse_list("82599,pcie=gen1x1,mps=128,simple, e810-like,iotlb=64").unwrap();
        let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        assert_eq!(names, ["82599,pcie=gen1x1,mps=128", "simple", "e810-like,iotlb=64"]);
        assert!(Model::parse_list("82599,,simple").is_err());
    }

    #[test]
    fn a_model_is_accounted_by_unless_it_is_to_pace() {
        for (words, model, pace) in [
            ("82599,mps=128", "82599,mps=128", false),
            ("ideal:account", "ideal", false),
            ("82599,pcie=gen1x1:pace", "82599,pcie=gen1x1", true),
            ("82599,pcie=gen1x1,pace", "82599,pcie=gen1x1", true),
        ] {
            let applied: Applied = words.parse().unwrap();
            assert_eq!((applied.model.name.as_str(), applied.pace), (model, pace), "{words}");
        }
        let error = "82599:fast".parse::<Applied>().unwrap_err().to_string();
        assert_eq!(error, "`fast` is nothing that is done by a model: it is account or pace");
    }

    #[test]
    fn what_contradicts_itself_is_one_sentence() {
        for (words, says) in [
            ("", "`` is no card: a model begins with one of 82599, e810-like, simple, ideal"),
            ("mlx5", "`mlx5` is no card"),
            ("82599,pcie", "`pcie` is no setting of a card: it has the form KEY=VALUE"),
            ("82599,colour=red", "`colour` is no setting of a card: they are driver, pcie"),
            ("82599,mps=256,mps=512", "`mps` is said twice"),
            ("82599,mps=300", "mps=300 is none that PCI Express has: it is a power of two from 128 to 4096"),
            (
                "82599,mps=128,rcb=256",
                "completions cannot be cut every 256 bytes (rcb) where none has more than 128 (mps)",
            ),
            ("82599,pcie=gen3x3", "pcie=gen3x3 is no link"),
            ("82599,pcie=gen6x1", "pcie=gen6x1 is no link"),
            (
                "82599,fetch=4",
                "a card that reads 4 descriptors at a time (fetch) never has 8 to write back (writeback)",
            ),
            ("82599,fetch=0", "fetch=0 is out of range: it is a number from 1 to 4096"),
            ("82599,max-segments=0", "max-segments=0 is out of range"),
            ("82599,min-piece=200,max-piece=100", "no piece is 200 bytes or more"),
            ("82599,iotlb-miss=330ns", "means nothing without one: add iotlb=64"),
            ("82599,iotlb=257", "iotlb=257 is out of range: it is a number from 1 to 256"),
            ("82599,iotlb=64,iotlb-miss=330", "iotlb-miss=330 is no time: it has a unit"),
            ("82599,iotlb=64,iotlb-page=1g", "iotlb-page=1g is unknown: it is 4k or 2m"),
            ("82599,driver=dpdk,itr=50us", "`itr=50us` with `driver=dpdk`: that driver takes no interrupts"),
            ("82599,line=ten", "line=ten is no rate"),
            ("82599,itr=99999999999999999999ms", "is no time"),
            ("ideal,mps=256", "`ideal` costs nothing and takes no time: `mps` changes nothing of it"),
        ] {
            let error = words.parse::<Model>().unwrap_err().to_string();
            assert!(error.contains(says), "{words}: {error}");
            assert!(!error.contains('\n') && !error.ends_with('.'), "one sentence: {error}");
        }
    }
}
