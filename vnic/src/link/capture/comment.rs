//! A frame's descriptors in words, as ring snapshots write them.
//!
//! Whose memory they are is put in behind them later: the worker leaves a [`Mark`] where.

use std::fmt::Write as _;

use crate::net::{Frame, ReceiveSpace};
use crate::ring::{ChainView, Segment, Segments};
use crate::spec::net::{GSO_NONE, HDR_F_NEEDS_CSUM};

/// A pcapng option holds 65535 bytes.
const MAX_LEN: usize = 60_000;

/// A buffer in a comment, as it was when the device had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Bytes of the comment up to its end.
    pub(super) at: usize,
    /// Where it is, guest-physical.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// What its pages were ([`Stamper`](crate::introspect::Stamper)); 0: nobody looked.
    pub stamp: u64,
}

#[cfg(test)]
impl Mark {
    /// One byte at this address.
    pub(crate) const fn at_gpa(gpa: u64) -> Self {
        Mark { at: 0, gpa, len: 1, stamp: 1 }
    }
}

/// `transmitq0 head 12: R 0x1f000+78 -> R 0x20000+4096, csum 34+16, gso 1448`.
pub(super) fn of_transmitted(
    out: &mut String,
    queue: &str,
    frame: &Frame<'_>,
    mut look: impl FnMut(usize, &Segment, u32),
) {
    out.push_str(queue);
    chain(out, frame.view(), &mut look);
    let header = frame.header;
    // Writing to a String cannot fail, here and below.
    if header.flags & HDR_F_NEEDS_CSUM != 0 {
        let _ = write!(out, ", csum {}+{}", header.csum_start, header.csum_offset);
    }
    if header.gso_type != GSO_NONE {
        let _ = write!(out, ", gso {}", header.gso_size);
    }
}

/// `receiveq0 head 3: W 0x21000+1526, written 78`, one such for each chain, in the frame's order.
pub(super) fn of_received(out: &mut String, queue: &str, segments: &Segments, space: &ReceiveSpace<'_>) {
    out.push_str(queue);
    for (at, (used, written)) in space.filled().enumerate() {
        if at > 0 {
            out.push(';');
        }
        chain(out, segments.view(*used), &mut |_, _, _| {});
        let _ = write!(out, ", written {written}");
        if out.len() > MAX_LEN {
            out.push_str("; …");
            return;
        }
    }
}

/// The comment with these labels behind its marks, as far as there is room for them.
pub(super) fn labelled(comment: &str, marks: &[Mark], labels: &[Option<String>]) -> String {
    let mut out = String::with_capacity(2 * comment.len());
    let (mut at, mut room) = (0, MAX_LEN.saturating_sub(comment.len()));
    for (mark, label) in marks.iter().zip(labels) {
        out.push_str(comment.get(at..mark.at).unwrap_or_default());
        at = mark.at;
        let Some(label) = label else { continue };
        if let Some(less) = room.checked_sub(label.len() + 3) {
            room = less;
            let _ = write!(out, " ({label})");
        }
    }
    out.push_str(comment.get(at..).unwrap_or_default());
    out
}

fn chain(out: &mut String, view: ChainView<'_>, look: &mut impl FnMut(usize, &Segment, u32)) {
    let chain = &view.chain;
    let _ = write!(out, " head {}:", chain.head);
    if chain.indirect {
        let _ = write!(out, " indirect({}):", chain.descriptors);
    }
    let list = view.segments();
    let mut at = 0;
    let mut shown = 0_u16;
    while let Some(first) = list.get(at) {
        // Where a buffer crosses a border of memory regions it has several segments, and is one descriptor still.
        let pieces = 1 + list.iter().skip(at + 1).take_while(|segment| segment.continues).count();
        let len: u64 = list.iter().skip(at).take(pieces).map(|segment| u64::from(segment.len)).sum();
        let kind = if at < chain.readable as usize { 'R' } else { 'W' };
        let arrow = if at > 0 { " ->" } else { "" };
        let _ = write!(out, "{arrow} {kind} {:#x}+{len}", first.addr);
        look(out.len(), first, u32::try_from(len).unwrap_or(u32::MAX));
        shown = shown.saturating_add(1);
        at += pieces;
        if out.len() > MAX_LEN && at < list.len() {
            let _ = write!(out, " -> … {} more", chain.descriptors.saturating_sub(shown));
            return;
        }
    }
}
