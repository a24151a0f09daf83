//! The account: what chains of these shapes cost a card of this model.

use std::collections::BTreeMap;
use std::ops::Add;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bus::Bus;
use super::model::{Hardware, IoPage, Model, REGISTER, RingWork};
use super::shapes::{Reuse, Shapes};
use super::traffic::Traffic;

/// Bytes of a frame on the wire beside those in memory: preamble and start 8, check sequence 4, gap 12.
pub(super) const WIRE_OVERHEAD: u64 = 8 + 4 + 12;

/// In which direction the card moves the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It reads the host's memory.
    Transmit,
    /// It writes the host's memory.
    Receive,
}

/// Traffic by what it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Parts {
    /// The driver says that there is work.
    pub doorbells: Traffic,
    /// The card reads descriptors.
    pub descriptors: Traffic,
    /// It moves the data.
    pub payload: Traffic,
    /// It says which descriptors it is done with.
    pub write_back: Traffic,
    /// It interrupts.
    pub interrupts: Traffic,
    /// The driver reads how far it has come.
    pub head_reads: Traffic,
}

impl Parts {
    /// All of them, each with its name.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, Traffic); 6] {
        [
            ("doorbells", self.doorbells),
            ("descriptors", self.descriptors),
            ("payload", self.payload),
            ("write-back", self.write_back),
            ("interrupts", self.interrupts),
            ("head reads", self.head_reads),
        ]
    }
}

/// What can hold a card up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Limit {
    /// Nothing: an ideal card, or no chains.
    #[serde(rename = "none")]
    None,
    /// The bus towards the device.
    #[serde(rename = "bus down")]
    BusDown,
    /// The bus towards the host.
    #[serde(rename = "bus up")]
    BusUp,
    /// The IOMMU's walks through its tables.
    #[serde(rename = "io-tlb")]
    IoTlb,
    /// The port.
    #[serde(rename = "line")]
    Line,
}

impl Limit {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Limit::None => "none",
            Limit::BusDown => "bus down",
            Limit::BusUp => "bus up",
            Limit::IoTlb => "io-tlb",
            Limit::Line => "line",
        }
    }
}

/// What chains cost a card: counts, and how long each part of it is busy with them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Account {
    /// Chains.
    pub chains: u64,
    /// Descriptors that the card reads for them: of those that are too long, several; of chains that it cuts into frames, one
    /// more to say how.
    pub descriptors: u64,
    /// Bytes of the data.
    pub payload_bytes: u64,
    /// Times the driver rings.
    pub doorbells: u64,
    /// Times the card reads descriptors, several at a time.
    pub descriptor_reads: u64,
    /// Interrupts.
    pub interrupts: u64,
    /// Times somebody waits for an answer from the other side of the bus: reads of descriptors, of a piece of data (its
    /// requests are under way together), and of the head.
    pub round_trips: u64,
    /// Pages whose translation the card's IOMMU remembers; `None`: it is behind none.
    pub iotlb_hits: Option<u64>,
    /// Those that it has to look up.
    pub iotlb_misses: Option<u64>,
    /// Pieces that are longer than a descriptor can say: split.
    pub too_long: u64,
    /// Pieces that are shorter than the card takes.
    pub too_short: u64,
    /// Chains of more descriptors than the card takes, in all or to a frame: their driver copies them into one piece first.
    pub too_many: u64,
    /// Traffic by what it is for.
    pub parts: Parts,
    /// How long the bus towards the device is busy, seconds.
    pub down_seconds: f64,
    /// How long the bus towards the host is busy, seconds.
    pub up_seconds: f64,
    /// How long the IOMMU is, seconds: one look-up after the other, so at most.
    pub iotlb_seconds: f64,
    /// How long the port is, seconds.
    pub line_seconds: f64,
}

