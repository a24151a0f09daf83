//! Colour for the ring notation.

use std::fmt::Write;

use super::style;

/// The same text with addresses, file pages and faults coloured.
pub(super) fn paint(text: &str) -> String {
    let mut painted = String::with_capacity(text.len() * 2);
    for (at, line) in text.split('\n').enumerate() {
        if at > 0 {
            painted.push('\n');
        }
        paint_line(&mut painted, line);
    }
    painted
}

fn paint_line(painted: &mut String, line: &str) {
    let mut rest = line;
    let mut first = !line.starts_with(' ');
    while !rest.is_empty() {
        let at = rest.find(|c: char| c != ' ').unwrap_or(rest.len());
        painted.push_str(&rest[..at]);
        rest = &rest[at..];
        let style = match rest.as_bytes() {
            // What is wrong reaches to the end of its line.
            [b'!', b' ', ..] => Some((style::BAD, rest.len())),
            [b'~', b' ', ..] => Some((style::WARN, rest.len())),
            [b'|', b' ', ..] => Some((style::DIM, rest.len())),
            [b'(', b'p', b'a', b'g', b'e', b' ', ..] => {
                Some((style::PAGE, rest.find(')').map_or(rest.len(), |end| end + 1)))
            }
            [b'0', b'x', ..] => Some((style::ADDRESS, rest.find(' ').unwrap_or(rest.len()))),
            _ if first => Some((style::HEAD, rest.find(' ').unwrap_or(rest.len()))),
            _ => None,
        };
        first = false;
        let len = style.map_or_else(|| rest.find(' ').unwrap_or(rest.len()), |(_, len)| len);
        let (word, after) = rest.split_at(len);
        // Writing to a String cannot fail.
        let _ = match style {
            Some((style, _)) => write!(painted, "{style}{word}{style:#}"),
            None => write!(painted, "{word}"),
        };
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paint_changes_nothing_but_colour() {
        let text =
            "transmitq0 split size=4\n  [5] head 12: R 0x1f000+78 -> R 0x2+4 (page 17) -> ! twice\n  ~ moved\n  ! x ";
        let painted = paint(text);
        assert_ne!(painted, text);
        assert_eq!(anstream::adapter::strip_str(&painted).to_string(), text);
    }

    #[test]
    fn a_file_page_is_coloured_whole() {
        let painted = paint("  R 0x2+4 (page 17) -> R 0x3+4");
        let page = style::PAGE;
        assert!(painted.contains(&format!("{page}(page 17){page:#}")), "{painted:?}");
    }
}
