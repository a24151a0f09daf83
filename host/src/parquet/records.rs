//! Runs' records as rows: one for each transfer, or for each flow that was watched.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use vnic_experiment::run::{DiskAccounts, IntrospectionAccounts, Method, Run, Verdict};

use super::folder::{Finished, Folder, Limits};
use super::table::{Column, Kind, Table, Value};

/// A row.
#[derive(Debug)]
pub(crate) struct Row {
    /// The record's file.
    record: Arc<str>,
    run: Arc<Run>,
    method: Method,
    copied: Vec<Copied>,
    reasons: String,
}

/// Payload bytes through a copying function of the guest's kernel.
#[derive(Debug)]
pub(crate) struct Copied {
    function: String,
    bytes: Option<u64>,
}

/// Puts these records into one file, if that is what `path` is called, or into a new file of that folder.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write(path: &Path, records: Vec<(String, Run)>) -> Result<Option<Finished>> {
    // All of them are one file.
    let limits = Limits { time: Duration::MAX, bytes: u64::MAX, rows: u64::MAX };
    let mut folder = match path.extension().is_some_and(|extension| extension == "parquet") {
        true => Folder::one(path, &RECORDS, limits),
        false => Folder::open(path, "runs", &RECORDS, limits)?,
    };
    for (record, run) in records {
        let (record, run) = (Arc::from(record), Arc::new(run));
        for method in &run.methods {
            folder.push(&Row::new(&record, &run, method))?;
        }
    }
    folder.finish()
}

impl Row {
    fn new(record: &Arc<str>, run: &Arc<Run>, method: &Method) -> Self {
        let copied = method.guest.copied_bytes.iter();
        let reasons = run.reasons.iter().chain(&method.reasons).map(|(figure, why)| format!("{figure}: {why}"));
        Row {
            record: record.clone(),
            run: run.clone(),
            method: method.clone(),
            copied: copied.map(|(function, bytes)| Copied { function: function.clone(), bytes: *bytes }).collect(),
            reasons: reasons.collect::<Vec<_>>().join("; "),
        }
    }

    fn disk(&self, of: impl Fn(&DiskAccounts) -> u64) -> Value<'_> {
        self.method.dma.disk.as_ref().map(of).into()
    }

    fn introspection(&self, of: impl Fn(&IntrospectionAccounts) -> u64) -> Value<'_> {
        self.method.introspection.as_ref().map(of).into()
    }

    /// A figure per so many payload bytes.
    fn per(&self, unit: u64, figure: Option<f64>) -> Value<'_> {
        let payload = self.method.device.payload_bytes.or(self.method.bytes_sent).filter(|bytes| *bytes > 0);
        figure.zip(payload).map(|(figure, payload)| figure * unit as f64 / payload as f64).into()
    }
}

/// A column of the records.
const fn row(name: &'static str, kind: Kind, about: &'static str, of: fn(&Row) -> Value<'_>) -> Column<Row> {
    Column { name, kind, about, of }
}

