//! The device behind the guest's IOMMU: the IOTLB, and the channel on which the front-end is asked.
//!
//! Place: one per device. The session's thread brings updates, invalidations and the channel; workers ask for what a queue
//! waits for. Nothing here waits for the front-end.
//!
//! Operation, a miss:
//! 1. A walk finds that translations are missing; the chain stays in the ring ([`super::queue::Queue::stop_ring`]).
//! 2. Those that nobody asked for yet are sent, one message each. The queue is left alone from then on.
//! 3. An update wakes the workers; a queue goes on once all that it waits for is there. If nothing comes, it waits:
//!    `vnic status` says for what.
//!
//! Limits: a front-end that does not read its channel is asked again when the next message about translations comes from it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::memory::iotlb::Waiting;
use crate::memory::{Access, Iotlb, IotlbEntry, Iova, Miss};
use crate::vhost_user::BackendChannel;

/// See the [module](self).
#[derive(Debug, Default)]
pub struct Iommu {
    /// What the queues translate with.
    pub iotlb: Arc<Iotlb>,
    /// The same for those who look on: they never take a lock that a queue needs.
    pub seen: Arc<Iotlb>,
    channel: Mutex<Option<BackendChannel>>,
}

impl Iommu {
    /// An IOTLB without translations, and nobody to ask.
    #[must_use]
    pub fn new() -> Self {
        Iommu { seen: Arc::new(Iotlb::for_observers()), ..Iommu::default() }
    }

    /// From now on ask here, or nobody.
    pub fn set_channel(&self, channel: Option<BackendChannel>) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }

    /// Registers someone who needs these translations, and asks for those that nobody asked for. `None`: all are there.
    #[must_use]
    pub fn ask(&self, misses: &[Miss]) -> Option<Waiting> {
        let (waiting, fresh) = self.iotlb.ask(misses)?;
        self.send(&fresh);
        Some(waiting)
    }

    /// Are all translations there now? If not, those that nobody asks for any more are asked for again.
    pub fn is_over(&self, waiting: &mut Waiting) -> bool {
        match waiting.look_again() {
            None => true,
            Some(fresh) => {
                self.send(&fresh);
                false
            }
        }
    }

    fn send(&self, misses: &[Miss]) {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        for (at, miss) in misses.iter().enumerate() {
            let sent = channel.as_ref().map(|channel| channel.iotlb_miss(Iova(miss.iova), miss.access));
            if let Some(Ok(())) = sent {
                continue;
            }
            if let Some(Err(error)) = sent {
                tracing::warn!(%error, "a translation could not be asked for");
            }
            self.iotlb.unask(misses.get(at..).unwrap_or_default());
            return;
        }
    }

    /// Tells the front-end that its IOMMU forbids what a descriptor asked for.
    pub fn tell_forbidden(&self, addr: u64, access: Access) {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        // It is told once and need not listen.
        let _ = channel.as_ref().map(|channel| channel.iotlb_access_fail(Iova(addr), access));
    }

    /// Takes a translation.
    pub fn update(&self, entry: &IotlbEntry) -> crate::memory::iotlb::Updated {
        self.seen.update(entry);
        self.iotlb.update(entry)
    }

    /// Forgets translations, but not the queues' copies of them.
    pub fn invalidate(&self, first: Iova, last: Iova) {
        self.seen.invalidate(first.0, last.0);
        self.iotlb.invalidate(first.0, last.0);
    }

    /// Forgets them all.
    pub fn clear(&self) {
        self.seen.clear();
        self.iotlb.clear();
    }
}
