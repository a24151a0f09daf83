//! What a frame's payload was sent from.

use super::{Record, Whose};
use crate::net::parse::{Packet, parse};
use crate::provenance::SourceKind;

/// Bytes of a frame that hold its headers.
const HEAD: usize = 256;

/// Of the payload: `zero-copy`, `copied` or `mixed`; `None`: it has none, or it is not known for sure of all of it.
pub(super) fn of(record: &Record, whose: &[Option<Whose>]) -> Option<&'static str> {
    let len = u32::try_from(record.frame.len()).ok()?;
    let Packet::Transport(packet) = parse(record.frame.get(..HEAD.min(record.frame.len()))?, len) else { return None };
    let sent = record.packet.buffers.iter().zip(whose).filter(|(buffer, _)| !buffer.writable);
    let all: u64 = sent.clone().map(|(buffer, _)| u64::from(buffer.len)).sum();
    // The virtio-net header lies in front of the frame.
    let mut skip = all.checked_sub(len.into())? + u64::from(packet.header_len);
    let mut left = u64::from(packet.payload_len.min(len));
    let (mut zero_copy, mut copied) = (false, false);
    for (buffer, whose) in sent {
        let here = u64::from(buffer.len).saturating_sub(skip).min(left);
        skip = skip.saturating_sub(buffer.len.into());
        if here == 0 {
            continue;
        }
        left -= here;
        match whose.as_ref()?.kind {
            kind if kind.is_zero_copy() => zero_copy = true,
            SourceKind::Unsettled => return None,
            _ => copied = true,
        }
    }
    match (left, zero_copy, copied) {
        (0, true, true) => Some("mixed"),
        (0, true, false) => Some("zero-copy"),
        (0, false, true) => Some("copied"),
        _ => None,
    }
}
