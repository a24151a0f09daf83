//! What a vhost-user back-end has no part in, or what this device has no use for.

use anyhow::{Result, ensure};
use vnic::spec::{Feature, Features};

use crate::pci::Pci;
use crate::session::Target;
use crate::{Check, Requirement};

const fn not(number: &'static str, text: &'static str, why: &'static str) -> Requirement {
    Requirement { number, text, needs: &[], check: Check::Not(why) }
}

const fn registers(number: &'static str, text: &'static str, play: fn(&Pci) -> Result<()>) -> Requirement {
    Requirement { number, text, needs: &[], check: Check::ByRegisters(play, FRONT_END) }
}

const FRONT_END: &str =
    "the front-end (QEMU) has it: the configuration space, and with it this field, is not the back-end's";
const CONTROL: &str = "the front-end (QEMU) has the control queue, and answers there";
const ENABLES: &str = "the front-end enables no other ring until then";
const NO_DRIVER: &str = "this driver has a pair of queues, and neither a control queue nor any use for these fields";
const NOT_OFFERED: &str = "the feature is not offered";

/// Why not, for this target: behind its registers a device has all of it.
pub(crate) fn why(target: &Target, why: &'static str) -> &'static str {
    let is_elsewhere = [FRONT_END, CONTROL, ENABLES].contains(&why);
    if is_elsewhere && target.has_registers() { NO_DRIVER } else { why }
}

pub(crate) const ALL: &[Requirement] = &[
    not("2.1.2-2", "notifies of a configuration change after DEVICE_NEEDS_RESET", FRONT_END),
    registers("2.4.1-2", "sets the status field to 0 on reset", status_is_zero),
    registers("2.5.2", "lets configuration fields be read before FEATURES_OK", readable_before),
    not(
        "2.7.8.2-2",
        "sets `len` before it moves the used index",
        "an order of two stores that no driver can be sure to see",
    ),
    not(
        "2.8.10.1-2",
        "writes device descriptors in the order in which they complete",
        "when one completes only the device knows",
    ),
    not("5.1.4.1", "max_virtqueue_pairs, mtu, speed, duplex, rss_* are within bounds", FRONT_END),
    not("5.1.4.1-2", "keeps to the mtu once VIRTIO_NET_F_MTU is negotiated", FRONT_END),
    not("5.1.6.2.2-5", "UDP tunnel segmentation: outer and inner offsets", NOT_OFFERED),
    not("5.1.6.4.1-8", "RSC_EXT: segments and duplicate acknowledgements", NOT_OFFERED),
    not("5.1.6.4.1-9", "HASH_REPORT and RSS: hash and queue of a frame", NOT_OFFERED),
    not("5.1.6.5.1", "packet receive filtering", CONTROL),
    not("5.1.6.5.2", "MAC address filtering", CONTROL),
    not("5.1.6.5.3", "VLAN filtering", CONTROL),
    not("5.1.6.5.4", "clears VIRTIO_NET_S_ANNOUNCE", CONTROL),
    not("5.1.6.5.5", "receives on receiveq1 only until more pairs are asked for", ENABLES),
    not("5.1.6.5.6", "notifications coalescing", NOT_OFFERED),
    not("5.1.6.5.7", "device statistics, flow filters, IPsec", NOT_OFFERED),
    not("6.2-3", "SR_IOV is offered by PCI devices only", FRONT_END),
];

fn status_is_zero(device: &Pci) -> Result<()> {
    device.begin()?;
    device.negotiate(Features::of(&[Feature::Version1]))?;
    ensure!(device.status()? != 0, "the status is 0 with FEATURES_OK set");
    // It waits for that.
    device.reset()
}

fn readable_before(device: &Pci) -> Result<()> {
    device.begin()?;
    let mac = device.mac()?;
    ensure!(mac != [0; 6], "the MAC address is not there");
    device.negotiate(Features::of(&[Feature::Version1, Feature::Mac]))?;
    let after = device.mac()?;
    ensure!(after == mac, "{mac:02x?} before, {after:02x?} with FEATURES_OK set");
    Ok(())
}
