//! The virtio-net header of a transmitted frame: read once, checked, and reduced to what was negotiated.
//!
//! VIRTIO 1.3, 5.1.6.2 Packet Transmission, and 5.1.6.2.2 Device Requirements: Packet Transmission.

use crate::spec::net::{
    GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP, GSO_UDP_L4, HDR_F_NEEDS_CSUM, NET_HEADER_LEN, NetHeader,
};
use crate::spec::{Feature, Features};

/// Length of the header without `num_buffers`: legacy devices without mergeable receive buffers have that one.
const SHORT_HEADER_LEN: usize = 10;

/// The header's length on both queues, bytes. VIRTIO 1.3, 5.1.6.1 Legacy Interface: Device Operation.
#[must_use]
pub const fn header_len(features: Features) -> usize {
    if features.has(Feature::Version1) || features.has(Feature::MrgRxbuf) { NET_HEADER_LEN } else { SHORT_HEADER_LEN }
}

/// A virtio-net header that its frame cannot be sent by. The frame is dropped and counted by [`HeaderError::name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A partial checksum without `csum`.
    #[error("partial checksum, but csum was not negotiated")]
    CsumNotNegotiated,
    /// The checksum to be filled in lies (partly) outside the frame.
    #[error("checksum at {csum_start}+{csum_offset} is not within the frame of {frame_len} bytes")]
    CsumBeyondFrame {
        /// `csum_start`.
        csum_start: u16,
        /// `csum_offset`.
        csum_offset: u16,
        /// The frame's length.
        frame_len: u32,
    },
    /// No such `gso_type`.
    #[error("gso_type {gso_type:#x} is unknown")]
    GsoUnknown {
        /// `gso_type`.
        gso_type: u8,
    },
    /// The `gso_type` belongs to a feature that was not negotiated.
    #[error("gso_type {gso_type:#x}, but {feature} was not negotiated")]
    GsoNotNegotiated {
        /// `gso_type`.
        gso_type: u8,
        /// The feature.
        feature: Feature,
    },
    /// Segments of no bytes.
    #[error("gso_type {gso_type:#x} with gso_size 0")]
    GsoSizeZero {
        /// `gso_type`.
        gso_type: u8,
    },
    /// Segmentation without a checksum to complete in each segment.
    #[error("gso_type {gso_type:#x} without a partial checksum")]
    GsoWithoutCsum {
        /// `gso_type`.
        gso_type: u8,
    },
}

impl HeaderError {
    /// Every name, for a table of counters.
    pub const NAMES: [&'static str; 6] = [
        "csum_not_negotiated",
        "csum_beyond_frame",
        "gso_unknown",
        "gso_not_negotiated",
        "gso_size_zero",
        "gso_without_csum",
    ];

    /// The name its frames are counted by.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        Self::NAMES[match self {
            HeaderError::CsumNotNegotiated => 0,
            HeaderError::CsumBeyondFrame { .. } => 1,
            HeaderError::GsoUnknown { .. } => 2,
            HeaderError::GsoNotNegotiated { .. } => 3,
            HeaderError::GsoSizeZero { .. } => 4,
            HeaderError::GsoWithoutCsum { .. } => 5,
        }]
    }
}

/// Does it leave nothing to the device? Then [`check`] makes the default header of it.
#[inline(always)]
pub(super) const fn is_plain(header: &NetHeader) -> bool {
    header.flags & HDR_F_NEEDS_CSUM == 0 && header.gso_type == GSO_NONE
}