impl Account {
    /// All traffic.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.parts.named().into_iter().map(|(_, traffic)| traffic).sum()
    }

    /// How long the bus takes, seconds: both directions work at the same time.
    #[must_use]
    pub fn bus_seconds(&self) -> f64 {
        self.down_seconds.max(self.up_seconds)
    }

    /// What is busy longest, and how long, seconds. In a row of chains without end all parts of a card work at the same time.
    #[must_use]
    pub fn limit(&self) -> (Limit, f64) {
        let parts = [
            (Limit::BusDown, self.down_seconds),
            (Limit::BusUp, self.up_seconds),
            (Limit::IoTlb, self.iotlb_seconds),
            (Limit::Line, self.line_seconds),
        ];
        parts.into_iter().fold((Limit::None, 0.0), |most, part| if part.1 > most.1 { part } else { most })
    }

    /// Gb/s of data at which the card would be busy all the time; `None`: nothing limits it.
    #[must_use]
    pub fn gbit_per_s(&self) -> Option<f64> {
        let (limit, seconds) = self.limit();
        (limit != Limit::None).then(|| self.payload_bytes as f64 * 8.0 / seconds / 1e9)
    }

    /// How much of what crosses the bus in the data's direction is data; `None`: nothing does.
    #[must_use]
    pub fn efficiency(&self) -> Option<f64> {
        let traffic = self.traffic();
        let bytes = traffic.up.bytes.max(traffic.down.bytes);
        (bytes > 0).then(|| self.payload_bytes as f64 / bytes as f64)
    }
}

impl Add for Account {
    type Output = Account;

    /// Both, one card busy with them.
    fn add(self, other: Account) -> Account {
        let sum = u64::saturating_add;
        let both = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (None, None) => None,
            _ => Some(sum(one.unwrap_or(0), other.unwrap_or(0))),
        };
        Account {
            chains: sum(self.chains, other.chains),
            descriptors: sum(self.descriptors, other.descriptors),
            payload_bytes: sum(self.payload_bytes, other.payload_bytes),
            doorbells: sum(self.doorbells, other.doorbells),
            descriptor_reads: sum(self.descriptor_reads, other.descriptor_reads),
            interrupts: sum(self.interrupts, other.interrupts),
            round_trips: sum(self.round_trips, other.round_trips),
            iotlb_hits: both(self.iotlb_hits, other.iotlb_hits),
            iotlb_misses: both(self.iotlb_misses, other.iotlb_misses),
            too_long: sum(self.too_long, other.too_long),
            too_short: sum(self.too_short, other.too_short),
            too_many: sum(self.too_many, other.too_many),
            parts: Parts {
                doorbells: self.parts.doorbells + other.parts.doorbells,
                descriptors: self.parts.descriptors + other.parts.descriptors,
                payload: self.parts.payload + other.parts.payload,
                write_back: self.parts.write_back + other.parts.write_back,
                interrupts: self.parts.interrupts + other.parts.interrupts,
                head_reads: self.parts.head_reads + other.parts.head_reads,
            },
            down_seconds: self.down_seconds + other.down_seconds,
            up_seconds: self.up_seconds + other.up_seconds,
            iotlb_seconds: self.iotlb_seconds + other.iotlb_seconds,
            // The port works in both directions at the same time.
            line_seconds: self.line_seconds.max(other.line_seconds),
        }
    }
}

impl Model {
    /// What chains of these shapes cost.
    #[must_use]
    pub fn account(&self, direction: Direction, shapes: &Shapes) -> Account {
        match &self.hardware {
            Some(hardware) => hardware.account(direction, shapes),
            None => Account {
                chains: shapes.chains,
                descriptors: shapes.piece_count(),
                payload_bytes: shapes.bytes,
                ..Account::default()
            },
        }
    }
}

