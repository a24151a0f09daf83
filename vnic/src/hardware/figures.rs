//! An account in the figures that records and screens have.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::account::{Account, Limit, Parts};
use super::model::Model;

/// What chains cost a card, as it stands in a record. *Up* is towards the host, *down* towards the device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Figures {
    /// The model, in words.
    pub model: String,
    /// Chains.
    pub chains: u64,
    /// Descriptors that the card reads.
    pub descriptors: u64,
    /// Times the driver rings.
    pub doorbells: u64,
    /// Times the card reads descriptors, several at a time.
    pub descriptor_reads: u64,
    /// TLPs.
    pub tlps_up: u64,
    /// TLPs.
    pub tlps_down: u64,
    /// Their bytes.
    pub bus_bytes_up: u64,
    /// Their bytes.
    pub bus_bytes_down: u64,
    /// Data.
    pub payload_bytes: u64,
    /// Data as a share of what crosses the bus in the busier direction; `null`: nothing does.
    pub payload_efficiency: Option<f64>,
    /// Times somebody waits for an answer from the other side of the bus.
    pub round_trips: u64,
    /// Interrupts.
    pub interrupts: u64,
    /// Translations that were remembered; `null`: the card is behind no IOMMU.
    pub iotlb_hits: Option<u64>,
    /// Those that were not.
    pub iotlb_misses: Option<u64>,
    /// Pieces that are split, being too long for a descriptor.
    pub too_long: u64,
    /// Pieces that are too short.
    pub too_short: u64,
    /// Chains of too many descriptors.
    pub too_many: u64,
    /// How long the bus is busy, seconds.
    pub bus_seconds: f64,
    /// What is busy longest.
    pub limit: Limit,
    /// How long that is, seconds.
    pub limit_seconds: f64,
    /// The rate of the data at which it would be busy all the time; `null`: nothing limits it.
    pub gbit_per_s: Option<f64>,
    /// Traffic by what it is for.
    pub parts: Parts,
}

impl Figures {
    /// Those of an account by `model`.
    #[must_use]
    pub fn new(model: &Model, account: &Account) -> Self {
        let traffic = account.traffic();
        let (limit, limit_seconds) = account.limit();
        Figures {
            model: model.name.clone(),
            chains: account.chains,
            descriptors: account.descriptors,
            doorbells: account.doorbells,
            descriptor_reads: account.descriptor_reads,
            tlps_up: traffic.up.tlps,
            tlps_down: traffic.down.tlps,
            bus_bytes_up: traffic.up.bytes,
            bus_bytes_down: traffic.down.bytes,
            payload_bytes: account.payload_bytes,
            payload_efficiency: account.efficiency(),
            round_trips: account.round_trips,
            interrupts: account.interrupts,
            iotlb_hits: account.iotlb_hits,
            iotlb_misses: account.iotlb_misses,
            too_long: account.too_long,
            too_short: account.too_short,
            too_many: account.too_many,
            bus_seconds: account.bus_seconds(),
            limit,
            limit_seconds,
            gbit_per_s: account.gbit_per_s(),
            parts: account.parts,
        }
    }
}
