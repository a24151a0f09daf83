//! `vnic rings`: the ring notation.

use anyhow::Result;
use vnic::observe::protocol::RingSnapshot;

use super::notation;

/// One ring after the other.
pub(crate) fn show(rings: &[RingSnapshot]) -> Result<()> {
    if rings.is_empty() {
        return super::sentence("no queue is set up yet: no driver has started the device");
    }
    let mut text = String::new();
    for ring in rings {
        text.push_str(&notation::paint(&ring.to_string()));
        text.push('\n');
    }
    super::put(text)
}