impl Hardware {
    fn account(&self, direction: Direction, shapes: &Shapes) -> Account {
        let Hardware { bus, takes, .. } = self;
        let work = match direction {
            Direction::Transmit => &self.transmit,
            Direction::Receive => &self.receive,
        };
        let mut account = Account { chains: shapes.chains, payload_bytes: shapes.bytes, ..Account::default() };
        let mut pieces = 0_u64;
        for (len, count) in &shapes.pieces {
            let (len, count) = (u64::from(*len), *count);
            let splits = len.div_ceil(u64::from(takes.max_piece.max(1)));
            pieces = pieces.saturating_add(count);
            account.descriptors = account.descriptors.saturating_add(splits.saturating_mul(count));
            let counted = |so: bool, all: u64| if so { all.saturating_add(count) } else { all };
            account.too_long = counted(splits > 1, account.too_long);
            account.too_short = counted(len < u64::from(takes.min_piece), account.too_short);
            account.parts.payload += match direction {
                Direction::Transmit => bus.device_reads(len) * count,
                Direction::Receive => bus.device_writes(len) * count,
            };
        }
        let context = shapes.segmented.saturating_mul(self.context.into());
        account.descriptors = account.descriptors.saturating_add(context);
        account.too_many =
            over(&shapes.chain_pieces, takes.segments).max(over(&shapes.frame_pieces, takes.frame_segments));
        self.rings(work, &mut account);
        if direction == Direction::Transmit {
            account.round_trips = account.round_trips.saturating_add(pieces);
        }
        if let Some(iotlb) = &self.iotlb {
            let reuse: &Reuse = match iotlb.page {
                IoPage::Small => &shapes.pages,
                IoPage::Huge => &shapes.huge_pages,
            };
            let (hits, misses) = reuse.of_lru(iotlb.entries);
            (account.iotlb_hits, account.iotlb_misses) = (Some(hits), Some(misses));
            account.iotlb_seconds = misses as f64 * iotlb.miss.as_secs_f64();
        }
        if let Some(line) = self.line {
            let bytes = shapes.bytes.saturating_add(shapes.frames.saturating_mul(WIRE_OVERHEAD));
            account.line_seconds = bytes as f64 * 8.0 / (line * 1e9);
        }
        self.time(&mut account);
        let interrupts = self.throttled(account.interrupts, account.limit().1);
        if interrupts < account.interrupts {
            account.interrupts = interrupts;
            account.parts.interrupts = bus.device_writes(REGISTER) * interrupts;
            self.time(&mut account);
        }
        account
    }

    /// All that is done for chains and descriptors, whatever is in them.
    fn rings(&self, work: &RingWork, account: &mut Account) {
        let Hardware { bus, .. } = self;
        let every = |each: u16, of: u64| if each == 0 { 0 } else { of.div_ceil(each.into()) };
        let size = u64::from(work.descriptor);
        account.doorbells = every(work.doorbell, account.chains);
        account.interrupts = every(work.interrupt, account.chains);
        account.descriptor_reads = every(work.fetch, account.descriptors);
        let heads = every(work.head_read, account.chains);
        account.round_trips = account.descriptor_reads.saturating_add(heads);
        account.parts.doorbells = bus.host_writes(REGISTER) * account.doorbells;
        account.parts.interrupts = bus.device_writes(REGISTER) * account.interrupts;
        account.parts.head_reads = bus.host_reads(REGISTER) * heads;
        account.parts.descriptors =
            in_groups(account.descriptors, work.fetch, |count| bus.device_reads(count.saturating_mul(size)));
        account.parts.write_back =
            in_groups(account.descriptors, work.write_back, |count| bus.device_writes(count.saturating_mul(size)));
    }

    fn time(&self, account: &mut Account) {
        let Traffic { up, down } = account.traffic();
        (account.up_seconds, account.down_seconds) = (self.bus.seconds(up.bytes), self.bus.seconds(down.bytes));
    }

    /// How many interrupts come in `seconds` at most.
    fn throttled(&self, interrupts: u64, seconds: f64) -> u64 {
        if self.itr.is_zero() { interrupts } else { interrupts.min((seconds / self.itr.as_secs_f64()) as u64 + 1) }
    }
}

impl Bus {
    /// How long it is busy with so many bytes in one direction.
    #[must_use]
    pub fn seconds(&self, bytes: u64) -> f64 {
        bytes as f64 * 8.0 / (self.usable_gbit_per_s() * 1e9)
    }
}

/// What `count` descriptors cost, `group` of them at a time, the last group with what is left.
fn in_groups(count: u64, group: u16, cost: impl Fn(u64) -> Traffic) -> Traffic {
    let group = u64::from(group);
    if group == 0 {
        return Traffic::default();
    }
    let rest = count % group;
    let last = if rest > 0 { cost(rest) } else { Traffic::default() };
    cost(group) * (count / group) + last
}

