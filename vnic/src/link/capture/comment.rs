//! A frame's descriptors in words, as ring snapshots write them.

use std::fmt::Write as _;

use crate::net::{Frame, ReceiveSpace};
use crate::ring::{ChainView, Segments};
use crate::spec::net::{GSO_NONE, HDR_F_NEEDS_CSUM};

/// A pcapng option holds 65535 bytes.
const MAX_LEN: usize = 60_000;

/// `transmitq0 head 12: R 0x1f000+78 -> R 0x20000+4096, csum 34+16, gso 1448`.
pub(super) fn of_transmitted(out: &mut String, queue: &str, frame: &Frame<'_>) {
    out.push_str(queue);
    chain(out, frame.view());
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
        chain(out, segments.view(*used));
        let _ = write!(out, ", written {written}");
        if out.len() > MAX_LEN {
            out.push_str("; …");
            return;
        }
    }
}

fn chain(out: &mut String, view: ChainView<'_>) {
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
        shown = shown.saturating_add(1);
        at += pieces;
        if out.len() > MAX_LEN && at < list.len() {
            let _ = write!(out, " -> … {} more", chain.descriptors.saturating_sub(shown));
            return;
        }
    }
}
