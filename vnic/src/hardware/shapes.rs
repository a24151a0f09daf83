//! The shapes of chains: all that an account needs to know of them, whatever the model.
//!
//! Place: a fold. Whoever sees chains adds them to a [`Fold`], which takes all its memory at the beginning and never more; what
//! it came to are [`Shapes`], which a record keeps and every model reads.
//!
//! Invariants: an account of the shapes is the same as one of the chains themselves, in whatever order they came: what it costs
//! to move a piece depends on its length alone, and how many of the pages were remembered by an LRU of N entries is told for
//! every N at once, by the number of other pages that were used since each was used last.
//!
//! Limits: a piece of more than [`LONGEST`] bytes is several, and a chain of more than [`MOST_PIECES`] has that many; how many
//! there were is told. Reuse is followed over [`MOST_ENTRIES`] pages.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

/// The longest piece that is told as one.
pub const LONGEST: u32 = 64 << 10;
/// Most pieces of a chain that are told apart.
pub const MOST_PIECES: usize = 256;
/// The largest translation cache that can be asked about.
pub const MOST_ENTRIES: usize = 256;

const SMALL_PAGE: u32 = 12;
const HUGE_PAGE: u32 = 21;

/// What is known of chains of one direction.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Shapes {
    /// Chains.
    pub chains: u64,
    /// Of them, those in indirect tables.
    pub indirect: u64,
    /// Of them, those of which the card is to make several frames.
    pub segmented: u64,
    /// Frames on the wire.
    pub frames: u64,
    /// Bytes of the pieces.
    pub bytes: u64,
    /// How many pieces have this many bytes.
    #[serde(deserialize_with = "numbers")]
    pub pieces: BTreeMap<u32, u64>,
    /// How many chains have this many pieces.
    #[serde(deserialize_with = "numbers")]
    pub chain_pieces: BTreeMap<u32, u64>,
    /// How many chains have this many pieces in the one of their frames that has most.
    #[serde(deserialize_with = "numbers")]
    pub frame_pieces: BTreeMap<u32, u64>,
    /// Pages of 4 KiB.
    pub pages: Reuse,
    /// Pages of 2 MiB.
    pub huge_pages: Reuse,
    /// Pieces and chains that were too long to be told as they are.
    #[serde(default)]
    pub shortened: u64,
}

/// How pages were used again.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Reuse {
    /// How often a page was used when this many others had been used since it was used last.
    #[serde(deserialize_with = "numbers")]
    pub again: BTreeMap<u32, u64>,
    /// How often it had not been used before, or so long ago that nobody knows.
    pub new: u64,
}

impl Reuse {
    /// Of an LRU of so many entries: hits and misses.
    #[must_use]
    pub fn of_lru(&self, entries: u16) -> (u64, u64) {
        let sum = |remembered: bool| {
            let counts = self.again.iter().filter(|(since, _)| (**since < u32::from(entries)) == remembered);
            counts.fold(0_u64, |sum, (_, count)| sum.saturating_add(*count))
        };
        (sum(true), sum(false).saturating_add(self.new))
    }
}

/// Numbers that are keys are words in JSON. Those who read a part of a document before they know what it is (a reply with its
/// name in it) have them as words still.
fn numbers<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<u32, u64>, D::Error> {
    let words: BTreeMap<String, u64> = BTreeMap::deserialize(from)?;
    let number = |(word, count): (String, u64)| Some((word.parse().ok()?, count));
    words.into_iter().map(|each| number(each).ok_or_else(|| D::Error::custom("a key is no number"))).collect()
}

/// A chain as the card has to move it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kind {
    /// Its descriptors lie in an indirect table.
    pub indirect: bool,
    /// The card is to make frames of it that have this much payload each; 0: it is one frame.
    pub segment: u16,
    /// Bytes in front of each frame's payload.
    pub headers: u32,
}

