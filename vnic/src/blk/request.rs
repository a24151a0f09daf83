//! A chain becomes a request, or is malformed, with a name.
//!
//! Operation: the header is read once, out of the first readable bytes, wherever the driver's buffers begin and end (VIRTIO 1.3,
//! 2.7.4 Message Framing). The last writable byte is the status; what is between is data. All is checked against the disk before any
//! of it is touched.

use crate::ring::ChainView;
use crate::spec::blk::{BlkHeader, HEADER_LEN, S_IOERR, S_UNSUPP, SECTOR, T_FLUSH, T_GET_ID, T_IN, T_OUT};

/// What a driver asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// From the disk, from this byte on, so many bytes.
    Read { offset: u64, len: u64 },
    /// To the disk.
    Write { offset: u64, len: u64 },
    /// What was written is to be on the disk.
    Flush,
    /// The serial number.
    GetId,
}

/// A request that is none. The driver hears of it by the status, where there is one; it is counted by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    /// No device-writable byte for the status: nobody can be told.
    NoStatus,
    /// Fewer readable bytes than a header.
    ShortHeader,
    /// A read with data to be written, or a write with room for data.
    WrongDirection,
    /// Data that are no whole sectors.
    PartialSector,
    /// It begins or ends behind the last sector.
    BeyondCapacity,
    /// A write to a disk that is read-only.
    ReadOnly,
    /// A type that this device does not have.
    UnknownType,
}

impl Malformed {
    /// Its name among the counters.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Malformed::NoStatus => "no_status",
            Malformed::ShortHeader => "short_header",
            Malformed::WrongDirection => "wrong_direction",
            Malformed::PartialSector => "partial_sector",
            Malformed::BeyondCapacity => "beyond_capacity",
            Malformed::ReadOnly => "read_only",
            Malformed::UnknownType => "unknown_type",
        }
    }

    /// What the driver is told.
    pub(super) const fn status(self) -> u8 {
        match self {
            Malformed::UnknownType => S_UNSUPP,
            _ => S_IOERR,
        }
    }
}

/// The disk, as far as requests are checked against it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes: a multiple of a sector.
    pub(super) bytes: u64,
    pub(super) read_only: bool,
}

/// Reads the request of a chain.
pub(super) fn parse(chain: ChainView<'_>, bounds: Bounds) -> Result<Request, Malformed> {
    let (readable, writable) = (u64::from(chain.chain.readable_len), u64::from(chain.chain.writable_len));
    if writable == 0 {
        return Err(Malformed::NoStatus);
    }
    let mut header = [0; HEADER_LEN];
    if chain.read_readable(0, &mut header) < HEADER_LEN {
        return Err(Malformed::ShortHeader);
    }
    let BlkHeader { kind, sector } = BlkHeader::from_bytes(header);
    let (to_disk, from_disk) = (readable - HEADER_LEN as u64, writable - 1);
    match kind {
        T_IN | T_GET_ID if to_disk > 0 => Err(Malformed::WrongDirection),
        T_OUT if from_disk > 0 => Err(Malformed::WrongDirection),
        T_IN => bounds.check(sector, from_disk).map(|offset| Request::Read { offset, len: from_disk }),
        T_OUT if bounds.read_only => Err(Malformed::ReadOnly),
        T_OUT => bounds.check(sector, to_disk).map(|offset| Request::Write { offset, len: to_disk }),
        T_FLUSH => Ok(Request::Flush),
        T_GET_ID => Ok(Request::GetId),
        _ => Err(Malformed::UnknownType),
    }
}

impl Bounds {
    /// Where `len` bytes from `sector` on begin, if they are sectors of the disk.
    fn check(self, sector: u64, len: u64) -> Result<u64, Malformed> {
        if !len.is_multiple_of(SECTOR) {
            return Err(Malformed::PartialSector);
        }
        let offset = sector.checked_mul(SECTOR);
        let end = offset.and_then(|offset| offset.checked_add(len));
        match (offset, end) {
            (Some(offset), Some(end)) if end <= self.bytes => Ok(offset),
            _ => Err(Malformed::BeyondCapacity),
        }
    }
}
