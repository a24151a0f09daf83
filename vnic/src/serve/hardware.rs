//! What a NIC's chains would cost the card of its model, for `vnic status`, the metrics and a run's record.

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
