//! A chain as a trace shows it.

use crate::memory::Memory;
use crate::observe::tracer::{Event, EventBuffer};
use crate::ring::{ChainView, Segment};

/// An event of this chain, with its buffers; behind an IOMMU with where its addresses lead, in `translated`. When it was, and what
/// was in it, is for the caller to say.
#[must_use]
pub fn chain_event(view: ChainView<'_>, translated: Option<&Memory>) -> Event {
    let chain = &view.chain;
    let mut event = Event {
        head: chain.head,
        idx: chain.idx,
        descriptors: chain.descriptors,
        indirect: chain.indirect,
        ..Event::default()
    };
    for (at, segment) in view.segments().iter().enumerate() {
        let writable = at >= chain.readable as usize;
        let gpa = gpa_of(segment, translated);
        event.push(EventBuffer { addr: segment.addr, gpa, len: segment.len, writable });
    }
    event
}

/// Where a segment's first byte is, guest-physical; behind an IOMMU, where its address leads to in `translated`.
pub(crate) fn gpa_of(segment: &Segment, translated: Option<&Memory>) -> u64 {
    translated.and_then(|memory| memory.gpa_at(segment.host)).map_or(segment.addr, |gpa| gpa.0)
}
