//! What kind of device it is: the protocol does not say, and so what passes has to.

use std::fmt;
use std::str::FromStr;

use crate::spec::vhost_user::{ProtocolFeature, ProtocolFeatures};
use crate::spec::{Feature, Features, blk::BlkFeature, device};

/// A kind of device. VIRTIO 1.3, 5 Device Types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceKind(&'static Row);

/// Name, number, the names of its first queues and of those behind them.
#[derive(Debug, PartialEq, Eq)]
struct Row(&'static str, u32, &'static [&'static str], &'static str);

/// Those whose queues have names that are known here.
const ROWS: &[Row] = &[
    Row("net", device::NET, &[], ""),
    Row("blk", device::BLK, &[], "requestq"),
    Row("rng", device::RNG, &["requestq"], "queue"),
    Row("scsi", 8, &["controlq", "eventq"], "requestq"),
    Row("gpu", 16, &["controlq", "cursorq"], "queue"),
    Row("input", 18, &["eventq", "statusq"], "queue"),
    Row("vsock", 19, &["rxq", "txq", "eventq"], "queue"),
    Row("sound", 25, &["controlq", "eventq", "txq", "rxq"], "queue"),
    Row("fs", 26, &["hiprioq"], "requestq"),
    Row("i2c", 34, &["requestq"], "queue"),
    Row("gpio", 41, &["requestq", "eventq"], "queue"),
];

impl DeviceKind {
    /// A NIC.
    pub(super) const NET: DeviceKind = DeviceKind(&ROWS[0]);
    /// A disk.
    pub(super) const BLK: DeviceKind = DeviceKind(&ROWS[1]);

    /// The names of all that are known.
    pub fn names() -> impl Iterator<Item = &'static str> {
        ROWS.iter().map(|row| row.0)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0.0
    }

    /// Its number.
    pub(super) const fn number(self) -> u32 {
        self.0.1
    }

    /// The name of the queue with this index.
    fn queue_name(self, index: u16) -> String {
        let Row(name, _, first, others) = self.0;
        match (*name, first.get(usize::from(index))) {
            ("net", _) => crate::nic::queue_name(index),
            (_, Some(name)) => (*name).to_owned(),
            (_, None) => format!("{others}{}", usize::from(index) - first.len()),
        }
    }
}

/// The name of a device's queue; `None`: nobody knows what kind of device it is.
pub(super) fn queue_name(kind: Option<DeviceKind>, index: u16) -> String {
    kind.map_or_else(|| format!("queue{index}"), |kind| kind.queue_name(index))
}

/// What passes says of the kind: features that no other device has, and for a disk, that somebody reads the configuration of a device
/// with a disk's features.
pub(super) fn told(features: Features, protocol: ProtocolFeatures, reads_config: bool) -> Option<DeviceKind> {
    let of_disk = [BlkFeature::SegMax, BlkFeature::BlkSize, BlkFeature::Flush];
    let net =
        features.has(Feature::MrgRxbuf) || protocol.has(ProtocolFeature::NetMtu) || protocol.has(ProtocolFeature::Rarp);
    let blk = protocol.has(ProtocolFeature::Config)
        && reads_config
        && of_disk.iter().any(|feature| features.0 & feature.mask() != 0);
    match (net, blk) {
        (true, _) => Some(DeviceKind::NET),
        (false, true) => Some(DeviceKind::BLK),
        (false, false) => None,
    }
}

/// No kind of device is called so.
#[derive(Debug, thiserror::Error)]
#[error("there is no device `{0}` here; those whose queues are known are {known}", known = DeviceKind::names().collect::<Vec<_>>().join(", "))]
pub struct UnknownKind(String);

impl FromStr for DeviceKind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        ROWS.iter().find(|row| row.0 == name).map(DeviceKind).ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
