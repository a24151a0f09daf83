//! The ring of the queue that is looked at: whose each slot is, where both sides stand, what is in flight; and the others in short.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span, Text};
use vnic::observe::protocol::{ChainSnapshot, EventSuppression, QueueStatus, RingSnapshot};

use super::super::model::{Model, Tab};
use super::super::sources;
use super::super::theme::{self, ADDRESS, BAD, DIM, HEAD, PAGE, WARN};
use crate::views::{figures, notation};

/// What a line of slots begins with.
const LABEL: u16 = 6;
/// Lines of the ring that is looked at, and of the others.
const LINES: (usize, usize) = (4, 1);

pub(crate) fn draw(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let Some(queue) = model.selected() else {
        let text = Text::styled("no queue is set up yet: no driver has started the device", DIM);
        return super::scrolled(frame, area, text, 0);
    };
    let mut lines = Vec::new();
    match model.ring(&queue.queue) {
        None => {
            lines.push(title(&queue.queue));
            lines.push(Line::styled("its ring is not set up: no driver has started it", DIM));
        }
        Some(ring) => {
            lines.push(stands(ring));
            lines.extend(Slots::of(ring).lines(area.width, LINES.0));
            lines.push(legend());
            lines.extend(said(queue, model));
            lines.extend(in_flight(ring, model.buffers, area.width));
        }
    }
    for ring in model.rings.iter().filter(|ring| ring.queue != queue.queue) {
        lines.extend([Line::default(), stands(ring)]);
        lines.extend(Slots::of(ring).lines(area.width, LINES.1));
        lines.extend(in_flight(ring, false, area.width));
    }
    super::scrolled(frame, area, Text::from(lines), model.scroll[Tab::Rings.at()]);
}

fn title(queue: &str) -> Line<'static> {
    Line::styled(queue.to_owned(), HEAD)
}

/// Where both sides stand.
fn stands(ring: &RingSnapshot) -> Line<'static> {
    let RingSnapshot { queue, format, size, avail_idx, used_idx, in_flight, .. } = ring;
    let words = format!("  in flight {in_flight} of {size}  {format}  avail.idx {avail_idx}  used.idx {used_idx}");
    let mut line = vec![Span::styled(queue.clone(), HEAD), Span::raw(words)];
    if !ring.consistent {
        line.push(Span::styled("  ~ it moved meanwhile", WARN));
    }
    Line::from(line)
}

fn legend() -> Line<'static> {
    Line::styled("      █ the device's  · the driver's  A next to be available  U next to be used", DIM)
}

/// What is said of the queue beside its ring.
fn said(queue: &QueueStatus, model: &Model) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(EventSuppression { kick, call }) = queue.event_suppression {
        lines.push(Line::raw(format!("the device wants a kick {kick}, the driver wants a call {call}")));
    }
    lines.extend(queue.waits.as_ref().map(|waits| Line::styled(waits.clone(), WARN)));
    lines.extend(queue.error.as_ref().map(|error| Line::styled(error.clone(), BAD)));
    if let Some(why) = &model.unlabelled {
        lines.push(Line::styled(format!("whose memory it is cannot be said: {why}"), DIM));
    }
    lines
}

/// What is in flight, oldest first: a line for a chain, or each of its `buffers` in the ring notation. Buffers that wait to be
/// written to are one line.
fn in_flight(ring: &RingSnapshot, buffers: bool, width: u16) -> Vec<Line<'static>> {
    if ring.chains.is_empty() && ring.faults.is_empty() {
        return vec![Line::styled("  nothing is in flight", DIM)];
    }
    if buffers {
        let text = notation::ring(ring, false, usize::from(width));
        return theme::printed(&text).lines.into_iter().skip(1).collect();
    }
    let waiting = notation::waiting(ring);
    let shown = ring.chains.iter().filter(|chain| waiting.is_none() || !notation::waits(chain));
    let chains: Vec<_> = shown.map(|chain| self::chain(chain, usize::from(width))).collect();
    let faults = ring.faults.iter().map(|fault| Line::styled(format!("  ! {fault}"), BAD));
    waiting.map(Line::raw).into_iter().chain(chains).chain(faults).collect()
}

