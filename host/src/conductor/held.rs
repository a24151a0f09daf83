//! The transmitqs, held for as long as a value lives: every way out of a probe or a hazard releases them.

use std::path::Path;

use anyhow::{Context, Result};
use vnic::observe::protocol::Request;

use crate::control::Client;

/// The queues held, over a connection of their own: the conductor's may be at work.
#[derive(Debug)]
pub(super) struct Held {
    client: Client,
    queues: Vec<String>,
}

impl Held {
    /// Holds every transmitq that is set up at the device behind `control`.
    pub(super) fn transmitqs(control: &Path) -> Result<Self> {
        let mut client = Client::open(Some(control))?;
        let running = |state: &str| matches!(state, "running" | "waiting" | "held");
        let queues = client.status()?.queues;
        let queues = queues.into_iter().filter(|queue| queue.queue.starts_with("transmitq") && running(&queue.state));
        let mut held = Held { client, queues: Vec::new() };
        for queue in queues.map(|queue| queue.queue) {
            held.client
                .order(&Request::Hold { queue: queue.clone() })
                .with_context(|| format!("cannot hold {queue}"))?;
            held.queues.push(queue);
        }
        Ok(held)
    }

    /// The connection, for looking at what is held.
    pub(super) fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// The first of the queues in which a chain with payload waits.
    pub(super) fn with_payload(&mut self) -> Result<Option<String>> {
        for queue in &self.queues {
            let rings = self.client.rings(Some(queue.clone()))?;
            let frames = rings.iter().flat_map(|ring| &ring.chains);
            let long = |len: u64| len >= SURELY_PAYLOAD;
            if frames.map(|chain| chain.buffers.iter().map(|buffer| u64::from(buffer.len)).sum()).any(long) {
                return Ok(Some(queue.clone()));
            }
        }
        Ok(None)
    }

    /// Lets all go, and says what did not work.
    pub(super) fn release(mut self) -> Result<()> {
        self.let_go()
    }

    fn let_go(&mut self) -> Result<()> {
        let mut done = Ok(());
        for queue in std::mem::take(&mut self.queues) {
            let released = self.client.order(&Request::Release { queue: queue.clone() });
            done =
                done.and(released.with_context(|| format!("cannot release {queue}; `vnic release --queue {queue}`")));
        }
        done
    }
}

/// Longer than any frame without payload.
const SURELY_PAYLOAD: u64 = 512;

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = self.let_go() {
            tracing::warn!("{error:#}");
        }
    }
}
