//! `vnic rings`: the ring notation.

use anyhow::Result;
use vnic::observe::protocol::RingSnapshot;

use super::{notation, table};

/// One ring after the other; idle buffers one by one if `all` are asked for.
pub(crate) fn show(rings: &[RingSnapshot], all: bool) -> Result<()> {
    if rings.is_empty() {
        return super::sentence("no queue is set up yet: no driver has started the device");
    }
    let mut text = String::new();
    for ring in rings {
        text.push_str(&notation::ring(ring, all, usize::from(table::width())));
        text.push('\n');
    }
    super::put(text)
}
