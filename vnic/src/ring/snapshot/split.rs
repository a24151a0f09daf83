//! Reading a split ring that may hold anything.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::memory::Memory;
use crate::ring::RingLayout;
use crate::ring::pointers::{SplitParts, SplitPointers};
use crate::ring::slots::Slots;
use crate::ring::walk::{Rules, split_chain};
use crate::spec::ring::DESC_F_INDIRECT;
use crate::spec::{Feature, Features};

use super::{ChainSnapshot, MAX_BUFFERS, Observer, RingSnapshot};

/// Reads the ring once.
pub(super) fn read(queue: &str, layout: &RingLayout, memory: &Arc<Memory>, features: Features) -> RingSnapshot {
    let size = layout.size;
    let mut seen = RingSnapshot::empty(queue, "split", size);
    let pointers = match SplitPointers::new(layout, Arc::clone(memory), features) {
        Ok(pointers) => pointers,
        Err(error) => {
            seen.faults.push(error.to_string());
            return seen;
        }
    };
    let ring = pointers.parts();
    // `used.idx` first: it follows `avail.idx`, so read in this order it never seems to be ahead of it.
    let indices = || (ring.used_idx().load(Ordering::Acquire), ring.avail_idx().load(Ordering::Acquire));
    let (used_idx, avail_idx) = indices();
    seen.used_idx = used_idx;
    seen.avail_idx = avail_idx;
    let in_flight = avail_idx.wrapping_sub(used_idx);
    if in_flight > size {
        seen.faults.push(format!("avail.idx is {in_flight} ahead of used.idx in a ring of {size}"));
    } else {
        seen.in_flight = in_flight;
        chains(ring, memory, Rules { size, indirect: features.has(Feature::IndirectDesc) }, &mut seen);
    }
    seen.consistent = indices() == (used_idx, avail_idx);
    seen
}

/// Follows the chains between the indices of `seen`.
fn chains(ring: SplitParts<'_>, memory: &Memory, rules: Rules, seen: &mut RingSnapshot) {
    let mut heads = Slots::new(usize::from(rules.size));
    let mut left = MAX_BUFFERS;
    for n in 0..seen.in_flight {
        let idx = seen.used_idx.wrapping_add(n);
        let slot = idx & (rules.size - 1);
        let head = ring.avail_entry(idx).load(Ordering::Relaxed);
        let first = heads.set(head);
        if first.is_none() {
            let fault = Some(format!("head {head} in a table of {}", rules.size));
            seen.chains.push(ChainSnapshot { slot, head, indirect: false, buffers: Vec::new(), fault });
            continue;
        }
        if first == Some(false) {
            seen.faults.push(format!("head {head} is available twice"));
        }
        let mut observer = Observer::new(memory, head);
        let mut indirect = false;
        let walked = split_chain(&mut observer, head, rules, |index| {
            let desc = ring.desc(index);
            indirect = desc.is_some_and(|desc| desc.flags & DESC_F_INDIRECT != 0);
            desc
        });
        let chain = observer.finish(slot, walked, indirect);
        let Some(rest) = left.checked_sub(chain.buffers.len()) else {
            seen.faults
                .push(format!("more than {MAX_BUFFERS} buffers in flight: {n} of {} chains shown", seen.in_flight));
            return;
        };
        left = rest;
        seen.chains.push(chain);
    }
}
