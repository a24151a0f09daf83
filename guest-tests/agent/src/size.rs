//! Sizes as people write them.

/// Parses `4096`, `64K`, `16M`, `1G`; K, M and G are powers of 1024.
///
/// # Errors
/// One sentence saying what is not a size.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.trim_end_matches(['B', 'b']).trim_end_matches("i") {
        "" => return Err("an empty size".to_owned()),
        text => match text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8)) {
            (number, "K" | "k") => (number, 1 << 10),
            (number, "M" | "m") => (number, 1 << 20),
            (number, "G" | "g") => (number, 1 << 30),
            _ => (text, 1_u64),
        },
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no size: write 4096, 64K, 16M or 1G"))?;
    number.checked_mul(unit).ok_or_else(|| format!("{text:?} is more than 2^64 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("4096", 4096),
            ("64K", 65536),
            ("16M", 16 << 20),
            ("16MiB", 16 << 20),
            ("1g", 1 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_so() {
        for text in ["", "B", "M", "-1", "1.5M", "16X", "99999999999G", "é"] {
            assert!(parse_size(text).is_err(), "{text:?}");
        }
    }
}
