//! Chains in flight: those that the data path has kept beyond a pass.
//!
//! Operation: the data path names each chain it keeps by a ticket; it is in flight from then on. When the data path says that
//! it is done with that ticket, in whatever order, the chain is complete. Complete chains go back to the driver together;
//! those of a held queue when it is released.
//!
//! Invariants: a ticket names one chain at most, and the ring takes no head that is still out (`ring::heads`), so no chain
//! is twice in flight. There are no more in flight than the data path has tickets.

use super::log::QueueLog;
use crate::memory::GuestSlice;
use crate::ring::{Chain, ChainView};

/// The chains in flight of one queue.
#[derive(Debug, Default)]
pub struct InFlight {
    by_ticket: Box<[Option<Chain>]>,
    /// Behind an IOMMU, where each has its segments: address and length. The memory of each is used again.
    places: Box<[Vec<(u64, u32)>]>,
    /// What is written into them is logged.
    log: Option<QueueLog>,
    /// Then, where in the guest's memory the writable part of each is: guest-physical address and length.
    written_to: Box<[Vec<(u64, u32)>]>,
    /// With what was written into each.
    completed: Vec<(Chain, u32)>,
}

impl InFlight {
    /// Room for as many as the data path keeps at most.
    pub fn new(most: u16) -> Self {
        let most = usize::from(most);
        InFlight {
            by_ticket: vec![None; most].into(),
            places: vec![Vec::new(); most].into(),
            log: None,
            written_to: vec![Vec::new(); most].into(),
            completed: Vec::with_capacity(most),
        }
    }

    /// The data path keeps `chain`.
    pub fn start(&mut self, ticket: u16, chain: ChainView<'_>) {
        let at = usize::from(ticket);
        let (Some(free @ None), Some(places)) = (self.by_ticket.get_mut(at), self.places.get_mut(at)) else {
            return debug_assert!(false, "ticket {ticket} is given twice, or beyond what the data path keeps");
        };
        *free = Some(chain.chain);
        if chain.memory().iotlb().is_some() {
            places.clear();
            places.extend(chain.segments().iter().map(|segment| (segment.addr, segment.len)));
        }
        if self.log.is_some()
            && let Some(written_to) = self.written_to.get_mut(at)
        {
            let gpa = |slice: GuestSlice<'_>| Some((chain.memory().gpa_at(slice.as_ptr())?.0, slice.len() as u32));
            written_to.clear();
            written_to.extend(chain.writable().filter_map(gpa));
        }
    }

    /// What is written into them is logged from now on, or no longer. None [is written to](InFlight::writes) at the moment.
    pub fn set_log(&mut self, log: Option<QueueLog>) {
        self.log = log;
    }

    /// Has the data path one that it may write to?
    #[must_use]
    pub fn writes(&self) -> bool {
        self.by_ticket.iter().flatten().any(|chain| chain.writable_len > 0)
    }

    /// Behind an IOMMU: has one that the data path still has a byte from `first` to `last`, both included?
    pub fn touches(&self, first: u64, last: u64) -> bool {
        let lies_there =
            |(addr, len): &(u64, u32)| *len > 0 && *addr <= last && first <= addr.saturating_add(u64::from(*len) - 1);
        self.by_ticket.iter().zip(&self.places).any(|(chain, places)| chain.is_some() && places.iter().any(lies_there))
    }

    /// The data path is done with it, and has written so many bytes into it. Returns whether it was in flight.
    pub fn complete(&mut self, ticket: u16, written: u32) -> bool {
        let chain = self.by_ticket.get_mut(usize::from(ticket)).and_then(Option::take);
        if let (Some(log), Some(pieces)) = (&self.log, self.written_to.get(usize::from(ticket)))
            && chain.is_some()
        {
            let mut left = written;
            for (gpa, len) in pieces {
                log.pages.mark(*gpa, u64::from(left.min(*len)));
                left = left.saturating_sub(*len);
            }
        }
        self.completed.extend(chain.map(|chain| (chain, written)));
        chain.is_some()
    }

    /// Has the data path none any more?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_ticket.iter().all(Option::is_none)
    }

    /// Those that are complete, to be returned, with what was written into each; they are forgotten here. The list comes back by
    /// [`give_back`](InFlight::give_back), so that its memory is used again.
    pub fn take_completed(&mut self) -> Vec<(Chain, u32)> {
        std::mem::take(&mut self.completed)
    }

    /// The list of those that were complete.
    pub fn give_back(&mut self, mut list: Vec<(Chain, u32)>) {
        list.clear();
        self.completed = list;
    }
}
