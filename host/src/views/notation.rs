//! The ring notation on a screen: idle buffers summed up, long chains on several lines, colour.

use std::fmt::Write;

use vnic::observe::protocol::{ChainSnapshot, RingSnapshot};

use super::{figures, style};

/// As many buffers that wait to be filled are shown one by one.
const FEW: usize = 4;

/// A ring as people read it: its lines no wider than `width`. A receiveq is full of buffers that wait for frames; unless
/// `all` of them are asked for, one line stands for the many.
pub(crate) fn ring(ring: &RingSnapshot, all: bool, width: usize) -> String {
    let waiting = waiting(ring).filter(|_| !all);
    let mut shown = ring.clone();
    if waiting.is_some() {
        shown.chains.retain(|chain| !waits(chain));
    }
    let text = shown.to_string();
    let mut lines: Vec<String> = text.lines().map(|line| wrap(line, width)).collect();
    if let Some(line) = waiting {
        lines.insert(1, line);
    }
    paint(&lines.join("\n"))
}

/// Does it wait to be written to?
pub(crate) fn waits(chain: &ChainSnapshot) -> bool {
    chain.fault.is_none() && chain.buffers.iter().all(|buffer| buffer.writable)
}

/// A line that stands for all chains that wait, where there are many.
pub(crate) fn waiting(ring: &RingSnapshot) -> Option<String> {
    let len = |chain: &ChainSnapshot| chain.buffers.iter().map(|buffer| u64::from(buffer.len)).sum::<u64>();
    let sizes: Vec<u64> = ring.chains.iter().filter(|chain| waits(chain)).map(len).collect();
    let (least, most) = (sizes.iter().min()?, sizes.iter().max()?);
    let bytes = if least == most { figures::count(*most) } else { format!("{least} to {most}") };
    let count = figures::count(sizes.len() as u64);
    (sizes.len() > FEW).then(|| format!("  … {count} chains wait to be written to, {bytes} bytes each"))
}

/// Goes on below where a line is full, before an arrow, or before what is said of the chain.
pub(crate) fn wrap(line: &str, width: usize) -> String {
    let mut wrapped = String::new();
    let mut room = width;
    let mut rest = line;
    while !rest.is_empty() {
        // From the second byte on: a piece begins with its arrow.
        let next = [" -> ", " | "].iter().filter_map(|sign| rest.get(1..)?.find(sign)).min();
        let (piece, behind) = rest.split_at(next.map_or(rest.len(), |at| at + 1));
        let len = piece.chars().count();
        if len > room && !wrapped.is_empty() {
            wrapped.push_str("\n     ");
            room = width.saturating_sub(5);
        }
        wrapped.push_str(piece);
        room = room.saturating_sub(len);
        rest = behind;
    }
    wrapped
}

/// The same text with addresses, file pages and faults coloured.
pub(crate) fn paint(text: &str) -> String {
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
            // Whose memory it is; what stands in a path may be anything, but the end of a buffer.
            [b'(', ..] if rest.starts_with("(/") || rest.starts_with("(memory of ") => {
                let ends = [" -> ", " | ", " written="].iter().filter_map(|end| rest.find(end));
                Some((style::PAGE, ends.min().unwrap_or(rest.len())))
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
    fn a_long_chain_goes_on_below_before_an_arrow() {
        let chain = "  [5] head 12: R 0x1f000+78 -> R 0x20000+4096 (page 17) -> R 0x21000+3144 (page 18)";
        assert_eq!(wrap(chain, 100), chain);
        assert_eq!(
            wrap(chain, 40),
            "  [5] head 12: R 0x1f000+78\n      -> R 0x20000+4096 (page 17)\n      -> R 0x21000+3144 (page 18)"
        );
    }

    #[test]
    fn a_file_page_is_coloured_whole() {
        let painted = paint("  R 0x2+4 (page 17) -> R 0x3+4");
        let page = style::PAGE;
        assert!(painted.contains(&format!("{page}(page 17){page:#}")), "{painted:?}");
    }
}
