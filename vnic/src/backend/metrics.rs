//! The counters in Prometheus text form, for `curl --unix-socket SOCKET http://vnic/metrics`.

use std::fmt::Write as _;
use std::io::{BufRead, Read, Write};

use super::shared::Shared;

/// Answers one HTTP request whose first line is `line`, and ends the connection.
pub(super) fn serve_http(
    stream: &mut impl Write,
    rest: &mut impl BufRead,
    line: &str,
    shared: &Shared,
) -> std::io::Result<()> {
    // The header lines say nothing we need; they are read so that the client is not cut off while it still writes.
    let mut header = String::new();
    while rest.by_ref().take(8192).read_line(&mut header)? > 2 {
        header.clear();
    }
    let (status, body) = match line.split(' ').nth(1) {
        Some("/metrics") => ("200 OK", text(shared)),
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
pub(super) fn text(shared: &Shared) -> String {
    let mut families: std::collections::BTreeMap<String, Vec<(&str, u64)>> = std::collections::BTreeMap::new();
    for queue in &shared.queues {
        for (name, count) in queue.counts() {
            families.entry(name).or_default().push((&queue.name, count));
        }
    }
    let mut out = String::new();
    for (family, samples) in families {
        // Writing into a String does not fail.
        let _ = writeln!(out, "# TYPE vnic_queue_{family}_total counter");
        for (queue, count) in samples {
            let _ = writeln!(out, "vnic_queue_{family}_total{{queue=\"{queue}\"}} {count}");
        }
    }
    for (name, count) in shared.iommu.iotlb.counters.named() {
        let _ = writeln!(out, "# TYPE vnic_iotlb_{name}_total counter\nvnic_iotlb_{name}_total {count}");
    }
    for (name, count) in shared.link_counters() {
        let _ = writeln!(out, "# TYPE vnic_link_{name}_total counter\nvnic_link_{name}_total {count}");
    }
    out
}
