//! The frames of a transmitq that the link has kept: their chains, until the link is done with them.
//!
//! Operation: the link names each frame it keeps by a ticket; the chain starts. When the link says that it is done with
//! that ticket, in whatever order, the chain lands. Those that landed go back to the driver together; those of a held
//! queue when it is released.
//!
//! Invariants: a ticket names one chain at most, and the ring takes no head that is still out (`ring::heads`), so no chain
//! is twice in flight. There are no more flights than the link has tickets.

use crate::ring::Chain;

/// The flights of one queue.
#[derive(Debug, Default)]
pub struct Flights {
    /// By ticket.
    flying: Box<[Option<Chain>]>,
    landed: Vec<Chain>,
}

impl Flights {
    /// Room for as many as the link keeps at most.
    pub(super) fn new(most: u16) -> Self {
        Flights { flying: vec![None; usize::from(most)].into(), landed: Vec::with_capacity(usize::from(most)) }
    }

    /// The link keeps `chain`.
    pub(super) fn start(&mut self, ticket: u16, chain: &Chain) {
        match self.flying.get_mut(usize::from(ticket)) {
            Some(place @ None) => *place = Some(*chain),
            _ => debug_assert!(false, "ticket {ticket} is given twice, or beyond what the link keeps"),
        }
    }

    /// The link is done with it. Returns whether there was such a flight.
    pub(super) fn land(&mut self, ticket: u16) -> bool {
        let chain = self.flying.get_mut(usize::from(ticket)).and_then(Option::take);
        self.landed.extend(chain);
        chain.is_some()
    }

    /// Chains the link still has.
    pub(super) fn in_flight(&self) -> usize {
        self.flying.iter().flatten().count()
    }

    /// What has landed, to be returned; it is forgotten then.
    pub(super) fn landed(&mut self) -> impl Iterator<Item = Chain> {
        self.landed.drain(..)
    }
}
