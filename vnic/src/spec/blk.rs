//! virtio-blk: feature bits, configuration space, requests. VIRTIO 1.3, 5.2 Block Device.

use super::names::{codes, feature_set};

/// The unit of capacity and of requests, whatever the block size is, bytes. 5.2.4 Device configuration layout.
pub const SECTOR: u64 = 512;

codes! {
    /// A feature bit of a block device. 5.2.3 Feature bits.
    BlkFeature;
    /// The longest segment is in `size_max`.
    SizeMax = 1, "size_max";
    /// The most segments of a request are in `seg_max`.
    SegMax = 2, "seg_max";
    /// Cylinders, heads and sectors are in `geometry`.
    Geometry = 4, "geometry";
    /// The device is read-only.
    Ro = 5, "ro";
    /// The block size is in `blk_size`.
    BlkSize = 6, "blk_size";
    /// There are flush requests.
    Flush = 9, "flush";
    /// What suits the disk is in `topology`.
    Topology = 10, "topology";
    /// The driver can choose between write-back and write-through.
    ConfigWce = 11, "config_wce";
    /// Several request queues.
    Mq = 12, "mq";
    /// There are discard requests.
    Discard = 13, "discard";
    /// There are requests to write zeroes.
    WriteZeroes = 14, "write_zeroes";
    /// The device says how long it will live.
    Lifetime = 15, "lifetime";
    /// There are secure erase requests.
    SecureErase = 16, "secure_erase";
    /// A zoned device.
    Zoned = 17, "zoned";
}

feature_set! {
    /// The block device's own part of a set of features.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    BlkFeatures of BlkFeature
}

/// Reads (`VIRTIO_BLK_T_IN`). 5.2.6 Device Operation.
pub const T_IN: u32 = 0;
/// Writes (`VIRTIO_BLK_T_OUT`).
pub const T_OUT: u32 = 1;
/// Flushes what was written (`VIRTIO_BLK_T_FLUSH`).
pub const T_FLUSH: u32 = 4;
/// Asks for the serial number (`VIRTIO_BLK_T_GET_ID`).
pub const T_GET_ID: u32 = 8;
/// Gives up sectors (`VIRTIO_BLK_T_DISCARD`).
pub const T_DISCARD: u32 = 11;
/// Writes zeroes (`VIRTIO_BLK_T_WRITE_ZEROES`).
pub const T_WRITE_ZEROES: u32 = 13;

/// It worked (`VIRTIO_BLK_S_OK`).
pub const S_OK: u8 = 0;
/// It did not (`VIRTIO_BLK_S_IOERR`).
pub const S_IOERR: u8 = 1;
/// The device has no such request (`VIRTIO_BLK_S_UNSUPP`).
pub const S_UNSUPP: u8 = 2;

/// The header of a request, bytes: type, reserved, sector.
pub const HEADER_LEN: usize = 16;
/// A serial number, bytes; a shorter one ends with a 0.
pub const ID_LEN: usize = 20;
/// One range of a discard or write-zeroes request, bytes: sector, sectors, flags.
pub const RANGE_LEN: usize = 16;
/// In the flags of a range: the sectors may be given up (`VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP`).
pub const RANGE_UNMAP: u32 = 1;

/// The configuration space, bytes: as long as that of any revision so far.
pub const CONFIG_LEN: usize = 96;
/// Where `writeback` stands in it, the only field a driver may write.
pub const CONFIG_WRITEBACK: usize = 32;

/// 5.2.4 Device configuration layout, as far as this device fills it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlkConfig {
    /// Sectors.
    pub capacity: u64,
    /// Data segments of a request, at most.
    pub seg_max: u32,
    /// Bytes.
    pub blk_size: u32,
    /// Logical blocks in a physical one, as a power of two.
    pub physical_block_exp: u8,
    /// The shortest request that suits the disk, logical blocks.
    pub min_io_size: u16,
    /// The one that suits it best, logical blocks.
    pub opt_io_size: u32,
    /// Does the device keep what is written until it is flushed?
    pub writeback: bool,
    /// Request queues.
    pub num_queues: u16,
    /// Sectors of a discarded range, at most.
    pub max_discard_sectors: u32,
    /// Ranges of a discard request, at most.
    pub max_discard_seg: u32,
    /// What a range to be discarded should be aligned to, sectors.
    pub discard_sector_alignment: u32,
    /// Sectors of a range of zeroes, at most.
    pub max_write_zeroes_sectors: u32,
    /// Ranges of a write-zeroes request, at most.
    pub max_write_zeroes_seg: u32,
    /// May writing zeroes give up sectors?
    pub write_zeroes_may_unmap: bool,
}