impl Kind {
    /// How many frames the card makes of a chain with so many bytes.
    pub(super) fn frames(self, bytes: u64) -> u64 {
        let payload = bytes.saturating_sub(self.headers.into());
        if self.segment == 0 { 1 } else { payload.div_ceil(self.segment.into()).max(1) }
    }
}

/// Pages, the one that was used last first. Their numbers are cut to 32 bits, which is enough for guests of 16 TiB: so that
/// many are compared at a time.
#[derive(Debug)]
pub(super) struct Recent {
    shift: u32,
    pages: Vec<u32>,
}

impl Recent {
    pub(super) fn small() -> Self {
        Recent { shift: SMALL_PAGE, pages: Vec::with_capacity(MOST_ENTRIES) }
    }

    pub(super) fn huge() -> Self {
        Recent { shift: HUGE_PAGE, ..Recent::small() }
    }

    /// A page is used. Returns how many others have been since it was used last; `None`: nobody knows.
    fn touch(&mut self, page: u32) -> Option<usize> {
        if self.pages.first() == Some(&page) {
            return Some(0);
        }
        let since = position(&self.pages, page);
        match since {
            Some(since) => {
                self.pages.copy_within(..since, 1);
            }
            None if self.pages.len() == MOST_ENTRIES => self.pages.copy_within(..MOST_ENTRIES - 1, 1),
            None => self.pages.insert(0, page),
        }
        if let Some(first) = self.pages.first_mut() {
            *first = page;
        }
        since
    }

    /// A piece is moved from its first byte to its last.
    pub(super) fn walk(&mut self, gpa: u64, len: u32, mut used: impl FnMut(Option<usize>)) {
        let first = gpa >> self.shift;
        let last = gpa.saturating_add(u64::from(len.max(1)) - 1) >> self.shift;
        (first..=last).for_each(|page| used(self.touch(page as u32)));
    }
}

/// Where it is: in blocks first, which are compared as a whole.
fn position(pages: &[u32], page: u32) -> Option<usize> {
    const BLOCK: usize = 32;
    let blocks = pages.chunks(BLOCK);
    let found = |block: &[u32]| block.iter().fold(false, |any, known| any | (*known == page));
    let (at, block) = blocks.enumerate().find(|(_, block)| found(block))?;
    Some(at * BLOCK + block.iter().position(|known| *known == page)?)
}

/// How the pages of one size were used again.
#[derive(Debug)]
struct Reused {
    recent: Recent,
    again: Box<[u64]>,
    new: u64,
}

impl Reused {
    fn new(recent: Recent) -> Self {
        Reused { recent, again: vec![0; MOST_ENTRIES].into(), new: 0 }
    }

    fn walk(&mut self, gpa: u64, len: u32) {
        let Reused { recent, again, new } = self;
        recent.walk(gpa, len, |since| match since.and_then(|since| again.get_mut(since)) {
            Some(count) => *count += 1,
            None => *new += 1,
        });
    }

    fn reuse(&self) -> Reuse {
        Reuse { again: counted(&self.again), new: self.new }
    }
}

/// Sums up chains. See the [module](self).
#[derive(Debug)]
pub struct Fold {
    sums: Shapes,
    pieces: Box<[u64]>,
    chain_pieces: Box<[u64]>,
    frame_pieces: Box<[u64]>,
    pages: Reused,
    huge_pages: Reused,
}

impl Default for Fold {
    fn default() -> Self {
        let room = |most: usize| vec![0; most + 1].into_boxed_slice();
        Fold {
            sums: Shapes::default(),
            // Touched only where there are pieces of that length.
            pieces: room(LONGEST as usize),
            chain_pieces: room(MOST_PIECES),
            frame_pieces: room(MOST_PIECES),
            pages: Reused::new(Recent::small()),
            huge_pages: Reused::new(Recent::huge()),
        }
    }
}

