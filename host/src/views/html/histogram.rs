//! How long the pieces are that the NIC was given: many pages of 4 KiB, or fewer and longer copies.

use std::collections::BTreeMap;

use maud::{Markup, html};

use super::super::figures;

/// Up to so many bytes each; the last takes all that are longer.
const UP_TO: [(u32, &str); 9] = [
    (128, "128"),
    (512, "512"),
    (1024, "1 KiB"),
    (2048, "2 KiB"),
    (4095, "<4 KiB"),
    (4096, "4 KiB"),
    (16_384, "16 KiB"),
    (32_768, "32 KiB"),
    (u32::MAX, "more"),
];

/// How many pieces are in each class.
fn classes(pieces: &BTreeMap<u32, u64>) -> [u64; UP_TO.len()] {
    let mut counts = [0; UP_TO.len()];
    for (bytes, count) in pieces {
        let at = UP_TO.iter().position(|(most, _)| bytes <= most).unwrap_or(UP_TO.len() - 1);
        counts[at] += count;
    }
    counts
}

/// A bar for each class.
pub(super) fn figure(pieces: &BTreeMap<u32, u64>) -> Markup {
    const STEP: usize = 64;
    let counts = classes(pieces);
    let most = counts.into_iter().max().unwrap_or(0).max(1) as f64;
    let words: Vec<_> = UP_TO.iter().zip(counts).map(|((_, name), count)| format!("{name}: {count}")).collect();
    html! {
        svg.sizes viewBox="0 0 640 84" role="img" aria-label=(format!("Descriptors by size, up to: {}", words.join(", "))) {
            text.start.soft x="2" y="11" { "descriptors by size, up to" }
            @for (at, ((_, name), count)) in UP_TO.iter().zip(counts).enumerate() {
                @let height = 40.0 * count as f64 / most;
                @let x = 32 + at * STEP;
                rect.descriptors x=(x) y=(format!("{:.1}", 68.0 - height)) width=(STEP - 12) height=(format!("{height:.1}")) {}
                @if count > 0 { text.soft x=(x + 26) y=(format!("{:.1}", 65.0 - height)) { (figures::count(count)) } }
                text x=(x + 26) y="81" { (name) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_page_is_a_class_of_its_own() {
        let pieces = BTreeMap::from([(54, 3), (128, 1), (4095, 2), (4096, 9), (4097, 1), (65_536, 5)]);
        assert_eq!(classes(&pieces), [4, 0, 0, 0, 2, 9, 1, 0, 5]);
    }
}
