//! What a page was at a moment, in one number: enough to see later that what is said of it then was true of it before.
//!
//! Place: a worker of the data path takes the stamps of some of the frames that it sends, while it still has their buffers:
//! as long as it has, the kernel gives their pages to nobody else. Whose they are is looked up later, off the data path, and
//! said only if the page still has the same stamp ([`Introspection::labels_of`](super::Introspection::labels_of)). A stamp
//! also has the kind of the pages: what the kernel copies into for a socket is soon given back, and was that all the same.
//!
//! Invariants: a stamp is never 0, which stands for none.
//!
//! Limits: a page that went to another owner and came back to the first, at the same place, has its old stamp.

use super::label::Kind;

/// Most pages of a buffer that are stamped: those of 64 KiB that begin within a page.
pub const MAX_PAGES: u64 = 17;

/// A buffer, and what its pages were.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamped {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// 0: nobody looked.
    pub stamp: u64,
}

/// The numbers of a buffer's pages; `None`: it is empty, or has too many.
pub(super) fn pages(gpa: u64, len: u32) -> Option<std::ops::RangeInclusive<u64>> {
    let last = gpa.checked_add(u64::from(len).checked_sub(1)?)? >> 12;
    (last - (gpa >> 12) < MAX_PAGES).then_some(gpa >> 12..=last)
}

/// Numbers made one, in their order; and, in the low bits, the kind of page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stamp(u64);

/// The bits of the kind.
const KIND: u64 = 7;
/// By those bits; 0: not known, or several.
const KINDS: [Kind; 5] = [Kind::File, Kind::Anonymous, Kind::Socket, Kind::Slab, Kind::Unknown];

impl Stamp {
    pub(super) fn new(numbers: impl IntoIterator<Item = u64>, kind: Kind) -> Self {
        let bits = KINDS.iter().position(|one| *one == kind).map_or(0, |at| at as u64 + 1);
        Stamp(numbers.into_iter().fold(0, mix) & !KIND | bits)
    }

    /// Another page's, behind.
    pub(super) fn add(&mut self, other: Stamp) {
        let kind = if self.0 == 0 || self.0 & KIND == other.0 & KIND { other.0 & KIND } else { 0 };
        self.0 = mix(self.0, other.0) & !KIND | kind;
    }

    pub(super) fn kind(self) -> Option<Kind> {
        KINDS.get((self.0 & KIND).checked_sub(1)? as usize).copied()
    }
}

impl From<u64> for Stamp {
    fn from(number: u64) -> Self {
        Stamp(number)
    }
}

/// Never 0.
impl From<Stamp> for u64 {
    fn from(stamp: Stamp) -> Self {
        if stamp.0 == 0 { KIND + 1 } else { stamp.0 }
    }
}

/// The finaliser of splitmix64: every bit of the number reaches every bit of what comes out.
fn mix(so_far: u64, number: u64) -> u64 {
    let mut mixed = (so_far.rotate_left(23) ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
