//! `vnic status` and `vnic rings`, put together from what is shared.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::backend::Shared;
use crate::backend::iommu::Iommu;
use crate::backend::shared::View;
use crate::memory::{FilePages, Iotlb, IotlbEntry, Memory};
use crate::observe::protocol::{
    EventSuppression, FeatureSets, IotlbStatus, QueueStatus, RegionStatus, RingSnapshot, Status, TranslationStatus,
};
use crate::ring::{RingLayout, snapshot};
use crate::spec::{Feature, Features};

/// Translations that the status shows singly.
const SHOWN: usize = 16;

/// The whole state: the first device's, and that of each where there are several.
#[must_use]
pub(super) fn joined(mut all: Vec<Status>) -> Status {
    match all.as_slice() {
        [first, _, ..] => Status { devices: all.clone(), ..first.clone() },
        _ => all.pop().unwrap_or_default(),
    }
}

/// The state of one device.
#[must_use]
pub(crate) fn device(shared: &Shared) -> Status {
    let event_suppression = event_suppression(shared);
    // Each under its own lock, for a moment: the session and the IOMMU's updates wait for them.
    let iotlb = iotlb(&shared.iommu);
    let view = shared.view();
    Status {
        device: shared.about.device.to_owned(),
        devices: Vec::new(),
        socket: shared.about.socket.clone(),
        pid: std::process::id(),
        link: shared.about.link.clone(),
        connected: view.connected,
        sessions: view.sessions,
        last_error: view.last_error.clone(),
        features: FeatureSets {
            offered: shared.about.offered.names_for(shared.about.device),
            withheld: shared.about.withheld.names_for(shared.about.device),
            negotiated: view.negotiated.names_for(shared.about.device),
        },
        protocol_features: view.protocol_features.clone(),
        regions: regions(view.memory.as_deref()),
        hardware: None,
        sandbox: None,
        proxy: None,
        migration: Some(super::migration::status(shared, &view)),
        iotlb: view.negotiated.has(Feature::AccessPlatform).then_some(iotlb),
        queues: queues(shared, &view, &event_suppression),
        idle_ns: shared.idle_ns.load(Ordering::Relaxed),
        link_counters: shared.counters(),
    }
}

/// The guest's memory.
pub(crate) fn regions(memory: Option<&Memory>) -> Vec<RegionStatus> {
    let regions = memory.into_iter().flat_map(|memory| memory.regions().iter());
    regions
        .map(|region| RegionStatus {
            gpa: region.gpa.0,
            size: region.size,
            user_addr: region.user_addr.0,
            offset: region.mmap_offset,
        })
        .collect()
}

fn queues(shared: &Shared, view: &View, event_suppression: &BTreeMap<u16, EventSuppression>) -> Vec<QueueStatus> {
    let queues = shared.queues.iter().zip(0u16..);
    queues
        .map(|(queue, index)| QueueStatus {
            queue: queue.name.clone(),
            state: queue.state().name().to_owned(),
            waits: queue
                .waits_for()
                .map(|miss| format!("waits for a translation of {:#x}, to {}", miss.iova, miss.access)),
            error: queue.error(),
            size: view.rings.get(&index).map_or(0, |ring| ring.size),
            event_suppression: event_suppression.get(&index).copied(),
            counters: queue.counts(),
        })
        .collect()
}

/// When both sides of each ring want to be notified, as far as it can be read.
fn event_suppression(shared: &Shared) -> BTreeMap<u16, EventSuppression> {
    let Some(SetUp { memory, rings, features, .. }) = set_up(shared, None) else { return BTreeMap::new() };
    let read = |(index, layout): (u16, RingLayout)| Some((index, EventSuppression::read(&layout, &memory, features)?));
    rings.into_iter().filter_map(read).collect()
}

fn iotlb(iommu: &Iommu) -> IotlbStatus {
    translations(&iommu.seen, &iommu.iotlb)
}

/// The translations of one, with another's counters.
pub(crate) fn translations(seen: &Iotlb, counted: &Iotlb) -> IotlbStatus {
    let counters = &counted.counters;
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    IotlbStatus {
        entries: seen.len() as u64,
        bytes: seen.bytes(),
        hits: count(&counters.hits),
        misses: count(&counters.misses),
        updates: count(&counters.updates),
        invalidations: count(&counters.invalidations),
        evicted: count(&counters.evicted),
        first: seen.first(SHOWN).iter().map(translation).collect(),
    }
}

fn translation(entry: &IotlbEntry) -> TranslationStatus {
    let IotlbEntry { iova, size, gpa, read, write } = *entry;
    TranslationStatus { iova: iova.0, size, gpa: gpa.0, read, write }
}

/// Guest memory as the driver's addresses have it, for someone who only looks; `None`: there is none.
#[must_use]
pub(super) fn memory(shared: &Shared) -> Option<Arc<Memory>> {
    let view = shared.view();
    let memory = view.memory.clone()?;
    Some(match view.negotiated.has(Feature::AccessPlatform) {
        true => Arc::new(memory.behind(shared.iommu.seen.clone())),
        false => memory,
    })
}

/// What it takes to read rings.
struct SetUp {
    memory: Arc<Memory>,
    rings: BTreeMap<u16, RingLayout>,
    pages: Option<Arc<FilePages>>,
    features: Features,
}

/// The rings that are set up, or `only` one of them. The lock is let go before anybody reads guest memory.
fn set_up(shared: &Shared, only: Option<u16>) -> Option<SetUp> {
    let memory = memory(shared)?;
    let view = shared.view();
    let wanted = view.rings.iter().filter(|(index, _)| only.is_none_or(|only| only == **index));
    let rings = wanted.map(|(index, layout)| (*index, *layout)).collect();
    Some(SetUp { memory, rings, pages: view.pages.clone(), features: view.negotiated })
}

/// Snapshots of the rings that are set up, or of `only` one.
#[must_use]
pub(crate) fn rings(shared: &Shared, only: Option<u16>) -> Vec<RingSnapshot> {
    let Some(SetUp { memory, rings, pages, features }) = set_up(shared, only) else { return Vec::new() };
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
                    let gpa = buffer.gpa(features.has(Feature::AccessPlatform));
                    buffer.file_page = gpa.and_then(|gpa| pages.page_at(gpa));
                }
            }
            Some(ring)
        })
        .collect()
}
