//! The stamps a test file is made of: every 64 bytes say which file and which offset they belong to.
//!
//! Place: the guest's transfer program writes files with [`fill`]; the host recognises a stamp wherever it finds one
//! with [`Stamp::read`]. Both sides know the layout from here and nowhere else.
//!
//! Layout, little-endian: `[0, 8)` [`MAGIC`], `[8, 16)` file id, `[16, 24)` offset in the file, `[24, 32)` check, a
//! keyed mix of the two; `[32, 64)` filler that follows from the check.
//!
//! Invariants: stamps stand at multiples of [`STAMP_BYTES`] in the file, so one never crosses a page border. No two
//! stamps of all files are equal while file ids are not reused. A file whose length is no multiple of 64 ends in the
//! front part of a stamp, which [`Stamp::read`] refuses.

/// Bytes of a stamp.
pub const STAMP_BYTES: usize = 64;

/// How a stamp starts.
pub const MAGIC: [u8; 8] = *b"vnic\xf1\x1e\x57\xa3";

/// Mixed into every check: a memory full of zeros or of another program's data has none that fits.
const KEY: u64 = 0x9e37_79b9_7f4a_7c15;

/// Which 64 bytes of which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// The file.
    pub file_id: u64,
    /// Where in the file the stamp starts, bytes.
    pub offset: u64,
}

impl Stamp {
    /// The stamp as it stands in the file.
    #[must_use]
    pub fn bytes(self) -> [u8; STAMP_BYTES] {
        let check = self.check();
        let words = [
            u64::from_le_bytes(MAGIC),
            self.file_id,
            self.offset,
            check,
            mix(check ^ 1),
            mix(check ^ 2),
            mix(check ^ 3),
            mix(check ^ 4),
        ];
        let mut bytes = [0; STAMP_BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The stamp these bytes are; `None` where any of the 64 is not as it must be.
    #[must_use]
    pub fn read(bytes: &[u8; STAMP_BYTES]) -> Option<Stamp> {
        let word = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
        if !bytes.starts_with(&MAGIC) {
            return None;
        }
        let stamp = Stamp { file_id: word(8)?, offset: word(16)? };
        (stamp.bytes() == *bytes).then_some(stamp)
    }

    fn check(self) -> u64 {
        mix(mix(self.file_id ^ KEY).wrapping_add(self.offset))
    }
}

/// Writes the file's content from `offset` (a multiple of [`STAMP_BYTES`]) into `buffer`.
pub fn fill(file_id: u64, offset: u64, buffer: &mut [u8]) {
    debug_assert_eq!(offset % STAMP_BYTES as u64, 0, "stamps stand at multiples of their size");
    let mut offset = offset;
    for place in buffer.chunks_mut(STAMP_BYTES) {
        let stamp = Stamp { file_id, offset }.bytes();
        let (part, _) = stamp.split_at(place.len());
        place.copy_from_slice(part);
        offset = offset.wrapping_add(STAMP_BYTES as u64);
    }
}

/// A 64-bit finaliser (splitmix64): every input bit reaches every output bit.
const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back() {
        let stamp = Stamp { file_id: 7, offset: 4096 };
        assert_eq!(Stamp::read(&stamp.bytes()), Some(stamp));
    }

    #[test]
    fn any_changed_byte_is_no_stamp() {
        let bytes = Stamp { file_id: 7, offset: 64 }.bytes();
        for at in 0..STAMP_BYTES {
            let mut changed = bytes;
            changed[at] ^= 0x40;
            assert_eq!(Stamp::read(&changed), None, "byte {at}");
        }
    }

    #[test]
    fn a_stamp_moved_to_another_file_or_offset_differs_in_its_check() {
        let here = Stamp { file_id: 7, offset: 64 }.bytes();
        for other in [Stamp { file_id: 8, offset: 64 }, Stamp { file_id: 7, offset: 128 }] {
            assert_ne!(here[24..32], other.bytes()[24..32]);
        }
    }

    #[test]
    fn filling_in_pieces_gives_the_same_file() {
        let mut whole = vec![0; 1000];
        fill(3, 0, &mut whole);
        let mut pieces = vec![0; 1000];
        let (front, back) = pieces.split_at_mut(640);
        fill(3, 0, front);
        fill(3, 640, back);
        assert_eq!(whole, pieces);
        assert_eq!(Stamp::read(whole[64..128].try_into().expect("64 bytes")), Some(Stamp { file_id: 3, offset: 64 }));
    }
}
