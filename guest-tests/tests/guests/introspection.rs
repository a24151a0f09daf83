//! Whose the guest's pages are, told from outside by the guest's memory alone, against what the guest itself says.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use guest_fixture::{Agent, Child, Deadline, Device, Folder, Lines, Machine, Watched, note, spec, until, vnic};
use serde_json::Value;
use vnic::introspect::{Kind, Label};
use vnic_experiment::run::{Run, Verdict};
use vnic_experiment::wire::{Event, TransferSpec};

use super::peer::private_kib;

/// Look-ups under churn, at least.
const LOOK_UPS: u64 = 100_000;
const CHURN: Deadline = Deadline::secs("too few look-ups", 240);
/// Sent by each method: no more than is seen without a gap, however fast.
const SENT: u64 = 512 << 10;
/// For that.
const REPORTED: Duration = Duration::from_secs(60);
/// For `vnic verdict` to begin, and to end.
const JUDGES: Deadline = Deadline::secs("vnic verdict", 60);
/// The device's own memory, KiB, at most, with an account kept and somebody looking at it.
const OWN: u64 = 40 << 10;
/// What looking at all of the guest's memory may add to it: what the guest itself does meanwhile.
const GROWS: u64 = 32 << 20;

/// Reads a trace up to a chain with a buffer whose label begins so.
fn until_label(trace: &mut Lines, start: &str) {
    let begins = |buffer: &Value| buffer["label"].as_str().is_some_and(|label| label.starts_with(start));
    while !trace.next()["buffers"].as_array().is_some_and(|buffers| buffers.iter().any(begins)) {}
}

/// The flow, once all of it has passed.
fn flow(top: &mut Lines, name: &str) -> Value {
    let start = Instant::now();
    loop {
        let report = top.next();
        let flows = report["flows"].as_array().expect("flows");
        match flows.iter().find(|flow| flow["flow"] == name) {
            Some(flow) if flow["bytes"].as_u64() >= Some(SENT) => return flow.clone(),
            _ => assert!(start.elapsed() < REPORTED, "not all of {name}: {report:#}"),
        }
    }
}

pub(crate) fn number(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a number")
}

/// Does the label say what the guest says of the page? `file PATH PAGE GPA`, `program PID ADDRESS GPA`.
pub(crate) fn agrees(said: &str, label: &Label) -> bool {
    let (what, place) = said.rsplit_once(' ').and_then(|(rest, _)| rest.rsplit_once(' ')).expect("a line");
    match what.split_once(' ').expect("a line") {
        ("file", path) => {
            let (path, deleted) = path.strip_suffix(" (deleted)").map_or((path, false), |path| (path, true));
            let named = label.path.as_deref() == Some(path) && label.deleted == Some(deleted);
            let system = if path.starts_with("/mnt/") { "ext4" } else { "tmpfs" };
            named && label.page == place.parse().ok() && label.filesystem.as_deref() == Some(system)
        }
        (_, pid) => {
            let whose = (label.program.as_deref(), label.pid, label.address);
            label.kind == Kind::Anonymous && whose == (Some("exe"), pid.parse().ok(), Some(number(place)))
        }
    }
}

/// What `vnic` prints, and how it looks: for whoever reads the test's output.
fn vnic_says(folder: &Path, words: &[&str]) -> String {
    let mut command = Command::new(vnic());
    let output = command.args(words).current_dir(folder).output().expect("vnic starts");
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "vnic {words:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    said
}

/// Has `vnic verdict` watch while a file is sent by its own pages and by copies, again and again.
fn judge(folder: &Path, control: &str, agent: &mut Agent) {
    let mut command = Command::new(vnic());
    command.args(["verdict", "--for", "10", "--output", "watched.json", "--control", control]).current_dir(folder);
    let mut verdict = Child::start("verdict", folder, command);
    until(JUDGES, || verdict.output().contains("watches for").then_some(()));
    let mut sent = Vec::new();
    while verdict.ended().is_none() {
        for method in ["sendfile", "read-write"] {
            let (began, _) = agent.transfer(&spec(method, SENT));
            sent.push((method, format!("{} > {}", began.flow.local, began.flow.remote)));
        }
    }
    assert!(verdict.wait(JUDGES).success(), "{}", verdict.output());
    note(&verdict.output());
    note(&vnic_says(folder, &["report", "watched.json"]));
    let run: Run = serde_json::from_str(&std::fs::read_to_string(folder.join("watched.json")).expect("the record"))
        .expect("the record is one");
    assert_eq!(run.kernel, agent.kernel);
    let watched = run.watched.as_ref().expect("it was watched");
    assert!(
        watched.seconds >= 10.0 && watched.files.iter().any(|file| file.name.starts_with("/tmp/vnic-")),
        "{run:#?}"
    );
    let mut judged = [0, 0];
    for (method, flow) in sent {
        // What was sent when it ended, it has not seen to its end.
        let row = run.methods.iter().find(|row| row.method == flow && row.device.payload_bytes == Some(SENT));
        let Some(row) = row else { continue };
        let (at, verdict) = if method == "sendfile" { (0, Verdict::ZeroCopy) } else { (1, Verdict::Copied) };
        assert_eq!(row.verdict, Some(verdict), "{method}: {row:#?}");
        judged[at] += 1;
    }
    assert!(judged.iter().all(|count| *count > 0), "{judged:?} judged: {run:#?}");
}

