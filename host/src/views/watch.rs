//! `vnic watch`: the rings, live: a few times a second the device is asked for status and rings.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use anyhow::Result;
use vnic::observe::protocol::{QueueStatus, RingSnapshot, Status};

use super::screen::{self, Why};
use super::style::{self, BAD, DIM, GOOD, HEAD, WARN};
use super::{figures, notation, table};
use crate::control::Client;
use crate::labels;

/// How often the device is asked.
const REFRESH: Duration = Duration::from_millis(250);

/// Runs until somebody ends it.
pub(crate) fn run(mut client: Client, labels: bool) -> Result<()> {
    let mut rates = Rates::default();
    let mut labels = labels;
    screen::run(REFRESH, None, |why| {
        labels ^= why == Why::Key(b'l');
        let status = client.status()?;
        let rings = if labels { labels::rings(&mut client, None)? } else { client.rings(None)? };
        rates.update(&status.queues, Instant::now());
        Ok(Some(frame(&status, &rings, &rates)?))
    })?;
    Ok(())
}

/// How fast a queue's counters rise, per second.
#[derive(Debug, Default)]
struct Rates {
    last: Option<Instant>,
    before: BTreeMap<String, (u64, u64)>,
    now: BTreeMap<String, (f64, f64)>,
}

impl Rates {
    fn update(&mut self, queues: &[QueueStatus], at: Instant) {
        let elapsed = self.last.map(|last| at.saturating_duration_since(last).as_secs_f64());
        for queue in queues {
            let get = |name| queue.counters.get(name).copied().unwrap_or_default();
            let counts = (get("chains"), get("bytes"));
            let before = self.before.insert(queue.queue.clone(), counts);
            if let (Some(before), Some(elapsed)) = (before, elapsed.filter(|elapsed| *elapsed > 0.0)) {
                // A device that was started anew counts from 0 again.
                let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / elapsed;
                self.now.insert(queue.queue.clone(), (rate(counts.0, before.0), rate(counts.1, before.1)));
            }
        }
        self.last = Some(at);
    }
}

/// What to draw, top to bottom.
fn frame(status: &Status, rings: &[RingSnapshot], rates: &Rates) -> Result<Vec<String>, fmt::Error> {
    let mut text = String::new();
    let (state_style, state) = if status.connected { (GOOD, "connected") } else { (WARN, "no front-end") };
    writeln!(
        text,
        "{HEAD}vnic{HEAD:#} {}  link {}  {state_style}{state}{state_style:#}  session {}  {DIM}l: labels, q quits{DIM:#}",
        status.socket, status.link, status.sessions
    )?;
    if let Some(error) = &status.last_error {
        writeln!(text, "{BAD}{error}{BAD:#}")?;
    }
    for queue in &status.queues {
        let state = style::of_state(&queue.state);
        let (chains, bytes) = rates.now.get(&queue.queue).copied().unwrap_or_default();
        writeln!(
            text,
            "\n{HEAD}{}{HEAD:#} {state}{}{state:#}  {} chains  {:.0}/s  {}/s",
            queue.queue,
            queue.state,
            figures::count(queue.counters.get("chains").copied().unwrap_or_default()),
            chains,
            figures::bytes(bytes as u64)
        )?;
        if let Some(error) = &queue.error {
            writeln!(text, "  {BAD}{error}{BAD:#}")?;
        }
        if let Some(ring) = rings.iter().find(|ring| ring.queue == queue.queue) {
            writeln!(text, "{}", notation::ring(ring, false, usize::from(table::width())))?;
        }
    }
    Ok(text.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(chains: u64, bytes: u64) -> QueueStatus {
        QueueStatus {
            queue: "transmitq0".to_owned(),
            state: "running".to_owned(),
            waits: None,
            error: None,
            size: 256,
            event_suppression: None,
            counters: [("chains".to_owned(), chains), ("bytes".to_owned(), bytes)].into(),
        }
    }

    #[test]
    fn rates_are_per_second_and_a_restart_is_no_negative_rate() {
        let mut rates = Rates::default();
        let start = Instant::now();
        rates.update(&[queue(100, 1000)], start);
        assert!(rates.now.is_empty());
        rates.update(&[queue(150, 3000)], start + Duration::from_millis(500));
        assert_eq!(rates.now["transmitq0"], (100.0, 4000.0));
        rates.update(&[queue(0, 0)], start + Duration::from_millis(1000));
        assert_eq!(rates.now["transmitq0"], (0.0, 0.0));
    }
}
