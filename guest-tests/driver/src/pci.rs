//! Where a virtio device keeps its registers: VIRTIO 1.3, 4.1.4 Virtio Structure PCI Capabilities.
//!
//! Operation: the device's configuration space has a list of capabilities; those of type "vendor" are virtio's, and each
//! names a structure: its kind, the BAR it is in, offset and length.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::DriverError;
use crate::vfio::{Bar, Device, Registers};

/// PCI Local Bus Specification 3.0, 6.1: status register, bit "capabilities list"; pointer to the first.
const STATUS: u64 = 0x06;
const HAS_CAPABILITIES: u16 = 1 << 4;
const FIRST: u64 = 0x34;
/// A capability that is the vendor's business.
const VENDOR: u8 = 0x09;

/// `cfg_type` of the structures that a driver needs.
const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const ISR: u8 = 3;
const DEVICE: u8 = 4;

/// Length of the common configuration structure up to `queue_device`, which every device has.
const COMMON_LEN: u32 = 56;

/// The structures of a device, mapped.
#[derive(Debug)]
pub struct Structures {
    /// Common configuration: features, status, queues.
    pub common: Registers,
    /// Where queues are kicked.
    pub notify: Registers,
    /// Bytes between two queues' places there.
    pub notify_multiplier: u32,
    /// Interrupt status.
    pub isr: Registers,
    /// The device type's own configuration.
    pub device: Registers,
}

/// One capability, as it stands in configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Capability {
    bar: u8,
    offset: u32,
    len: u32,
    /// Where in configuration space it stands.
    at: u64,
}

impl Structures {
    /// Finds and maps them.
    ///
    /// # Errors
    /// One is missing, or lies outside its BAR.
    pub fn find(device: &Device) -> Result<Self, DriverError> {
        let found = capabilities(device)?;
        let mut bars: BTreeMap<u8, Arc<Bar>> = BTreeMap::new();
        let mut map = |kind, name, least: u32, align: u32| {
            let Capability { bar, offset, len, .. } = *found.get(&kind).ok_or(DriverError::NoStructure(name))?;
            let mapped = match bars.get(&bar) {
                Some(mapped) => Arc::clone(mapped),
                None => {
                    let mapped = device.bar(bar)?;
                    bars.insert(bar, Arc::clone(&mapped));
                    mapped
                }
            };
            let bad = || DriverError::BadStructure { name, bar, offset, len };
            // Registers are accessed by their own width; the structures must be aligned for that (4.1.4.3 to 4.1.4.6).
            let fits = len >= least && offset.is_multiple_of(align);
            mapped.registers(offset, len).filter(|_| fits).ok_or_else(bad)
        };
        let common = map(COMMON, "common configuration", COMMON_LEN, 4)?;
        let notify = map(NOTIFY, "notification", 2, 2)?;
        let isr = map(ISR, "ISR status", 1, 1)?;
        let specific = map(DEVICE, "device configuration", 6, 4)?;
        let notify_multiplier = match found.get(&NOTIFY) {
            // VIRTIO 1.3, 4.1.4.4 Notification structure layout: the multiplier stands behind the capability.
            Some(capability) => u32::from_le_bytes(device.config(capability.at + 16)?),
            None => 0,
        };
        Ok(Structures { common, notify, notify_multiplier, isr, device: specific })
    }
}

/// The first capability of each kind: a driver takes the first it can use.
fn capabilities(device: &Device) -> Result<BTreeMap<u8, Capability>, DriverError> {
    let mut found = BTreeMap::new();
    if u16::from_le_bytes(device.config(STATUS)?) & HAS_CAPABILITIES == 0 {
        return Ok(found);
    }
    let [mut at] = device.config::<1>(FIRST)?;
    // As many as fit into 256 bytes: the device's list may go round in a circle.
    for _ in 0..48 {
        // The two lowest bits are reserved.
        at &= 0xfc;
        if at == 0 {
            break;
        }
        let place = u64::from(at);
        let [id, next] = device.config(place)?;
        if id == VENDOR {
            // struct virtio_pci_cap: cap_vndr, cap_next, cap_len, cfg_type, bar, id, padding (16 bits), offset, length.
            let [_, kind, bar, _] = device.config(place + 2)?;
            let offset = u32::from_le_bytes(device.config(place + 8)?);
            let len = u32::from_le_bytes(device.config(place + 12)?);
            found.entry(kind).or_insert(Capability { bar, offset, len, at: place });
        }
        at = next;
    }
    Ok(found)
}
