//! `vnic trace --parquet` and `vnic report --parquet`: what DuckDB makes of it, by the questions of docs/parquet.md.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use vnic::observe::protocol::{BufferSnapshot, ChainEvent, TraceEvent};
use vnic::ring::snapshot::BufferOwner;

use crate::device::{self, Device, Script};
use crate::report::{record, row_of};
use crate::util::{Scratch, outcome, python, root, skip};

/// Two segments of a file that nobody copied, the second sent twice; between them three chains that the trace lost; then something
/// that arrived.
fn script() -> Script {
    let mut script = device::busy();
    let TraceEvent::Chain(sent) = script.events[0].clone() else { panic!("no chain") };
    let of = |kind: &str, path: Option<&str>| {
        let owner = BufferOwner { kind: kind.to_owned(), path: path.map(Into::into), ..BufferOwner::default() };
        Some(Box::new(owner))
    };
    let segment = |at_us: u64, seq: u8| {
        let mut event = ChainEvent { at_ns: at_us * 1000, available_ns: at_us * 1000 - 7_500, ..sent.clone() };
        event.buffers = vec![
            BufferSnapshot { owner: of("socket", None), ..BufferSnapshot::at(0x1f000, 66) },
            BufferSnapshot { owner: of("file", Some("/srv/big.bin")), ..BufferSnapshot::at(0x20000, 4096) },
            // A guest may write any address.
            BufferSnapshot { owner: of("file", Some("/srv/big.bin")), ..BufferSnapshot::at(u64::MAX - 4095, 1004) },
        ];
        let headers = event.headers.as_mut().unwrap();
        headers.bytes = frame(seq);
        headers.frame_len = 54 + 5100;
        TraceEvent::Chain(event)
    };
    let received = ChainEvent { queue: "receiveq0".to_owned(), headers: None, buffers: Vec::new(), ..sent.clone() };
    let lost = TraceEvent::Lost { queue: "transmitq0".to_owned(), events: 3 };
    script.events = vec![segment(2000, 1), lost, segment(3000, 2), segment(4000, 2), TraceEvent::Chain(received)];
    script
}

/// The headers of a TCP segment from 10.0.2.15:80 to 10.0.2.2:51514, in hexadecimal digits.
fn frame(seq: u8) -> String {
    let ethernet = "5254000000025254000000010800";
    let ip = "45001414000040004006000 00a00020f0a000202".replace(' ', "");
    format!("{ethernet}{ip}0050c93a000000{seq:02x}00000000501000ff00000000")
}

