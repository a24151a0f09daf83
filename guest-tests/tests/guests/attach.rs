//! `vnic attach` to a QEMU with devices of its own, nothing of which was started for it: what it says against what the guest and
//! QEMU themselves say, before a reset and after.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use guest_fixture::{Agent, Attached, Deadline, Folder, Lines, Machine, note, prepared, spec, until};
use serde_json::{Value, json};
use vnic::spec::Features;
use vnic_experiment::wire::Event;

use super::introspection::{agrees, number};
use super::tap::{TAP, far_end};

const AGAIN: Deadline = Deadline::secs("vnic attach to find the guest's new kernel", 60);
const STILL: Deadline = Deadline::secs("the rings to stand still", 60);
const SEEN: Deadline = Deadline::secs("a frame with the file's pages to be seen", 120);
const ENDS: Deadline = Deadline::secs("vnic attach to end with the VM", 20);
/// Sent at a time.
const SENT: u64 = 4 << 20;
/// What looking may add to QEMU's memory: what QEMU itself does meanwhile. All of the guest's is far more.
const GROWS: u64 = 16 << 20;
/// Descriptors of the receive queue, which Linux leaves as the device has them; of the transmit queue there are 256.
const RECEIVE: u64 = 512;

/// QEMU's monitor.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn open(path: &Path) -> Monitor {
        let stream = until(Deadline::secs("QEMU's monitor", 20), || UnixStream::connect(path).ok());
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        let mut monitor = Monitor(BufReader::new(stream));
        monitor.ask("qmp_capabilities", &json!({}));
        monitor
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        writeln!(self.0.get_mut(), "{}", json!({"execute": command, "arguments": arguments})).expect("a monitor");
        loop {
            let mut line = String::new();
            self.0.read_line(&mut line).expect("the monitor answers");
            let mut said: Value = serde_json::from_str(&line).expect("JSON");
            assert!(said.get("error").is_none(), "{command}: {said}");
            if let Some(answer) = said.get_mut("return") {
                return answer.take();
            }
        }
    }

    /// So many queues of a kind of device: size, and how far driver and device are.
    fn queues(&mut self, kind: &str, count: usize) -> Vec<(u64, u64, u64)> {
        let devices = self.ask("x-query-virtio", &json!({}));
        let path = |device: &Value| (device["name"] == kind).then(|| device["path"].clone());
        let path = devices.as_array().expect("devices").iter().find_map(path).expect("the device");
        let of = |at: usize| {
            let queue = self.ask("x-query-virtio-queue-status", &json!({"path": path, "queue": at}));
            let field = |name: &str| queue[name].as_u64().unwrap_or_default();
            (field("vring-num"), field("last-avail-idx"), field("used-idx"))
        };
        (0..count).map(of).collect()
    }
}

/// Bytes of a process that are in memory.
fn resident(pid: u32) -> u64 {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).expect("QEMU runs");
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
}

/// A device as the guest's `/sys` has it: driver, where it is, features.
fn devices(agent: &mut Agent) -> BTreeMap<String, (String, String, Features)> {
    let script = "for d in /sys/bus/virtio/devices/*; do n=$(readlink -f $d); \
        echo ${d##*/} $(basename $(readlink -f $d/driver)) $(basename ${n%/*}) $(cat $d/features); done";
    let said = agent.run(&["sh", "-c", script]);
    let bits = |text: &str| (0..).zip(text.bytes()).fold(0, |all, (at, bit)| all | u64::from(bit == b'1') << at);
    let device = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, driver, parent, features] = words[..] else { panic!("{line}") };
        (name.to_owned(), (driver.to_owned(), parent.to_owned(), Features(bits(features))))
    };
    said.lines().map(device).collect()
}

