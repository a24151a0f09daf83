//! A file in datagrams: what a program without a kernel's TCP sends to the peer's UDP port [`PORT`].
//!
//! Operation:
//! 1. The sender makes up a number for the transfer, and sends the file in order: each datagram a [`Header`] of kind
//!    [`Kind::Data`] with the offset of its first byte, and the bytes.
//! 2. A datagram of kind [`Kind::End`], whose offset is the number of bytes, asks for the answer.
//! 3. The receiver answers with kind [`Kind::Receipt`]: its own count as offset, and the line that it also says at the end of
//!    a TCP stream, `bytes N sha256 HEX\n`. It answers each `End` alike, so a sender that got no answer asks again.
//!
//! Invariants: the receiver takes bytes only at the offset where it stands. The cable between a driver's ring and the peer
//! neither loses nor reorders a frame; on one that does, the receipt stops at the first gap, and the sender sees it.
//!
//! Layout, little-endian: `[0, 4)` [`MAGIC`], `[4]` kind, `[5, 8)` zero, `[8, 16)` transfer, `[16, 24)` offset.

/// The receiver's port.
pub const PORT: u16 = 9000;

/// How a header starts.
pub const MAGIC: [u8; 4] = *b"vnDG";

/// Bytes of a header.
pub const HEADER_LEN: usize = 24;

/// What a datagram is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes of the file.
    Data,
    /// That was all: what did you get?
    End,
    /// The answer.
    Receipt,
}

/// What stands in front of each datagram's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is for.
    pub kind: Kind,
    /// Which transfer it belongs to.
    pub transfer: u64,
    /// See [`Kind`].
    pub offset: u64,
}

impl Header {
    /// The header as it stands in the datagram.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let kind = match self.kind {
            Kind::Data => 0,
            Kind::End => 1,
            Kind::Receipt => 2,
        };
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4] = kind;
        bytes[8..16].copy_from_slice(&self.transfer.to_le_bytes());
        bytes[16..].copy_from_slice(&self.offset.to_le_bytes());
        bytes
    }

    /// The header in front of `datagram`, and what follows it; `None` where there is none.
    #[must_use]
    pub fn read(datagram: &[u8]) -> Option<(Self, &[u8])> {
        let (header, rest) = datagram.split_first_chunk::<HEADER_LEN>()?;
        let [m0, m1, m2, m3, kind, 0, 0, 0, words @ ..] = header else { return None };
        if [*m0, *m1, *m2, *m3] != MAGIC {
            return None;
        }
        let kind = match kind {
            0 => Kind::Data,
            1 => Kind::End,
            2 => Kind::Receipt,
            _ => return None,
        };
        let (transfer, offset) = words.split_first_chunk::<8>()?;
        let (offset, _) = offset.split_first_chunk::<8>()?;
        Some((Header { kind, transfer: u64::from_le_bytes(*transfer), offset: u64::from_le_bytes(*offset) }, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_trip_through_bytes() {
        for kind in [Kind::Data, Kind::End, Kind::Receipt] {
            let header = Header { kind, transfer: 0x0102_0304_0506_0708, offset: u64::MAX - 1 };
            let mut datagram = header.to_bytes().to_vec();
            datagram.extend_from_slice(b"bytes");
            assert_eq!(Header::read(&datagram), Some((header, &b"bytes"[..])));
        }
    }

    #[test]
    fn what_is_short_or_odd_is_no_header() {
        let good = Header { kind: Kind::Data, transfer: 1, offset: 2 }.to_bytes();
        for len in 0..HEADER_LEN {
            assert_eq!(Header::read(&good[..len]), None, "{len}");
        }
        for at in 0..8 {
            let mut bad = good;
            bad[at] ^= 0x40;
            assert_eq!(Header::read(&bad), None, "byte {at}");
        }
    }
}
