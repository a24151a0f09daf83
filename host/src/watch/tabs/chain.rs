//! One chain as a whole: its descriptors, and where each of them leads.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span, Text};
use vnic::observe::protocol::{BufferSnapshot, ChainEvent};

use super::super::theme::{ADDRESS, CHOSEN, DIM, HEAD, PAGE};
use super::chains::seconds;

/// Lines above the buffers, about.
const ABOVE: usize = 4;

/// Draws it, with this of its buffers in the middle.
pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, chain: &ChainEvent, at: usize) {
    let lines = lines(chain, at);
    // The one that is looked at stands in the picture; where it is the last, so does what is behind it.
    let behind = if at + 1 == chain.buffers.len() { lines.len() } else { ABOVE + at + 2 };
    let scroll = behind.saturating_sub(usize::from(area.height)).min(ABOVE + at);
    super::scrolled(frame, area, Text::from(lines), u16::try_from(scroll).unwrap_or(u16::MAX));
}

fn lines(chain: &ChainEvent, at: usize) -> Vec<Line<'static>> {
    let ChainEvent { at_ns, available_ns, queue, head, idx, indirect, buffers, descriptors, written, summary, headers } =
        chain;
    let mut lines = vec![Line::from(vec![
        Span::styled(format!("{queue} #{idx}"), HEAD),
        Span::raw(format!(
            "  head {head}, {descriptors} descriptors{}",
            if *indirect { " in an indirect table" } else { "" }
        )),
        Span::styled(
            match available_ns {
                // An older device does not say.
                0 => format!("  at {} s", seconds(*at_ns)),
                since => {
                    format!("  at {} s, after {} s in the ring", seconds(*at_ns), seconds(at_ns.saturating_sub(*since)))
                }
            },
            DIM,
        ),
    ])];
    if !summary.is_empty() {
        lines.push(Line::from(vec![Span::styled("frame  ", HEAD), Span::raw(summary.clone())]));
    }
    if *written > 0 {
        lines.push(Line::raw(format!("the device has written {written} bytes")));
    }
    lines.push(Line::default());
    let behind_iommu = buffers.iter().any(|buffer| buffer.gpa.is_some());
    let address = if behind_iommu { "I/O address      → guest-physical" } else { "guest-physical" };
    lines.push(Line::styled(format!("  #    {address:<34} {:>7}  what is there", "bytes"), HEAD));
    lines.extend(buffers.iter().enumerate().map(|(number, buffer)| line(number, buffer, number == at)));
    let unseen = usize::from(*descriptors).saturating_sub(buffers.len());
    if unseen > 0 {
        lines.push(Line::styled(format!("  and {unseen} more, for which the trace has no room"), DIM));
    }
    if let Some(headers) = headers {
        lines.extend([Line::default(), Line::styled("headers", HEAD)]);
        lines.extend(crate::views::headers::lines(headers).into_iter().map(|line| Line::raw(format!("  {line}"))));
    }
    lines
}

fn line(number: usize, buffer: &BufferSnapshot, chosen: bool) -> Line<'static> {
    let BufferSnapshot { writable, addr, len, gpa, file_page, label, owner: _ } = buffer;
    let way = if *writable { 'W' } else { 'R' };
    let address = match gpa {
        Some(gpa) => format!("{addr:#016x} → {gpa:#x}"),
        None => format!("{addr:#x}"),
    };
    let what = match (label, file_page) {
        (Some(label), _) => label.clone(),
        (None, Some(page)) => format!("page {page} of the file"),
        (None, None) if *writable => "to be written by the device".to_owned(),
        (None, None) => String::new(),
    };
    let line = Line::from(vec![
        Span::raw(format!("{number:>3}  {way} ")),
        Span::styled(format!("{address:<34}"), ADDRESS),
        Span::raw(format!(" {len:>7}  ")),
        Span::styled(what, PAGE),
    ]);
    if chosen { line.style(CHOSEN) } else { line }
}
