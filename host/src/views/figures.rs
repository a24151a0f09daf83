//! Figures for people.

/// A size with a binary unit: `16.0 MiB`, `78 B`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    // 1023.95 would be printed as 1024.0.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A time, the longer the less exact: `1.5 s`, `2 min 5 s`, `3 d 4 h`.
pub(crate) fn seconds(seconds: f64) -> String {
    let whole = seconds as u64;
    let (larger, smaller) = (["d", "h", "min"], ["h", "min", "s"]);
    let sizes: [(u64, u64); 3] = [(86_400, 3600), (3600, 60), (60, 1)];
    for (at, (large, small)) in sizes.iter().enumerate() {
        if whole >= *large {
            return format!("{} {} {} {}", whole / large, larger[at], whole % large / small, smaller[at]);
        }
    }
    format!("{seconds:.1} s")
}

/// A count with its thousands apart: `16 777 216`.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A share: `99.9 %`. Rounded towards the middle, so that only all is 100.0 and only nothing is 0.0.
pub(crate) fn percent(part: u64, whole: u64) -> Option<String> {
    if whole == 0 {
        return None;
    }
    let tenths = (u128::from(part) * 1000 + u128::from(whole) / 2) / u128::from(whole);
    let tenths = match tenths {
        0 if part > 0 => 1,
        1000 if part < whole => 999,
        exact => exact,
    };
    Some(format!("{}.{} %", tenths / 10, tenths % 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_two_units_at_most() {
        for (time, text) in [(0.0, "0.0 s"), (59.94, "59.9 s"), (125.9, "2 min 5 s"), (7380.0, "2 h 3 min")] {
            assert_eq!(seconds(time), text);
        }
        assert_eq!(seconds(3.0 * 86_400.0 + 4.5 * 3600.0), "3 d 4 h");
    }

    #[test]
    fn sizes_keep_one_decimal_and_the_right_unit() {
        for (size, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (16 << 20, "16.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(bytes(size), text);
        }
    }

    #[test]
    fn thousands_stand_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1 000"), (16_777_216, "16 777 216")] {
            assert_eq!(count(number), text);
        }
    }

    #[test]
    fn only_all_is_a_hundred_percent_and_only_nothing_is_zero() {
        assert_eq!(percent(10, 10).unwrap(), "100.0 %");
        assert_eq!(percent(99_999, 100_000).unwrap(), "99.9 %");
        assert_eq!(percent(1, 100_000).unwrap(), "0.1 %");
        assert_eq!(percent(0, 10).unwrap(), "0.0 %");
        assert_eq!(percent(1, 3).unwrap(), "33.3 %");
        assert_eq!(percent(u64::MAX, u64::MAX).unwrap(), "100.0 %");
        assert_eq!(percent(0, 0), None);
    }
}
