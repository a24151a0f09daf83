//! `vnic judge`: the conversation with a guest and a device, and the record it leaves.

use std::path::PathBuf;

use serde_json::{Value, json};
use vnic::observe::protocol;
use vnic_experiment::control;
use vnic_experiment::flow::FlowAccounts;
use vnic_experiment::run::DeviceAccounts;
use vnic_experiment::wire::Request;

use crate::device::{self, Asked, Device};
use crate::guest::{self, Manner};
use crate::util::{Outcome, Scratch};

pub(crate) const BYTES: u64 = 16384;

pub(crate) fn accounts(cached: u64) -> FlowAccounts {
    FlowAccounts {
        device: DeviceAccounts {
            chains: Some(2),
            descriptors: Some(6),
            payload_bytes: Some(BYTES),
            retransmitted_bytes: Some(0),
            from_page_cache_bytes: Some(cached),
            from_elsewhere_bytes: Some(BYTES - cached),
            dma_read_bytes: Some(BYTES),
            device_copied_bytes: Some(0),
        },
        ..FlowAccounts::default()
    }
}

pub(crate) struct Run {
    pub(crate) outcome: Outcome,
    /// What the guest was asked.
    pub(crate) guest: Vec<Request>,
    /// What the device was asked.
    pub(crate) device: Vec<Asked>,
    output: PathBuf,
}

impl Run {
    pub(crate) fn record(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(&self.output).unwrap()).unwrap()
    }
}

/// Runs `transfer` in a guest of this manner; the device has these accounts for one watched flow after the other. Only the
/// device is asked.
fn run(scratch: &Scratch, manner: Manner, transfer: &str, accounts: Vec<FlowAccounts>, withheld: &[&str]) -> Run {
    let mut script = device::busy();
    script.accounts = accounts;
    script.status.features.withheld = withheld.iter().map(|name| (*name).to_owned()).collect();
    run_with(scratch, manner, &["--transfer", transfer, "--witness", "device"], script)
}

/// The same with these arguments and this device.
pub(crate) fn run_with(scratch: &Scratch, manner: Manner, args: &[&str], script: device::Script) -> Run {
    let device = Device::start(&scratch.path("control"), script);
    let record = scratch.path("record");
    let guest = guest::start(&record, manner);
    let output = scratch.path("run.json");
    let bytes = BYTES.to_string();
    let judge = ["judge", "--record", record.to_str().unwrap(), "--control", device.control()];
    let run = ["--output", output.to_str().unwrap(), "--bytes", &bytes, "--chunk", "4096", "--kernel-accel", "tcg"];
    let run = if args.contains(&"--hazard") { &[] } else { &run[..] };
    let outcome = scratch.run(&[&judge, run, args].concat());
    let device = device.asked.lock().unwrap().clone();
    Run { outcome, guest: guest.join().unwrap(), device, output }
}

#[test]
fn the_device_watches_before_the_guest_may_go() {
    let scratch = Scratch::new();
    let run = run(&scratch, Manner::Right, "sendfile", vec![accounts(BYTES)], &[]);
    assert_eq!(run.outcome.code, Some(0), "{:?}", run.outcome);
    let [Request::Transfer(spec), Request::Go, Request::PowerOff] = &run.guest[..] else {
        panic!("{:?}", run.guest);
    };
    assert_eq!((spec.method.as_str(), spec.bytes, spec.chunk, spec.offset), ("sendfile", BYTES, 4096, 0));
    assert_eq!((spec.filesystem.as_str(), spec.to.to_string().as_str()), ("tmpfs", "10.0.2.2:9000"));
    let [
        Asked::Device(protocol::Request::Status),
        Asked::Judge(control::Request::WatchFlow { flow, pages, later: false }),
        Asked::Judge(control::Request::EndWatch { .. }),
    ] = &run.device[..]
    else {
        panic!("{:?}", run.device);
    };
    assert_eq!((flow.local.to_string().as_str(), pages.len()), ("10.0.2.15:40000", 1));
}

