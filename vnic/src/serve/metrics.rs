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
use crate::observe::protocol::{HardwareStatus, Status};

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
    gauges: BTreeMap<&'static str, Gauges>,
}

/// What rises and falls: its words, and by label.
type Gauges = (&'static str, Vec<((&'static str, String), u64)>);

impl Snapshot {
    fn add(&mut self, name: String, help: impl FnOnce() -> String, queue: Option<&str>, count: u64) {
        let family = self.families.entry(name).or_insert_with(|| Family { help: help(), samples: Vec::new() });
        match (queue, family.samples.first_mut()) {
            // Those of several devices together.
            (None, Some((_, sum))) => *sum += count,
            (queue, _) => family.samples.push((queue.map(str::to_owned), count)),
        }
    }

    fn gauge(&mut self, (name, help): (&'static str, &'static str), label: (&'static str, &str), value: u64) {
        let (_, samples) = self.gauges.entry(name).or_insert_with(|| (help, Vec::new()));
        samples.push(((label.0, label.1.to_owned()), value));
    }

    fn connected(&mut self, socket: &str, connected: bool) {
        let gauge = ("device_connected", "Is a front-end connected to the device?");
        self.gauge(gauge, ("socket", socket), connected.into());
    }

    /// Of a device of somebody else's: what stands in its rings, and what has passed.
    fn of_status(status: &Status) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.connected(&status.socket, status.connected);
        for device in if status.devices.is_empty() { std::slice::from_ref(status) } else { &status.devices } {
            for queue in &device.queues {
                for (name, help) in IN_RING {
                    if let Some(count) = queue.counters.get(name.trim_start_matches("queue_")) {
                        snapshot.gauge((name, help), ("queue", &queue.queue), *count);
                    }
                }
            }
        }
        if let Some(proxy) = &status.proxy {
            let gauge = ("proxy_back_end_connected", "Is the back-end connected?");
            snapshot.gauge(gauge, ("back_end", &proxy.back_end), proxy.back_end_connected.into());
            for (name, count) in &proxy.counters {
                let help = || format!("What the proxy has seen pass: {}", name.replace('_', " "));
                snapshot.add(format!("proxy_{name}"), help, None, *count);
            }
        }
        snapshot
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
            snapshot.connected(&shared.about.socket, shared.view().connected);
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
        for (name, (help, samples)) in &self.gauges {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for ((label, of), value) in samples {
                let labels = [(*label, of.as_str())];
                ConstGauge::new(i64::try_from(*value).unwrap_or(i64::MAX)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// What is known of a ring that somebody else serves, and what it is. The indices are of 16 bits, and come round.
const IN_RING: [(&str, &str); 5] = [
    ("queue_avail_idx", "Where the driver makes the next chain available"),
    ("queue_used_idx", "Where the device puts the next chain that it has used"),
    ("queue_in_flight", "Chains that are the device's"),
    ("queue_uncollected", "Used chains that the driver has not collected"),
    ("queue_not_kicked", "Chains of which the driver has not told the device"),
];

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
    encoded(Snapshot::of(devices, hardware))
}

/// What is known of a device of somebody else's.
#[must_use]
pub(crate) fn of_status(status: &Status) -> String {
    encoded(Snapshot::of_status(status))
}

fn encoded(snapshot: Snapshot) -> String {
    let mut registry = Registry::with_prefix("vnic");
    registry.register_collector(Box::new(snapshot));
    let mut out = String::new();
    // Writing into a String does not fail.
    let _ = encode(&mut out, &registry);
    out
}
