//! The bus: PCI Express, its bandwidth, and what a transfer costs on it.
//!
//! Limits: pieces are taken to be aligned, as in the source (`mem_bw.py`). One that is not may take a request or a completion
//! more, as no request crosses a border of 4 KiB.

use std::fmt;

use super::traffic::{Traffic, Way};

/// Bytes of a memory write TLP beside its data: 8 of framing and data link layer, 4 of the common header, 12 with a 64-bit
/// address.
pub const WRITE_OVERHEAD: u64 = 24;
/// Bytes of a memory read request: the same.
pub const READ_OVERHEAD: u64 = 24;
/// Bytes of a completion beside its data: 8 of framing and data link layer, 4 of the common header, 8 of its own.
pub const COMPLETION_OVERHEAD: u64 = 20;

/// A data link layer packet, bytes: an acknowledgement, or an update of flow control.
const DLLP: f64 = 8.0;
/// Ordered sets against drifting clocks: so many bytes in so many.
const SKIP: f64 = 4.0 / 1538.0;
/// "TLP Overhead" of the formulas in "Ack/Nak" and "Flow Control", bytes.
const LINK_TLP_OVERHEAD: f64 = 28.0;

/// A generation of PCI Express.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Generation {
    Gen1,
    Gen2,
    Gen3,
    Gen4,
    Gen5,
}

impl Generation {
    pub(super) const ALL: [Generation; 5] =
        [Generation::Gen1, Generation::Gen2, Generation::Gen3, Generation::Gen4, Generation::Gen5];

    /// Gb/s of a lane after its line code: 8b/10b, from the third generation on 128b/130b.
    fn lane_gbit_per_s(self) -> f64 {
        match self {
            Generation::Gen1 => 2.5 * 8.0 / 10.0,
            Generation::Gen2 => 5.0 * 8.0 / 10.0,
            Generation::Gen3 => 8.0 * 128.0 / 130.0,
            Generation::Gen4 => 16.0 * 128.0 / 130.0,
            Generation::Gen5 => 32.0 * 128.0 / 130.0,
        }
    }

    /// "Internal Delay" of the formulas for acknowledgements and flow control, symbol times.
    fn internal_delay(self) -> f64 {
        match self {
            Generation::Gen1 => 19.0,
            Generation::Gen2 => 70.0,
            Generation::Gen3 | Generation::Gen4 | Generation::Gen5 => 115.0,
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gen{}", *self as u8 + 1)
    }
}

/// Where a chipset cuts what a device reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completions {
    /// At the largest payload: [`Bus::mps`].
    Mps,
    /// At every read completion boundary, as older chipsets do: [`Bus::rcb`].
    Rcb,
}

/// A link as it is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bus {
    /// Which generation it runs at.
    pub generation: Generation,
    /// How many lanes.
    pub lanes: u8,
    /// Maximum payload size, bytes: most data in a TLP.
    pub mps: u16,
    /// Maximum read request size, bytes: most that a request asks for.
    pub mrrs: u16,
    /// Read completion boundary, bytes.
    pub rcb: u16,
    /// Where completions end.
    pub completions: Completions,
}

impl Bus {
    /// Gb/s in either direction, after the line code.
    #[must_use]
    pub fn raw_gbit_per_s(&self) -> f64 {
        self.generation.lane_gbit_per_s() * f64::from(self.lanes)
    }

    /// Gb/s in either direction that are left for TLPs: without acknowledgements and updates of flow control, at the rate the
    /// specification recommends, and without ordered sets.
    ///
    /// raw × (1 − 8 / AckLimit − 8 / FcGuide − 4 / 1538)
    #[must_use]
    pub fn usable_gbit_per_s(&self) -> f64 {
        let interval = self.update_interval();
        self.raw_gbit_per_s() * (1.0 - DLLP / interval - DLLP / interval - SKIP)
    }

    /// Bytes after which an acknowledgement is due, and an update of flow control. The specification has a table for each,
    /// computed by this formula (PCI Express Base Specification 5.0, 3.6.3.1 "ACK/NAK" and 2.6.1.2 "FC Information Tracked by
    /// Receiver"): ⌊(MPS + 28) × factor / lanes + delay⌋.
    fn update_interval(&self) -> f64 {
        let factor = match (self.lanes, self.mps) {
            (1..=4, ..=256) => 1.4,
            (8, ..=256) => 2.5,
            (16, ..=256) => 3.0,
            (16, _) => 2.0,
            _ => 1.0,
        };
        let payload = f64::from(self.mps) + LINK_TLP_OVERHEAD;
        (payload * factor / f64::from(self.lanes) + self.generation.internal_delay()).floor()
    }

