//! A set of ring slots.

/// Which of `size` slots are set. A byte each, not a bit: neighbouring slots change in quick succession, and a chain of
/// loads and stores of the same word is what the data path would wait for.
#[derive(Debug)]
pub(super) struct Slots(Box<[bool]>);

impl Slots {
    /// No slot of `size` set.
    pub(super) fn new(size: usize) -> Self {
        Slots(vec![false; size].into_boxed_slice())
    }

    /// Sets `slot`. Returns whether it was clear; `None`: there is no such slot.
    #[inline]
    pub(super) fn set(&mut self, slot: u16) -> Option<bool> {
        self.0.get_mut(usize::from(slot)).map(|set| !std::mem::replace(set, true))
    }

    /// Clears `slot`. Returns whether it was set.
    #[inline]
    pub(super) fn clear(&mut self, slot: u16) -> bool {
        self.0.get_mut(usize::from(slot)).is_some_and(std::mem::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_set_once_and_cleared_once() {
        let mut slots = Slots::new(100);
        assert_eq!([slots.set(99), slots.set(99)], [Some(true), Some(false)]);
        assert_eq!([slots.set(100), slots.set(65535)], [None, None]);
        assert_eq!([99, 99, 98, 100, 65535].map(|slot| slots.clear(slot)), [true, false, false, false, false]);
    }
}
