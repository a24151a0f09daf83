//! `vnic trace --perfetto`, read by Perfetto's own trace processor.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use vnic::observe::protocol::{BufferSnapshot, ChainEvent, TraceEvent};

use crate::device::{self, Device};
use crate::serve::Serve;
use crate::util::{Scratch, outcome, root, skip, wait_for};
use crate::watch_live::Driver;

/// Two reads of the disk that overlap, frames out of the pages of the first, and what was lost.
fn events() -> Vec<TraceEvent> {
    let TraceEvent::Chain(sent) = device::busy().events.remove(0) else { panic!("no chain") };
    let buffer = |writable, at, len| BufferSnapshot { writable, ..BufferSnapshot::at(at, len) };
    let read = |(available_ns, at_ns): (u64, u64), idx, page: u64| ChainEvent {
        available_ns,
        at_ns,
        idx,
        queue: "requestq0".to_owned(),
        buffers: vec![buffer(false, 0x100, 16), buffer(true, page, 8192), buffer(true, 0x200, 1)],
        descriptors: 3,
        written: 8193,
        summary: "read sector 8 len 8192".to_owned(),
        headers: None,
        ..sent.clone()
    };
    let frame = |(available_ns, at_ns): (u64, u64), idx, page: u64| ChainEvent {
        available_ns,
        at_ns,
        idx,
        buffers: vec![buffer(false, 0x300, 78), buffer(false, page, 4096)],
        ..sent.clone()
    };
    let chains = [
        read((1_000, 3_000), 1, 0x8000),
        read((2_000, 4_000), 2, 0x20000),
        frame((5_000, 6_000), 1, 0x8000),
        frame((5_500, 6_500), 2, 0x9000),
        frame((7_000, 7_500), 3, 0x70000),
    ];
    let lost = TraceEvent::Lost { queue: "transmitq0".to_owned(), events: 7 };
    chains.into_iter().map(TraceEvent::Chain).chain([lost]).collect()
}

fn traced(scratch: &Scratch) -> Device {
    let device = Device::start(&scratch.path("control"), device::Script { events: events(), ..device::busy() });
    let outcome = scratch.run(&["trace", "--perfetto", "t.pftrace", "--control", device.control()]);
    let said = "t.pftrace: 5 chains of 2 rings, 2 arrows from disk to NIC, 7 more were not recorded; open it in ui.perfetto.dev\n";
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), said), "{outcome:?}");
    device
}

/// Perfetto's trace processor, where `scripts/test.sh` has put it.
fn processor() -> Option<PathBuf> {
    let assets = root().join("target/perfetto/package/assets/trace-processor");
    let has_node = Command::new("node").arg("--version").output().is_ok_and(|end| end.status.success());
    (has_node && assets.is_dir()).then_some(assets)
}

