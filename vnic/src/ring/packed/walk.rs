//! Following a packed chain.
//!
//! Operation (VIRTIO 1.3, 2.8.6 Next Flag: Descriptor Chaining): a chain is the descriptors that stand one behind the
//! other while NEXT is set. Each must be available in its lap; the last holds the buffer id and may refer to an indirect
//! table.

use crate::ring::builder::Follower;
use crate::ring::pointers::{PackedParts, Word};
use crate::ring::walk::{Rules, note_flags, note_length, open_table};
use crate::ring::{RingError, Taken};
use crate::spec::ring::{DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, Descriptor, PackedDescriptor};

use super::Position;

/// What a walk found besides the buffers.
#[derive(Debug, Clone, Copy)]
pub(in crate::ring) struct Walked {
    /// Slots of the ring that the chain takes.
    pub(in crate::ring) slots: u16,
    /// Has it an indirect part?
    pub(in crate::ring) indirect: bool,
    /// Its buffer id.
    pub(in crate::ring) id: u16,
}

/// Follows the chain that starts with `word` at `start`, while the device holds `held` slots already.
#[inline(always)]
pub(in crate::ring) fn follow<'m>(
    chain: &mut impl Follower<'m>,
    ring: PackedParts<'_>,
    (start, mut word): (Position, Word),
    held: u16,
    rules: Rules,
) -> Result<Walked, RingError> {
    let size = rules.size;
    let head = start.slot;
    let mut at = start;
    let mut slots = 0;
    loop {
        slots += 1;
        if held + slots > size {
            return Err(RingError::RingOverrun { head, held: held + slots, size });
        }
        let desc = Descriptor { addr: ring.addr(at.slot), len: word.len, flags: word.flags, next: 0 };
        note_flags(chain, word.flags & !(DESC_F_AVAIL | DESC_F_USED));
        let indirect = word.flags & DESC_F_INDIRECT != 0;
        if indirect {
            indirect_table(chain, head, at.slot, &desc, rules)?;
        } else {
            chain.buffer(at.slot, &desc)?;
        }
        if indirect || word.flags & DESC_F_NEXT == 0 {
            note_length(chain, rules);
            return Ok(Walked { slots, indirect, id: word.id });
        }
        at = at.after(1, size);
        word = ring.word(at.slot);
        if !at.is_available(word.flags) {
            return Err(RingError::DescNotAvailable { head, index: at.slot, flags: word.flags });
        }
    }
}

/// Follows a chain by its descriptors as they were when it was taken. Returns whether it has an indirect part.
pub(in crate::ring) fn follow_taken<'m>(
    chain: &mut impl Follower<'m>,
    taken: &Taken,
    rules: Rules,
) -> Result<bool, RingError> {
    for (index, descriptor) in (0..).zip(&taken.descriptors) {
        let PackedDescriptor { addr, len, flags, .. } = *descriptor;
        let desc = Descriptor { addr, len, flags, next: 0 };
        if flags & DESC_F_INDIRECT != 0 {
            return indirect_table(chain, taken.head, index, &desc, rules).map(|()| true);
        }
        chain.buffer(index, &desc)?;
    }
    Ok(false)
}

/// Takes all of the packed indirect table that the descriptor at slot `index` refers to: its descriptors follow one
/// another, and of their flags only WRITE counts (VIRTIO 1.3, 2.8.7 Indirect Flag: Scatter-Gather Support).
fn indirect_table<'m>(
    chain: &mut impl Follower<'m>,
    head: u16,
    index: u16,
    refers: &Descriptor,
    rules: Rules,
) -> Result<(), RingError> {
    let table = open_table(chain, head, index, refers, rules)?;
    let max = rules.max_chain();
    if table.len() + u32::from(chain.descriptors()) > u32::from(max) {
        return Err(RingError::ChainTooLong { head, max: u32::from(max) });
    }
    for at in 0..table.len() {
        // Below the limit, so it fits; and inside the table.
        let at = at as u16;
        let Some(d) = table.packed_desc(at) else { break };
        if d.flags & DESC_F_INDIRECT != 0 {
            return Err(RingError::IndirectNested { head, index: at });
        }
        chain.buffer(at, &d)?;
    }
    Ok(())
}