#[test]
fn the_record_holds_every_figure_or_its_reason() {
    let scratch = Scratch::new();
    let run = run(&scratch, Manner::Right, "sendfile", vec![accounts(BYTES)], &[]);
    let record = run.record();
    assert_eq!(record["kernel"], "6.1.0-test");
    assert_eq!(record["accel"], "tcg");
    assert_eq!(record["qemu"], Value::Null);
    assert!(record["reasons"]["qemu"].is_string(), "{record}");
    assert_eq!(record["file"], json!({"bytes": BYTES, "filesystem": "tmpfs", "chunk": 4096}));
    let row = &record["methods"][0];
    assert_eq!(row["method"], "sendfile");
    assert_eq!(row["nic"], json!({"csum": true, "sg": true, "tso": true}));
    assert_eq!((&row["bytes_sent"], &row["sha256_ok"]), (&json!(BYTES), &json!(true)));
    assert_eq!((&row["verdict"], &row["expected"]), (&json!("zero-copy"), &json!("zero-copy")));
    assert_eq!(row["device"]["from_page_cache_bytes"], BYTES);
    assert_eq!(row["dma_copies"], 1.0);
    assert_eq!(row["guest"]["syscalls"], 3);
    let mut nulls = Vec::new();
    collect_nulls(row, "", &mut nulls);
    assert!(nulls.contains(&"cpu_copies".to_owned()), "{nulls:?}");
    for path in nulls {
        assert!(row["reasons"][&path].is_string(), "{path} is null without a reason");
    }
    assert_eq!(row["reasons"]["guest.page_faults"], "no tracefs");
}

fn collect_nulls(value: &Value, path: &str, nulls: &mut Vec<String>) {
    match value {
        Value::Null => nulls.push(path.to_owned()),
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                collect_nulls(value, &path, nulls);
            }
        }
        _ => {}
    }
}

#[test]
fn textbook_runs_its_rows_and_sg_goes_where_the_name_says() {
    let scratch = Scratch::new();
    let devices = vec![accounts(0), accounts(0), accounts(BYTES), accounts(0), accounts(BYTES)];
    let run = run(&scratch, Manner::Right, "textbook", devices, &[]);
    assert_eq!(run.outcome.code, Some(0), "{:?}", run.outcome);
    let wishes: Vec<(&str, Option<bool>)> = run
        .guest
        .iter()
        .filter_map(|request| match request {
            Request::Transfer(spec) => Some((spec.method.as_str(), spec.nic.sg)),
            _ => None,
        })
        .collect();
    assert_eq!(
        wishes,
        [("read-write", None), ("mmap-write", None), ("sendfile", None), ("sendfile", Some(false)), ("splice", None)]
    );
    let record = run.record();
    let verdicts: Vec<&Value> = record["methods"].as_array().unwrap().iter().map(|row| &row["verdict"]).collect();
    assert_eq!(verdicts, ["copied", "copied", "zero-copy", "copied", "zero-copy"]);
    let notes: Vec<&Value> = record["methods"].as_array().unwrap().iter().map(|row| &row["notes"]).collect();
    let by_guest = json!(["scatter-gather was switched off in the guest (ethtool -K)"]);
    assert_eq!(notes, [&Value::Null, &Value::Null, &Value::Null, &by_guest, &Value::Null]);
    let lines: Vec<&str> = run.outcome.stderr.lines().collect();
    assert!(lines.contains(&"[3/5] sendfile: zero-copy in 0.25 s"), "{lines:?}");
}

#[test]
fn another_verdict_than_documented_is_broken() {
    let scratch = Scratch::new();
    let run = run(&scratch, Manner::Right, "sendfile", vec![accounts(0)], &[]);
    assert_eq!(run.outcome.code, Some(1), "{:?}", run.outcome);
    assert_eq!(run.record()["methods"][0]["verdict"], "copied");
}

#[test]
fn a_device_that_withholds_csum_makes_sendfile_copy_as_expected() {
    let scratch = Scratch::new();
    let run = run(&scratch, Manner::Right, "sendfile", vec![accounts(0)], &["csum", "host_tso4"]);
    assert_eq!(run.outcome.code, Some(0), "{:?}", run.outcome);
    assert_eq!(run.record()["methods"][0]["expected"], "copied");
}

#[test]
fn other_bytes_at_the_receiver_are_broken() {
    let scratch = Scratch::new();
    let run = run(&scratch, Manner::WrongDigest, "sendfile", vec![accounts(BYTES)], &[]);
    assert_eq!(run.outcome.code, Some(1), "{:?}", run.outcome);
    assert_eq!(run.record()["methods"][0]["sha256_ok"], false);
}

