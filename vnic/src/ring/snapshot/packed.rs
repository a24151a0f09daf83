//! Reading a packed ring that may hold anything.

use std::sync::Arc;

use crate::memory::Memory;
use crate::ring::RingLayout;
use crate::ring::packed::Position;
use crate::ring::packed::walk::follow;
use crate::ring::pointers::{PackedParts, PackedPointers};
use crate::ring::slots::Slots;
use crate::ring::walk::Rules;
use crate::spec::{Feature, Features};

use super::{MAX_BUFFERS, Observer, RingSnapshot};

/// Reads the ring once, from where the device says that it will use next.
pub(super) fn read(
    queue: &str,
    layout: &RingLayout,
    memory: &Arc<Memory>,
    features: Features,
    base: &impl Fn() -> u32,
) -> RingSnapshot {
    let size = layout.size;
    let mut seen = RingSnapshot::empty(queue, "packed", size);
    let pointers = match PackedPointers::new(layout, Arc::clone(memory)) {
        Ok(pointers) => pointers,
        Err(error) => {
            seen.faults.push(error.to_string());
            return seen;
        }
    };
    let ring = pointers.parts();
    let before = base();
    let Some(start) = Position::from_bits((before >> 16) as u16, size) else {
        seen.faults.push(format!("the device cannot stand at {before:#x} in a ring of {size}"));
        return seen;
    };
    seen.used_idx = start.slot;
    let rules = Rules { size, indirect: features.has(Feature::IndirectDesc) };
    let end = chains(ring, memory, rules, start, &mut seen);
    seen.avail_idx = end.slot;
    seen.in_flight = seen.chains.len() as u16;
    seen.consistent = base() >> 16 == before >> 16;
    seen
}

/// Follows the available chains from `start` on. Returns where they end.
fn chains(ring: PackedParts<'_>, memory: &Memory, rules: Rules, start: Position, seen: &mut RingSnapshot) -> Position {
    let mut ids = Slots::new(1 << 16);
    let mut left = MAX_BUFFERS;
    let mut held = 0;
    let mut at = start;
    while held < rules.size {
        let word = ring.word(at.slot);
        if !at.is_available(word.flags) {
            break;
        }
        let mut observer = Observer::new(memory, at.slot);
        let walked = follow(&mut observer, ring, (at, word), held, rules);
        // Where a bad chain ends is not known, so it is the last.
        let (slots, id, whole) = walked.as_ref().map_or((1, word.id, false), |found| (found.slots, found.id, true));
        if whole && ids.set(id) == Some(false) {
            seen.faults.push(format!("id {id} is available twice"));
        }
        let mut chain = observer.finish(at.slot, walked.map(|found| found.indirect), false);
        chain.head = id;
        let Some(rest) = left.checked_sub(chain.buffers.len()) else {
            seen.faults.push(format!("more than {MAX_BUFFERS} buffers in flight: not all chains are shown"));
            break;
        };
        left = rest;
        seen.chains.push(chain);
        held += slots;
        at = at.after(slots, rules.size);
        if !whole {
            break;
        }
    }
    at
}
