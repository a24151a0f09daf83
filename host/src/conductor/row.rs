//! One row of the record, out of what the guest and the device said.

use std::collections::BTreeMap;

use serde_json::Value;
use vnic::hardware::{Direction, Figures, Model};
use vnic_experiment::flow::FlowAccounts;
use vnic_experiment::introspection::Introspected;
use vnic_experiment::row::Row;
use vnic_experiment::run::{
    ContextSwitches, DeviceAccounts, Dma, GuestAccounts, MemoryAccounts, Method, NicState, PageLife, Verdict,
};
use vnic_experiment::verdict::{self, Circumstances};
use vnic_experiment::wire::{Accounts, PAGE_SIZE, PageRun, Receipt};

use super::touches::Touched;
use super::{LEFT_OUT, Witnesses};

/// Pages of the largest file that is compared (16 GiB).
const MAX_PAGES: usize = 4 << 20;

/// What the agent said before it sent.
#[derive(Debug)]
pub(super) struct Begin {
    pub(super) nic: NicState,
    pub(super) pages: Vec<PageRun>,
    /// Empty where the guest cannot foretell it.
    pub(super) sha256: String,
    /// Bytes the receiver is to get, where that is known.
    pub(super) stream_bytes: Option<u64>,
}

/// What the probe found in the guest's memory.
#[derive(Debug)]
pub(super) enum Memory {
    /// Physical instances of the held chunk.
    Instances(u64),
    /// Not known, and why.
    Unknown(String),
}

/// What it said afterwards.
#[derive(Debug)]
pub(super) struct End {
    pub(super) bytes_sent: u64,
    pub(super) seconds: f64,
    pub(super) receipt: Receipt,
    pub(super) pages: Vec<PageRun>,
    pub(super) accounts: Accounts,
    /// Of the file's first page, where the device has recorded it.
    pub(super) page_life: Option<PageLife>,
}

/// A transfer that came to its end.
#[derive(Debug)]
pub(super) struct Transfer {
    witnesses: Witnesses,
    nic: NicState,
    bytes_sent: u64,
    sha256_ok: Option<bool>,
    seconds: f64,
    guest: Accounts,
    device: FlowAccounts,
    introspection: Introspected,
    memory: Memory,
    pages_moved: u64,
    page_life: Option<PageLife>,
    /// What the CPU did in the file's pages.
    pub(super) touched: Touched,
    /// Does its file system keep the bytes in another form, too?
    pub(super) kept_elsewhere: bool,
    /// Does its file system get them from a server?
    pub(super) served: bool,
}

impl Transfer {
    /// Joins what all sides said of a transfer.
    pub(super) fn new(witnesses: Witnesses, begin: Begin, end: End, mut device: FlowAccounts, memory: Memory) -> Self {
        // The receiver must have got all that was asked for, not only all that was sent.
        let right = end.receipt.sha256.eq_ignore_ascii_case(&begin.sha256)
            && begin.stream_bytes.is_none_or(|bytes| end.receipt.bytes == bytes);
        let said = device.introspection.take().filter(|_| witnesses.introspection);
        let left_out =
            if witnesses.introspection { "the device does not look into the guest's kernel" } else { LEFT_OUT };
        let device = if witnesses.device { device } else { FlowAccounts::default() };
        Transfer {
            witnesses,
            introspection: said.unwrap_or_else(|| Introspected::Unknown(left_out.to_owned())),
            nic: begin.nic,
            bytes_sent: end.bytes_sent,
            sha256_ok: (!begin.sha256.is_empty()).then_some(right),
            seconds: end.seconds,
            guest: end.accounts,
            device,
            memory,
            pages_moved: moved(&begin.pages, &end.pages),
            page_life: end.page_life,
            touched: Err(verdict::NOT_COUNTED.to_owned()),
            kept_elsewhere: false,
            served: false,
        }
    }

    /// The file's bytes the NIC gathered from the file's own pages, and all payload bytes.
    pub(super) fn cached(&self) -> Option<(u64, u64)> {
        self.device.device.from_page_cache_bytes.zip(self.device.device.payload_bytes)
    }
}

/// Pages that are elsewhere in `after` than in `before`, or gone.
fn moved(before: &[PageRun], after: &[PageRun]) -> u64 {
    // The agent's figures are not taken on trust: no overflow, no more pages than the largest file has.
    let place = |runs: &[PageRun]| -> BTreeMap<u64, u64> {
        runs.iter()
            .flat_map(|run| {
                let frame = run.gpa / PAGE_SIZE;
                (0..run.count).map(move |at| (run.page.wrapping_add(at), frame.wrapping_add(at)))
            })
            .take(MAX_PAGES)
            .collect()
    };
    if before == after {
        return 0;
    }
    let after = place(after);
    place(before).iter().filter(|(page, frame)| after.get(page) != Some(frame)).count() as u64
}

