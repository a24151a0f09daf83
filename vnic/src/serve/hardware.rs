//! What a NIC's chains would cost the card of its model, for `vnic status`, the metrics and a run's record.

use std::fmt::Write as _;

use crate::backend::{Shared, Workers};
use crate::hardware::{Direction, Figures};
use crate::nic;
use crate::observe::protocol::{HardwareStatus, QueueCost};

/// The account of one device; `None`: it has no model.
pub(super) fn status(shared: &Shared, workers: &Workers) -> Option<HardwareStatus> {
    let applied = shared.about.hardware.as_ref()?;
    let shapes = nic::shapes(workers);
    let queues = shared.queues.iter().filter_map(|queue| {
        let shapes = shapes.get(&queue.name).filter(|shapes| shapes.chains > 0)?;
        let direction = if queue.is_transmitq() { Direction::Transmit } else { Direction::Receive };
        let cost = Figures::new(&applied.model, &applied.model.account(direction, shapes));
        // The worker may have gone on since it told.
        let chains = queue.counters.chains.get().max(shapes.chains);
        Some(QueueCost { queue: queue.name.clone(), chains, cost })
    });
    Some(HardwareStatus { model: applied.model.name.clone(), paced: applied.pace, queues: queues.collect() })
}

/// A figure of an account.
type Figure = fn(&Figures) -> u64;

/// The same in Prometheus text form.
pub(super) fn metrics<'d>(devices: impl Iterator<Item = (&'d Shared, &'d Workers)>) -> String {
    let costs = devices.filter_map(|(shared, workers)| status(shared, workers));
    let all: Vec<QueueCost> = costs.flat_map(|status| status.queues).collect();
    let families: [(&str, Figure); 9] = [
        ("chains", |cost| cost.chains),
        ("descriptors", |cost| cost.descriptors),
        ("descriptor_reads", |cost| cost.descriptor_reads),
        ("round_trips", |cost| cost.round_trips),
        ("interrupts", |cost| cost.interrupts),
        ("tlps_up", |cost| cost.tlps_up),
        ("tlps_down", |cost| cost.tlps_down),
        ("bus_bytes_up", |cost| cost.bus_bytes_up),
        ("bus_bytes_down", |cost| cost.bus_bytes_down),
    ];
    let mut out = String::new();
    for (family, figure) in families.iter().filter(|_| !all.is_empty()) {
        // Writing into a String does not fail.
        let _ = writeln!(out, "# TYPE vnic_hardware_{family}_total counter");
        for QueueCost { queue, cost, .. } in &all {
            let _ = writeln!(out, "vnic_hardware_{family}_total{{queue=\"{queue}\"}} {}", figure(cost));
        }
    }
    out
}
