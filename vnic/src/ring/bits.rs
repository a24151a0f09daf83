//! A set of ring slots, one bit each.

/// Which of `size` slots are set, and how many.
#[derive(Debug)]
pub(super) struct Bits {
    words: Box<[u64]>,
    size: u16,
    count: u16,
}

impl Bits {
    /// No slot of `size` set.
    pub(super) fn new(size: u16) -> Self {
        Bits { words: vec![0; usize::from(size).div_ceil(64)].into_boxed_slice(), size, count: 0 }
    }

    /// Is `slot` set? `None`: there is no such slot.
    #[inline]
    pub(super) fn get(&self, slot: u16) -> Option<bool> {
        if slot >= self.size {
            return None;
        }
        self.words.get(usize::from(slot >> 6)).map(|word| word >> (slot & 63) & 1 == 1)
    }

    /// Sets `slot`. Returns whether it was clear, and a slot at all.
    #[inline]
    pub(super) fn set(&mut self, slot: u16) -> bool {
        let was = self.get(slot);
        if was == Some(false)
            && let Some(word) = self.words.get_mut(usize::from(slot >> 6))
        {
            *word |= 1 << (slot & 63);
            self.count += 1;
        }
        was == Some(false)
    }

    /// Clears `slot`. Returns whether it was set.
    #[inline]
    pub(super) fn clear(&mut self, slot: u16) -> bool {
        let was = self.get(slot);
        if was == Some(true)
            && let Some(word) = self.words.get_mut(usize::from(slot >> 6))
        {
            *word &= !(1 << (slot & 63));
            self.count -= 1;
        }
        was == Some(true)
    }

    /// How many are set.
    #[inline]
    pub(super) fn count(&self) -> u16 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_set_once_and_cleared_once() {
        let mut bits = Bits::new(100);
        assert!(bits.set(99) && !bits.set(99));
        assert_eq!((bits.get(99), bits.get(98), bits.get(100), bits.count()), (Some(true), Some(false), None, 1));
        assert!(bits.clear(99) && !bits.clear(99) && !bits.clear(100));
        assert_eq!(bits.count(), 0);
    }

    #[test]
    fn the_largest_ring_has_every_slot() {
        let mut bits = Bits::new(32768);
        assert!((0..32768).all(|slot| bits.set(slot)));
        assert_eq!(bits.count(), 32768);
        assert!(!bits.set(32768));
    }
}