/// The row of a transfer that ended.
pub(super) fn judged(row: &Row, expected: Option<Verdict>, transfer: &Transfer, csum_offered: bool) -> Method {
    let mut guest = guest_accounts(&transfer.guest);
    let mut reasons: BTreeMap<String, String> =
        transfer.guest.reasons.iter().map(|(name, why)| (format!("guest.{name}"), why.clone())).collect();
    let mut leave_out = |path: &str| reasons.insert(path.to_owned(), LEFT_OUT.to_owned());
    if !transfer.witnesses.guest {
        guest.copied_bytes.clear();
        leave_out("guest.copied_bytes");
    }
    if !transfer.witnesses.device {
        for figure in DEVICE_FIGURES {
            leave_out(&format!("device.{figure}"));
        }
        leave_out("dma_copies");
    }
    if transfer.sha256_ok.is_none() {
        reasons.insert("sha256_ok".to_owned(), "the guest cannot foretell what the receiver gets".to_owned());
    }
    let physical_instances = match &transfer.memory {
        Memory::Instances(count) => Some(*count),
        Memory::Unknown(reason) => {
            reasons.insert("memory.physical_instances".to_owned(), reason.clone());
            None
        }
    };
    let introspection = match &transfer.introspection {
        Introspected::Accounts(accounts) => Some(accounts.clone()),
        Introspected::Unknown(reason) => {
            reasons.insert("introspection".to_owned(), reason.clone());
            None
        }
    };
    let touches = transfer.touched.clone().map_err(|why| reasons.insert("touches".to_owned(), why)).ok();
    let disk = match transfer.device.disk.clone() {
        Some(Ok(disk)) => Some(disk),
        other => {
            let unknown = if transfer.witnesses.device {
                "the disk is not served by this device (--disk vhost)"
            } else {
                LEFT_OUT
            };
            let why = other.and_then(Result::err).unwrap_or_else(|| unknown.to_owned());
            reasons.insert("dma.disk".to_owned(), why);
            None
        }
    };
    let shapes = transfer.witnesses.device.then(|| transfer.device.shapes.clone());
    let dma = Dma { disk, shapes, hardware: None };
    if dma.shapes.is_none() {
        reasons.insert("dma.shapes".to_owned(), LEFT_OUT.to_owned());
    }
    reasons.insert("dma.hardware".to_owned(), "the device was told no model of hardware (--hardware)".to_owned());
    let mut method = Method {
        method: row.name.clone(),
        filesystem: None,
        nic: transfer.nic,
        bytes_sent: Some(transfer.bytes_sent),
        sha256_ok: transfer.sha256_ok,
        seconds: Some(transfer.seconds),
        guest,
        device: transfer.device.device.clone(),
        memory: MemoryAccounts { physical_instances },
        introspection,
        touches,
        dma,
        page_life: transfer.page_life.clone(),
        cpu_copies: None,
        dma_copies: None,
        verdict: None,
        why: String::new(),
        expected,
        notes: transfer.guest.notes.clone(),
        reasons,
    };
    let circumstances = Circumstances {
        misplaced_bytes: transfer.device.misplaced_bytes,
        unparsed_frames: transfer.device.unparsed_frames,
        forgotten_bytes: transfer.device.forgotten_bytes,
        pages_moved: transfer.pages_moved,
        kept_elsewhere: transfer.kept_elsewhere,
        served: transfer.served,
    };
    verdict::judge(&mut method, circumstances);
    if !transfer.nic.sg {
        method.notes.push(if csum_offered { SG_OFF_BY_GUEST } else { SG_OFF_BY_DEVICE }.to_owned());
    }
    for note in &method.notes {
        method.why.push_str("; ");
        method.why.push_str(note);
    }
    if let Some(refusal) = refused_switch(row, transfer.nic) {
        method.verdict = None;
        method.reasons.insert("verdict".to_owned(), refusal.clone());
        method.why = refusal;
    }
    explain_nulls(&mut method, "it was not measured");
    method
}

/// What the row's chains would cost the card that the device was told a model of.
pub(super) fn on_hardware(method: &mut Method, model: &Model) {
    if let Some(shapes) = &method.dma.shapes {
        method.dma.hardware = Some(Figures::new(model, &model.account(Direction::Transmit, shapes)));
        method.reasons.remove("dma.hardware");
    }
}

/// The two ways to a NIC without scatter-gather.
const SG_OFF_BY_GUEST: &str = "scatter-gather was switched off in the guest (ethtool -K)";
const SG_OFF_BY_DEVICE: &str = "the device withholds csum, and without it the guest's NIC has no scatter-gather";

/// The figures of the device's accounts.
const DEVICE_FIGURES: [&str; 8] = [
    "chains",
    "descriptors",
    "payload_bytes",
    "retransmitted_bytes",
    "from_page_cache_bytes",
    "from_elsewhere_bytes",
    "dma_read_bytes",
    "device_copied_bytes",
];

