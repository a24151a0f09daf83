//! What happened to a page of the file, for the record: asked of a device that records it.

use vnic::observe::protocol::LifeOf;
use vnic_experiment::run::{PageLife, PageStep};

use crate::control::Client;

/// Steps that the record has room for.
const LAST: usize = 16;

/// The life of the page of this number, which is at this address. `None`: the device does not record any, or saw none of it.
pub(super) fn of_page(control: &mut Client, page: u64, gpa: u64) -> Option<PageLife> {
    let life = control.life(LifeOf::Page { gpa }).ok().filter(|life| !life.steps.is_empty())?;
    let steps = life.steps.get(life.steps.len().saturating_sub(LAST)..).unwrap_or_default();
    let steps = steps.iter().map(|step| PageStep {
        seconds: step.at_ns as f64 / 1e9,
        what: step.to_string(),
        bytes: step.bytes,
    });
    Some(PageLife { page, gpa, steps: steps.collect(), missed_chains: life.missed_chains })
}