/// A chain in one line: how much it is, and of what.
fn chain(chain: &ChainSnapshot, width: usize) -> Line<'static> {
    let ChainSnapshot { slot, head, buffers, fault, .. } = chain;
    let bytes: u64 = buffers.iter().map(|buffer| u64::from(buffer.len)).sum();
    let many = if buffers.len() == 1 { "buffer " } else { "buffers" };
    let count = figures::count(bytes);
    let words = format!("  {:<7}head {head:<5} {:>3} {many} {count:>7} bytes", format!("[{slot}]"), buffers.len());
    let mut room = width.saturating_sub(words.chars().count() + 2);
    let mut line = vec![Span::raw(words)];
    if let Some(fault) = fault {
        line.push(Span::styled(format!("  ! {fault}"), BAD));
        return Line::from(line);
    }
    let sources = sources::of(buffers);
    if sources.is_empty() {
        line.extend(buffers.first().map(|buffer| Span::styled(format!("  {buffer}"), ADDRESS)));
    }
    for (at, source) in sources.iter().enumerate() {
        let words = source.words(room);
        if at > 0 && (room < 16 || words.starts_with('…')) {
            break;
        }
        line.push(Span::raw(if at == 0 { "  " } else { ", " }));
        room = room.saturating_sub(words.chars().count() + 2);
        line.push(Span::styled(words, if source.pages.is_some() { PAGE } else { DIM }));
    }
    Line::from(line)
}

/// Whose each slot of a ring is.
struct Slots {
    /// The device's?
    owned: Vec<bool>,
    /// Where the driver makes the next chain available, where the device puts the next one that it has used.
    avail: usize,
    used: usize,
}

impl Slots {
    fn of(ring: &RingSnapshot) -> Slots {
        let size = usize::from(ring.size).max(1);
        let mut owned = vec![false; size];
        let packed = ring.format == "packed";
        for chain in &ring.chains {
            // Of a packed ring each descriptor has a slot, but for those of an indirect table.
            let count = if packed && !chain.indirect { chain.buffers.len().clamp(1, size) } else { 1 };
            for at in 0..count {
                owned[(usize::from(chain.slot) + at) % size] = true;
            }
        }
        Slots { owned, avail: usize::from(ring.avail_idx) % size, used: usize::from(ring.used_idx) % size }
    }

    /// So many lines at most, each with the number of its first slot.
    fn lines(&self, width: u16, most: usize) -> Vec<Line<'static>> {
        let room = usize::from(width.saturating_sub(LABEL)).max(16);
        let size = self.owned.len();
        // A power of two, as rings have it: what is below each other is as far apart.
        let row = if size <= room { size } else { 1 << room.ilog2() };
        let per_cell = size.div_ceil(row * most).next_power_of_two();
        let cells: Vec<Span<'static>> = (0..size).step_by(per_cell).map(|at| self.cell(at, per_cell)).collect();
        let mut lines = Vec::new();
        for (at, row_cells) in cells.chunks(row).enumerate() {
            let mut spans = vec![Span::styled(format!("{:>5} ", at * row * per_cell), DIM)];
            spans.extend(row_cells.iter().cloned());
            lines.push(Line::from(spans));
        }
        lines
    }

    /// So many slots in one sign.
    fn cell(&self, at: usize, count: usize) -> Span<'static> {
        let slots = at..(at + count).min(self.owned.len());
        let (avail, used) = (slots.contains(&self.avail), slots.contains(&self.used));
        let owned = self.owned[slots.clone()].iter().filter(|owned| **owned).count();
        let sign = match (used, avail) {
            (true, true) => "◆",
            (true, false) => "U",
            (false, true) => "A",
            _ if owned == slots.len() => "█",
            _ if owned > 0 => "▄",
            _ => "·",
        };
        let style = if used || avail {
            HEAD
        } else if owned > 0 {
            ADDRESS
        } else {
            DIM
        };
        Span::styled(sign, style)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signs(ring: &str, width: u16, most: usize) -> Vec<String> {
        let ring: RingSnapshot = ring.parse().unwrap();
        Slots::of(&ring).lines(width, most).iter().map(Line::to_string).collect()
    }

    #[test]
    fn slots_between_used_and_avail_are_the_devices() {
        let ring = "transmitq0 split size=16 avail.idx=17 used.idx=14 in-flight=3\n  [14] head 1: R 0x1000+78\n  \
            [15] head 2: R 0x2000+78\n  [0] head 3: R 0x3000+78";
        assert_eq!(signs(ring, 80, 4), ["    0 █A············U█"]);
    }

    #[test]
    fn a_packed_chain_has_a_slot_for_each_descriptor_and_an_indirect_one_only_one() {
        let ring = "transmitq0 packed size=8 avail.idx=4 used.idx=0 in-flight=2\n  \
            [0] head 1: R 0x1000+78 -> R 0x2000+78 -> R 0x3000+78\n  [3] head 2: indirect(2): R 0x2000+78 -> R 0x3000+1";
        assert_eq!(signs(ring, 80, 4), ["    0 U███A···"]);
    }

    #[test]
    fn a_large_ring_has_several_slots_in_a_sign() {
        let ring = "receiveq0 split size=1024 avail.idx=8 used.idx=8 in-flight=0";
        let lines = signs(ring, 80, 4);
        assert_eq!(lines.len(), 4);
        assert!(lines[0].starts_with("    0 ··◆"), "{lines:?}");
        assert!(lines[1].starts_with("  256 ···"), "{lines:?}");
        assert!(lines.iter().all(|line| line.chars().count() == 70));
    }
}
