//! The counters for Prometheus, in OpenMetrics' text form: `curl --unix-socket SOCKET http://vnic/metrics`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead, Read, Write};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::backend::Shared;
use crate::observe::counters::QueueCounters;
use crate::observe::protocol::HardwareStatus;

/// Of the text form.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers one HTTP request whose first line is `line`, and ends the connection.
pub(super) fn serve_http(
    stream: &mut impl Write,
    rest: &mut impl BufRead,
    line: &str,
    text: impl Fn() -> String,
) -> std::io::Result<()> {
    // The header lines say nothing we need; they are read so that the client is not cut off while it still writes.
    let mut header = String::new();
    while rest.by_ref().take(8192).read_line(&mut header)? > 2 {
        header.clear();
    }
    let (status, kind, body) = match line.split(' ').nth(1) {
        Some("/metrics") => ("200 OK", CONTENT_TYPE, text()),
        _ => ("404 Not Found", "text/plain", "only /metrics is here\n".to_owned()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// One family of counters: its name without prefix and `_total`, and a sample for each queue, or one in all.
#[derive(Debug, Default)]
struct Family {
    help: String,
    /// A queue's name, or none where the count is of the whole process.
    samples: Vec<(Option<String>, u64)>,
}

/// What is known at one moment.
#[derive(Debug, Default)]
struct Snapshot {
    families: BTreeMap<String, Family>,
    /// By device: is a front-end connected?
    connected: Vec<(String, bool)>,
}

impl Snapshot {
    fn add(&mut self, name: String, help: impl FnOnce() -> String, queue: Option<&str>, count: u64) {
        let family = self.families.entry(name).or_insert_with(|| Family { help: help(), samples: Vec::new() });
        match (queue, family.samples.first_mut()) {
            // Those of several devices together.
            (None, Some((_, sum))) => *sum += count,
            (queue, _) => family.samples.push((queue.map(str::to_owned), count)),
        }
    }

    fn of(devices: &[&Shared], hardware: &[HardwareStatus]) -> Self {
        let mut snapshot = Snapshot::default();
        for shared in devices {
            for queue in &shared.queues {
                for (name, count) in queue.counts() {
                    snapshot.add(format!("queue_{name}"), || queue_help(&name), Some(&queue.name), count);
                }
            }
            for (name, count) in shared.iommu.iotlb.counters.named() {
                let words = name.replace('_', " ");
                let help = || format!("Of the translations of the guest's IOMMU: {words}");
                snapshot.add(format!("iotlb_{name}"), help, None, count);
            }
            for (name, count) in shared.counters() {
                let help = || format!("On the host's side of the device: {}", name.replace('_', " "));
                snapshot.add(format!("link_{name}"), help, None, count);
            }
            let connected = shared.about.socket.clone();
            snapshot.connected.push((connected, shared.view().connected));
        }
        for queue in hardware.iter().flat_map(|status| &status.queues) {
            let cost = &queue.cost;
            let figures = [
                ("chains", cost.chains),
                ("descriptors", cost.descriptors),
                ("descriptor_reads", cost.descriptor_reads),
                ("round_trips", cost.round_trips),
                ("interrupts", cost.interrupts),
                ("tlps_up", cost.tlps_up),
                ("tlps_down", cost.tlps_down),
                ("bus_bytes_up", cost.bus_bytes_up),
                ("bus_bytes_down", cost.bus_bytes_down),
            ];
            for (name, count) in figures {
                let help = || format!("What the chains would cost the card of the model: {}", name.replace('_', " "));
                snapshot.add(format!("hardware_{name}"), help, Some(&queue.queue), count);
            }
        }
        snapshot
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, Family { help, samples }) in &self.families {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (queue, count) in samples {
                let labels: Vec<_> = queue.iter().map(|queue| ("queue", queue.as_str())).collect();
                ConstCounter::new(*count).encode(metric.encode_family(&labels.as_slice())?)?;
            }
        }
        let help = "Is a front-end connected to the device?";
        let mut metric = encoder.encode_descriptor("device_connected", help, None, MetricType::Gauge)?;
        for (socket, connected) in &self.connected {
            let labels = [("socket", socket.as_str())];
            ConstGauge::new(i64::from(*connected)).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// What a queue's counter counts.
fn queue_help(name: &str) -> String {
    let named = |prefix| name.strip_prefix(prefix).map(|rest: &str| rest.replace('_', " "));
    match (QueueCounters::help(name), named("error_"), named("drop_")) {
        (Some(help), _, _) => help.trim_end_matches('.').to_owned(),
        (None, Some(error), _) => format!("Times the ring stopped for this error: {error}"),
        (None, None, Some(reason)) => format!("Frames that were lost for this reason: {reason}"),
        (None, None, None) => format!("Of the queue: {}", name.replace('_', " ")),
    }
}

/// All counters of these devices, and what their chains would cost.
#[must_use]
pub(crate) fn text(devices: &[&Shared], hardware: &[HardwareStatus]) -> String {
    let mut registry = Registry::with_prefix("vnic");
    registry.register_collector(Box::new(Snapshot::of(devices, hardware)));
    let mut out = String::new();
    // Writing into a String does not fail.
    let _ = encode(&mut out, &registry);
    out
}
