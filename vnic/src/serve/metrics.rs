//! The counters in Prometheus text form, for `curl --unix-socket SOCKET http://vnic/metrics`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, Read, Write};

use crate::backend::Shared;

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
    let (status, body) = match line.split(' ').nth(1) {
        Some("/metrics") => ("200 OK", text()),
        _ => ("404 Not Found", "only /metrics is here\n".to_owned()),
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// All counters, one line each; one family per counter, one sample per queue.
#[must_use]
pub(crate) fn text(devices: &[&Shared]) -> String {
    let mut families: BTreeMap<String, Vec<(&str, u64)>> = BTreeMap::new();
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for shared in devices {
        for queue in &shared.queues {
            for (name, count) in queue.counts() {
                families.entry(name).or_default().push((&queue.name, count));
            }
        }
        let iotlb = shared.iommu.iotlb.counters.named().map(|(name, count)| (format!("iotlb_{name}"), count));
        let own = shared.counters().into_iter().map(|(name, count)| (format!("link_{name}"), count));
        iotlb.into_iter().chain(own).for_each(|(name, count)| *sums.entry(name).or_default() += count);
    }
    let mut out = String::new();
    for (family, samples) in families {
        // Writing into a String does not fail.
        let _ = writeln!(out, "# TYPE vnic_queue_{family}_total counter");
        for (queue, count) in samples {
            let _ = writeln!(out, "vnic_queue_{family}_total{{queue=\"{queue}\"}} {count}");
        }
    }
    for (name, count) in sums {
        let _ = writeln!(out, "# TYPE vnic_{name}_total counter\nvnic_{name}_total {count}");
    }
    out
}