/// `vnic report --parquet`.
pub(crate) static RECORDS: Table<Row, Copied> = Table {
    name: "transfer",
    columns: &[
        row("record", Kind::Text, "The record's file", |row| Value::Text(&row.record)),
        row("kernel", Kind::Text, "The guest's `uname -r`", |row| row.run.kernel.as_str().into()),
        row("qemu", Kind::Text, "Its version", |row| row.run.qemu.as_deref().into()),
        row("accel", Kind::Text, "`kvm` or `tcg`", |row| row.run.accel.as_deref().into()),
        row("filesystem", Kind::Text, "The file's", |row| {
            row.method.filesystem.as_ref().unwrap_or(&row.run.file.filesystem).as_str().into()
        }),
        row("file_bytes", Kind::Integer, "The file's size", |row| row.run.file.bytes.into()),
        row("chunk", Kind::Integer, "Bytes per system call, of methods that work in pieces", |row| {
            row.run.file.chunk.into()
        }),
        row("watched_seconds", Kind::Real, "Where a VM was watched and nothing conducted: for how long", |row| {
            row.run.watched.as_ref().map(|watched| watched.seconds).into()
        }),
        row("method", Kind::Text, "The row's name, or the flow's where a VM was watched", |row| {
            row.method.method.as_str().into()
        }),
        row("nic.csum", Kind::Boolean, "Transmit checksum offload", |row| row.method.nic.csum.into()),
        row("nic.sg", Kind::Boolean, "Scatter-gather", |row| row.method.nic.sg.into()),
        row("nic.tso", Kind::Boolean, "TCP segmentation offload", |row| row.method.nic.tso.into()),
        row("verdict", Kind::Text, "`zero-copy`, `copied`, `mixed`, `witnesses disagree`", |row| {
            row.method.verdict.map(Verdict::name).into()
        }),
        row("expected", Kind::Text, "What it should be; null where nothing is expected", |row| {
            row.method.expected.map(Verdict::name).into()
        }),
        row("why", Kind::Text, "What the verdict rests on", |row| row.method.why.as_str().into()),
        row("reasons", Kind::Text, "Why a figure is null", |row| row.reasons.as_str().into()),
        row("bytes_sent", Kind::Integer, "Payload that the program sent", |row| row.method.bytes_sent.into()),
        row("sha256_ok", Kind::Boolean, "Did exactly the file's bytes arrive?", |row| row.method.sha256_ok.into()),
        row("seconds", Kind::Real, "First byte to receipt", |row| row.method.seconds.into()),
        row("cpu_copies", Kind::Real, "Bytes copied by the CPU per payload byte", |row| row.method.cpu_copies.into()),
        row("dma_copies", Kind::Real, "Bytes copied by DMA per payload byte", |row| row.method.dma_copies.into()),
        row("physical_instances", Kind::Integer, "How often a held chunk's bytes stood in memory", |row| {
            row.method.memory.physical_instances.into()
        }),
        row("syscalls", Kind::Integer, "Of the transfer program", |row| row.method.guest.syscalls.into()),
        row("mode_switches", Kind::Integer, "Two per system call, two per page fault in user mode", |row| {
            row.method.guest.mode_switches.into()
        }),
        row("page_faults", Kind::Integer, "In user mode", |row| row.method.guest.page_faults.into()),
        row("kernel_page_faults", Kind::Integer, "Inside its system calls", |row| {
            row.method.guest.kernel_page_faults.into()
        }),
        row("voluntary_switches", Kind::Integer, "Context switches: it waited", |row| {
            row.method.guest.context_switches.voluntary.into()
        }),
        row("involuntary_switches", Kind::Integer, "It was another's turn", |row| {
            row.method.guest.context_switches.involuntary.into()
        }),
        row("user_us", Kind::Integer, "CPU time in user mode, microseconds", |row| row.method.guest.user_us.into()),
        row("system_us", Kind::Integer, "CPU time in the kernel, microseconds", |row| {
            row.method.guest.system_us.into()
        }),
        row("cpu_seconds_per_gib", Kind::Real, "Both, per GiB of payload", |row| {
            let us = row.method.guest.user_us.zip(row.method.guest.system_us);
            row.per(1 << 30, us.map(|(user, system)| (user + system) as f64 / 1e6))
        }),
        row("disk_read_bytes", Kind::Integer, "What the disk's DMA brought into memory", |row| {
            row.method.guest.disk_read_bytes.into()
        }),
        row("chains", Kind::Integer, "Chains that carried payload", |row| row.method.device.chains.into()),
        row("descriptors", Kind::Integer, "Their descriptors", |row| row.method.device.descriptors.into()),
        row("descriptors_per_mib", Kind::Real, "Per MiB of payload", |row| {
            row.per(1 << 20, row.method.device.descriptors.map(|count| count as f64))
        }),
        row("payload_bytes", Kind::Integer, "Payload, each byte the first time", |row| {
            row.method.device.payload_bytes.into()
        }),
        row("retransmitted_bytes", Kind::Integer, "Payload sent again", |row| {
            row.method.device.retransmitted_bytes.into()
        }),
        row("from_page_cache_bytes", Kind::Integer, "Payload in the file's own pages", |row| {
            row.method.device.from_page_cache_bytes.into()
        }),
        row("from_elsewhere_bytes", Kind::Integer, "The rest of it", |row| {
            row.method.device.from_elsewhere_bytes.into()
        }),
        row("dma_read_bytes", Kind::Integer, "Payload that the device read", |row| {
            row.method.device.dma_read_bytes.into()
        }),
        row("device_copied_bytes", Kind::Integer, "Payload that it copied once more", |row| {
            row.method.device.device_copied_bytes.into()
        }),
        row(
            "introspection.payload_bytes",
            Kind::Integer,
            "Payload whose pages were looked up in the guest's kernel",
            |row| row.introspection(|seen| seen.payload_bytes),
        ),
        row("introspection.from_page_cache_bytes", Kind::Integer, "Of it, in the file's own pages", |row| {
            row.introspection(|seen| seen.from_page_cache_bytes)
        }),
        row("introspection.unsettled_bytes", Kind::Integer, "Of it, not known for sure", |row| {
            row.introspection(|seen| seen.unsettled_bytes)
        }),
        row("disk.requests", Kind::Integer, "Reads of our disk meanwhile", |row| row.disk(|disk| disk.requests)),
        row("disk.descriptors", Kind::Integer, "Their descriptors", |row| row.disk(|disk| disk.descriptors)),
        row("disk.bytes", Kind::Integer, "What they brought", |row| row.disk(|disk| disk.bytes)),
        row("disk.bytes_in_pages_sent", Kind::Integer, "Of it, in pages that the NIC then read", |row| {
            row.disk(|disk| disk.bytes_in_pages_sent)
        }),
        row("hardware.model", Kind::Text, "The card of hardware that `serve --hardware` was told", |row| {
            row.method.dma.hardware.as_ref().map(|figures| figures.model.as_str()).into()
        }),
        row("hardware.bus_bytes_up", Kind::Integer, "What its bus would have carried to the host", |row| {
            row.method.dma.hardware.as_ref().map(|figures| figures.bus_bytes_up).into()
        }),
        row("hardware.bus_bytes_down", Kind::Integer, "And from it", |row| {
            row.method.dma.hardware.as_ref().map(|figures| figures.bus_bytes_down).into()
        }),
    ],
    list: "copied",
    items: |row| &row.copied,
    item_columns: &[
        Column {
            name: "function",
            kind: Kind::Text,
            about: "A function of the guest's kernel",
            of: |copied| copied.function.as_str().into(),
        },
        Column {
            name: "bytes",
            kind: Kind::Integer,
            about: "Payload that it copied",
            of: |copied| copied.bytes.into(),
        },
    ],
};