/// How many have more than `most`.
fn over(counts: &BTreeMap<u32, u64>, most: u16) -> u64 {
    counts.iter().filter(|(pieces, _)| **pieces > u32::from(most)).fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

#[cfg(test)]
mod tests {
    use super::super::shapes::{Fold, Kind};
    use super::*;

    fn shapes(segment: u16, chains: u64, pieces: &[u64]) -> Shapes {
        let mut fold = Fold::default();
        for chain in 0..chains {
            let at = |piece: usize| (chain << 32) + ((piece as u64) << 16);
            let kind = Kind { segment, headers: 66, indirect: false };
            fold.add(kind, pieces.iter().enumerate().map(|(piece, len)| (at(piece), *len)));
        }
        fold.shapes()
    }

    fn account(model: &str, shapes: &Shapes) -> Account {
        model.parse::<Model>().unwrap().account(Direction::Transmit, shapes)
    }

    #[test]
    fn a_chain_of_pages_is_accounted_part_by_part() {
        let mut pieces = vec![66];
        pieces.extend([4096; 16]);
        let account = account("82599", &shapes(1448, 4, &pieces));
        // One context descriptor for each chain; in fetches of 40, the last of 32.
        assert_eq!((account.descriptors, account.descriptor_reads, account.doorbells), (72, 2, 4));
        assert_eq!(account.round_trips, 2 + 4 * 17 + 4, "fetches, pieces, head reads");
        let Parts { payload, descriptors, write_back, .. } = account.parts;
        assert_eq!(payload.up.tlps, 4 * (1 + 16 * 8), "requests of 512 bytes");
        assert_eq!(payload.down.bytes, 4 * (66 + 20 + 16 * (4096 + 16 * 20)));
        assert_eq!((descriptors.down.bytes, descriptors.down.tlps), (72 * 16 + 5 * 20, 3 + 2));
        assert_eq!((write_back.up.bytes, write_back.up.tlps), (9 * (128 + 24), 9));
        assert_eq!((account.limit().0, account.interrupts), (Limit::BusDown, 1));
        assert!((account.gbit_per_s().unwrap() - 53.0).abs() < 1.0, "{:?}", account.gbit_per_s());
    }

    #[test]
    fn what_a_card_cannot_take_is_counted() {
        let long = shapes(0, 3, &[66, 32 << 10, 100]);
        let on_82599 = account("82599,min-piece=80", &long);
        assert_eq!((on_82599.too_long, on_82599.too_short, on_82599.descriptors), (3, 3, 12));
        let many = shapes(0, 2, &[64; 41]);
        assert_eq!(account("82599", &many).too_many, 2);
        assert_eq!(account("82599,max-segments=41", &many).too_many, 0);
        // To a frame on the wire: 9 pieces are too many for one frame, and not for the frames of a chain that is cut.
        assert_eq!(account("e810-like", &shapes(0, 1, &[160; 9])).too_many, 1);
        assert_eq!(account("e810-like", &shapes(1448, 1, &[4096; 9])).too_many, 0);
    }

    #[test]
    fn an_iotlb_may_limit_and_huge_pages_help() {
        let pages = shapes(0, 400, &[4096; 8]);
        let small = account("82599,pcie=gen5x16,iotlb=64", &pages);
        assert_eq!((small.iotlb_hits, small.iotlb_misses), (Some(0), Some(3200)));
        assert_eq!(small.limit().0, Limit::IoTlb);
        let huge = account("82599,pcie=gen5x16,iotlb=64,iotlb-page=2m", &pages);
        assert_eq!((huge.iotlb_misses, huge.limit().0), (Some(400), Limit::BusDown));
        assert_eq!(account("82599", &pages).iotlb_misses, None);
    }

    #[test]
    fn a_port_limits_and_interrupts_are_throttled() {
        let account = account("e810-like,line=10G", &shapes(1448, 1000, &[66, 4096, 4096]));
        assert_eq!(account.limit().0, Limit::Line);
        // 6.7 ms of the port's time, an interrupt every 50 µs.
        assert!((130..140).contains(&account.interrupts), "{}", account.interrupts);
    }

    #[test]
    fn an_ideal_card_takes_no_time() {
        let account = account("ideal", &shapes(0, 3, &[1500]));
        assert_eq!((account.limit(), account.gbit_per_s()), ((Limit::None, 0.0), None));
        assert_eq!((account.descriptors, account.efficiency()), (3, None));
    }

    #[test]
    fn what_a_record_claims_does_not_overflow() {
        let most = BTreeMap::from([(1, u64::MAX), (u32::MAX, u64::MAX)]);
        let shapes = Shapes {
            chains: u64::MAX,
            segmented: u64::MAX,
            frames: u64::MAX,
            bytes: u64::MAX,
            pieces: most.clone(),
            chain_pieces: most.clone(),
            pages: Reuse { again: most, new: u64::MAX },
            ..Shapes::default()
        };
        for model in ["82599,iotlb=64", "simple", "e810-like", "ideal"] {
            let all = account(model, &shapes) + account(model, &shapes);
            assert!(all.limit().1.is_finite(), "{model}");
        }
    }
}
