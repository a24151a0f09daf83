//! The Internet checksum, for frames whose receiver must not be left with a partial one. RFC 1071.

/// Adds `bytes` to a running sum of 16-bit words, as if they began at an even offset.
#[must_use]
pub fn add(sum: u64, bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<8>();
    // Eight bytes at once: a one's complement sum may be folded at any width.
    let mut sum = words.iter().fold(u128::from(sum), |sum, word| sum + u128::from(u64::from_be_bytes(*word)));
    let mut last = [0; 8];
    for (to, from) in last.iter_mut().zip(tail) {
        *to = *from;
    }
    sum += u128::from(u64::from_be_bytes(last));
    let folded = (sum & u128::from(u32::MAX)) + (sum >> 32 & u128::from(u32::MAX)) + (sum >> 64);
    // Three 32-bit parts at most: far below 64 bits.
    folded as u64
}

/// The checksum of what was added up.
#[must_use]
pub fn finish(sum: u64) -> u16 {
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The checksum of `bytes`.
#[must_use]
pub fn of(bytes: &[u8]) -> u16 {
    finish(add(0, bytes))
}

/// Completes a partial checksum: sums `frame` from `start` on, the pseudo header's sum that stands at `start + offset`
/// included, and puts the result there. `false` if that is not within the frame.
#[must_use]
pub fn complete(frame: &mut [u8], start: u16, offset: u16) -> bool {
    let Some(body) = frame.get_mut(usize::from(start)..) else { return false };
    let sum = of(body);
    let Some(field) = body.get_mut(usize::from(offset)..).and_then(<[u8]>::first_chunk_mut::<2>) else { return false };
    // UDP sends 0 as all ones (RFC 768); for TCP both mean the same.
    *field = if sum == 0 { [0xff; 2] } else { sum.to_be_bytes() };
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn by_the_book(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from);
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn rfc_1071_example() {
        assert_eq!(of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(bytes in proptest::collection::vec(any::<u8>(), 0..4000)) {
            prop_assert_eq!(of(&bytes), by_the_book(&bytes));
        }

        #[test]
        fn a_completed_checksum_makes_pseudo_header_and_body_sum_to_zero(
            pseudo in proptest::collection::vec(any::<u8>(), 40),
            mut frame in proptest::collection::vec(any::<u8>(), 60..400),
            start in 0_u16..20,
            offset in (0_u16..9).prop_map(|half| half * 2),
        ) {
            // The driver leaves the pseudo header's folded sum in the field.
            let field = usize::from(start + offset);
            frame[field..field + 2].copy_from_slice(&(!of(&pseudo)).to_be_bytes());
            prop_assert!(complete(&mut frame, start, offset));
            let whole = add(add(0, &pseudo), &frame[usize::from(start)..]);
            prop_assert_eq!(finish(whole), 0);
        }
    }

    #[test]
    fn a_field_beyond_the_frame_is_refused() {
        assert!(!complete(&mut [0; 20], 20, 0));
        assert!(!complete(&mut [0; 20], 10, 9));
        assert!(!complete(&mut [0; 20], 30, 0));
        assert!(complete(&mut [0; 20], 10, 8));
    }
}
