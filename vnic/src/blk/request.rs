//! A chain becomes a request, or is malformed, with a name.
//!
//! Operation: the header is read once, out of the first readable bytes, wherever the driver's buffers begin and end (VIRTIO 1.3,
//! 2.7.4 Message Framing). The last writable byte is the status; what is between is data. All is checked against the disk before any
//! of it is touched.

use crate::ring::ChainView;
use crate::spec::blk::{
    BlkHeader, BlkRange, HEADER_LEN, RANGE_LEN, RANGE_UNMAP, S_IOERR, S_UNSUPP, SECTOR, T_DISCARD, T_FLUSH, T_GET_ID,
    T_IN, T_OUT, T_WRITE_ZEROES,
};

/// The longest range that is discarded or filled with zeroes at a time, sectors: 32 MiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 64 << 10;

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
    /// These bytes are of no interest any more.
    Discard { offset: u64, len: u64 },
    /// Zeroes are to be there; `unmap`: and may take no room.
    WriteZeroes { offset: u64, len: u64, unmap: bool },
}

impl Request {
    /// Bytes of data that go from one side to the other.
    pub(super) const fn bytes(self) -> u64 {
        match self {
            Request::Read { len, .. } | Request::Write { len, .. } => len,
            _ => 0,
        }
    }

    /// How `fallocate` does it, of those that it does.
    pub(super) const fn mode(self) -> i32 {
        match self {
            Request::WriteZeroes { unmap: false, .. } => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
            _ => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        }
    }
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
    /// A discard, or zeroes, of no range or of more than one: not what the device asked for.
    BadRanges,
    /// A range that is longer than the device asked for.
    LongRange,
    /// A range with flags that its type does not have.
    UnknownFlags,
    /// A write past the end of an image that has shrunk.
    ImageShrank,
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
            Malformed::BadRanges => "bad_ranges",
            Malformed::LongRange => "long_range",
            Malformed::UnknownFlags => "unknown_flags",
            Malformed::ImageShrank => "image_shrank",
        }
    }

    /// What the driver is told.
    pub(super) const fn status(self) -> u8 {
        match self {
            Malformed::UnknownType | Malformed::UnknownFlags => S_UNSUPP,
            _ => S_IOERR,
        }
    }
}

/// The disk, as far as requests are checked against it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes: a multiple of a sector.
    pub(super) bytes: u64,
    /// Bytes that the image really has.
    pub(super) there: u64,
    pub(super) read_only: bool,
}

/// Reads the header of a chain, if it can be answered.
pub(super) fn read_header(chain: ChainView<'_>) -> Result<BlkHeader, Malformed> {
    if chain.chain.writable_len == 0 {
        return Err(Malformed::NoStatus);
    }
    let mut header = [0; HEADER_LEN];
    if chain.read_readable(0, &mut header) < HEADER_LEN {
        return Err(Malformed::ShortHeader);
    }
    Ok(BlkHeader::from_bytes(header))
}

/// What the chain with this header asks.
pub(super) fn check(chain: ChainView<'_>, header: BlkHeader, bounds: Bounds) -> Result<Request, Malformed> {
    let (readable, writable) = (u64::from(chain.chain.readable_len), u64::from(chain.chain.writable_len));
    let BlkHeader { kind, sector } = header;
    let (to_disk, from_disk) = (readable - HEADER_LEN as u64, writable - 1);
    match kind {
        T_IN | T_GET_ID if to_disk > 0 => Err(Malformed::WrongDirection),
        T_OUT if from_disk > 0 => Err(Malformed::WrongDirection),
        T_IN => bounds.check(sector, from_disk).map(|offset| Request::Read { offset, len: from_disk }),
        T_OUT | T_DISCARD | T_WRITE_ZEROES if bounds.read_only => Err(Malformed::ReadOnly),
        T_OUT => bounds.check_write(sector, to_disk).map(|offset| Request::Write { offset, len: to_disk }),
        T_DISCARD | T_WRITE_ZEROES => range(chain, kind, to_disk, bounds),
        T_FLUSH => Ok(Request::Flush),
        T_GET_ID => Ok(Request::GetId),
        _ => Err(Malformed::UnknownType),
    }
}

/// The only range of a discard, or of zeroes. VIRTIO 1.3, 5.2.6.2: unknown flags are `UNSUPP`, and so is a discard with `unmap`.
fn range(chain: ChainView<'_>, kind: u32, to_disk: u64, bounds: Bounds) -> Result<Request, Malformed> {
    let mut bytes = [0; RANGE_LEN];
    if to_disk != RANGE_LEN as u64 || chain.read_readable(HEADER_LEN as u64, &mut bytes) < RANGE_LEN {
        return Err(Malformed::BadRanges);
    }
    let BlkRange { sector, sectors, flags } = BlkRange::from_bytes(bytes);
    let unmap = match (kind, flags) {
        (_, 0) => false,
        (T_WRITE_ZEROES, RANGE_UNMAP) => true,
        _ => return Err(Malformed::UnknownFlags),
    };
    if sectors > MAX_RANGE_SECTORS {
        return Err(Malformed::LongRange);
    }
    let len = u64::from(sectors) * SECTOR;
    let offset = bounds.check_write(sector, len)?;
    match kind {
        // To allocate nothing is an error, to discard nothing is none.
        _ if len == 0 => Err(Malformed::BadRanges),
        T_DISCARD => Ok(Request::Discard { offset, len }),
        _ => Ok(Request::WriteZeroes { offset, len, unmap }),
    }
}

impl Bounds {
    /// The same of a write.
    fn check_write(self, sector: u64, len: u64) -> Result<u64, Malformed> {
        let offset = self.check(sector, len)?;
        if offset + len <= self.there { Ok(offset) } else { Err(Malformed::ImageShrank) }
    }

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

/// What a request would touch, for the fuzzer.
#[cfg(fuzzing)]
#[derive(Debug, Clone, Copy)]
pub struct Touched {
    /// The first byte of the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Does it change them?
    pub writes: bool,
    /// Are they the chain's data?
    pub data: bool,
}

/// What this chain would touch of a disk of so many bytes, as many of which are there.
///
/// # Errors
/// It is no request: its name.
#[cfg(fuzzing)]
pub fn touched(chain: ChainView<'_>, bytes: u64, there: u64, read_only: bool) -> Result<Touched, &'static str> {
    let header = read_header(chain).map_err(Malformed::name)?;
    let request = check(chain, header, Bounds { bytes, there, read_only }).map_err(Malformed::name)?;
    Ok(match request {
        Request::Read { offset, len } => Touched { offset, len, writes: false, data: true },
        Request::Write { offset, len } => Touched { offset, len, writes: true, data: true },
        Request::Discard { offset, len } | Request::WriteZeroes { offset, len, .. } => {
            Touched { offset, len, writes: true, data: false }
        }
        Request::Flush | Request::GetId => Touched { offset: 0, len: 0, writes: false, data: false },
    })
}