/// Checks `header` against the frame's length and the negotiated features, and gives back what of it counts: unknown
/// flags are ignored, fields that no flag makes valid are 0, and the hint `hdr_len` is no more than the frame.
///
/// # Errors
/// The frame cannot be sent by this header.
pub fn check(header: NetHeader, frame_len: u32, features: Features) -> Result<NetHeader, HeaderError> {
    let mut checked = NetHeader::default();
    if header.flags & HDR_F_NEEDS_CSUM != 0 {
        if !features.has(Feature::Csum) {
            return Err(HeaderError::CsumNotNegotiated);
        }
        let NetHeader { csum_start, csum_offset, .. } = header;
        if u32::from(csum_start) + u32::from(csum_offset) + 2 > frame_len {
            return Err(HeaderError::CsumBeyondFrame { csum_start, csum_offset, frame_len });
        }
        checked.flags = HDR_F_NEEDS_CSUM;
        checked.csum_start = csum_start;
        checked.csum_offset = csum_offset;
    }
    let gso_type = header.gso_type;
    if gso_type != GSO_NONE {
        let feature = match gso_type & !GSO_ECN {
            GSO_TCPV4 => Feature::HostTso4,
            GSO_TCPV6 => Feature::HostTso6,
            // ECN is TCP's.
            GSO_UDP if gso_type & GSO_ECN == 0 => Feature::HostUfo,
            GSO_UDP_L4 if gso_type & GSO_ECN == 0 => Feature::HostUso,
            _ => return Err(HeaderError::GsoUnknown { gso_type }),
        };
        if !features.has(feature) {
            return Err(HeaderError::GsoNotNegotiated { gso_type, feature });
        }
        if gso_type & GSO_ECN != 0 && !features.has(Feature::HostEcn) {
            return Err(HeaderError::GsoNotNegotiated { gso_type, feature: Feature::HostEcn });
        }
        if header.gso_size == 0 {
            return Err(HeaderError::GsoSizeZero { gso_type });
        }
        if checked.flags & HDR_F_NEEDS_CSUM == 0 {
            // 5.1.6.2.1: the driver MUST set NEEDS_CSUM with any gso_type but NONE.
            return Err(HeaderError::GsoWithoutCsum { gso_type });
        }
        checked.gso_type = gso_type;
        checked.gso_size = header.gso_size;
        checked.hdr_len = u16::try_from(frame_len).map_or(header.hdr_len, |len| header.hdr_len.min(len));
    }
    Ok(checked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::features::OFFERED;
    use crate::spec::net::{HDR_F_DATA_VALID, HDR_F_RSC_INFO};

    const TSO: NetHeader = NetHeader {
        flags: HDR_F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: 1448,
        csum_start: 34,
        csum_offset: 16,
        num_buffers: 0,
    };

    const USO: NetHeader = NetHeader { gso_type: GSO_UDP_L4, hdr_len: 42, csum_offset: 6, ..TSO };

    #[test]
    fn a_linux_tso_or_uso_header_passes_unchanged() {
        for header in [TSO, USO] {
            assert_eq!(check(header, 65_226, OFFERED), Ok(header));
        }
    }

    #[test]
    fn a_hostile_uso_header_is_refused_as_a_tso_header_is() {
        let name = |header| check(header, 9000, OFFERED).unwrap_err().name();
        assert_eq!(name(NetHeader { gso_size: 0, ..USO }), "gso_size_zero");
        assert_eq!(name(NetHeader { flags: 0, ..USO }), "gso_without_csum");
        assert_eq!(name(NetHeader { csum_start: 8993, ..USO }), "csum_beyond_frame");
        assert_eq!(name(NetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..USO }), "csum_beyond_frame");
        assert_eq!(name(NetHeader { gso_type: GSO_UDP_L4 | GSO_ECN, ..USO }), "gso_unknown");
    }

    #[test]
    fn a_checksum_must_lie_wholly_within_the_frame() {
        let csum = NetHeader { gso_type: GSO_NONE, ..TSO };
        assert!(check(csum, 52, OFFERED).is_ok());
        assert_eq!(check(csum, 51, OFFERED).unwrap_err().name(), "csum_beyond_frame");
        let far = NetHeader { csum_start: u16::MAX, csum_offset: u16::MAX, ..csum };
        assert_eq!(check(far, u32::from(u16::MAX), OFFERED).unwrap_err().name(), "csum_beyond_frame");
    }

    #[test]
    fn what_was_not_negotiated_is_refused_by_name() {
        let without = |feature| OFFERED.without(feature);
        assert_eq!(check(TSO, 9000, without(Feature::Csum)), Err(HeaderError::CsumNotNegotiated));
        assert_eq!(
            check(TSO, 9000, without(Feature::HostTso4)),
            Err(HeaderError::GsoNotNegotiated { gso_type: GSO_TCPV4, feature: Feature::HostTso4 })
        );
        let v6_ecn = NetHeader { gso_type: GSO_TCPV6 | GSO_ECN, ..TSO };
        assert!(check(v6_ecn, 9000, OFFERED).is_ok());
        assert_eq!(
            check(v6_ecn, 9000, without(Feature::HostEcn)),
            Err(HeaderError::GsoNotNegotiated { gso_type: v6_ecn.gso_type, feature: Feature::HostEcn })
        );
        let ufo = NetHeader { gso_type: GSO_UDP, ..TSO };
        assert_eq!(check(ufo, 9000, OFFERED).unwrap_err().name(), "gso_not_negotiated");
        assert_eq!(
            check(USO, 9000, without(Feature::HostUso)),
            Err(HeaderError::GsoNotNegotiated { gso_type: GSO_UDP_L4, feature: Feature::HostUso })
        );
    }

    #[test]
    fn gso_size_0_unknown_types_and_missing_checksum_are_refused() {
        assert_eq!(check(NetHeader { gso_size: 0, ..TSO }, 9000, OFFERED).unwrap_err().name(), "gso_size_zero");
        for gso_type in [2, 6, 7, 0x7f, GSO_ECN, GSO_ECN | GSO_UDP, GSO_ECN | GSO_UDP_L4] {
            let header = NetHeader { gso_type, ..TSO };
            assert_eq!(check(header, 9000, OFFERED), Err(HeaderError::GsoUnknown { gso_type }));
        }
        assert_eq!(check(NetHeader { flags: 0, ..TSO }, 9000, OFFERED).unwrap_err().name(), "gso_without_csum");
    }

    #[test]
    fn unknown_flags_and_fields_without_their_flag_are_ignored() {
        let noise = NetHeader {
            flags: HDR_F_DATA_VALID | HDR_F_RSC_INFO | 0xf8,
            csum_start: u16::MAX,
            csum_offset: 9,
            gso_size: 7,
            hdr_len: 99,
            gso_type: GSO_NONE,
            num_buffers: 5,
        };
        assert_eq!(check(noise, 60, Features::NONE), Ok(NetHeader::default()));
    }

    #[test]
    fn the_header_length_hint_is_no_longer_than_the_frame() {
        assert_eq!(check(NetHeader { hdr_len: 9999, ..TSO }, 80, OFFERED).unwrap().hdr_len, 80);
    }

    #[test]
    fn only_a_legacy_driver_without_mergeable_buffers_has_the_short_header() {
        assert_eq!(header_len(Features::NONE), 10);
        assert_eq!(header_len(Features::of(&[Feature::MrgRxbuf])), 12);
        assert_eq!(header_len(Features::of(&[Feature::Version1])), 12);
    }
}
