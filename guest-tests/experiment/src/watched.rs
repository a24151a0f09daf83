//! The judgement on a VM that was watched, without an agent in it: a row per flow.
//!
//! Place: `vnic verdict`. One witness speaks: the guest's own kernel, read from outside, of each page that was sent. Whose the
//! bytes are, it knows; how often a program has copied them before, it does not.

use std::collections::BTreeMap;

use vnic::provenance::{FlowReport, Report, SourceReport, descriptors_per_mib};

use super::run::{DeviceAccounts, FileInfo, IntrospectionAccounts, Method, Run, Verdict, Watched, WatchedFile};
use super::verdict::NEARLY_ALL;

/// Why figures are missing that are there where a transfer is conducted.
const NO_AGENT: &str = "a VM was watched, with no agent in it";

/// The record of what was seen.
#[must_use]
pub fn run(report: &Report) -> Run {
    let file = |one: &SourceReport| WatchedFile {
        name: one.source.to_string(),
        path: one.source.path.clone(),
        filesystem: one.source.filesystem.clone(),
        bytes: one.bytes,
    };
    let files: Vec<WatchedFile> = report.files.iter().map(file).collect();
    let mut filesystems: Vec<&str> = files.iter().filter_map(|file| file.filesystem.as_deref()).collect();
    filesystems.sort_unstable();
    filesystems.dedup();
    let file =
        FileInfo { bytes: files.iter().map(|file| file.bytes).sum(), filesystem: filesystems.join(","), chunk: None };
    Run {
        kernel_modules: Vec::new(),
        kernel: report.kernel.clone().unwrap_or_default(),
        qemu: None,
        accel: None,
        file,
        methods: report.flows.iter().map(method).collect(),
        watched: Some(Watched {
            seconds: report.seconds,
            seen_share: report.seen_share,
            passed_bytes: report.passed.bytes,
            files,
        }),
        reasons: because(&["qemu", "accel"], NO_AGENT).collect(),
    }
}

fn because<'k>(keys: &'k [&str], why: &'static str) -> impl Iterator<Item = (String, String)> + 'k {
    keys.iter().map(move |key| ((*key).to_owned(), why.to_owned()))
}

fn method(flow: &FlowReport) -> Method {
    let (verdict, why) = judge(flow);
    let mut reasons: BTreeMap<String, String> = because(
        &["nic", "bytes_sent", "sha256_ok", "seconds", "guest", "memory", "touches", "cpu_copies", "dma_copies"],
        NO_AGENT,
    )
    .collect();
    reasons.extend(because(&["dma.disk", "dma.shapes", "dma.hardware"], "not counted by flow"));
    let again = "what is sent again counts again";
    reasons.extend(because(&["device.retransmitted_bytes"], again));
    reasons.extend(because(&["device.dma_read_bytes", "device.device_copied_bytes"], "not counted by flow"));
    if verdict.is_none() {
        reasons.insert("verdict".to_owned(), why.clone());
    }
    Method {
        method: flow.flow.clone(),
        device: DeviceAccounts {
            chains: Some(flow.frames),
            descriptors: Some(flow.descriptors),
            payload_bytes: Some(flow.bytes),
            from_page_cache_bytes: Some(flow.file_bytes),
            from_elsewhere_bytes: Some(flow.bytes.saturating_sub(flow.file_bytes)),
            ..DeviceAccounts::default()
        },
        introspection: Some(IntrospectionAccounts {
            payload_bytes: flow.bytes,
            from_page_cache_bytes: flow.file_bytes,
            unsettled_bytes: flow.unsettled_bytes,
            paths: flow.sources.iter().filter_map(|one| one.source.path.as_deref().map(str::to_owned)).collect(),
        }),
        verdict,
        why,
        reasons,
        ..Method::default()
    }
}

/// What follows from a flow's bytes, and what it rests on.
fn judge(flow: &FlowReport) -> (Option<Verdict>, String) {
    let sources = flow.sources.iter().map(|one| format!("{} bytes from {}", one.bytes, one.source));
    let rests_on = format!(
        "of {} payload bytes seen, {}; {:.1} descriptors per MiB, {} frames",
        flow.bytes,
        sources.collect::<Vec<_>>().join(", "),
        descriptors_per_mib(flow.descriptors, flow.bytes),
        flow.frames
    );
    let known = flow.bytes.saturating_sub(flow.unsettled_bytes);
    let Some(share) = flow.zero_copy_share().filter(|_| known >= flow.unsettled_bytes) else {
        return (None, format!("too little is known: {rests_on}"));
    };
    let verdict = match share {
        share if share >= NEARLY_ALL => Verdict::ZeroCopy,
        share if share <= 1.0 - NEARLY_ALL => Verdict::Copied,
        _ => Verdict::Mixed,
    };
    (Some(verdict), rests_on)
}

#[cfg(test)]
mod tests {
    use vnic::provenance::{Source, SourceKind};

    use super::*;

    fn flow(parts: &[(SourceKind, u64)]) -> FlowReport {
        let sum = |is: fn(SourceKind) -> bool| parts.iter().filter(|(kind, _)| is(*kind)).map(|(_, bytes)| bytes).sum();
        FlowReport {
            flow: "10.0.2.15:80 > 10.0.2.2:5".to_owned(),
            protocol: "tcp".to_owned(),
            bytes: sum(|_| true),
            zero_copy_bytes: sum(SourceKind::is_zero_copy),
            file_bytes: sum(|kind| kind == SourceKind::File),
            unsettled_bytes: sum(|kind| kind == SourceKind::Unsettled),
            frames: 2,
            descriptors: 9,
            sources: parts
                .iter()
                .map(|(kind, bytes)| SourceReport { source: Source::of(*kind), bytes: *bytes })
                .collect(),
        }
    }

    #[test]
    fn a_flow_is_judged_by_what_is_known_of_it() {
        use SourceKind::{Anonymous, File, Other, Socket, Unsettled};
        for (parts, verdict) in [
            (&[(File, 9_999_000), (Socket, 1000)][..], Some(Verdict::ZeroCopy)),
            (&[(Anonymous, 1000)], Some(Verdict::ZeroCopy)),
            (&[(File, 1000), (Socket, 9_999_000)], Some(Verdict::Copied)),
            (&[(Other, 10)], Some(Verdict::Copied)),
            (&[(File, 500), (Socket, 500)], Some(Verdict::Mixed)),
            (&[(File, 600), (Unsettled, 400)], Some(Verdict::ZeroCopy)),
            (&[(File, 400), (Unsettled, 600)], None),
            (&[(Unsettled, 600)], None),
        ] {
            assert_eq!(judge(&flow(parts)).0, verdict, "{parts:?}");
        }
    }

    #[test]
    fn what_an_agent_would_have_told_is_null_with_a_reason() {
        let report = Report { flows: vec![flow(&[(SourceKind::File, 1 << 20)])], ..Report::default() };
        let record = serde_json::to_value(run(&report)).unwrap();
        let row = &record["methods"][0];
        for key in ["bytes_sent", "sha256_ok", "seconds", "cpu_copies", "dma_copies"] {
            assert!(row[key].is_null() && row["reasons"][key].is_string(), "{key}: {row:#}");
        }
        assert!(row["why"].as_str().unwrap().contains("9.0 descriptors per MiB"), "{row:#}");
        assert_eq!(serde_json::from_value::<Run>(record).unwrap(), run(&report));
    }
}