impl Fold {
    /// A chain went by. `pieces` are those of its frame, guest-physical address and length; what a virtual card has in front of
    /// the frame, a card of hardware does not read.
    pub fn add(&mut self, kind: Kind, pieces: impl Iterator<Item = (u64, u64)>) {
        let mut chain = ChainFold::new(kind);
        for (gpa, len) in pieces {
            let (mut gpa, mut left) = (gpa, len);
            while left > 0 {
                let len = left.min(LONGEST.into()) as u32;
                self.pages.walk(gpa, len);
                self.huge_pages.walk(gpa, len);
                if let Some(count) = self.pieces.get_mut(len as usize) {
                    *count += 1;
                }
                chain.add(len);
                self.sums.shortened += u64::from(u64::from(len) < left);
                (gpa, left) = (gpa.saturating_add(len.into()), left - u64::from(len));
            }
        }
        self.sums.chains += 1;
        self.sums.indirect += u64::from(kind.indirect);
        self.sums.segmented += u64::from(kind.segment > 0);
        self.sums.bytes += chain.bytes;
        self.sums.frames += kind.frames(chain.bytes);
        for (counts, pieces) in [(&mut self.chain_pieces, chain.pieces), (&mut self.frame_pieces, chain.most)] {
            let at = usize::try_from(pieces).unwrap_or(usize::MAX);
            self.sums.shortened += u64::from(at > MOST_PIECES);
            if let Some(count) = counts.get_mut(at.min(MOST_PIECES)) {
                *count += 1;
            }
        }
    }

    /// What they came to.
    #[must_use]
    pub fn shapes(&self) -> Shapes {
        Shapes {
            pieces: counted(&self.pieces),
            chain_pieces: counted(&self.chain_pieces),
            frame_pieces: counted(&self.frame_pieces),
            pages: self.pages.reuse(),
            huge_pages: self.huge_pages.reuse(),
            ..self.sums.clone()
        }
    }
}

impl Shapes {
    /// Those of two workers, each with a part of the chains.
    #[must_use]
    pub fn plus(mut self, other: &Shapes) -> Self {
        let add = |mine: &mut BTreeMap<u32, u64>, theirs: &BTreeMap<u32, u64>| {
            theirs.iter().for_each(|(key, count)| *mine.entry(*key).or_default() += count);
        };
        for (mine, theirs) in [
            (&mut self.pieces, &other.pieces),
            (&mut self.chain_pieces, &other.chain_pieces),
            (&mut self.frame_pieces, &other.frame_pieces),
            (&mut self.pages.again, &other.pages.again),
            (&mut self.huge_pages.again, &other.huge_pages.again),
        ] {
            add(mine, theirs);
        }
        self.chains += other.chains;
        self.indirect += other.indirect;
        self.segmented += other.segmented;
        self.frames += other.frames;
        self.bytes += other.bytes;
        self.pages.new += other.pages.new;
        self.huge_pages.new += other.huge_pages.new;
        self.shortened += other.shortened;
        self
    }

