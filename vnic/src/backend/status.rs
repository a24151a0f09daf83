//! `vnic status` and `vnic rings`, put together from what is shared.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::shared::{Shared, View};
use crate::observe::protocol::{FeatureSets, QueueStatus, RegionStatus, RingSnapshot, Status};
use crate::ring::snapshot;
use crate::spec::Feature;

/// The whole state.
#[must_use]
pub(super) fn status(shared: &Shared) -> Status {
    let view = shared.view();
    Status {
        socket: shared.about.socket.clone(),
        pid: std::process::id(),
        link: shared.about.link.clone(),
        connected: view.connected,
        sessions: view.sessions,
        last_error: view.last_error.clone(),
        features: FeatureSets {
            offered: shared.about.offered.names(),
            withheld: shared.about.withheld.names(),
            negotiated: view.negotiated.names(),
        },
        protocol_features: view.protocol_features.clone(),
        regions: regions(&view),
        queues: queues(shared, &view),
        idle_ns: shared.idle_ns.load(Ordering::Relaxed),
        link_counters: shared.link_counters(),
    }
}

fn regions(view: &View) -> Vec<RegionStatus> {
    let regions = view.memory.iter().flat_map(|memory| memory.regions().iter());
    regions
        .map(|region| RegionStatus {
            gpa: region.gpa.0,
            size: region.size,
            user_addr: region.user_addr.0,
            offset: region.mmap_offset,
        })
        .collect()
}

fn queues(shared: &Shared, view: &View) -> Vec<QueueStatus> {
    let queues = shared.queues.iter().zip(0u16..);
    queues
        .map(|(queue, index)| QueueStatus {
            queue: queue.name.clone(),
            state: queue.state().name().to_owned(),
            error: queue.error(),
            size: view.rings.get(&index).map_or(0, |ring| ring.size),
            counters: queue.counts(),
        })
        .collect()
}

/// Snapshots of the rings that are set up, or of `only` one. The lock is let go before guest memory is read.
#[must_use]
pub(super) fn rings(shared: &Shared, only: Option<u16>) -> Vec<RingSnapshot> {
    let (memory, rings, pages, features) = {
        let view = shared.view();
        let Some(memory) = view.memory.clone() else { return Vec::new() };
        let wanted = view.rings.iter().filter(|(index, _)| only.is_none_or(|only| only == **index));
        let rings: BTreeMap<u16, _> = wanted.map(|(index, layout)| (*index, *layout)).collect();
        (memory, rings, view.pages.clone(), view.negotiated)
    };
    rings
        .iter()
        .filter_map(|(index, layout)| {
            let queue = shared.queues.get(usize::from(*index))?;
            let mut ring = if features.has(Feature::RingPacked) {
                snapshot::take_packed(&queue.name, layout, &memory, features, || queue.base.load(Ordering::Relaxed))
            } else {
                snapshot::take(&queue.name, layout, &memory, features)
            };
            if let Some(pages) = &pages {
                for buffer in ring.chains.iter_mut().flat_map(|chain| chain.buffers.iter_mut()) {
                    buffer.file_page = pages.page_at(buffer.addr);
                }
            }
            Some(ring)
        })
        .collect()
}
