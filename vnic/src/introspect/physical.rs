//! The guest's physical memory, as introspection needs it: a few reads, whoever holds the memory.

use std::io;

use crate::memory::Onlooker;

/// Bytes that are wanted, and whether they were there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub gpa: u64,
    /// As many as are wanted.
    pub bytes: Vec<u8>,
    /// Are they what stood there?
    pub there: bool,
}

impl Piece {
    /// So many bytes from there on, not read yet.
    #[must_use]
    pub fn new(gpa: u64, len: usize) -> Self {
        Piece { gpa, bytes: vec![0; len], there: false }
    }
}

/// Memory by guest-physical address, to look at: nothing here writes, and no read makes a page exist.
pub trait GuestPhysical {
    /// The aligned eight bytes at `gpa`, each read once. `None`: there is no memory, or `gpa` is not aligned.
    fn word(&self, gpa: u64) -> Option<u64> {
        if !gpa.is_multiple_of(8) {
            return None;
        }
        let mut word = [0; 8];
        self.copy(gpa, &mut word)?;
        Some(u64::from_le_bytes(word))
    }

    /// Copies the bytes at `gpa`. `None`: part of it is no memory.
    fn copy(&self, gpa: u64, out: &mut [u8]) -> Option<()>;

    /// Aligned words from `gpa` on, each read once; in one piece, where each read is a call.
    fn words(&self, gpa: u64, out: &mut [u64]) -> Option<()> {
        for (number, word) in (0..).zip(out) {
            *word = self.word(gpa.checked_add(8 * number)?)?;
        }
        Some(())
    }

    /// The first words of the pages from the one at `gpa` on; of what is no memory, zeroes.
    fn first_words(&self, gpa: u64, out: &mut [[u64; 3]]) {
        for (number, words) in (0..).zip(out) {
            let page = gpa.checked_add(4096 * number);
            if page.and_then(|page| self.words(page, words)).is_none() {
                *words = [0; 3];
            }
        }
    }

    /// Reads pieces in their order, each as [`copy`](GuestPhysical::copy) does; in one call for many, where each read is a call.
    fn gather(&self, pieces: &mut [Piece]) {
        for piece in pieces {
            piece.there = self.copy(piece.gpa, &mut piece.bytes).is_some();
        }
    }

    /// Is each read a call of the host's kernel, so that few large ones are better than many small ones?
    fn reads_are_calls(&self) -> bool {
        false
    }

    /// Is there memory at this address?
    fn has(&self, gpa: u64) -> bool;

    /// Tells from where to where there are pages with content, in rising order.
    ///
    /// # Errors
    /// The host does not say.
    fn existing(&self, tell: &mut dyn FnMut(u64, u64)) -> io::Result<()>;
}

impl GuestPhysical for Onlooker {
    #[inline]
    fn word(&self, gpa: u64) -> Option<u64> {
        Onlooker::word(self, gpa)
    }

    fn copy(&self, gpa: u64, out: &mut [u8]) -> Option<()> {
        Onlooker::copy(self, gpa, out)
    }

    #[inline]
    fn words(&self, gpa: u64, out: &mut [u64]) -> Option<()> {
        Onlooker::words(self, gpa, out)
    }

    fn has(&self, gpa: u64) -> bool {
        Onlooker::has(self, gpa)
    }

    fn existing(&self, tell: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        Onlooker::existing(self, tell)
    }
}

/// An image that begins at guest-physical address 0.
impl GuestPhysical for [u8] {
    fn copy(&self, gpa: u64, out: &mut [u8]) -> Option<()> {
        let at = usize::try_from(gpa).ok()?;
        out.copy_from_slice(self.get(at..at.checked_add(out.len())?)?);
        Some(())
    }

    fn has(&self, gpa: u64) -> bool {
        gpa < self.len() as u64
    }

    fn existing(&self, tell: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        tell(0, self.len() as u64);
        Ok(())
    }
}

impl<M: GuestPhysical + ?Sized, P: std::ops::Deref<Target = M>> GuestPhysical for P {
    #[inline]
    fn word(&self, gpa: u64) -> Option<u64> {
        (**self).word(gpa)
    }

    fn copy(&self, gpa: u64, out: &mut [u8]) -> Option<()> {
        (**self).copy(gpa, out)
    }

    #[inline]
    fn words(&self, gpa: u64, out: &mut [u64]) -> Option<()> {
        (**self).words(gpa, out)
    }

    fn first_words(&self, gpa: u64, out: &mut [[u64; 3]]) {
        (**self).first_words(gpa, out);
    }

    fn gather(&self, pieces: &mut [Piece]) {
        (**self).gather(pieces);
    }

    fn reads_are_calls(&self) -> bool {
        (**self).reads_are_calls()
    }

    fn has(&self, gpa: u64) -> bool {
        (**self).has(gpa)
    }

    fn existing(&self, tell: &mut dyn FnMut(u64, u64)) -> io::Result<()> {
        (**self).existing(tell)
    }
}
