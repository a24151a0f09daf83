//! `vnic attach` to a VM that was started for nobody, with QEMU's own devices: its devices against the guest's `/sys`, pages against
//! `/proc/self/pagemap`, and what it sees of a file that is sent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use guest_fixture::{Agent, Attached, Folder, Lines, Machine, Namespace, is_root, prepared, receiver, spec};
use serde_json::Value;

use crate::rest;
use crate::tally::{Line, SHOWN, Tally, Verdict};

/// The formats of the NIC's rings.
pub(crate) const RINGS: [&str; 2] = ["split", "packed"];
/// The tap device behind QEMU's card.
const TAP: &str = "vnickernels0";
/// Sent at a time, and how often.
const SENT: u64 = 16 << 20;
const TIMES: usize = 4;
/// Milliseconds between two reports.
const EVERY_MS: u64 = 200;

/// Boots one, attaches, looks.
#[track_caller]
pub(crate) fn looks(kernel: &str, rings: &str) -> Vec<Line> {
    let when = format!("attached, {rings}");
    let line = |kernel: &str, kind: &str, tally, note| Line {
        kernel: kernel.to_owned(),
        machine: when.clone(),
        kind: kind.to_owned(),
        tally,
        note,
    };
    if !is_root() {
        let why = "a tap device and a network namespace need root";
        return vec![line(kernel, "all", Tally::default(), Some(why.to_owned()))];
    }
    let folder = Folder::new();
    let namespace = Namespace::new().expect("a network namespace");
    namespace.add_tap(TAP).expect("a tap device");
    let anywhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 9000);
    namespace.enter(|| receiver::listen(anywhere)).expect("a receiver in the namespace");
    let netdev = format!("tap:{TAP}");
    let packed = format!("packed={}", if rings == "packed" { "on" } else { "off" });
    let options = ["--debian-kernel", kernel, "--netdev", &netdev, "--cpus", "2", "--nic-options", &packed];
    let mut words = prepared(folder.path(), &options).command();
    // As most VMs have it: memory that is nobody else's.
    for word in &mut words {
        *word = word.replace("memory-backend-memfd", "memory-backend-ram").replace(",share=on", "");
    }
    let mut machine = namespace.enter(|| Machine::run(folder.path(), &words));
    let mut agent = machine.agent();
    let attached = Attached::to(machine.child().id(), folder.path());
    let tally = devices(&attached, &mut agent, rings);
    let mut lines = vec![line(&agent.kernel, "virtio devices", tally, None)];
    lines.extend(rest::some(&mut agent, &when, |addresses| attached.labels(addresses)));
    let (tally, note) = sent(&attached, &mut agent);
    lines.push(line(&agent.kernel, "bytes sent, seen", tally, Some(note)));
    machine.power_off(agent);
    lines
}

/// Names, drivers, places and features, as the guest's `/sys` has them; and the NIC's rings have the format that is asked for.
fn devices(attached: &Attached, agent: &mut Agent, rings: &str) -> Tally {
    let script = "for d in /sys/bus/virtio/devices/*; do n=$(readlink -f $d); \
        [ -e $d/driver ] && r=$(basename $(readlink -f $d/driver)) || r=no-driver; \
        echo ${d##*/} $r $(basename ${n%/*}) $(cat $d/features); done";
    let said = agent.run(&["sh", "-c", script]);
    let status = attached.status();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let found = text(&status["link"]);
    let found: Vec<&str> = found.split(", ").collect();
    let mut features: BTreeMap<String, usize> = BTreeMap::new();
    for feature in status["features"]["negotiated"].as_array().into_iter().flatten() {
        *features.entry(text(feature).split('.').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let packed = status["features"]["negotiated"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|feature| feature.as_str().is_some_and(|feature| feature.ends_with(".ring_packed")));
    let mut tally = Tally::default();
    let verdict = |right| if right { Verdict::Right } else { Verdict::Wrong };
    tally.add(verdict(packed == (rings == "packed")), || format!("the rings are not {rings}: {status:#}"));
    for device in said.lines() {
        let words: Vec<&str> = device.split(' ').collect();
        let [name, driver, parent, bits] = words[..] else { panic!("{device}") };
        let is_there = found.contains(&format!("{name} = {} on {parent}", driver.replace('-', " ")).as_str());
        let count = bits.bytes().filter(|bit| *bit == b'1').count();
        let right = is_there && features.get(name).copied().unwrap_or(0) == count;
        tally.add(verdict(right), || format!("{device}: {found:?}, {features:?}"));
    }
    tally
}

/// Sends a file; what was seen of it is right where it is said to come from that file.
fn sent(attached: &Attached, agent: &mut Agent) -> (Tally, String) {
    let started = Instant::now();
    let mut top = Lines::ask(&attached.control, &format!(r#"{{"request":"top","every_ms":{EVERY_MS}}}"#));
    let mut flows = Vec::new();
    for _ in 0..TIMES {
        let (began, _) = agent.transfer(&spec("sendfile", SENT));
        flows.push(format!("{} > {}", began.flow.local, began.flow.remote));
    }
    // One is answered, and then told every so often: with as many as may have been told by now, the next one has all.
    let told = started.elapsed().as_millis() / u128::from(EVERY_MS);
    let mut report = Value::Null;
    for _ in 0..told + 4 {
        report = top.next();
    }
    let mut tally = Tally::default();
    let mut wrong = 0;
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    for flow in report["flows"].as_array().into_iter().flatten() {
        if !flows.iter().any(|known| flow["flow"] == *known.as_str()) {
            continue;
        }
        for source in flow["sources"].as_array().into_iter().flatten() {
            let bytes = number(&source["bytes"]);
            let named = source["path"].as_str().is_none_or(|path| path.starts_with("/tmp/vnic-"));
            if source["kind"] == "file" && named {
                tally.right += bytes;
            } else if source["kind"] != "unsettled" {
                wrong += 1;
                tally.wrong += bytes;
                if wrong <= SHOWN {
                    eprintln!("wrong: {source}");
                }
            }
        }
        tally.unsettled += number(&flow["unsettled_bytes"]);
    }
    if tally.right == 0 {
        tally.add(Verdict::Wrong, || format!("nothing was seen of {flows:?}: {report}"));
    }
    let share = 100.0 * report["seen_share"].as_f64().unwrap_or(0.0);
    let (seen, passed) = (number(&report["seen"]["frames"]), number(&report["passed"]["frames"]));
    (tally, format!("{seen} of {passed} frames, {share:.0} % of the bytes"))
}
