//! A queue that is watched, whatever its ring's format.

use std::sync::Arc;

use super::super::devices::{Frames, Queue};
use super::packed::PackedRing;
use super::sight::Sight;
use super::split::SplitRing;
use super::told::{Told, Wanted};
use crate::backend::QueueShared;
use crate::introspect::GuestPhysical;
use crate::spec::{Feature, Features};

/// A queue that is watched.
#[derive(Debug)]
pub(in crate::attach) struct Watched {
    told: Told,
    ring: Ring,
}

#[derive(Debug)]
enum Ring {
    Split(SplitRing),
    Packed(PackedRing),
}

impl Watched {
    /// From now on; `None`: the ring is none that can be looked at so, out of reach, or behind the guest's IOMMU.
    pub(in crate::attach) fn new(
        ram: &impl GuestPhysical,
        queue: &Queue,
        features: Features,
        shared: Arc<QueueShared>,
    ) -> Option<Watched> {
        // Where such addresses lead cannot be said.
        if features.has(Feature::AccessPlatform) {
            return None;
        }
        let ring = match queue.packed {
            Some(books) => Ring::Packed(PackedRing::new(ram, queue, books, features)?),
            None => Ring::Split(SplitRing::new(ram, queue)?),
        };
        let header = if queue.frames == Frames::Requests { 0 } else { crate::net::header_len(features) };
        Some(Watched { told: Told { shared, queue: queue.clone(), features, header }, ring })
    }

    /// Is it still this one?
    pub(super) fn is(&self, queue: &Queue, features: Features) -> bool {
        let same = |one: &Queue| (one.layout, one.last_used_at, one.frames, one.packed);
        let own = &self.told;
        own.queue.name == queue.name && same(&own.queue) == same(queue) && own.features == features
    }

    /// The frames that it carries.
    pub(super) fn frames(&self) -> Frames {
        self.told.queue.frames
    }

    /// Believes a look at a packed ring however long it took.
    #[cfg(any(test, fuzzing))]
    pub(in crate::attach) fn believe(&mut self, most: std::time::Duration) {
        if let Ring::Packed(ring) = &mut self.ring {
            ring.believed = most;
        }
    }

    /// Looks once; by `sight`, if somebody wants to know whose the bytes are. Returns whether anything has happened.
    pub(in crate::attach) fn look<M: GuestPhysical>(
        &mut self,
        ram: &M,
        wanted: Wanted,
        sight: Option<&mut Sight<M>>,
    ) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.look(ram, &self.told, wanted, sight),
            Ring::Packed(ring) => ring.look(ram, &self.told, wanted, sight),
        }
    }
}
