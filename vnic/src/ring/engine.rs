//! What the device halves of both formats do alike: take chains, show them, return them.
//!
//! Place: [`SplitDevice`](super::SplitDevice) and [`PackedDevice`](super::PackedDevice) do what is here through their
//! [`Format`]: where the next chain starts, what its descriptors look like, and how it is used. Everything is generic and
//! inlined, so either format has loops of its own.

use crate::memory::Access;

use super::RingError;
use super::arena::Segments;
use super::batch::Batch;
use super::chain::Chain;
use super::device::{Disposition, DrainEnd, Visitor};
use super::fast_path::Fallback;
use super::heads::Heads;

/// A ring format, as far as the device half depends on it: where the device stands.
pub(super) trait Format {
    /// The pointers into the ring, with the life of what keeps it mapped: copied into locals, which no store can change.
    type Parts<'r>: Copy;
    /// What is known of the next chain before it is followed.
    type Start: Copy;

    /// The heads that are out.
    fn heads(&mut self) -> &mut Heads;

    /// Most chains that a burst of `limit` has, and why it ends after them.
    fn begin(&mut self, ring: Self::Parts<'_>, limit: u16) -> Result<(u16, DrainEnd), RingError>;

    /// A burst ends, which took `taken` chains.
    fn end(&mut self, taken: u16);

    /// As many chains of `limit` as may be there.
    fn waiting(&mut self, ring: Self::Parts<'_>, limit: u16) -> Result<u16, RingError>;

    /// Takes at most `left` of the next chains into `batch`, as long as each is a single device-readable buffer that
    /// `at_once` knows: `address, length` to host address.
    fn find_by(
        &mut self,
        at_once: impl Fn(u64, u64) -> Option<*mut u8>,
        ring: Self::Parts<'_>,
        left: u16,
        batch: &mut Batch,
    );

    /// The next chain's start; `None`: there is no chain.
    fn start(&mut self, ring: Self::Parts<'_>) -> Result<Option<Self::Start>, RingError>;

    /// The start of the next chain, which `find_by` has taken: its head, and the length of its buffer.
    fn restart(&mut self, head: u16, len: u32) -> Self::Start;

    /// Takes the next chain, if it is a single device-writable buffer: head, place, address, length.
    fn next_buffer(&mut self, ring: Self::Parts<'_>) -> Option<(u16, u16, u64, u32)>;

    /// Follows the next chain if it is a usual one.
    fn fast_path(&self, ring: Self::Parts<'_>, into: &mut Segments, start: Self::Start) -> Result<Chain, Fallback>;

    /// Follows the next chain whatever it is. A bad one is not taken.
    fn walk(&mut self, ring: Self::Parts<'_>, into: &mut Segments, start: Self::Start) -> Result<Chain, RingError>;

    /// The next chain has been followed: takes its head, where that is known only now.
    fn accept(&mut self, chain: &Chain) -> Result<(), RingError>;

    /// The next chain, of as many slots, is the device's.
    fn advance(&mut self, slots: u16);

    /// The next chain stays in the ring, and what is behind it.
    fn leave(&mut self, ring: Self::Parts<'_>);

    /// Says that a chain of `slots` is used, which stood at `place`.
    fn use_up(&mut self, ring: Self::Parts<'_>, place: u16, head: u16, slots: u16, written: u32);

    /// Says that the next chains are used, of these heads and a slot each; nothing was written.
    fn use_up_run(&mut self, ring: Self::Parts<'_>, heads: &[u16]);
}

/// A device half: pointers into its ring, and where it stands.
pub(super) trait Device {
    /// The ring's format.
    type Format: Format;

    /// Both, apart.
    fn halves(&mut self) -> (<Self::Format as Format>::Parts<'_>, &mut Self::Format);
}

/// [`DeviceRing::pop`](super::DeviceRing::pop).
#[inline]
pub(super) fn pop<F: Format>(
    format: &mut F,
    ring: F::Parts<'_>,
    into: &mut Segments,
) -> Result<Option<Chain>, RingError> {
    let Some(start) = format.start(ring)? else { return Ok(None) };
    let kept = into.len();
    let chain = match format.fast_path(ring, into, start) {
        Ok(chain) => chain,
        Err(Fallback) => {
            into.truncate(kept);
            format.walk(ring, into, start)?
        }
    };
    if let Err(error) = format.accept(&chain) {
        into.truncate(kept);
        return Err(error);
    }
    format.heads().retain(chain.head);
    format.advance(chain.slots);
    Ok(Some(chain))
}

/// [`DeviceRing::pop_buffers`](super::DeviceRing::pop_buffers).
#[inline]
pub(super) fn pop_buffers<F: Format>(
    format: &mut F,
    ring: F::Parts<'_>,
    into: &mut Segments,
    limit: u16,
    chains: &mut Vec<Chain>,
) -> Result<(), RingError> {
    for _ in 0..format.waiting(ring, limit)? {
        let Some((head, place, addr, len)) = format.next_buffer(ring) else { break };
        let Some(chain) = into.push_buffer(head, place, addr, len) else {
            format.heads().cancel(head);
            break;
        };
        format.heads().retain(head);
        chains.push(chain);
        format.advance(1);
    }
    Ok(())
}

/// [`DeviceRing::push_used`](super::DeviceRing::push_used).
#[inline]
pub(super) fn push_used<F: Format>(
    format: &mut F,
    ring: F::Parts<'_>,
    chain: &Chain,
    written: u32,
) -> Result<(), RingError> {
    let head = chain.head;
    if written > chain.writable_len {
        return Err(RingError::WrittenTooMuch { head, written, room: chain.writable_len });
    }
    if !format.heads().release(head) {
        return Err(RingError::NotInFlight { head });
    }
    format.use_up(ring, chain.idx, head, chain.slots, written);
    Ok(())
}

/// [`DeviceRing::drain`](super::DeviceRing::drain).
#[inline(always)]
pub(super) fn drain<D: Device, V: Visitor>(
    device: &mut D,
    into: &mut Segments,
    limit: u16,
    visitor: &mut V,
) -> Result<DrainEnd, RingError> {
    let (ring, format) = device.halves();
    let (most, last) = format.begin(ring, limit)?;
    let mut left = most;
    let batches = visitor.takes_batches();
    let mut batch = Batch::new(V::READS);
    let mut fault = None;
    let ended = 'burst: loop {
        if left == 0 {
            break last;
        }
        // Copied anew where a chain was followed in between: in the loops that matter they are locals.
        let (ring, format) = device.halves();
        if batches {
            find(format, ring, into, left, &mut batch);
        }
        let mut at = 0;
        while at < batch.len() {
            let (ring, format) = device.halves();
            let heads = batch.heads_from(at);
            let (done, rest) = heads.split_at(visitor.visit_batch(batch.from(at, into)).min(heads.len()));
            format.use_up_run(ring, done);
            at += done.len();
            left -= done.len() as u16;
            let Some((head, behind)) = rest.split_first() else { break };
            let start = format.restart(*head, batch.len_at(at));
            if !next(device, into, start, visitor, &mut fault) {
                device.halves().1.heads().cancel_all(behind);
                break 'burst DrainEnd::Left;
            }
            at += 1;
            left -= 1;
        }
        if left > 0 && !batch.is_full() {
            // The next is not a usual one, or there is none.
            let (ring, format) = device.halves();
            match format.start(ring) {
                Ok(Some(start)) if next(device, into, start, visitor, &mut fault) => left -= 1,
                Ok(Some(_)) => break DrainEnd::Left,
                Ok(None) => break DrainEnd::Empty,
                Err(error) => {
                    fault = Some(error);
                    break DrainEnd::Left;
                }
            }
        }
    };
    device.halves().1.end(most - left);
    fault.map_or(Ok(ended), Err)
}

/// Finds a batch. One loop with an IOMMU and one without, as the question in the loop costs 3 to 5 %.
#[inline(always)]
fn find<F: Format>(format: &mut F, ring: F::Parts<'_>, into: &Segments, left: u16, batch: &mut Batch) {
    match into.tlb() {
        None => {
            let hint = into.hint();
            format.find_by(|addr, len| hint.hit(addr, len), ring, left, batch);
        }
        Some(tlb) => {
            format.find_by(|addr, len| tlb.look(addr, len, Access::Read), ring, left, batch);
            tlb.count(batch.len() as u64);
        }
    }
}

/// Shows `visitor` the next chain, and does what it says. Returns whether the burst goes on; if not, the chain was left, or
/// there is a `fault`. (What is returned fits into a register: the error does not.)
#[inline(never)]
fn next<D: Device>(
    device: &mut D,
    into: &mut Segments,
    start: <D::Format as Format>::Start,
    visitor: &mut impl Visitor,
    fault: &mut Option<RingError>,
) -> bool {
    into.clear();
    let (ring, format) = device.halves();
    match format.fast_path(ring, into, start) {
        Ok(chain) => show(device, into, chain, visitor, fault),
        Err(Fallback) => next_walked(device, into, start, visitor, fault),
    }
}

/// The same, of a chain that the fast path does not take. A function of its own: so a usual chain never leaves the registers.
#[inline(never)]
fn next_walked<D: Device>(
    device: &mut D,
    into: &mut Segments,
    start: <D::Format as Format>::Start,
    visitor: &mut impl Visitor,
    fault: &mut Option<RingError>,
) -> bool {
    into.clear();
    let (ring, format) = device.halves();
    match format.walk(ring, into, start) {
        Ok(chain) => show(device, into, chain, visitor, fault),
        Err(error) => {
            *fault = Some(error);
            false
        }
    }
}

/// The same, of a chain that has been followed.
#[inline(always)]
fn show<D: Device>(
    device: &mut D,
    into: &Segments,
    chain: Chain,
    visitor: &mut impl Visitor,
    fault: &mut Option<RingError>,
) -> bool {
    if let Err(error) = device.halves().1.accept(&chain) {
        *fault = Some(error);
        return false;
    }
    let disposition = visitor.visit(into.view(chain));
    let (ring, format) = device.halves();
    let Chain { idx, head, slots, .. } = chain;
    match disposition {
        Disposition::Return => {
            format.advance(slots);
            format.use_up(ring, idx, head, slots, 0);
        }
        Disposition::Retain => {
            format.heads().retain(head);
            format.advance(slots);
        }
        Disposition::Leave => {
            format.heads().cancel(head);
            format.leave(ring);
        }
    }
    disposition != Disposition::Leave
}
