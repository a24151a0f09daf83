//! A frame's bytes in guest memory, copied out bit by bit.

use crate::memory::GuestSlice;

/// See the module.
pub(super) struct Payload<'m, I> {
    slices: I,
    here: Option<GuestSlice<'m>>,
}

impl<'m, I: Iterator<Item = GuestSlice<'m>>> Payload<'m, I> {
    /// Without the first `skip` bytes.
    pub(super) fn new(mut slices: I, skip: usize) -> Self {
        let mut skip = skip;
        let mut here = slices.next();
        while let Some(slice) = here.filter(|slice| slice.len() <= skip) {
            skip -= slice.len();
            here = slices.next();
        }
        Payload { slices, here: here.map(|slice| slice.advanced(skip)) }
    }

    /// Fills `out` with what comes next.
    pub(super) fn copy_to(&mut self, mut out: &mut [u8]) {
        while let Some(slice) = self.here.filter(|_| !out.is_empty()) {
            let count = slice.copy_to(out);
            out = out.get_mut(count..).unwrap_or_default();
            let rest = slice.advanced(count);
            self.here = if rest.is_empty() { self.slices.next() } else { Some(rest) };
        }
    }
}
