//! A guest's memory, some of which was read beforehand: much in one call, where each read is one.

use std::io;

use crate::introspect::{GuestPhysical, Piece};

/// Reads by what was fetched where it can, else as they come.
#[derive(Debug)]
pub(crate) struct Fetched<'r, M> {
    ram: &'r M,
    /// By address.
    pieces: Vec<Piece>,
}

impl<'r, M: GuestPhysical> Fetched<'r, M> {
    /// Nothing yet.
    pub(crate) fn new(ram: &'r M) -> Self {
        Fetched { ram, pieces: Vec::new() }
    }

    /// Fetches these, address and bytes, in this order; what is no memory is not there.
    pub(crate) fn fetch(&mut self, wanted: impl IntoIterator<Item = (u64, usize)>) {
        let first = self.pieces.len();
        self.pieces.extend(wanted.into_iter().map(|(gpa, len)| Piece::new(gpa, len)));
        if let Some(new) = self.pieces.get_mut(first..) {
            self.ram.gather(new);
        }
        self.pieces.retain(|piece| piece.there);
        // Stable: of two at the same address the later one counts.
        self.pieces.sort_by_key(|piece| piece.gpa);
    }

    fn find(&self, gpa: u64, len: usize) -> Option<&[u8]> {
        let at = self.pieces.partition_point(|piece| piece.gpa <= gpa).checked_sub(1)?;
        let piece = self.pieces.get(at)?;
        let within = usize::try_from(gpa - piece.gpa).ok()?;
        piece.bytes.get(within..within.checked_add(len)?)
    }
}

impl<M: GuestPhysical> GuestPhysical for Fetched<'_, M> {
    fn copy(&self, gpa: u64, out: &mut [u8]) -> Option<()> {
        match self.find(gpa, out.len()) {
            Some(bytes) => out.copy_from_slice(bytes),
            None => self.ram.copy(gpa, out)?,
        }
        Some(())
    }

    fn words(&self, gpa: u64, out: &mut [u64]) -> Option<()> {
        let Some(bytes) = self.find(gpa, 8 * out.len()) else { return self.ram.words(gpa, out) };
        let (words, _) = bytes.as_chunks();
        out.iter_mut().zip(words).for_each(|(word, bytes)| *word = u64::from_le_bytes(*bytes));
        gpa.is_multiple_of(8).then_some(())
    }

    fn has(&self, gpa: u64) -> bool {
        self.ram.has(gpa)
    }

    fn existing(&self, tell: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        self.ram.existing(tell)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ram::Ram;
    use super::*;
    use crate::memory::testing::GuestRam;

    #[test]
    fn what_was_fetched_stays_as_it_was_and_all_else_is_read_as_it_comes() {
        let ram = GuestRam::new(1 << 20).unwrap();
        ram.write(0x1000, &[1; 64]).unwrap();
        let seen = Ram::of_file(ram.fd().try_clone_to_owned().unwrap().into(), 1 << 20);
        let mut fetched = Fetched::new(&seen);
        // The second is no memory, the third lies within the first.
        fetched.fetch([(0x1000, 32), (1 << 20, 8), (0x1010, 8), (u64::MAX - 3, 8)]);
        ram.write(0x1000, &[2; 64]).unwrap();
        let word = |gpa| fetched.word(gpa);
        assert_eq!([0x1000, 0x1010, 0x1020].map(word), [1, 1, 2].map(|byte| Some(byte * 0x0101_0101_0101_0101)));
        assert_eq!([word(0x1001), word(1 << 20), word(u64::MAX - 7)], [None; 3]);
        let (mut bytes, mut words) = ([0; 16], [0; 2]);
        fetched.copy(0x1018, &mut bytes).unwrap();
        assert_eq!(bytes, [2; 16], "what goes beyond a piece is read anew");
        fetched.words(0x1000, &mut words).unwrap();
        assert_eq!(words, [0x0101_0101_0101_0101; 2]);
        assert_eq!(fetched.words(0x1004, &mut words), None);
    }
}