/// The rows that each of these questions has for its answer.
fn ask(assets: &Path, trace: &Path, questions: &[&str]) -> Vec<Value> {
    let mut node = Command::new("node");
    node.arg(root().join("scripts/perfetto.mjs")).arg(assets).arg(trace).args(questions);
    let outcome = outcome(&mut node);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn perfetto_reads_rings_chains_arrows_and_counters() {
    let scratch = Scratch::new();
    traced(&scratch);
    let Some(assets) = processor() else {
        return skip("Perfetto's trace processor is not asked: no node, or scripts/test.sh did not install it");
    };
    let slices = "select s.ts, s.dur, s.name, ring.name as ring from slice s join track t on s.track_id = t.id \
                  join track ring on t.parent_id = ring.id where s.dur > 0 order by s.ts";
    let arrows = "select o.ts as of, i.ts as at from flow f join slice o on f.slice_out = o.id \
                  join slice i on f.slice_in = i.id order by i.ts";
    let in_flight = "select c.ts, c.value, ring.name as ring from counter c join track t on c.track_id = t.id \
                     join track ring on t.parent_id = ring.id where t.name = 'in flight' and ring.name = 'requestq0'";
    let bytes = "select max(c.value) as bytes from counter c join counter_track t on c.track_id = t.id \
                 where t.name = 'bytes'";
    let arguments = "select distinct key from args where arg_set_id = (select arg_set_id from slice limit 1) \
                     and key like 'debug.%' order by key";
    let lost = "select name, dur from slice where dur <= 0";
    let wrong = "select name, value from stats where severity in ('error', 'data_loss') and value > 0";
    let process = "select pid, name from process where pid > 0";
    let questions = [slices, arrows, in_flight, bytes, arguments, lost, wrong, process];
    let answers = ask(&assets, &scratch.path("t.pftrace"), &questions);
    let flow = "10.0.2.15:40000 > 10.0.2.2:9000 tcp";
    let slice = |ts, dur, name: &str, ring: &str| json!({"ts": ts, "dur": dur, "name": name, "ring": ring});
    let expected = json!([
        slice(1_000, 2_000, "read", "requestq0"),
        slice(2_000, 2_000, "read", "requestq0"),
        slice(5_000, 1_000, flow, "transmitq0"),
        slice(5_500, 1_000, flow, "transmitq0"),
        slice(7_000, 500, flow, "transmitq0"),
    ]);
    assert_eq!(answers[0], expected);
    assert_eq!(answers[1], json!([{"of": 1_000, "at": 5_000}, {"of": 1_000, "at": 5_500}]));
    let counts: Vec<_> =
        answers[2].as_array().unwrap().iter().map(|row| (row["ts"].clone(), row["value"].clone())).collect();
    assert_eq!(json!(counts), json!([[1_000, 1], [2_000, 2], [3_000, 1], [4_000, 0]]));
    assert_eq!(answers[3], json!([{"bytes": 16_386}]));
    let keys: Vec<&str> = answers[4].as_array().unwrap().iter().map(|row| row["key"].as_str().unwrap()).collect();
    for key in ["debug.idx", "debug.head", "debug.descriptors", "debug.summary", "debug.buffers[1]"] {
        assert!(keys.contains(&key), "{keys:?}");
    }
    assert_eq!(answers[5], json!([{"name": "7 chains were not recorded", "dur": 0}]));
    assert_eq!(answers[6], json!([]), "what Perfetto could not read");
    assert_eq!(answers[7].as_array().unwrap().len(), 1);
}

#[test]
fn what_cannot_be_written_is_said_in_a_sentence() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), device::busy());
    let run = |words: &[&str]| scratch.run(&[&["trace", "--control", device.control()], words].concat());
    run(&["--perfetto", "missing/t.pftrace"]).is_refusal(&["cannot write missing/t.pftrace", "No such file"]);
    let both = run(&["--perfetto", "t.pftrace", "--json"]);
    assert!(both.code == Some(2) && both.stderr.contains("cannot be used with"), "{both:?}");
    let filtered = run(&["--perfetto", "t.pftrace", "--queue", "receiveq0"]);
    assert!(filtered.stdout.starts_with("t.pftrace: 0 chains of 0 rings"), "{filtered:?}");
}

#[test]
fn a_signal_ends_it_and_the_file_is_whole() {
    let scratch = Scratch::new();
    let _serve = Serve::start(&scratch, "vnic.sock", &[]);
    let _driver = Driver::start(&scratch, "vnic.sock");
    let mut command = scratch.vnic();
    command.args(["trace", "--perfetto", "t.pftrace", "--control", "vnic.sock.control"]);
    let mut trace = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let path = scratch.path("t.pftrace");
    wait_for("chains in the file", || fs::metadata(&path).is_ok_and(|file| file.len() > 4096).then_some(()));
    kill(Pid::from_raw(trace.id() as i32), Signal::SIGTERM).unwrap();
    let ended = wait_for("the trace to end", || trace.try_wait().unwrap());
    let mut said = String::new();
    trace.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    trace.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(ended.success() && said.contains(" chains of 1 rings, 0 arrows"), "{ended}: {said}");
    let Some(assets) = processor() else { return };
    // Every chain that was told has its slice, and its two times.
    let questions = [
        "select count(*) as chains, min(dur) >= 0 as ended from slice where name like '10.0.2.15%'",
        "select name, value from stats where severity in ('error', 'data_loss') and value > 0",
    ];
    let answers = ask(&assets, &path, &questions);
    let chains = answers[0][0]["chains"].as_u64().unwrap();
    assert!(said.starts_with(&format!("t.pftrace: {chains} chains")) && chains > 0, "{said}: {answers:?}");
    assert_eq!((&answers[0][0]["ended"], &answers[1]), (&json!(1), &json!([])));
}
