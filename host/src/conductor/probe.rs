//! The memory as a witness: one chunk is held in the device, and the guest's memory is looked through for it.
//!
//! Operation:
//! 1. The agent prepares a transfer of one chunk that pauses after the first call.
//! 2. The transmitqs are held; `Go`; the agent hands the chunk to its kernel and says `Paused`.
//! 3. As soon as a chain with payload stands in the ring, the scan counts how often its stamps stand in memory.
//! 4. The queues are released; `Go`; the chunk arrives like any other.
//!
//! A probe that finds nothing out says why; only a conversation that breaks is an error.

use std::time::{Duration, Instant};

use anyhow::Result;
use vnic_experiment::row::Row;
use vnic_experiment::scan::ScanReport;
use vnic_experiment::wire::{Event, Request, TransferSpec};

use super::held::Held;
use super::port::{self, Wait};
use super::{ANSWER, Conductor, interrupt};

/// Most bytes of the probe.
const CHUNK: u64 = 64 << 10;
/// For the program to hand over one chunk, and for its first frame to reach the ring.
const HAND_OVER: Duration = Duration::from_secs(20);
/// Between two looks at the ring.
const RETRY: Duration = Duration::from_millis(10);

/// What a probe found.
#[derive(Debug)]
pub(super) enum Probed {
    /// Physical instances of the held chunk.
    Instances(u64),
    /// Not known, and why.
    Unknown(String),
    /// The guest cannot do the method.
    Unsupported(String),
}

impl Conductor<'_> {
    /// Probes a row.
    pub(super) fn probe(&mut self, row: &Row, filesystem: &str) -> Result<Probed> {
        let bytes = self.plan.bytes.min(CHUNK);
        let spec = TransferSpec { bytes, chunk: bytes, pause: true, accounts: false, ..self.spec(row, filesystem) };
        self.port.send(&Request::Transfer(spec))?;
        match self.wait("the guest to prepare the probe")? {
            Event::TransferBegin { .. } => {}
            Event::Failed { error } => return Ok(Probed::Unknown(format!("the probe failed: {error}"))),
            Event::Unsupported { why } => return Ok(Probed::Unsupported(why)),
            other => return Err(port::out_of_turn("preparing a probe", &other)),
        }
        let mut held = Held::transmitqs(self.control.path())?;
        self.port.send(&Request::Go)?;
        let paused = self.wait_for_pause()?;
        let found = match &paused {
            Some(Event::Paused { .. }) => look(&mut held)?,
            Some(Event::Failed { error }) => return Ok(Probed::Unknown(format!("the probe failed: {error}"))),
            Some(other) => return Err(port::out_of_turn("a probe", other)),
            None => {
                Probed::Unknown("the program did not come back from its first call while the NIC held it".to_owned())
            }
        };
        held.release()?;
        // A program that waited for room goes on now.
        let paused = paused.map_or_else(|| self.wait("the probe's program to come back"), Ok)?;
        match paused {
            Event::Paused { .. } => self.port.send(&Request::Go)?,
            Event::Failed { error } => return Ok(Probed::Unknown(format!("the probe failed: {error}"))),
            other => return Err(port::out_of_turn("a probe", &other)),
        }
        match self.wait("the probe to end")? {
            Event::TransferEnd { .. } => Ok(found),
            Event::Failed { error } => Ok(Probed::Unknown(format!("the probe failed after its release: {error}"))),
            other => Err(port::out_of_turn("a probe", &other)),
        }
    }

    /// Waits for `Paused`; `None` when the program does not come back.
    pub(super) fn wait_for_pause(&mut self) -> Result<Option<Event>> {
        let progress = &mut self.progress;
        let wait = Wait { what: "the first chunk to be handed over", limit: HAND_OVER.min(ANSWER) };
        self.port.wait_until(&wait, &mut || progress.tick(None))
    }
}

/// Waits for payload in a held ring and counts its instances.
fn look(held: &mut Held) -> Result<Probed> {
    let deadline = Instant::now() + HAND_OVER;
    let queue = loop {
        if let Some(queue) = held.with_payload()? {
            break queue;
        }
        if Instant::now() >= deadline || interrupt::came() {
            let limit = HAND_OVER.as_secs();
            return Ok(Probed::Unknown(format!("no payload came into a held transmitq within {limit} s")));
        }
        // A ring cannot be waited on without disturbing it.
        std::thread::sleep(RETRY);
    };
    // A device that cannot look is a witness that cannot speak. One that is gone cannot release either, and that counts.
    Ok(match held.client().scan(&queue) {
        Ok(report) => report.agreed().map_or_else(|| Probed::Unknown(disagreement(&report)), Probed::Instances),
        Err(error) => Probed::Unknown(format!("{error:#}")),
    })
}

/// Why a scan gives no count.
fn disagreement(report: &ScanReport) -> String {
    if report.held_stamps == 0 {
        return "no stamp of the file stands in the frames that were held".to_owned();
    }
    let counts: Vec<String> =
        report.instances.iter().map(|(count, stamps)| format!("{stamps} stand {count} times")).collect();
    format!("the {} stamps that were held do not agree: {}", report.held_stamps, counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_that_do_not_agree_are_told_as_they_stand() {
        let report = ScanReport {
            held_stamps: 10,
            sent_again: 0,
            instances: [(1, 4), (3, 6)].into(),
            places: Vec::new(),
            scanned_bytes: 0,
            seconds: 0.0,
        };
        assert_eq!(report.agreed(), None);
        assert_eq!(
            disagreement(&report),
            "the 10 stamps that were held do not agree: 4 stand 1 times, 6 stand 3 times"
        );
        assert!(disagreement(&ScanReport { held_stamps: 0, ..report }).starts_with("no stamp"));
    }
}
