//! `vnic judge` with all its witnesses, and with a lie in each of them.

use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vnic::observe::protocol;
use vnic_experiment::control;
use vnic_experiment::introspection::Introspected;
use vnic_experiment::run::IntrospectionAccounts;
use vnic_experiment::wire::Request;

use crate::device::{self, Asked, Device, Script};
use crate::guest::{self, Manner};
use crate::judge::{BYTES, Run, accounts, run_with};
use crate::util::{Scratch, wait_for};

/// A device that saw these bytes come from the page cache, and this many instances of a held chunk.
fn device(cached: u64, instances: u64) -> Script {
    Script { accounts: vec![accounts(cached)], instances: vec![instances], ..device::busy() }
}

fn judge(scratch: &Scratch, manner: Manner, row: &str, script: Script) -> Run {
    run_with(scratch, manner, &["--transfer", row], script)
}

fn row(run: &Run) -> Value {
    run.record()["methods"][0].clone()
}

#[test]
fn three_witnesses_agree_on_the_textbooks_rows() {
    for (name, cached, instances, copies, verdict) in [
        ("read-write", 0, 3, 2.0, "copied"),
        ("mmap-write", 0, 2, 1.0, "copied"),
        ("sendfile", BYTES, 1, 0.0, "zero-copy"),
        ("sendfile-no-sg", 0, 2, 1.0, "copied"),
    ] {
        let scratch = Scratch::new();
        let run = judge(&scratch, Manner::Right, name, device(cached, instances));
        assert_eq!(run.outcome.code, Some(0), "{name}: {:?}", run.outcome);
        let row = row(&run);
        assert_eq!((&row["verdict"], &row["cpu_copies"]), (&json!(verdict), &json!(copies)), "{row}");
        assert_eq!(row["memory"]["physical_instances"], instances, "{row}");
        for witness in ["device: ", "guest: the CPU copied", "memory: the held chunk stood"] {
            assert!(row["why"].as_str().unwrap().contains(witness), "{row}");
        }
    }
}

#[test]
fn the_chunk_is_held_before_it_is_sent_and_scanned_before_it_is_let_go() {
    let scratch = Scratch::new();
    let run = judge(&scratch, Manner::Right, "sendfile", device(BYTES, 1));
    let [Request::Transfer(probe), Request::Go, Request::Go, Request::Transfer(whole), Request::Go, Request::PowerOff] =
        &run.guest[..]
    else {
        panic!("{:?}", run.guest);
    };
    assert_eq!((probe.pause, probe.accounts, probe.chunk), (true, false, probe.bytes));
    assert_eq!((whole.pause, whole.accounts, whole.bytes), (false, true, BYTES));
    let queue = || "transmitq0".to_owned();
    assert_eq!(
        run.device[..6],
        [
            Asked::Device(protocol::Request::Status),
            Asked::Device(protocol::Request::Status),
            Asked::Device(protocol::Request::Hold { queue: queue() }),
            Asked::Device(protocol::Request::Rings { queue: Some(queue()) }),
            Asked::Judge(control::Request::Scan { queue: queue() }),
            Asked::Device(protocol::Request::Release { queue: queue() }),
        ]
    );
    assert!(matches!(
        run.device[6..],
        [Asked::Judge(control::Request::WatchFlow { .. }), Asked::Judge(control::Request::EndWatch { .. })]
    ));
}

#[test]
fn a_lie_of_any_witness_is_a_disagreement_that_shows_all_figures() {
    for (what, manner, row_name, script) in [
        ("the device", Manner::Right, "read-write", device(BYTES, 3)),
        ("the device", Manner::Right, "sendfile", device(0, 1)),
        ("the guest", Manner::Copies(1), "sendfile", device(BYTES, 1)),
        ("the guest", Manner::Copies(0), "read-write", device(0, 3)),
        ("the memory", Manner::Right, "sendfile", device(BYTES, 2)),
        ("the memory", Manner::Right, "read-write", device(0, 2)),
    ] {
        let scratch = Scratch::new();
        let run = judge(&scratch, manner, row_name, script);
        assert_eq!(run.outcome.code, Some(1), "{what}: {:?}", run.outcome);
        let row = row(&run);
        assert_eq!(row["verdict"], "witnesses disagree", "{what}: {row}");
        for witness in ["device: ", "guest: the CPU copied", "memory: the held chunk stood"] {
            assert!(row["why"].as_str().unwrap().contains(witness), "{what}: {row}");
        }
    }
}