impl BlkConfig {
    /// The configuration space as it stands in memory.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; CONFIG_LEN] {
        let mut bytes = [0; CONFIG_LEN];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &self.capacity.to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        put(20, &self.blk_size.to_le_bytes());
        put(24, &[self.physical_block_exp]);
        put(26, &self.min_io_size.to_le_bytes());
        put(28, &self.opt_io_size.to_le_bytes());
        put(CONFIG_WRITEBACK, &[u8::from(self.writeback)]);
        put(34, &self.num_queues.to_le_bytes());
        put(36, &self.max_discard_sectors.to_le_bytes());
        put(40, &self.max_discard_seg.to_le_bytes());
        put(44, &self.discard_sector_alignment.to_le_bytes());
        put(48, &self.max_write_zeroes_sectors.to_le_bytes());
        put(52, &self.max_write_zeroes_seg.to_le_bytes());
        put(56, &[u8::from(self.write_zeroes_may_unmap)]);
        bytes
    }
}

/// 5.2.6 Device Operation: the first bytes of `struct virtio_blk_req`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlkHeader {
    /// `T_*`.
    pub kind: u32,
    /// Where it begins.
    pub sector: u64,
}

impl BlkHeader {
    /// The header read from memory; nothing is checked yet.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; HEADER_LEN]) -> Self {
        let word = u128::from_le_bytes(bytes);
        BlkHeader { kind: word as u32, sector: (word >> 64) as u64 }
    }

    /// The header as it stands in memory.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; HEADER_LEN] {
        (self.kind as u128 | (self.sector as u128) << 64).to_le_bytes()
    }
}

/// 5.2.6 Device Operation: `struct virtio_blk_discard_write_zeroes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlkRange {
    /// The first.
    pub sector: u64,
    /// How many.
    pub sectors: u32,
    /// `RANGE_UNMAP`.
    pub flags: u32,
}

impl BlkRange {
    /// The range read from memory; nothing is checked yet.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; RANGE_LEN]) -> Self {
        let word = u128::from_le_bytes(bytes);
        BlkRange { sector: word as u64, sectors: (word >> 64) as u32, flags: (word >> 96) as u32 }
    }

    /// The range as it stands in memory.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; RANGE_LEN] {
        (self.sector as u128 | (self.sectors as u128) << 64 | (self.flags as u128) << 96).to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_space_is_laid_out_as_the_specification_says() {
        use virtio_bindings::virtio_blk::virtio_blk_config;
        let config = BlkConfig {
            capacity: 0x0102_0304_0506_0708,
            seg_max: 254,
            blk_size: 4096,
            physical_block_exp: 3,
            min_io_size: 8,
            opt_io_size: 256,
            writeback: true,
            num_queues: 4,
            max_discard_sectors: 11,
            max_discard_seg: 12,
            discard_sector_alignment: 13,
            max_write_zeroes_sectors: 14,
            max_write_zeroes_seg: 15,
            write_zeroes_may_unmap: true,
        };
        let bytes = config.to_bytes();
        let field =
            |at: usize, len: usize| bytes[at..at + len].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        macro_rules! at {
            ($($field:ident).+, $len:literal) => { field(std::mem::offset_of!(virtio_blk_config, $($field).+), $len) };
        }
        assert_eq!(at!(capacity, 8), config.capacity);
        assert_eq!([at!(size_max, 4), at!(seg_max, 4), at!(blk_size, 4)], [0, 254, 4096]);
        assert_eq!([at!(physical_block_exp, 1), at!(min_io_size, 2), at!(opt_io_size, 4)], [3, 8, 256]);
        assert_eq!([at!(wce, 1), at!(num_queues, 2)], [1, 4]);
        assert_eq!([at!(max_discard_sectors, 4), at!(max_discard_seg, 4)], [11, 12]);
        assert_eq!([at!(discard_sector_alignment, 4), at!(max_write_zeroes_sectors, 4)], [13, 14]);
        assert_eq!([at!(max_write_zeroes_seg, 4), at!(write_zeroes_may_unmap, 1)], [15, 1]);
    }

    #[test]
    fn headers_and_ranges_survive_the_trip_through_bytes() {
        let header = BlkHeader { kind: T_WRITE_ZEROES, sector: 1 << 40 | 7 };
        assert_eq!(BlkHeader::from_bytes(header.to_bytes()), header);
        assert_eq!(header.to_bytes()[..9], [13, 0, 0, 0, 0, 0, 0, 0, 7]);
        let range = BlkRange { sector: 5 << 33, sectors: 77, flags: RANGE_UNMAP };
        assert_eq!(BlkRange::from_bytes(range.to_bytes()), range);
    }
}