#[test]
fn a_nic_that_keeps_scatter_gather_is_not_taken_for_one_without() {
    let scratch = Scratch::new();
    let run = run(&scratch, Manner::KeepsSg, "sendfile-no-sg", vec![accounts(0)], &[]);
    assert_eq!(run.outcome.code, Some(1), "{:?}", run.outcome);
    let row = run.record()["methods"][0].clone();
    assert_eq!(row["verdict"], Value::Null);
    assert!(row["reasons"]["verdict"].as_str().unwrap().contains("kept scatter-gather on"), "{row}");
}

#[test]
fn a_row_that_fails_says_why_and_the_next_one_runs() {
    let scratch = Scratch::new();
    let run = run(&scratch, Manner::Fails, "sendfile,splice", Vec::new(), &[]);
    assert_eq!(run.outcome.code, Some(1), "{:?}", run.outcome);
    let record = run.record();
    for row in 0..2 {
        let row = &record["methods"][row];
        assert_eq!(row["verdict"], Value::Null);
        assert_eq!(row["why"], "no room on the file system");
        assert_eq!(row["reasons"]["bytes_sent"], "no room on the file system");
    }
}

#[test]
fn a_method_the_kernel_lacks_is_a_row_that_says_so_and_no_failure() {
    let scratch = Scratch::new();
    let run = run(&scratch, Manner::Lacks, "splice", Vec::new(), &[]);
    assert_eq!(run.outcome.code, Some(0), "{:?}", run.outcome);
    let row = run.record()["methods"][0].clone();
    assert_eq!((&row["expected"], &row["why"]), (&Value::Null, &json!("this kernel has no such call")));
}

#[test]
fn a_guest_that_dies_leaves_a_record_and_exit_2() {
    let scratch = Scratch::new();
    let run = run(&scratch, Manner::Dies, "sendfile,splice", vec![accounts(0)], &[]);
    assert_eq!(run.outcome.code, Some(2), "{:?}", run.outcome);
    assert!(run.outcome.stderr.contains("closed while waiting for the transfer to end"), "{:?}", run.outcome);
    let record = run.record();
    assert!(record["methods"][0]["why"].as_str().unwrap().contains("closed"), "{record}");
    assert!(record["methods"][1]["why"].as_str().unwrap().starts_with("not run: "), "{record}");
}

#[test]
fn a_guest_that_talks_nonsense_cannot_steer_the_terminal() {
    let scratch = Scratch::new();
    let run = run(&scratch, Manner::Babbles, "sendfile", Vec::new(), &[]);
    assert_eq!(run.outcome.code, Some(2), "{:?}", run.outcome);
    assert!(run.outcome.stderr.contains("does not speak vnic's protocol"), "{:?}", run.outcome);
    assert!(!run.outcome.stderr.contains('\u{1b}'), "{:?}", run.outcome);
}

#[test]
fn a_device_without_accounts_ends_the_run_and_says_so() {
    let scratch = Scratch::new();
    let run = run(&scratch, Manner::Right, "sendfile", Vec::new(), &[]);
    assert_eq!(run.outcome.code, Some(2), "{:?}", run.outcome);
    assert!(run.outcome.stderr.contains("no flow is watched"), "{:?}", run.outcome);
    assert!(matches!(run.guest.last(), Some(Request::PowerOff)), "{:?}", run.guest);
}

#[test]
fn bad_input_is_refused_before_anything_runs() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    let control = device.control();
    let judge = |output: &str, transfer: &str, bytes: &str| {
        let args = ["judge", "--record", "record", "--control", control, "--output", output];
        scratch.run(&[&args[..], &["--transfer", transfer, "--bytes", bytes]].concat())
    };
    judge("missing/run.json", "all", "1").is_refusal(&["folder missing does not exist"]);
    judge("run.json", "Send File", "1").is_refusal(&["--transfer", "`Send File` is not a row's name"]);
    judge("run.json", "all", "0").is_refusal(&["--bytes", "0 is not in"]);
    judge("run.json", "all", "many").is_refusal(&["--bytes", "invalid digit"]);
    assert!(device.asked.lock().unwrap().is_empty());
}