    /// The device reads a piece of the host's memory: ⌈n / MRRS⌉ requests up, ⌈n / MPS⌉ completions down.
    #[must_use]
    pub fn device_reads(&self, bytes: u64) -> Traffic {
        let cut = match self.completions {
            Completions::Mps => self.mps,
            Completions::Rcb => self.rcb,
        };
        Traffic {
            up: Way::new(self.read_requests(bytes), READ_OVERHEAD, 0),
            down: Way::new(bytes.div_ceil(cut.into()), COMPLETION_OVERHEAD, bytes),
        }
    }

    /// In how many requests a device asks for a piece.
    #[must_use]
    pub fn read_requests(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.mrrs.into())
    }

    /// The device writes a piece of the host's memory: ⌈n / MPS⌉ writes up.
    #[must_use]
    pub fn device_writes(&self, bytes: u64) -> Traffic {
        let up = Way::new(bytes.div_ceil(self.mps.into()), WRITE_OVERHEAD, bytes);
        Traffic { up, down: Way::default() }
    }

    /// The host writes a register of the device's.
    #[must_use]
    pub fn host_writes(&self, bytes: u64) -> Traffic {
        self.device_writes(bytes).mirrored()
    }

    /// The host reads a register of the device's.
    #[must_use]
    pub fn host_reads(&self, bytes: u64) -> Traffic {
        self.device_reads(bytes).mirrored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEN3X8: Bus =
        Bus { generation: Generation::Gen3, lanes: 8, mps: 256, mrrs: 512, rcb: 64, completions: Completions::Mps };

    #[test]
    fn the_published_link_has_its_published_bandwidth() {
        assert_eq!(format!("{:.2}", GEN3X8.raw_gbit_per_s()), "63.02");
        assert_eq!(format!("{:.2}", GEN3X8.usable_gbit_per_s()), "57.88");
    }

    /// The specification's intervals, as the source's tables have them, for MPS 128, 256, 512, 1024, 2048 and 4096.
    #[test]
    fn intervals_are_those_of_the_specifications_tables() {
        let rows: [(Generation, u8, [u16; 6]); 11] = [
            (Generation::Gen1, 1, [237, 416, 559, 1071, 2095, 4143]),
            (Generation::Gen1, 2, [128, 217, 289, 545, 1057, 2081]),
            (Generation::Gen1, 4, [73, 118, 154, 282, 538, 1050]),
            (Generation::Gen1, 8, [67, 107, 86, 150, 278, 534]),
            (Generation::Gen1, 16, [48, 72, 86, 150, 278, 534]),
            (Generation::Gen2, 4, [124, 169, 205, 333, 589, 1101]),
            (Generation::Gen2, 16, [99, 123, 137, 201, 329, 585]),
            (Generation::Gen3, 1, [333, 512, 655, 1167, 2191, 4239]),
            (Generation::Gen3, 8, [163, 203, 182, 246, 374, 630]),
            (Generation::Gen4, 16, [144, 168, 182, 246, 374, 630]),
            (Generation::Gen5, 2, [224, 313, 385, 641, 1153, 2177]),
        ];
        for (generation, lanes, intervals) in rows {
            for (shift, interval) in intervals.into_iter().enumerate() {
                let bus = Bus { generation, lanes, mps: 128 << shift, ..GEN3X8 };
                let found = bus.update_interval();
                // The source has ⌊(512 + 28) / 8 + 19⌋ = 86 and so on: whole symbols.
                assert_eq!(found, f64::from(interval), "{bus:?}");
            }
        }
    }

    #[test]
    fn a_read_costs_requests_up_and_completions_down() {
        let traffic = GEN3X8.device_reads(1460);
        assert_eq!((traffic.up.tlps, traffic.up.bytes), (3, 72));
        assert_eq!((traffic.down.tlps, traffic.down.bytes), (6, 1580));
        let old = Bus { completions: Completions::Rcb, ..GEN3X8 };
        assert_eq!(old.device_reads(1460).down.tlps, 23);
        let write = GEN3X8.device_writes(1460);
        assert_eq!((write.up.tlps, write.up.bytes, write.down.bytes), (6, 1604, 0));
        assert_eq!(GEN3X8.host_reads(4), Traffic { up: Way { tlps: 1, bytes: 24 }, down: Way { tlps: 1, bytes: 24 } });
    }

    #[test]
    fn payload_is_as_efficient_in_small_pieces_as_in_large_ones() {
        for piece in [1460, 4096, 32768] {
            let share = piece as f64 / GEN3X8.device_reads(piece).down.bytes as f64;
            assert!((0.924..0.9285).contains(&share), "{piece}: {share}");
        }
    }

    #[test]
    fn what_a_record_claims_does_not_overflow() {
        let most = GEN3X8.device_reads(u64::MAX) * u64::MAX + GEN3X8.device_writes(u64::MAX);
        assert_eq!(most.down.bytes, u64::MAX);
    }
}
