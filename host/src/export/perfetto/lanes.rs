//! Places for slices that overlap: of one track, slices must lie within each other (Perfetto's "async" slices have one each).

/// The lanes of one ring. Slices come in the order of their ends.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// Where the last slice of each ends.
    ends: Vec<u64>,
}

impl Lanes {
    /// The number of a lane in which nothing lies between these times, both included: which of two packets of one time comes first is
    /// not said.
    pub(super) fn place(&mut self, begin: u64, end: u64) -> usize {
        let free = self.ends.iter().position(|last| *last < begin);
        let at = free.unwrap_or(self.ends.len());
        match self.ends.get_mut(at) {
            Some(last) => *last = end,
            None => self.ends.push(end),
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_has_lanes_of_its_own_and_what_does_not_shares_them() {
        let mut lanes = Lanes::default();
        let places: Vec<usize> =
            [(0, 10), (11, 20), (5, 25), (20, 26), (26, 27)].map(|(begin, end)| lanes.place(begin, end)).into();
        assert_eq!(places, [0, 0, 1, 2, 0]);
    }
}