/// Status and labels against what the guest and QEMU say.
fn is_right(attached: &Attached, monitor: &mut Monitor, agent: &mut Agent) {
    let status = attached.status();
    assert!(
        status["socket"].as_str().is_some_and(|text| text.ends_with(&format!("Linux {}", agent.kernel))),
        "{status}"
    );
    let said = devices(agent);
    let words: Vec<String> =
        said.iter().map(|(name, (driver, parent, _))| format!("{name} = {driver} on {parent}")).collect();
    assert_eq!(status["link"], words.join(", "));
    for driver in ["virtio_net", "virtio_console", "virtio_blk", "virtio_rng"] {
        assert!(said.values().any(|(known, ..)| known == driver), "the guest has no {driver}: {said:?}");
    }
    let negotiated = status["features"]["negotiated"].as_array().expect("features");
    for (name, (driver, _, features)) in &said {
        let own = |text: &Value| text.as_str()?.strip_prefix(&format!("{name}.")).map(str::to_owned);
        let found: Vec<String> = negotiated.iter().filter_map(own).collect();
        assert_eq!(found.len(), features.0.count_ones() as usize, "{name}: {found:?}, {:#x}", features.0);
        assert!(driver != "virtio_net" || found == features.names(), "{found:?}");
    }

    let kinds = [
        ("virtio_net", "virtio-net", vec![("receiveq0", RECEIVE), ("transmitq0", 256), ("controlq", 64)]),
        ("virtio_blk", "virtio-blk", vec![("req.0", 256)]),
        ("virtio_rng", "virtio-rng", vec![("input", 8)]),
    ];
    for (driver, kind, expected) in kinds {
        let name = said.iter().find(|(_, (known, ..))| known == driver).map(|(name, _)| name).expect("the device");
        until(STILL, || {
            let status = attached.status();
            let before = monitor.queues(kind, expected.len());
            let all = status["queues"].as_array().expect("queues");
            let own =
                |queue: &&Value| queue["queue"].as_str().is_some_and(|text| text.starts_with(&format!("{name}.")));
            let own: Vec<&Value> = all.iter().filter(own).collect();
            let names: Vec<(String, u64)> =
                expected.iter().map(|(queue, size)| (format!("{name}.{queue}"), *size)).collect();
            let found: Vec<(String, u64)> = own
                .iter()
                .map(|queue| {
                    (queue["queue"].as_str().unwrap_or_default().to_owned(), queue["size"].as_u64().unwrap_or(0))
                })
                .collect();
            assert_eq!(found, names, "{status:#}");
            let stands = |queue: &&Value| {
                let counter = |name: &str| queue["counters"][name].as_u64().expect("a counter");
                assert_eq!(queue["error"], Value::Null, "{queue}");
                (queue["size"].as_u64().expect("a size"), counter("avail_idx"), counter("used_idx"))
            };
            let found: Vec<(u64, u64, u64)> = own.iter().map(stands).collect();
            // QEMU says how far it has taken buffers, and those of a receive queue lie there untaken.
            let sides = found.iter().zip(&before).enumerate();
            let same = sides.clone().all(|(at, (found, qemu))| {
                found.0 == qemu.0 && found.2 == qemu.2 && (found.1 == qemu.1 || kind == "virtio-net" && at == 0)
            });
            (same && sides.count() == expected.len() && monitor.queues(kind, expected.len()) == before).then_some(())
        });
    }
}

fn labels_are_right(attached: &Attached, said: &str) {
    let some: Vec<&str> = said.lines().step_by(20).collect();
    assert!(some.len() > 80, "{said}");
    let gpas: Vec<u64> = some.iter().map(|line| number(line.rsplit(' ').next().expect("a word"))).collect();
    for (line, label) in some.iter().zip(attached.labels(&gpas)) {
        assert!(agrees(line, &label), "{line}: {label:?}");
    }
}

/// Sends until `top` and `trace` have seen some of it come from the file.
fn a_sendfile_is_seen(top: &mut Lines, trace: &mut Lines, agent: &mut Agent) {
    until(SEEN, || {
        let began = agent.begin(&spec("sendfile", SENT));
        agent.go();
        agent.end();
        let flow = format!("{} > {}", began.flow.local, began.flow.remote);
        // What was sent is in the second report from now on, if it was seen.
        top.next();
        let report = top.next();
        let found = report["flows"].as_array().expect("flows").iter().find(|found| found["flow"] == flow)?;
        let sources = found["sources"].as_array().expect("sources");
        let known: Vec<&Value> = sources.iter().filter(|source| source["path"].is_string()).collect();
        assert!(sources.iter().all(|source| source["kind"] != "anonymous"), "{found:#}");
        for source in &known {
            assert!(source["path"].as_str().is_some_and(|path| path.starts_with("/tmp/vnic-")), "{found:#}");
            assert_eq!(
                (&source["filesystem"], &report["kernel"]),
                (&json!("tmpfs"), &json!(agent.kernel)),
                "{found:#}"
            );
        }
        let share = |bytes: &Value| bytes.as_f64().unwrap_or(0.0) * 100.0 / found["bytes"].as_f64().unwrap_or(1.0);
        note(&format!(
            "of {SENT} bytes {} seen, {:.1} % from the file, {:.1} % unsettled; of all frames {:.1} %",
            found["bytes"],
            share(&found["file_bytes"]),
            share(&found["unsettled_bytes"]),
            report["seen_share"].as_f64().unwrap_or(0.0) * 100.0
        ));
        (!known.is_empty()).then_some(())
    });
    // The same on the trace: a frame of a connection, its headers in a buffer of the kernel's, what follows in the file.
    until(SEEN, || {
        let event = trace.next();
        let sent = event["queue"].as_str().is_some_and(|queue| queue.ends_with(".transmitq0"));
        let ours = event["summary"].as_str().is_some_and(|text| text.contains("10.0.2.2:9000 tcp"));
        let named = |buffer: &Value| buffer["label"].as_str().is_some_and(|label| label.starts_with("/tmp/vnic-"));
        (sent && ours && event["buffers"].as_array()?.iter().skip(1).any(named)).then_some(())
    });
}

