//! Which heads the device has.
//!
//! A head is out from the moment it is taken to the moment its return is published; a driver that makes it available
//! before that is broken. Most heads are taken and returned within a burst: those are marked with the burst's number,
//! which forgets them all at once.

/// A mark of a chain that was kept beyond the look at it.
const RETAINED: u32 = u32::MAX;

/// The heads of one ring. A word each, not a bit: neighbouring heads change in quick succession, and a chain of loads
/// and stores of the same word is what the data path would wait for.
#[derive(Debug)]
pub(super) struct Heads {
    /// 0: never taken; [`RETAINED`]: with the device; else the burst it was last taken in.
    marks: Box<[u32]>,
    /// This burst: every head marked with it, or with more, is out.
    burst: u32,
    retained: u16,
}

/// A head cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The ring has no such head.
    Unknown,
    /// The device has it already.
    Out,
}

impl Heads {
    /// Of `count` heads none is out.
    pub(super) fn new(count: usize) -> Self {
        Heads { marks: vec![0; count].into_boxed_slice(), burst: 1, retained: 0 }
    }

    /// Takes `head` for the rest of this burst.
    #[inline(always)]
    pub(super) fn take(&mut self, head: u16) -> Result<(), Refused> {
        let Some(mark) = self.marks.get_mut(usize::from(head)) else { return Err(Refused::Unknown) };
        if *mark >= self.burst {
            return Err(Refused::Out);
        }
        *mark = self.burst;
        Ok(())
    }

    /// A head that was taken stays out beyond this burst.
    #[inline]
    pub(super) fn retain(&mut self, head: u16) {
        if let Some(mark) = self.marks.get_mut(usize::from(head)) {
            *mark = RETAINED;
            self.retained += 1;
        }
    }

    /// A retained head is returned in this burst. False: it is not retained.
    #[inline]
    pub(super) fn release(&mut self, head: u16) -> bool {
        self.end_retention(head, self.burst)
    }

    /// A retained head stays available: it was never taken.
    pub(super) fn cancel_retained(&mut self, head: u16) -> bool {
        self.end_retention(head, 0)
    }

    /// A head that was taken stays available.
    pub(super) fn cancel(&mut self, head: u16) {
        if let Some(mark) = self.marks.get_mut(usize::from(head)) {
            *mark = 0;
        }
    }

    /// Heads that were taken stay available.
    pub(super) fn cancel_all(&mut self, heads: &[u16]) {
        heads.iter().for_each(|head| self.cancel(*head));
    }

    #[inline]
    fn end_retention(&mut self, head: u16, to: u32) -> bool {
        let Some(mark) = self.marks.get_mut(usize::from(head)).filter(|mark| **mark == RETAINED) else { return false };
        *mark = to;
        self.retained -= 1;
        true
    }

    /// What was returned is published: those heads are the driver's again.
    #[inline]
    pub(super) fn next_burst(&mut self) {
        self.burst += 1;
        if self.burst == RETAINED {
            self.start_over();
        }
    }

    #[cold]
    fn start_over(&mut self) {
        self.marks.iter_mut().filter(|mark| **mark != RETAINED).for_each(|mark| *mark = 0);
        self.burst = 1;
    }

    /// Heads that are retained.
    pub(super) fn retained(&self) -> u16 {
        self.retained
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_taken_once_until_its_return_is_published() {
        let mut heads = Heads::new(100);
        assert_eq!([heads.take(99), heads.take(99)], [Ok(()), Err(Refused::Out)]);
        assert_eq!([heads.take(100), heads.take(65535)], [Err(Refused::Unknown); 2]);
        heads.next_burst();
        assert_eq!(heads.take(99), Ok(()));
    }

    #[test]
    fn a_retained_head_is_returned_once_in_whatever_burst() {
        let mut heads = Heads::new(100);
        heads.take(7).unwrap();
        heads.retain(7);
        heads.next_burst();
        assert_eq!((heads.take(7), heads.retained()), (Err(Refused::Out), 1));
        assert_eq!([7, 7, 8, 100].map(|head| heads.release(head)), [true, false, false, false]);
        assert_eq!((heads.take(7), heads.retained()), (Err(Refused::Out), 0));
        heads.next_burst();
        assert_eq!(heads.take(7), Ok(()));
    }

    #[test]
    fn what_was_not_used_can_be_taken_again_at_once() {
        let mut heads = Heads::new(100);
        heads.take(1).unwrap();
        heads.cancel(1);
        heads.take(1).unwrap();
        heads.retain(1);
        assert!(heads.cancel_retained(1) && !heads.cancel_retained(1));
        assert_eq!(heads.take(1), Ok(()));
    }

    #[test]
    fn bursts_that_start_over_forget_nothing_that_is_retained() {
        let mut heads = Heads::new(3);
        heads.burst = RETAINED - 1;
        heads.take(0).unwrap();
        heads.take(1).unwrap();
        heads.retain(1);
        heads.next_burst();
        assert_eq!([heads.take(0), heads.take(1), heads.take(2)], [Ok(()), Err(Refused::Out), Ok(())]);
    }
}
