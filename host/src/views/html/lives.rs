//! All pages over time: when the disk filled each page of the file, when the NIC sent it, and when something else was put there.

use maud::{Markup, html};
use vnic_experiment::run::{Had, PageDot};

use super::super::figures;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 28.0;

/// Class of the dots, their distance from their place so that none hides another, and their words.
const KINDS: [(Had, &str, f64, &str); 4] = [
    (Had::Filled, "filled", -1.5, "filled by the disk"),
    (Had::Sent, "zero", 1.5, "sent by the NIC"),
    (Had::Overwritten, "copy", 0.0, "overwritten"),
    (Had::Read, "rest", 0.0, "read otherwise"),
];

/// The picture: time to the right, pages of the file downwards.
pub(super) fn figure(dots: &[PageDot]) -> Markup {
    let times = dots.iter().map(|dot| dot.seconds);
    let (start, end) = times.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), at| (a.min(at), b.max(at)));
    let pages = dots.iter().map(|dot| dot.page).max().map_or(0, |last| last + 1);
    let span = (end - start).max(1e-6);
    let place = |dot: &PageDot, off: f64| {
        let x = LEFT + (WIDTH - 8.0) * (dot.seconds - start) / span + 4.0 + off;
        (x, TOP + HEIGHT * (dot.page as f64 + 0.5) / pages.max(1) as f64)
    };
    let count = |kind: Had| dots.iter().filter(|dot| dot.what == kind).count() as u64;
    let there: Vec<_> = KINDS.into_iter().filter(|(kind, ..)| count(*kind) > 0).collect();
    let words: Vec<String> =
        there.iter().map(|(kind, _, _, words)| format!("{words}: {}", figures::count(count(*kind)))).collect();
    let said = format!(
        "Pages of the file over {:.1} ms, by page number, of {} pages. {}.",
        span * 1e3,
        figures::count(pages),
        words.join(", ")
    );
    html! {
        svg.lives viewBox="0 0 640 280" role="img" aria-label=(said) {
            rect.lane x=(LEFT) y=(TOP) width=(WIDTH) height=(HEIGHT) {}
            @for (at, ((_, class, ..), words)) in there.iter().zip(&words).enumerate() {
                circle class=(class) cx=(LEFT + 6.0 + 180.0 * at as f64) cy="14" r="4" {}
                text.start x=(LEFT + 15.0 + 180.0 * at as f64) y="18" { (words) }
            }
            @for (kind, class, off, _) in &there {
                g class=(class) {
                    @for dot in dots.iter().filter(|dot| dot.what == *kind) {
                        @let (x, y) = place(dot, *off);
                        circle cx=(format!("{x:.1}")) cy=(format!("{y:.1}")) r="1.6" {}
                    }
                }
            }
            text.end.soft x=(LEFT - 4.0) y=(TOP + 10.0) { "page 0" }
            text.end.soft x=(LEFT - 4.0) y=(TOP + HEIGHT) { (figures::count(pages.saturating_sub(1))) }
            text.start.soft x=(LEFT) y=(TOP + HEIGHT + 18.0) { "0 ms" }
            text.end.soft x=(LEFT + WIDTH) y=(TOP + HEIGHT + 18.0) { (format!("{:.1} ms", span * 1e3)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_has_a_dot_where_and_when_a_device_had_it() {
        let dot = |page, seconds, what| PageDot { page, seconds, what };
        let dots = [dot(0, 1.0, Had::Filled), dot(9, 1.0, Had::Filled), dot(9, 1.5, Had::Sent)];
        let drawn = figure(&dots).into_string();
        let said = "over 500.0 ms, by page number, of 10 pages. filled by the disk: 2, sent by the NIC: 1.";
        assert!(drawn.contains(said), "{drawn}");
        // The first at the left and at the top, the last at the right and at the bottom; a dot each, and one in the key.
        assert!(drawn.contains(r#"cx="66.5" cy="39.0""#) && drawn.contains(r#"cx="621.5" cy="237.0""#), "{drawn}");
        assert_eq!(drawn.matches("<circle").count(), 5);
        assert!(!drawn.contains("overwritten"), "{drawn}");
    }

    #[test]
    fn a_single_moment_is_drawn_as_well() {
        let drawn = figure(&[PageDot { page: 3, seconds: 2.0, what: Had::Overwritten }]).into_string();
        assert!(drawn.contains("overwritten: 1") && !drawn.contains("NaN"), "{drawn}");
    }
}