#[test]
fn files_and_programs_are_told_from_outside_at_rest_and_under_churn() {
    let folder = Folder::new();
    let capture = folder.path().join("frames.pcapng");
    let mut device = Device::start(folder.path(), &["--capture", capture.to_str().expect("a path"), "--labels"]);
    let control = device.control().display().to_string();
    let (mut machine, mut agent) = Machine::boot(folder.path(), &["--cpus", "2"]);
    let watched = Watched::of(&mut machine, &device);
    let said = agent.run(&["pages", "hold"]);
    let before = watched.resident();
    let mut eyes = watched.eyes();
    assert_eq!(eyes.release(), agent.kernel);

    note(&format!("{} pages at rest", said.lines().count()));
    let gpa_of = |line: &str| number(line.rsplit(' ').next().expect("a word"));
    for line in said.lines() {
        let label = eyes.label(gpa_of(line));
        assert!(agrees(line, &label), "{line}: {label:?}");
    }
    assert_eq!(said.lines().filter(|line| line.starts_with("file")).count(), 6 * 300);
    let some: Vec<&str> = said.lines().step_by(100).collect();
    let pages = device.pages(&some.iter().map(|line| gpa_of(line)).collect::<Vec<_>>());
    for (line, page) in some.iter().zip(pages) {
        let label: Label = serde_json::from_value(page).expect("a label");
        assert!(agrees(line, &label), "{line}: {label:?}");
    }

    note("all of memory");
    let mut kinds = std::collections::BTreeMap::<Kind, u64>::new();
    for gpa in watched.pages() {
        *kinds.entry(eyes.label(gpa).kind).or_default() += 1;
    }
    for kind in [Kind::File, Kind::Anonymous, Kind::Slab, Kind::Free, Kind::Reserved, Kind::Firmware] {
        assert!(kinds.get(&kind).is_some_and(|count| *count > 0), "no {kind:?} in {kinds:?}");
    }
    let grown = watched.resident().saturating_sub(before);
    assert!(grown < GROWS, "looking made {grown} bytes of the guest's memory exist");

    note("what is sent");
    let mut top = Lines::ask(device.control(), r#"{"request":"top","every_ms":100}"#);
    assert_eq!(top.next()["kernel"], agent.kernel);
    let mut trace = Lines::ask(device.control(), r#"{"request":"trace","labels":true}"#);
    for (method, from) in [("sendfile", "file"), ("read-write", "socket")] {
        // The file is there as long as the transfer waits behind its only chunk.
        let began = agent.begin(&TransferSpec { pause: true, chunk: SENT, ..spec(method, SENT) });
        agent.go();
        assert!(matches!(agent.hear(), Some(Event::Paused { .. })), "{method} does not wait");
        let flow = flow(&mut top, &format!("{} > {}", began.flow.local, began.flow.remote));
        let label = if from == "file" { "/tmp/vnic-" } else { "socket buffers" };
        until_label(&mut trace, label);
        agent.go();
        agent.end();
        let [bytes, zero_copy, unsettled] = ["bytes", "zero_copy_bytes", "unsettled_bytes"].map(|name| &flow[name]);
        assert_eq!((bytes.as_u64(), unsettled.as_u64()), (Some(SENT), Some(0)), "{method}: {flow:#}");
        let copied = if from == "file" { 0 } else { SENT };
        assert_eq!(zero_copy.as_u64(), Some(SENT - copied), "{method}: {flow:#}");
        let sources = flow["sources"].as_array().expect("sources");
        assert!(sources.iter().all(|source| source["kind"] == from), "{method}: {flow:#}");
        let path = sources[0]["path"].as_str().unwrap_or_default();
        assert_eq!(path.starts_with("/tmp/vnic-"), from == "file", "{method}: {flow:#}");
    }
    drop(trace);
    let report = vnic_says(folder.path(), &["top", "--once", "--json", "--control", &control]);
    let report: Value = serde_json::from_str(&report).expect("one JSON document");
    assert_eq!(report["kernel"], agent.kernel);
    // As much as both methods have sent, and what was sent before: all since the device was first served.
    assert!(report["bytes"].as_u64() >= Some(2 * SENT) && report["files"][0]["path"].is_string(), "{report:#}");

    note("what `vnic verdict` makes of it");
    judge(folder.path(), &control, &mut agent);
    let own = private_kib(device.child().id());
    assert!(own < OWN, "{own} KiB of the device's own");
    drop(top);

    note("under churn");
    agent.run(&["pages", "churn"]);
    let churned = watched.churned(&mut eyes, LOOK_UPS, CHURN);
    assert_eq!(churned.wrong, Vec::<String>::new());
    assert!(churned.renamed > 0 && eyes.is_alive());
    note(&format!("{} look-ups, none wrong: {:?}", churned.all_settled(), eyes.statistics()));
    machine.power_off(agent);
    assert!(device.stop().success());
    let frames = std::fs::read(&capture).expect("the capture");
    let holds = |text: &[u8]| frames.windows(text.len()).any(|window| window == text);
    for label in [&b" (/tmp/vnic-"[..], b" (socket buffers)", b" (slab "] {
        assert!(holds(label), "no comment of the capture has {}", String::from_utf8_lossy(label));
    }
}
