//! The models: a bus, a card's engine, and what the driver does with it.

use std::fmt;
use std::time::Duration;

use super::bus::{Bus, Completions, Generation};

/// Bytes of a register that the host writes to ring a doorbell, or reads; and of an interrupt's message.
pub const REGISTER: u64 = 4;

/// How the card and its driver work on one of their rings. Each is a number of chains, or of descriptors, at a time; 0: never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingWork {
    /// Chains for which the driver rings the doorbell once.
    pub doorbell: u16,
    /// Descriptors that the card reads at a time.
    pub fetch: u16,
    /// Descriptors that the card writes back at a time.
    pub write_back: u16,
    /// Chains after which the card interrupts.
    pub interrupt: u16,
    /// Chains after which the driver reads how far the card has come.
    pub head_read: u16,
    /// Bytes of a descriptor.
    pub descriptor: u16,
}

/// The translations that a card's IOMMU remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoTlb {
    /// How many; those used last.
    pub entries: u16,
    /// Of which pages.
    pub page: IoPage,
    /// How long it takes to find one that is not remembered.
    pub miss: Duration,
}

/// The size of the pages that an IOMMU maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoPage {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Huge,
}

/// What a card cannot take as it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Takes {
    /// Most descriptors of a chain.
    pub segments: u16,
    /// Most descriptors of one frame on the wire: of a chain that the card cuts into several, of each.
    pub frame_segments: u16,
    /// The shortest buffer of a descriptor, bytes.
    pub min_piece: u16,
    /// The longest buffer of a descriptor, bytes: what is longer is split.
    pub max_piece: u32,
}

/// A card on its bus, and the driver that drives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Hardware {
    /// The link.
    pub bus: Bus,
    /// The transmit ring.
    pub transmit: RingWork,
    /// The receive ring.
    pub receive: RingWork,
    /// Descriptors beside those of its data that a chain has which the card is to cut into frames: they tell it how.
    pub context: u16,
    /// What it cannot take.
    pub takes: Takes,
    /// The shortest time between two interrupts.
    pub itr: Duration,
    /// Where it is behind an IOMMU.
    pub iotlb: Option<IoTlb>,
    /// The port's rate, Gb/s.
    pub line: Option<f64>,
}

/// A model, and the words it was asked for with.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// `82599,pcie=gen1x1`
    pub name: String,
    /// The card; `None`: an ideal one, that costs nothing and takes no time.
    pub hardware: Option<Hardware>,
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

/// The link of the published figures.
const PUBLISHED_BUS: Bus =
    Bus { generation: Generation::Gen3, lanes: 8, mps: 256, mrrs: 512, rcb: 64, completions: Completions::Mps };

/// A card without limits of its own.
const ANYTHING: Takes = Takes { segments: u16::MAX, frame_segments: u16::MAX, min_piece: 1, max_piece: u32::MAX };

impl Hardware {
    /// pcie-bench's "simplistic NIC" (`simple_nic.py`): everything for every frame, on the published link.
    #[must_use]
    pub const fn simple() -> Self {
        let work = RingWork { doorbell: 1, fetch: 1, write_back: 0, interrupt: 1, head_read: 1, descriptor: 16 };
        Hardware {
            bus: PUBLISHED_BUS,
            transmit: work,
            receive: RingWork { write_back: 1, ..work },
            context: 0,
            takes: ANYTHING,
            itr: Duration::ZERO,
            iotlb: None,
            line: None,
        }
    }

    /// pcie-bench's Intel 82599 (`niantic.py`) with Linux' driver, on the published link: which is wider than the card's own,
    /// PCIe 2.0 x8.
    ///
    /// What it takes: 40 descriptors less the write-back threshold, and 16 KiB in each (DPDK, `IXGBE_TX_MAX_SEG`; Linux,
    /// `IXGBE_MAX_DATA_PER_TXD`).
    #[must_use]
    pub const fn intel_82599() -> Self {
        Hardware {
            transmit: RingWork { doorbell: 1, fetch: 40, write_back: 8, interrupt: 32, head_read: 1, descriptor: 16 },
            receive: RingWork { doorbell: 32, fetch: 1, write_back: 1, interrupt: 32, head_read: 8, descriptor: 16 },
            context: 1,
            takes: Takes { segments: 40 - 8, max_piece: 16 << 10, ..ANYTHING },
            ..Hardware::simple()
        }
    }

    /// Like Intel's E810 with Linux' driver: what is public of it, and the rest as in SimBricks' model of its elder, the
    /// XL710.
    ///
    /// From the driver (`ice`): a frame on the wire has 8 descriptors at most, each with 16 KiB less a byte, of which it fills
    /// 12 KiB; receive buffers are handed over in 16s; an interrupt every 50 µs; nobody reads the head. From SimBricks
    /// (`i40e_bm.h`): up to 128 descriptors at a time. Assumed: write-back by the cache line.
    #[must_use]
    pub const fn e810_like() -> Self {
        Hardware {
            bus: Bus { generation: Generation::Gen4, lanes: 16, ..PUBLISHED_BUS },
            transmit: RingWork { doorbell: 1, fetch: 128, write_back: 4, interrupt: 1, head_read: 0, descriptor: 16 },
            receive: RingWork { doorbell: 16, fetch: 16, write_back: 2, interrupt: 1, head_read: 0, descriptor: 32 },
            context: 1,
            takes: Takes { frame_segments: 8, max_piece: 12 << 10, ..ANYTHING },
            itr: Duration::from_micros(50),
            line: Some(100.0),
            ..Hardware::simple()
        }
    }

    /// The same card with DPDK's driver: 32 frames at a time, no interrupts, and nobody reads the head.
    #[must_use]
    pub const fn polled(self) -> Self {
        let transmit = RingWork { doorbell: 32, interrupt: 0, head_read: 0, ..self.transmit };
        let receive = RingWork { interrupt: 0, head_read: 0, ..self.receive };
        Hardware { transmit, receive, itr: Duration::ZERO, ..self }
    }
}