fn files(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn files_are_whole_and_begun_anew() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), script());
    let trace = |more: &[&str]| {
        let words = ["trace", "--control", device.control(), "--parquet", "out/made"];
        scratch.run(&[&words, more].concat())
    };
    let outcome = trace(&["--rotate", "2rows"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let names = files(&scratch.path("out/made"));
    assert_eq!(names.len(), 2, "{names:?}");
    for name in &names {
        assert!(name.ends_with(".parquet") && !name.starts_with('.'), "{names:?}");
        let bytes = fs::read(scratch.path("out/made").join(name)).unwrap();
        assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"), "{name} is cut off");
    }
    assert!(outcome.stdout.starts_with("out/made: 2 files, 4 chains, "), "{outcome:?}");
    // Another trace leaves these alone.
    assert_eq!(trace(&["--count", "1"]).code, Some(0));
    assert_eq!(files(&scratch.path("out/made")).len(), 3);
    trace(&["--rotate", "soon"]).is_refusal(&["--rotate", "`soon` is no limit"]);
    assert_eq!(trace(&["--json"]).code, Some(2));
    scratch.file("taken", "");
    scratch
        .run(&["trace", "--control", device.control(), "--parquet", "taken"])
        .is_refusal(&["the folder taken cannot be made"]);
}

/// What is answered, by the question's heading.
fn answers(text: &str) -> BTreeMap<String, Vec<Value>> {
    let mut answers: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    let mut heading = "";
    for line in text.lines() {
        match line.strip_prefix("## ") {
            Some(question) => heading = question,
            None if line.starts_with('{') => {
                answers.entry(heading.to_owned()).or_default().push(serde_json::from_str(line).unwrap());
            }
            None => {}
        }
    }
    answers
}

#[test]
fn duckdb_answers_the_questions_of_the_documentation() {
    let Some(python) = python("duckdb") else {
        return skip("nobody asks the Parquet files: target/python has no duckdb (scripts/test.sh installs it)");
    };
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), script());
    let traced =
        scratch.run(&["trace", "--control", device.control(), "--labels", "--parquet", "out", "--rotate", "3rows"]);
    assert_eq!(traced.code, Some(0), "{traced:?}");
    scratch.file("a.json", &record(vec![row_of("sendfile", true, 16 << 20, "zero-copy")]).to_string());
    let mut other = record(vec![row_of("sendfile", true, 0, "copied")]);
    other["kernel"] = json!("7.3.0-test");
    other["methods"][0]["guest"]["copied_bytes"] = json!({"_copy_to_iter": 16 << 20});
    scratch.file("b.json", &other.to_string());
    let reported = scratch.run(&["report", "a.json", "b.json", "--parquet", "runs.parquet"]);
    assert_eq!(
        (reported.code, reported.stdout.as_str()),
        (Some(0), "runs.parquet: 2 rows of 2 records\n"),
        "{reported:?}"
    );
    let [chains, runs]: [PathBuf; 2] = ["out", "runs.parquet"].map(|name| scratch.path(name));
    let mut ask = Command::new(python);
    ask.arg(root().join("scripts/parquet-questions.py")).arg("duckdb").args([chains, runs]);
    let asked = outcome(&mut ask);
    assert_eq!(asked.code, Some(0), "{asked:?}");
    assert!(asked.stdout.ends_with("6 questions asked of duckdb\n"), "{asked:?}");
    let answers = answers(&asked.stdout);
    let of = |question: &str| {
        let mut rows = answers.get(question).unwrap_or_else(|| panic!("no {question:?} in {asked:?}")).clone();
        rows.iter_mut().for_each(|row| drop(row.as_object_mut().unwrap().remove("machine")));
        rows
    };
    let flow = "10.0.2.15:80 > 10.0.2.2:51514";
    assert_eq!(
        of("From what was sent, to whom, and was it copied?"),
        [
            json!({"flow": flow, "source": "/srv/big.bin", "bytes": 3 * 5100, "descriptors": 6}),
            json!({"flow": flow, "source": "socket", "bytes": 3 * 66, "descriptors": 3}),
        ]
    );
    let sizes = of("How long are the descriptors?");
    let sizes: Vec<_> = sizes.iter().map(|row| (row["at_least"].as_u64(), row["descriptors"].as_u64())).collect();
    assert_eq!(sizes, [(Some(64), Some(3)), (Some(512), Some(3)), (Some(4096), Some(3))]);
    let took = of("How long does the device have a chain?");
    assert_eq!(took, [json!({"queue": "transmitq0", "chains": 3, "median_us": 7.5, "p99_us": 7.5})]);
    assert_eq!(
        of("How much does the trace lack?"),
        [
            json!({"pid": 4711, "queue": "receiveq0", "chains": 1, "lost": 0, "seen_percent": 100.0}),
            json!({"pid": 4711, "queue": "transmitq0", "chains": 3, "lost": 3, "seen_percent": 50.0}),
        ]
    );
    assert_eq!(of("What was sent again?"), [json!({"flow": flow, "frames": 3, "sent_again": 1})]);
    let differs = of("Where does a verdict differ between two kernels?");
    assert_eq!((&differs[0]["method"], &differs[0]["verdicts"]), (&json!("sendfile"), &json!(2)));
}