/// The row that was asked for is another than the one that ran.
fn refused_switch(row: &Row, nic: NicState) -> Option<String> {
    let switches = [("scatter-gather", row.nic.sg, nic.sg), ("transmit checksum", row.nic.csum, nic.csum)];
    switches.into_iter().find_map(|(name, wish, is)| {
        let wish = wish.filter(|wish| *wish != is)?;
        Some(format!("the guest's NIC kept {name} {}, though the row wants it {}", on(is), on(wish)))
    })
}

fn on(is: bool) -> &'static str {
    if is { "on" } else { "off" }
}

/// The row of a transfer that did not come to its end.
pub(super) fn failed(row: &Row, expected: Option<Verdict>, nic: NicState, why: &str) -> Method {
    let mut method = Method {
        method: row.name.clone(),
        filesystem: None,
        nic,
        bytes_sent: None,
        sha256_ok: None,
        seconds: None,
        guest: GuestAccounts::default(),
        device: DeviceAccounts::default(),
        memory: MemoryAccounts::default(),
        introspection: None,
        touches: None,
        dma: Dma::default(),
        page_life: None,
        cpu_copies: None,
        dma_copies: None,
        verdict: None,
        why: why.to_owned(),
        expected,
        notes: Vec::new(),
        reasons: BTreeMap::new(),
    };
    explain_nulls(&mut method, why);
    method
}

fn guest_accounts(accounts: &Accounts) -> GuestAccounts {
    GuestAccounts {
        syscalls: accounts.syscalls,
        mode_switches: accounts.mode_switches,
        page_faults: accounts.page_faults,
        kernel_page_faults: accounts.kernel_page_faults,
        context_switches: ContextSwitches {
            voluntary: accounts.voluntary_switches,
            involuntary: accounts.involuntary_switches,
        },
        copied_bytes: accounts.copied_bytes.clone(),
        claims: accounts.claims.clone(),
        disk_read_bytes: accounts.disk_read_bytes,
        user_us: accounts.user_us,
        system_us: accounts.system_us,
    }
}

/// Gives every figure that is `null` a reason; those that have one keep it.
fn explain_nulls(method: &mut Method, why: &str) {
    // The agent's names for two figures are not the record's.
    for (said, path) in [
        ("guest.voluntary_switches", "guest.context_switches.voluntary"),
        ("guest.involuntary_switches", "guest.context_switches.involuntary"),
    ] {
        if let Some(reason) = method.reasons.remove(said) {
            method.reasons.insert(path.to_owned(), reason);
        }
    }
    let record = serde_json::to_value(&*method).unwrap_or_default();
    let mut nulls = Vec::new();
    collect_nulls(&record, "", &mut nulls);
    for path in nulls.into_iter().filter(|path| path != "expected") {
        let why = if path == "memory.physical_instances" { "the guest's memory was not scanned" } else { why };
        method.reasons.entry(path).or_insert_with(|| why.to_owned());
    }
}

/// The paths of all that is `null`.
fn collect_nulls(value: &Value, path: &str, nulls: &mut Vec<String>) {
    match value {
        Value::Null => nulls.push(path.to_owned()),
        Value::Object(fields) => {
            for (name, value) in fields {
                let dot = if path.is_empty() { "" } else { "." };
                collect_nulls(value, &format!("{path}{dot}{name}"), nulls);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(page: u64, gpa: u64, count: u64) -> PageRun {
        PageRun { page, gpa, count }
    }

    #[test]
    fn pages_are_compared_page_by_page_not_run_by_run() {
        let whole = [run(0, 0x1000, 4)];
        assert_eq!(moved(&whole, &[run(0, 0x1000, 2), run(2, 0x3000, 2)]), 0);
        assert_eq!(moved(&whole, &[run(0, 0x1000, 3), run(3, 0x9000, 1)]), 1);
        assert_eq!(moved(&whole, &[]), 4);
    }

    #[test]
    fn every_null_of_a_failed_row_has_its_reason() {
        let row = Row::parse("splice").unwrap();
        let method = failed(&row, Some(Verdict::ZeroCopy), NicState::default(), "the guest has no splice");
        let value = serde_json::to_value(&method).unwrap();
        let mut nulls = Vec::new();
        collect_nulls(&value, "", &mut nulls);
        for figure in ["seconds", "cpu_copies", "guest.context_switches.voluntary", "device.dma_read_bytes"] {
            assert!(nulls.iter().any(|path| path == figure), "{figure} is not found among {nulls:?}");
        }
        assert!(nulls.len() > 20, "{nulls:?}");
        for path in nulls {
            assert!(method.reasons.contains_key(&path), "{path} is null without a reason");
        }
        assert_eq!(method.reasons["memory.physical_instances"], "the guest's memory was not scanned");
    }

    #[test]
    fn a_nic_that_keeps_what_the_row_takes_away_gets_no_verdict() {
        let row = Row::parse("sendfile-no-sg").unwrap();
        let nic = NicState { sg: true, csum: true, tso: true };
        assert_eq!(
            refused_switch(&row, nic).unwrap(),
            "the guest's NIC kept scatter-gather on, though the row wants it off"
        );
        assert_eq!(refused_switch(&row, NicState { sg: false, ..nic }), None);
    }
}
