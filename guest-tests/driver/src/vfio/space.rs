//! Which I/O virtual addresses are free: the program chooses them, inside the ranges that the IOMMU has.

use super::VfioFault;

/// Maps start at multiples of this, bytes.
pub const PAGE: u64 = 4096;

/// The addresses of a container.
#[derive(Debug)]
pub struct Space {
    /// First and last address of each usable range, rising.
    ranges: Vec<(u64, u64)>,
    /// Start and length of what is taken, rising.
    taken: Vec<(u64, u64)>,
}

impl Space {
    /// All of these ranges (first and last address) are free.
    #[must_use]
    pub fn new(mut ranges: Vec<(u64, u64)>) -> Self {
        ranges.sort_unstable();
        Space { ranges, taken: Vec::new() }
    }

    /// Takes the lowest free addresses for `len` bytes, in whole pages. Page 0 is left out, an address of 0 being nearly
    /// always a mistake, and so is a page behind each map: what runs over its end faults.
    ///
    /// # Errors
    /// There are none.
    pub fn take(&mut self, len: u64) -> Result<u64, VfioFault> {
        let full = || VfioFault::NoSpace { len, ranges: self.describe() };
        let len = len.max(1).checked_next_multiple_of(PAGE).ok_or_else(full)?;
        for &(first, last) in &self.ranges {
            let mut at = first.max(PAGE).next_multiple_of(PAGE);
            for &(start, taken) in &self.taken {
                if start >= at && start - at >= len.saturating_add(PAGE) {
                    break;
                }
                at = at.max(start.saturating_add(taken));
            }
            if at <= last && last - at >= len - 1 {
                let place = self.taken.partition_point(|(start, _)| *start < at);
                self.taken.insert(place, (at, len.saturating_add(PAGE)));
                return Ok(at);
            }
        }
        Err(full())
    }

    /// The addresses from `at` on, which [`Space::take`] gave, are free again.
    pub fn give_back(&mut self, at: u64) {
        self.taken.retain(|(start, _)| *start != at);
    }

    fn describe(&self) -> String {
        let ranges: Vec<String> = self.ranges.iter().map(|(first, last)| format!("{first:#x}-{last:#x}")).collect();
        ranges.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_pages_apart_and_come_back() {
        let mut space = Space::new(vec![(0, 0xffff)]);
        let first = space.take(1).expect("room");
        let second = space.take(4097).expect("room");
        assert_eq!((first, second), (0x1000, 0x3000), "page 0 is left out, and a page behind each");
        space.give_back(first);
        assert_eq!(space.take(4096).expect("room"), first);
        assert_eq!(space.take(4096).expect("room"), 0x6000);
    }

    #[test]
    fn what_does_not_fit_in_one_range_goes_to_the_next_or_nowhere() {
        let mut space = Space::new(vec![(0x10_0000, 0x1f_ffff), (0, 0x2fff)]);
        assert_eq!(space.take(0x4000).expect("room"), 0x10_0000);
        assert_eq!(space.take(0x2000).expect("room"), 0x1000);
        let error = space.take(1 << 20).expect_err("full").to_string();
        assert!(error.contains("0x100000-0x1fffff"), "{error}");
        assert!(space.take(u64::MAX).is_err());
    }

    #[test]
    fn the_last_page_of_a_range_can_be_used() {
        let mut space = Space::new(vec![(0x1000, 0x1fff)]);
        assert_eq!(space.take(4096).expect("room"), 0x1000);
        assert!(space.take(1).is_err());
    }
}
