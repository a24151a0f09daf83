//! What goes wrong between two looks at a device: frames that were lost, rings that stopped.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use vnic::observe::protocol::{QueueStatus, Status};

/// Something went wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "event", rename = "trouble")]
pub(crate) struct Trouble {
    /// The queue, or the device's socket.
    pub(crate) queue: String,
    /// One sentence.
    pub(crate) what: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "! {}: {}", self.queue, self.what)
    }
}

/// What was known the last time.
#[derive(Debug)]
pub(crate) struct Troubles(BTreeMap<String, Seen>);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    counters: BTreeMap<String, u64>,
    error: Option<String>,
}

impl Troubles {
    /// Those from this state on.
    pub(crate) fn since(status: &Status) -> Troubles {
        Troubles(seen(status).collect())
    }

    /// What has gone wrong since the last time.
    pub(crate) fn news(&mut self, status: &Status) -> Vec<Trouble> {
        let mut news = Vec::new();
        for (queue, now) in seen(status) {
            let before = self.0.get(&queue).cloned().unwrap_or_default();
            let mut say = |what| news.push(Trouble { queue: queue.clone(), what });
            for (name, count) in &now.counters {
                // A device that was started anew counts from 0 again.
                let more = count.saturating_sub(before.counters.get(name).copied().unwrap_or_default());
                let (kind, reason) = name.split_once('_').unwrap_or((name, ""));
                let reason = reason.replace('_', " ");
                match kind {
                    "drop" if more > 0 => say(format!("{more} frames lost: {reason}")),
                    "error" if more > 0 => say(format!("stopped: {reason}")),
                    _ => {}
                }
            }
            if let Some(error) = now.error.as_ref().filter(|error| before.error.as_ref() != Some(error)) {
                say(error.clone());
            }
            self.0.insert(queue, now);
        }
        news
    }
}

/// Each queue, and each device under the name of its socket.
fn seen(status: &Status) -> impl Iterator<Item = (String, Seen)> {
    let devices = if status.devices.is_empty() { std::slice::from_ref(status) } else { &status.devices };
    devices.iter().flat_map(|device| {
        let itself = Seen { error: device.last_error.clone(), ..Seen::default() };
        device.queues.iter().map(of_queue).chain([(device.socket.clone(), itself)])
    })
}

fn of_queue(queue: &QueueStatus) -> (String, Seen) {
    let wrong = |name: &String| name.starts_with("drop_") || name.starts_with("error_");
    let counters = queue.counters.iter().filter(|(name, _)| wrong(name)).map(|(name, count)| (name.clone(), *count));
    (queue.queue.clone(), Seen { counters: counters.collect(), error: queue.error.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_new_is_told() {
        let status = |drops: u64, error: Option<&str>| Status {
            socket: "/run/vnic.sock".to_owned(),
            queues: vec![QueueStatus {
                queue: "transmitq0".to_owned(),
                state: "running".to_owned(),
                waits: None,
                error: error.map(str::to_owned),
                size: 256,
                event_suppression: None,
                counters: [("drop_csum_not_negotiated".to_owned(), drops), ("drops".to_owned(), drops)].into(),
            }],
            ..Status::default()
        };
        let mut troubles = Troubles::since(&status(3, None));
        assert_eq!(troubles.news(&status(3, None)), []);
        let told: Vec<String> =
            troubles.news(&status(5, Some("descriptor 12 comes twice"))).iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            ["! transmitq0: 2 frames lost: csum not negotiated", "! transmitq0: descriptor 12 comes twice"]
        );
        assert_eq!(troubles.news(&status(5, Some("descriptor 12 comes twice"))), []);
    }
}