/// The guest's memory in two mappings, a NUMA node each, as large machines have it.
fn two_nodes(words: &mut Vec<String>) {
    let object = words.iter_mut().find(|word| word.starts_with("memory-backend-ram,id=ram,size=")).expect("its memory");
    let (backend, size) = object.split_once("size=").expect("a size");
    let half = size.strip_suffix('M').and_then(|size| size.parse::<u32>().ok()).expect("MiB") / 2;
    let first = format!("{backend}size={half}M");
    let second = first.replace("id=ram", "id=ram1");
    *object = first;
    words.extend(["-object", &second, "-numa", "node,memdev=ram1"].map(str::to_owned));
}

#[test]
fn a_vm_that_runs_already_is_looked_into_and_after_its_reset_again() {
    let Some(namespace) = far_end() else { return };
    let folder = Folder::new();
    let qmp = folder.path().join("qmp.sock");
    let netdev = format!("tap:{TAP}");
    let size = format!("rx_queue_size={RECEIVE}");
    let options = ["--netdev", &netdev, "--nic-options", &size, "--append", "vnic.modules=base,disk,rng"];
    let mut words = prepared(folder.path(), &options).command();
    // As most VMs are: memory that is nobody else's, and a reset is one.
    words.retain(|word| word != "-no-reboot");
    for word in &mut words {
        *word = word.replace("memory-backend-memfd", "memory-backend-ram").replace(",share=on", "");
    }
    two_nodes(&mut words);
    let monitor = format!("unix:{},server=on,wait=off", qmp.display());
    words.extend(["-device", "virtio-rng-pci", "-qmp", &monitor].map(str::to_owned));
    let mut machine = namespace.enter(|| Machine::run(folder.path(), &words));
    let mut agent = machine.agent();
    let mut monitor = Monitor::open(&qmp);
    let qemu = machine.child().id();
    let said = agent.run(&["pages", "hold"]);

    let before = resident(qemu);
    let mut attached = Attached::to(qemu, folder.path());
    let locked_in = &attached.status()["sandbox"];
    assert_eq!((&locked_in["mode"], &locked_in["seccomp"]), (&json!("on"), &json!(true)), "{locked_in}");
    note("devices, queues, features, pages");
    is_right(&attached, &mut monitor, &mut agent);
    labels_are_right(&attached, &said);
    for part in (0..512_u64 << 8).step_by(16).collect::<Vec<_>>().chunks(1 << 10) {
        drop(attached.labels(&part.iter().map(|page| page << 12).collect::<Vec<_>>()));
    }
    let grown = resident(qemu).saturating_sub(before);
    assert!(grown < GROWS, "looking made {grown} bytes of QEMU's memory exist");

    note("what is sent");
    let mut top = Lines::ask(&attached.control, r#"{"request":"top","every_ms":200}"#);
    let mut trace = Lines::ask(&attached.control, r#"{"request":"trace","labels":true}"#);
    a_sendfile_is_seen(&mut top, &mut trace, &mut agent);

    note("a reset");
    monitor.ask("system_reset", &json!({}));
    assert!(matches!(agent.hear(), Some(Event::Ready { .. })), "the guest boots again");
    let said = agent.run(&["pages", "hold"]);
    until(AGAIN, || (attached.status()["reply"] == "status").then_some(()));
    is_right(&attached, &mut monitor, &mut agent);
    labels_are_right(&attached, &said);
    a_sendfile_is_seen(&mut top, &mut trace, &mut agent);

    machine.power_off(agent);
    assert!(attached.child.wait(ENDS).success(), "{}", attached.child.output());
}
