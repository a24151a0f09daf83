//! Feature bits: the spec's names, their numbers, and sets of them.
//!
//! VIRTIO 1.3, 2.2 Feature Bits; 5.1.3 Network Device, Feature bits; 6 Reserved Feature Bits.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::blk::BlkFeatures;
use super::names::{codes, feature_set};

/// The bits of a device's own features.
const OWN: u64 = (1 << 24) - 1;

/// A name that is no feature's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a feature (the spec's name in lower case without prefix: csum, host_tso4, event_idx, …)")]
pub struct UnknownFeature(pub String);

codes! {
    /// One feature bit. Its number is the bit's position, its name the spec's in lower case.
    Feature;
    /// The device can take packets with a partial checksum (transmit).
    Csum = 0, "csum";
    /// The driver can take packets with a partial checksum (receive).
    GuestCsum = 1, "guest_csum";
    /// The driver can change receive offloads while running.
    CtrlGuestOffloads = 2, "ctrl_guest_offloads";
    /// The device reports its maximum MTU.
    Mtu = 3, "mtu";
    /// The device has a MAC address of its own.
    Mac = 5, "mac";
    /// The driver can receive TSOv4 frames.
    GuestTso4 = 7, "guest_tso4";
    /// The driver can receive TSOv6 frames.
    GuestTso6 = 8, "guest_tso6";
    /// The driver can receive TSO frames with ECN.
    GuestEcn = 9, "guest_ecn";
    /// The driver can receive UFO frames.
    GuestUfo = 10, "guest_ufo";
    /// The device can take TSOv4 frames.
    HostTso4 = 11, "host_tso4";
    /// The device can take TSOv6 frames.
    HostTso6 = 12, "host_tso6";
    /// The device can take TSO frames with ECN.
    HostEcn = 13, "host_ecn";
    /// The device can take UFO frames.
    HostUfo = 14, "host_ufo";
    /// The driver can merge receive buffers.
    MrgRxbuf = 15, "mrg_rxbuf";
    /// The configuration status field is there.
    Status = 16, "status";
    /// The control queue is there.
    CtrlVq = 17, "ctrl_vq";
    /// The control queue takes receive-mode commands.
    CtrlRx = 18, "ctrl_rx";
    /// The control queue takes VLAN filters.
    CtrlVlan = 19, "ctrl_vlan";
    /// The control queue takes extra receive-mode commands.
    CtrlRxExtra = 20, "ctrl_rx_extra";
    /// The driver can send gratuitous packets when asked.
    GuestAnnounce = 21, "guest_announce";
    /// Several queue pairs.
    Mq = 22, "mq";
    /// The MAC address can be set over the control queue.
    CtrlMacAddr = 23, "ctrl_mac_addr";
    /// vhost: the back-end can log the pages it writes (`VHOST_F_LOG_ALL`).
    LogAll = 26, "log_all";
    /// The driver may put no limit on how it lays out descriptors (transitional devices).
    AnyLayout = 27, "any_layout";
    /// A descriptor may point at a table of descriptors.
    IndirectDesc = 28, "indirect_desc";
    /// Notifications are suppressed by index rather than by flag.
    EventIdx = 29, "event_idx";
    /// vhost-user: protocol features can be negotiated.
    ProtocolFeatures = 30, "protocol_features";
    /// The device follows VIRTIO 1.0 or later.
    Version1 = 32, "version_1";
    /// Addresses in descriptors are IOVAs.
    AccessPlatform = 33, "access_platform";
    /// Packed virtqueues.
    RingPacked = 34, "ring_packed";
    /// Buffers are used in the order they were made available.
    InOrder = 35, "in_order";
    /// Memory accesses are ordered as the platform says.
    OrderPlatform = 36, "order_platform";
    /// The driver passes extra data in its notifications.
    NotificationData = 38, "notification_data";
    /// A queue can be reset on its own.
    RingReset = 40, "ring_reset";
    /// The driver can receive USOv4 frames.
    GuestUso4 = 54, "guest_uso4";
    /// The driver can receive USOv6 frames.
    GuestUso6 = 55, "guest_uso6";
    /// The device can take USO frames.
    HostUso = 56, "host_uso";
    /// The device can report a per-packet hash.
    HashReport = 57, "hash_report";
    /// The driver can provide the exact header length.
    GuestHdrlen = 59, "guest_hdrlen";
    /// Receive-side scaling.
    Rss = 60, "rss";
}

impl FromStr for Feature {
    type Err = UnknownFeature;

    fn from_str(name: &str) -> Result<Self, UnknownFeature> {
        Feature::ALL
            .iter()
            .copied()
            .find(|feature| feature.name() == name)
            .ok_or_else(|| UnknownFeature(name.to_owned()))
    }
}

feature_set! {
    /// A set of feature bits, known by name or not.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
    Features of Feature
}

impl Features {
    /// What is in both sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Features(self.0 & other.0)
    }

    /// The names of the set as a device of this kind has them: those below 24 and from 50 on are the device's own. VIRTIO 1.3, 2.2
    /// Feature Bits.
    #[must_use]
    pub fn names_for(self, device: &str) -> Vec<String> {
        match device {
            "blk" => [BlkFeatures(self.0 & OWN).names(), Features(self.0 & !OWN).names()].concat(),
            "net" | "rng" | "vm" | "" => self.names(),
            _ => {
                let own = (0..64).filter(|bit| self.0 & OWN & 1 << bit != 0).map(|bit| format!("bit {bit}"));
                own.chain(Features(self.0 & !OWN).names()).collect()
            }
        }
    }

    /// Is every feature of `self` in `other`?
    #[must_use]
    pub const fn is_subset_of(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_back_to_its_feature() {
        for feature in Feature::ALL {
            assert_eq!(feature.name().parse(), Ok(*feature));
        }
    }

    #[test]
    fn bits_rise_and_none_is_listed_twice() {
        assert!(Feature::ALL.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn a_devices_own_bits_have_its_own_names() {
        let set = Features(1 << 9 | 1 << 12).with(Feature::EventIdx);
        assert_eq!(set.names_for("blk"), ["flush", "mq", "event_idx"]);
        assert_eq!(set.names_for("net"), ["guest_ecn", "host_tso6", "event_idx"]);
    }

    #[test]
    fn an_unnamed_bit_is_printed_by_number() {
        assert_eq!(Features(1 | 1 << 50).to_string(), "csum bit 50");
    }
}
