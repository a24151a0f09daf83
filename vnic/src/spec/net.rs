//! virtio-net layouts. VIRTIO 1.3, 5.1.6 Device Operation.

use std::mem::size_of;

/// Queue index of the first receive queue; pair `n` has receiveq at `2n`, transmitq at `2n + 1`.
pub const RECEIVEQ0: u16 = 0;
/// Queue index of the first transmit queue.
pub const TRANSMITQ0: u16 = 1;

/// `csum_start` and `csum_offset` are valid (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
pub const HDR_F_NEEDS_CSUM: u8 = 1;
/// The checksum is known to be right (`VIRTIO_NET_HDR_F_DATA_VALID`).
pub const HDR_F_DATA_VALID: u8 = 2;
/// Receive-segment-coalescing information (`VIRTIO_NET_HDR_F_RSC_INFO`).
pub const HDR_F_RSC_INFO: u8 = 4;

/// Not a GSO frame.
pub const GSO_NONE: u8 = 0;
/// GSO frame, IPv4 TCP.
pub const GSO_TCPV4: u8 = 1;
/// GSO frame, IPv4 UDP fragmentation.
pub const GSO_UDP: u8 = 3;
/// GSO frame, IPv6 TCP.
pub const GSO_TCPV6: u8 = 4;
/// GSO frame, UDP segmentation.
pub const GSO_UDP_L4: u8 = 5;
/// Bit set for TCP with ECN.
pub const GSO_ECN: u8 = 0x80;

/// VIRTIO 1.3, 5.1.6 Device Operation, `struct virtio_net_hdr` with `num_buffers` (VERSION_1 or
/// MRG_RXBUF: always there for this device).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct NetHeader {
    /// `HDR_F_*`.
    pub flags: u8,
    /// `GSO_*`.
    pub gso_type: u8,
    /// Ethernet + IP + transport header length: a hint, bytes.
    pub hdr_len: u16,
    /// Payload bytes per segment, without headers.
    pub gso_size: u16,
    /// Where checksumming starts, bytes from the frame's first byte.
    pub csum_start: u16,
    /// Where the checksum goes, bytes from `csum_start`.
    pub csum_offset: u16,
    /// Receive: how many buffers hold this frame.
    pub num_buffers: u16,
}

/// The header's length in a buffer, bytes.
pub const NET_HEADER_LEN: usize = 12;
const _: () = assert!(size_of::<NetHeader>() == NET_HEADER_LEN);

impl NetHeader {
    /// The header as it stands in memory.
    #[must_use]
    pub fn to_bytes(self) -> [u8; NET_HEADER_LEN] {
        let mut bytes = [0; NET_HEADER_LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        for (at, field) in
            [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, self.num_buffers].into_iter().enumerate()
        {
            bytes[2 + 2 * at..4 + 2 * at].copy_from_slice(&field.to_le_bytes());
        }
        bytes
    }

    /// The header read from memory; nothing is checked yet.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; NET_HEADER_LEN]) -> Self {
        NetHeader {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: u16::from_le_bytes([bytes[2], bytes[3]]),
            gso_size: u16::from_le_bytes([bytes[4], bytes[5]]),
            csum_start: u16::from_le_bytes([bytes[6], bytes[7]]),
            csum_offset: u16::from_le_bytes([bytes[8], bytes[9]]),
            num_buffers: u16::from_le_bytes([bytes[10], bytes[11]]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_trip_through_bytes() {
        let header = NetHeader {
            flags: 1,
            gso_type: 4,
            hdr_len: 78,
            gso_size: 1428,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 3,
        };
        assert_eq!(NetHeader::from_bytes(header.to_bytes()), header);
    }
}
