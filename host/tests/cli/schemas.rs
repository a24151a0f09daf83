//! `docs/schema`: what `--json` prints is of the form that stands there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::device::{self, Device};
use crate::report::with_shapes;
use crate::util::{Scratch, outcome, python, root, skip};

fn published() -> PathBuf {
    root().join("docs/schema")
}

/// The names of a folder's files.
fn files(folder: &Path) -> BTreeSet<String> {
    fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_published_schemas_are_those_of_the_types() {
    let scratch = Scratch::new();
    assert_eq!(scratch.run(&["schemas", "made"]).code, Some(0));
    let made = scratch.path("made");
    assert_eq!(files(&made), files(&published()));
    for name in files(&made) {
        let [new, old] = [&made, &published()].map(|folder| fs::read_to_string(folder.join(&name)).unwrap());
        assert!(new == old, "docs/schema/{name} is old: `vnic schemas docs/schema` makes them anew");
    }
}

/// The device's answers are a script's, but the types are the protocol's, and what prints is the real command.
#[test]
fn every_json_output_is_of_the_published_form() {
    let Some(python) = python("jsonschema") else {
        return skip(
            "JSON is not held against its schemas: target/python has no jsonschema (scripts/test.sh installs it)",
        );
    };
    let scratch = Scratch::new();
    let mut script = device::busy();
    script.status.queues[1].state = "held".to_owned();
    script.instances = vec![3];
    let device = Device::start(&scratch.path("control"), script);
    let mut rows = with_shapes();
    scratch.file("before.json", &rows.to_string());
    rows["methods"][0]["verdict"] = "copied".into();
    scratch.file("after.json", &rows.to_string());
    let control = ["--control", device.control()];
    let outputs: [(&str, Vec<&str>); 14] = [
        ("status", [&["status", "--json"], &control[..]].concat()),
        ("rings", [&["rings", "--json"], &control[..]].concat()),
        ("rings", [&["rings", "--json", "--every", "10ms", "--count", "2"], &control[..]].concat()),
        ("trace", [&["trace", "--json", "--labels", "--hex"], &control[..]].concat()),
        ("top", [&["top", "--json", "--for", "1"], &control[..]].concat()),
        ("page", [&["page", "--json", "0x2ee1000", "0x1000"], &control[..]].concat()),
        ("life", [&["life", "--json", "/var/www/big.bin"], &control[..]].concat()),
        ("scan", [&["scan", "--json", "--queue", "transmitq0"], &control[..]].concat()),
        ("run", [&["verdict", "--json", "--for", "1"], &control[..]].concat()),
        ("report", vec!["report", "before.json", "--json", "--hardware", "ideal"]),
        ("comparison", vec!["report", "before.json", "after.json", "--json"]),
        ("doctor", vec!["doctor", "--json"]),
        ("capabilities", vec!["serve", "--print-capabilities"]),
        ("qemu-args", vec!["qemu-args", "--json", "--socket-path", "/tmp/vnic.sock"]),
    ];
    let mut check = Command::new(&python);
    check.arg(root().join("scripts/check-json.py"));
    for (number, (schema, words)) in outputs.iter().enumerate() {
        let told = scratch.run(words);
        assert!(told.code.is_some_and(|code| code < 2) && !told.stdout.is_empty(), "{words:?}: {told:?}");
        check.arg(published().join(format!("{schema}.json")));
        check.arg(scratch.file(&format!("{number}-{schema}"), &told.stdout));
    }
    // What the socket carries is the protocol's own.
    let asked = device.asked.lock().unwrap();
    let asked = asked.iter().filter_map(|asked| match asked {
        device::Asked::Device(request) => Some(serde_json::to_string(request).unwrap() + "\n"),
        device::Asked::Judge(_) => None,
    });
    check.arg(published().join("request.json")).arg(scratch.file("asked", &asked.collect::<String>()));
    let held = outcome(&mut check);
    assert_eq!(held.code, Some(0), "{held:?}");
    // A check that finds nothing wrong with anything is none.
    let wrong = scratch.file("wrong", r#"{"event": "chain", "queue": "transmitq0", "head": -1}"#);
    let mut check = Command::new(python);
    check.arg(root().join("scripts/check-json.py")).arg(published().join("trace.json")).arg(wrong);
    assert_eq!(outcome(&mut check).code, Some(1));
}