#[test]
fn what_the_guests_kernel_says_of_the_pages_agrees_or_is_a_disagreement() {
    for (name, cached, instances, known, code) in [
        ("sendfile", BYTES, 1, BYTES, 0),
        ("sendfile", BYTES, 1, 0, 1),
        ("read-write", 0, 3, 0, 0),
        ("read-write", 0, 3, BYTES, 1),
    ] {
        let scratch = Scratch::new();
        let mut script = device(cached, instances);
        script.accounts[0].introspection = Some(Introspected::Accounts(IntrospectionAccounts {
            payload_bytes: BYTES,
            from_page_cache_bytes: known,
            unsettled_bytes: 0,
            paths: vec!["/tmp/f".to_owned()],
        }));
        let run = judge(&scratch, Manner::Right, name, script);
        assert_eq!(run.outcome.code, Some(code), "{name}, {known}: {:?}", run.outcome);
        let row = row(&run);
        assert_eq!(row["introspection"]["from_page_cache_bytes"], known, "{row}");
        assert_eq!(row["verdict"] == "witnesses disagree", code == 1, "{row}");
        assert!(row["why"].as_str().unwrap().contains("introspection: "), "{row}");
    }
}

#[test]
fn a_witness_that_is_missing_does_not_disagree_and_is_said() {
    let scratch = Scratch::new();
    // The device cannot look through the memory.
    let blind = Script { instances: Vec::new(), ..device(BYTES, 1) };
    let run = judge(&scratch, Manner::Right, "sendfile", blind);
    assert_eq!(run.outcome.code, Some(0), "{:?}", run.outcome);
    let row = row(&run);
    assert_eq!(row["memory"]["physical_instances"], Value::Null);
    let reason = "the host does not let its memory be looked through";
    assert_eq!(row["reasons"]["memory.physical_instances"], reason);
    assert!(row["why"].as_str().unwrap().contains(&format!("memory: not known, {reason}")), "{row}");
}

#[test]
fn the_devices_figures_are_the_same_whoever_else_is_asked() {
    let scratch = [Scratch::new(), Scratch::new()];
    let watched = judge(&scratch[0], Manner::Right, "sendfile", device(BYTES, 1));
    let args = ["--transfer", "sendfile", "--witness", "device"];
    let alone = run_with(&scratch[1], Manner::Right, &args, device(BYTES, 1));
    assert_eq!(row(&watched)["device"], row(&alone)["device"]);
    let disturbing = |request: &Asked| {
        matches!(request, Asked::Device(protocol::Request::Hold { .. }) | Asked::Judge(control::Request::Scan { .. }))
    };
    assert!(!alone.device.iter().any(disturbing), "{:?}", alone.device);
    assert!(
        !alone.guest.iter().any(|request| matches!(request, Request::Transfer(spec) if spec.pause || spec.accounts))
    );
    let row = row(&alone);
    for figure in ["memory.physical_instances", "cpu_copies", "introspection"] {
        assert_eq!(row["reasons"][figure], "this witness was left out (--witness)", "{row}");
    }
}

#[test]
fn without_the_device_the_others_judge() {
    let scratch = Scratch::new();
    let args = ["--transfer", "read-write", "--witness", "guest,memory"];
    let run = run_with(&scratch, Manner::Right, &args, device(0, 3));
    assert_eq!(run.outcome.code, Some(0), "{:?}", run.outcome);
    let row = row(&run);
    assert_eq!((&row["verdict"], &row["device"]["chains"]), (&json!("copied"), &Value::Null));
    assert_eq!(row["reasons"]["device.chains"], "this witness was left out (--witness)");
    assert!(!run.device.iter().any(|request| matches!(request, Asked::Judge(control::Request::WatchFlow { .. }))));
}