    /// Pieces in all.
    #[must_use]
    pub fn piece_count(&self) -> u64 {
        self.pieces.values().fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// A chain while its pieces come.
struct ChainFold {
    kind: Kind,
    bytes: u64,
    pieces: u64,
    /// Pieces of the frame that is being filled, the headers' included, and the most that any has had.
    here: u64,
    most: u64,
    /// Payload bytes that the frame still lacks.
    room: u64,
}

impl ChainFold {
    fn new(kind: Kind) -> Self {
        let room = if kind.segment > 0 { u64::from(kind.headers) + u64::from(kind.segment) } else { u64::MAX };
        ChainFold { kind, bytes: 0, pieces: 0, here: 0, most: 0, room }
    }

    fn add(&mut self, len: u32) {
        self.bytes += u64::from(len);
        self.pieces += 1;
        self.here += 1;
        self.most = self.most.max(self.here);
        let mut left = u64::from(len);
        while left > 0 && left >= self.room {
            left -= self.room;
            // The headers, and what is left of this piece.
            self.here = if left > 0 { 2 } else { 1 };
            self.most = self.most.max(self.here);
            self.room = self.kind.segment.into();
        }
        self.room -= left;
    }
}

fn counted(counts: &[u64]) -> BTreeMap<u32, u64> {
    (0..).zip(counts).filter(|(_, count)| **count > 0).map(|(at, count)| (at, *count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fold(chains: &[(Kind, &[(u64, u64)])]) -> Shapes {
        let mut fold = Fold::default();
        chains.iter().for_each(|(kind, pieces)| fold.add(*kind, pieces.iter().copied()));
        fold.shapes()
    }

    #[test]
    fn pieces_are_counted_by_length_and_chains_by_pieces() {
        let one = Kind::default();
        let shapes = fold(&[
            (one, &[(0x1000, 66), (0x5000, 4096)]),
            (one, &[(0x9000, 66)]),
            (one, &[(0, 0), (0x20000, 70_000)]),
        ]);
        assert_eq!(shapes.pieces, BTreeMap::from([(66, 2), (4096, 1), (4464, 1), (65536, 1)]));
        assert_eq!(shapes.chain_pieces, BTreeMap::from([(1, 1), (2, 2)]));
        assert_eq!((shapes.chains, shapes.bytes, shapes.shortened, shapes.frames), (3, 74_228, 1, 3));
    }

    #[test]
    fn an_lru_of_every_size_is_told_at_once() {
        // Pages a b a c b a, checked against an LRU that is played through.
        let pages = [1_u64, 2, 1, 3, 2, 1, 1, 4, 3];
        let pieces: Vec<(u64, u64)> = pages.iter().map(|page| (page << 12, 64)).collect();
        let reuse = fold(&[(Kind::default(), &pieces)]).pages;
        for entries in 1..6 {
            let (mut lru, mut hits): (Vec<u64>, u64) = (Vec::new(), 0);
            for page in pages {
                hits += u64::from(lru.contains(&page));
                lru.retain(|known| *known != page);
                lru.insert(0, page);
                lru.truncate(entries);
            }
            assert_eq!(reuse.of_lru(entries as u16), (hits, pages.len() as u64 - hits), "{entries} entries");
        }
    }

    #[test]
    fn a_piece_is_looked_up_page_by_page_and_in_huge_ones_once() {
        let shapes = fold(&[(Kind::default(), &[(0x0ff0, 0x2020), (0x2100, 16)])]);
        assert_eq!(shapes.pages.of_lru(64), (1, 4), "pages 0 to 3, and 2 again");
        assert_eq!(shapes.huge_pages.of_lru(64), (1, 1));
    }

    #[test]
    fn what_is_used_again_after_too_many_others_is_new() {
        let mut fold = Fold::default();
        for page in (0..=MOST_ENTRIES as u64).chain([0, MOST_ENTRIES as u64]) {
            fold.add(Kind::default(), [(page << 12, 64)].into_iter());
        }
        let (hits, misses) = fold.shapes().pages.of_lru(u16::MAX);
        assert_eq!((hits, misses), (1, MOST_ENTRIES as u64 + 2));
    }

    #[test]
    fn of_a_segmented_chain_the_frame_with_most_pieces_counts() {
        let kind = Kind { segment: 1448, headers: 66, indirect: true };
        // Headers, then pages: a frame has the headers and parts of two pages, at most.
        let whole: Vec<(u64, u64)> = [(0, 66)].into_iter().chain((1..5).map(|page| (page << 12, 4096))).collect();
        // Headers, then crumbs of 100 bytes: parts of 15 to a frame.
        let crumbs: Vec<(u64, u64)> = [(0, 66)].into_iter().chain((1..40).map(|page| (page << 12, 100))).collect();
        let shapes = fold(&[(kind, &whole), (kind, &crumbs)]);
        assert_eq!(shapes.frame_pieces, BTreeMap::from([(3, 1), (16, 1)]));
        assert_eq!((shapes.segmented, shapes.indirect, shapes.frames), (2, 2, 12 + 3));
    }
}