/// What was held and not released.
fn still_held(asked: &[Asked]) -> i32 {
    asked.iter().fold(0, |held, request| match request {
        Asked::Device(protocol::Request::Hold { .. }) => held + 1,
        Asked::Device(protocol::Request::Release { .. }) => held - 1,
        _ => held,
    })
}

#[test]
fn a_queue_is_released_whatever_happens_to_the_guest() {
    for (manner, code) in [(Manner::DiesPaused, 2), (Manner::FailsHeld, 0)] {
        let scratch = Scratch::new();
        let run = judge(&scratch, manner, "sendfile", device(BYTES, 1));
        assert_eq!(run.outcome.code, Some(code), "{manner:?}: {:?}", run.outcome);
        assert!(
            run.device.iter().any(|request| matches!(request, Asked::Device(protocol::Request::Hold { .. }))),
            "{:?}",
            run.device
        );
        assert_eq!(still_held(&run.device), 0, "{manner:?}: {:?}", run.device);
        if manner == Manner::FailsHeld {
            let row = row(&run);
            assert_eq!(row["verdict"], "zero-copy", "{row}");
            assert_eq!(row["reasons"]["memory.physical_instances"], "the probe failed: the call was refused");
        }
    }
}

#[test]
fn a_queue_is_released_when_the_judge_is_interrupted() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let scratch = Scratch::new();
        let device = Device::start(&scratch.path("control"), device(BYTES, 1));
        let record = scratch.path("record");
        let _guest = guest::start(&record, Manner::Hangs);
        let mut command = scratch.vnic();
        command.args(["judge", "--record", "record", "--control", "control", "--output", "run.json"]);
        command.args(["--transfer", "sendfile,splice", "--bytes", "16384"]).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let asked = || device.asked.lock().unwrap().clone();
        wait_for("the hold", || (still_held(&asked()) == 1).then_some(()));
        kill(Pid::from_raw(child.id() as i32), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("interrupted while waiting for the first chunk"), "{stderr}");
        assert_eq!(still_held(&asked()), 0, "{:?}", asked());
        let record: Value = serde_json::from_slice(&std::fs::read(scratch.path("run.json")).unwrap()).unwrap();
        assert_eq!(record["methods"].as_array().unwrap().len(), 2, "{record}");
    }
}

#[test]
fn a_method_the_kernel_lacks_is_not_probed_further() {
    let scratch = Scratch::new();
    let run = judge(&scratch, Manner::Lacks, "io-uring-send-zc", device(BYTES, 1));
    assert_eq!(run.outcome.code, Some(0), "{:?}", run.outcome);
    assert_eq!(run.guest.len(), 2, "{:?}", run.guest);
    assert_eq!(row(&run)["why"], "this kernel has no such call");
}

#[test]
fn every_row_runs_on_each_file_system() {
    let scratch = Scratch::new();
    let accounts = vec![accounts(BYTES), accounts(0), accounts(BYTES), accounts(0)];
    let script = Script { accounts, ..device::busy() };
    let args = ["--transfer", "sendfile,read-write", "--filesystem", "tmpfs,ext4", "--witness", "device"];
    let run = run_with(&scratch, Manner::Right, &args, script);
    assert_eq!(run.outcome.code, Some(0), "{:?}", run.outcome);
    let record = run.record();
    assert_eq!(record["file"]["filesystem"], "tmpfs,ext4");
    let rows: Vec<(&Value, &Value)> =
        record["methods"].as_array().unwrap().iter().map(|row| (&row["method"], &row["filesystem"])).collect();
    let [sendfile, read_write, tmpfs, ext4] = [json!("sendfile"), json!("read-write"), json!("tmpfs"), json!("ext4")];
    assert_eq!(rows, [(&sendfile, &tmpfs), (&read_write, &tmpfs), (&sendfile, &ext4), (&read_write, &ext4)]);
}
