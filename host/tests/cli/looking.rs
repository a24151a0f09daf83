//! `status`, `rings`, `trace`, `hold`, `release`, and finding the device.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::json;
use vnic::observe::protocol::{BufferSnapshot, ChainEvent, ChainSnapshot, Request, TraceEvent};

use crate::device::{self, Asked, Device};
use crate::util::{Scratch, outcome, wait_for};

pub(crate) fn start(scratch: &Scratch) -> Device {
    Device::start(&scratch.path("control"), device::busy())
}

/// A device as `serve` publishes it.
fn publish(scratch: &Scratch, device: &Device, pid: &str) {
    let folder = scratch.path("vnic");
    if !folder.exists() {
        use std::os::unix::fs::DirBuilderExt;
        std::fs::DirBuilder::new().mode(0o700).create(&folder).unwrap();
    }
    std::os::unix::fs::symlink(&device.path, folder.join(pid)).unwrap();
}

#[test]
fn status_shows_session_features_memory_queues() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let outcome = scratch.run(&["status", "--control", device.control()]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.stderr, "");
    for words in [
        "/run/vnic.sock",
        "process 4711",
        "connected, the 2nd so far",
        "negotiated  csum event_idx",
        "not taken   host_tso4",
        "mq reply_ack",
        "0x000000000000  512.0 MiB",
        "transmitq0  running   256   1 234        3 702  80 407 440",
        "transmitq0: device wants a kick past 5, driver wants a call never",
        "tx_frames 1 234",
    ] {
        assert!(outcome.stdout.contains(words), "no {words:?} in\n{}", outcome.stdout);
    }
    assert!(!outcome.stdout.contains('\u{1b}'), "colour outside a terminal: {:?}", outcome.stdout);
}

#[test]
fn status_fits_the_screen() {
    let scratch = Scratch::new();
    let mut script = device::busy();
    let names: Vec<String> = (0..40).map(|at| format!("guest_feature_{at}")).collect();
    script.status.features.negotiated = names.clone();
    script.status.features.offered = names.clone();
    script.status.protocol_features = names.clone();
    script.status.link_counters = names.iter().map(|name| (name.clone(), 1_000_000)).collect();
    script.status.queues[0].counters.extend(names.iter().map(|name| (name.clone(), u64::MAX)));
    script.status.socket = "/run/a/folder/with/a/rather/long/name/vnic.sock".to_owned();
    script.status.queues[1].error = Some("head 12: a sentence that says what is wrong with it, ".repeat(4));
    let device = Device::start(&scratch.path("control"), script);
    let shown = scratch.run(&["status", "--control", device.control()]).stdout;
    let wide: Vec<&str> = shown.lines().filter(|line| line.chars().count() > 100).collect();
    assert!(wide.is_empty(), "wider than 100:\n{}", wide.join("\n"));
    assert!(names.iter().all(|name| shown.matches(name.as_str()).count() >= 4), "something is cut off in\n{shown}");
}

#[test]
fn status_json_is_the_protocols_status() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let outcome = scratch.run(&["status", "--json", "--control", device.control()]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(outcome.json(), serde_json::to_value(device::busy().status).unwrap());
}

#[test]
fn a_stopped_queue_is_something_broken() {
    let scratch = Scratch::new();
    let mut script = device::busy();
    script.status.queues[1].state = "stopped".to_owned();
    script.status.queues[1].error = Some("transmitq0: head 12: descriptor 12 comes twice".to_owned());
    let device = Device::start(&scratch.path("control"), script);
    let outcome = scratch.run(&["status", "--control", device.control()]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stdout.contains("descriptor 12 comes twice"), "{outcome:?}");
}

#[test]
fn rings_are_in_the_notation() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let outcome = scratch.run(&["rings", "--control", device.control()]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(
        outcome.stdout,
        "receiveq0 split size=256 avail.idx=5 used.idx=5 in-flight=0\n\
         transmitq0 split size=256 avail.idx=6 used.idx=5 in-flight=1\n  \
         [5] head 12: R 0x1f000+78 -> R 0x20000+4096 (page 17) -> R 0x21000+3144 (page 18)\n"
    );
}

#[test]
fn buffers_that_wait_for_frames_are_one_line_unless_all_are_asked_for() {
    let scratch = Scratch::new();
    let mut script = device::busy();
    let idle = |at: u16| ChainSnapshot {
        slot: at,
        head: at,
        indirect: false,
        buffers: vec![BufferSnapshot { writable: true, ..BufferSnapshot::at(0x10_0000 + u64::from(at) * 4096, 1526) }],
        fault: None,
    };
    script.rings[0].chains = (0..256).map(idle).collect();
    // What is wrong is never summed up.
    script.rings[0].chains[7].fault = Some("descriptor 999 is beyond the table".to_owned());
    let device = Device::start(&scratch.path("control"), script);
    let rings = |more: &[&str]| scratch.run(&[&["rings", "--control", device.control()], more].concat()).stdout;
    let few = rings(&[]);
    let lines: Vec<&str> = few.lines().take(3).collect();
    assert_eq!(
        lines,
        [
            "receiveq0 split size=256 avail.idx=5 used.idx=5 in-flight=0",
            "  … 255 chains wait to be written to, 1 526 bytes each",
            "  [7] head 7: W 0x107000+1526 -> ! descriptor 999 is beyond the table",
        ]
    );
    assert!(rings(&["--all"]).contains("  [255] head 255: W 0x1ff000+1526\n"));
    assert!(rings(&["--json"]).contains("\"head\": 255"), "the document always has all");
}

#[test]
fn rings_of_one_queue_as_json() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let outcome = scratch.run(&["rings", "--queue", "transmitq0", "--json", "--control", device.control()]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let rings = outcome.json()["rings"].clone();
    assert_eq!(rings.as_array().unwrap().len(), 1);
    assert_eq!(rings[0]["queue"], "transmitq0");
    assert_eq!(
        rings[0]["chains"][0]["buffers"][1],
        json!({"writable": false, "addr": 0x20000, "len": 4096, "file_page": 17})
    );
}

#[test]
fn a_fault_in_a_ring_is_something_broken() {
    let scratch = Scratch::new();
    let mut script = device::busy();
    script.rings[1].chains[0].fault = Some("descriptor 999 is beyond the table".to_owned());
    let device = Device::start(&scratch.path("control"), script);
    let outcome = scratch.run(&["rings", "--control", device.control()]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stdout.contains("-> ! descriptor 999 is beyond the table\n"), "{outcome:?}");
}

#[test]
fn a_queue_that_is_not_there_is_refused_in_the_devices_words() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    for command in [&["rings"][..], &["hold"], &["release"]] {
        let args = [command, &["--queue", "transmitq9", "--control", device.control()]].concat();
        scratch.run(&args).is_refusal(&["transmitq9"]);
    }
}

#[test]
fn hold_and_release_tell_the_device() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    for command in ["hold", "release"] {
        let outcome = scratch.run(&[command, "--queue", "transmitq0", "--control", device.control()]);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stdout.starts_with("transmitq0: "), "{outcome:?}");
    }
    let queue = || "transmitq0".to_owned();
    assert_eq!(
        *device.asked.lock().unwrap(),
        [Request::Hold { queue: queue() }, Request::Release { queue: queue() }].map(Asked::Device)
    );
}

#[test]
fn trace_is_a_line_per_chain_until_the_device_ends() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let outcome = scratch.run(&["trace", "--control", device.control()]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(
        outcome.stdout,
        "1.500000 transmitq0 #5 head 12: R 0x1f000+78 -> R 0x20000+4096 (page 17) \
         | 10.0.2.15:40000 > 10.0.2.2:9000 tcp seq 1 len 4096\n~ transmitq0: 7 events lost\n"
    );
}

#[test]
fn trace_json_is_an_object_per_line() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let outcome = scratch.run(&["trace", "--json", "--control", device.control()]);
    let events: Vec<serde_json::Value> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 2, "{outcome:?}");
    assert_eq!((&events[0]["event"], &events[0]["head"]), (&json!("chain"), &json!(12)));
    assert_eq!(events[1], json!({"event": "lost", "queue": "transmitq0", "events": 7}));
}

/// A trace of several chains: one of the file, one that was received, a request that failed.
fn several() -> device::Script {
    let mut script = device::busy();
    let TraceEvent::Chain(sent) = script.events[0].clone() else { panic!("no chain") };
    let mut of_file = sent.clone();
    of_file.buffers[1].label = Some("/srv/big.bin page 17".to_owned());
    let received = ChainEvent {
        at_ns: 1_500_250_000,
        queue: "receiveq0".to_owned(),
        summary: "10.0.2.2:9000 > 10.0.2.15:40000 tcp ack 4097".to_owned(),
        ..sent.clone()
    };
    let failed = ChainEvent {
        at_ns: 1_600_000_000,
        queue: "requestq0".to_owned(),
        summary: "read sector 8 len 4096 ioerr".to_owned(),
        ..sent
    };
    let lost = script.events.pop().unwrap();
    script.events = [of_file, received, failed].map(TraceEvent::Chain).to_vec();
    script.events.push(lost);
    script
}

#[test]
fn a_trace_shows_only_what_is_asked_for() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), several());
    let shown = |more: &[&str]| {
        let outcome = scratch.run(&[&["trace", "--control", device.control()], more].concat());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let first = |line: &str| line.split(' ').nth(1).unwrap_or_default().to_owned();
        outcome.stdout.lines().map(first).collect::<Vec<_>>()
    };
    let lost = "transmitq0:";
    assert_eq!(shown(&[]), ["transmitq0", "receiveq0", "requestq0", lost]);
    assert_eq!(shown(&["--queue", "receiveq0"]), ["receiveq0"]);
    assert_eq!(shown(&["--queue", "transmitq0"]), ["transmitq0", lost]);
    assert_eq!(shown(&["--flow", "10.0.2.2:9000 >"]), ["receiveq0", lost]);
    assert_eq!(shown(&["--file", "/srv/big.bin"]), ["transmitq0", lost]);
    assert_eq!(shown(&["--only", "errors"]), ["requestq0", lost]);
    assert_eq!(shown(&["--count", "2"]), ["transmitq0", "receiveq0"]);
    assert_eq!(shown(&["--only", "errors", "--count", "1"]), ["requestq0"]);
    let asked = device.asked.lock().unwrap();
    let wanted = |request: &&Asked| **request == Asked::Device(Request::Trace { labels: true, headers: false });
    assert_eq!(asked.iter().filter(wanted).count(), 1, "labels are wanted with --file only");
}

#[test]
fn a_traces_times_are_absolute_or_from_a_line_on() {
    let scratch = Scratch::new();
    let device = Device::start(&scratch.path("control"), several());
    let times = |how: &str| {
        let outcome = scratch.run(&["trace", "--control", device.control(), "--count", "3", "--time", how]);
        outcome.stdout.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(times("absolute"), ["1.500000", "1.500250", "1.600000"]);
    assert_eq!(times("relative"), ["+0.000000", "+0.000250", "+0.100000"]);
    assert_eq!(times("delta"), ["+0.000000", "+0.000250", "+0.099750"]);
}

#[test]
fn a_trace_in_hex_has_the_virtio_net_header_in_words_and_the_frames_first_bytes() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let outcome = scratch.run(&["trace", "--control", device.control(), "--hex", "--count", "1"]);
    let below: Vec<&str> = outcome.stdout.lines().skip(1).collect();
    assert_eq!(
        below,
        [
            "    virtio-net  checksum to be completed: from 34 on, to be put at +16; to be cut into segments of 1448 bytes, \
             TCP over IPv4; headers of 66 bytes",
            "    0000  52 55 0a 00 00 02 08 00                          RU......",
            "    0008  4154 more bytes, which a trace has no room for",
        ]
    );
}

#[test]
fn rings_looks_again_and_says_what_has_changed() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let rings = |more: &[&str]| {
        scratch.run(&[&["rings", "--control", device.control(), "--every", "10ms", "--count", "3"], more].concat())
    };
    let text = rings(&[]);
    assert_eq!(text.code, Some(0), "{text:?}");
    assert!(text.stdout.starts_with("receiveq0 split size=256"), "{text:?}");
    assert_eq!(text.stdout.matches("\nafter ").count(), 2, "{text:?}");
    assert_eq!(text.stdout.matches("\nreceiveq0  as before, nothing in flight\n").count(), 2, "{text:?}");
    assert_eq!(text.stdout.matches("\ntransmitq0  as before, 1 in flight\n").count(), 2, "{text:?}");
    assert_eq!(rings(&["--json"]).stdout.lines().count(), 3);
    let every = scratch.run(&["rings", "--control", device.control(), "--every", "never"]);
    assert_eq!((every.code, every.stdout.as_str()), (Some(2), ""), "{every:?}");
    assert!(every.stderr.contains("`never` is no time"), "{every:?}");
}

#[test]
fn a_reader_who_has_enough_is_no_error() {
    let scratch = Scratch::new();
    let mut script = device::busy();
    let event = script.events[0].clone();
    // More than any pipe holds.
    script.events = vec![event; 20_000];
    let device = Device::start(&scratch.path("control"), script);
    let mut child = scratch
        .vnic()
        .args(["trace", "--control", device.control()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 8];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let status = wait_for("trace to end", || child.try_wait().unwrap());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((status.code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn the_one_device_that_runs_is_found() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    publish(&scratch, &device, "4711");
    let outcome = scratch.run(&["rings"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

#[test]
fn without_a_device_the_way_to_one_is_said() {
    let scratch = Scratch::new();
    scratch.run(&["status"]).is_refusal(&["no `vnic serve`", "--control PATH"]);
}

#[test]
fn of_several_devices_one_must_be_named() {
    let scratch = Scratch::new();
    let first = start(&scratch);
    let second = Device::start(&scratch.path("second"), device::busy());
    publish(&scratch, &first, "1");
    publish(&scratch, &second, "2");
    scratch.run(&["status"]).is_refusal(&["2 devices", first.control(), second.control()]);
    let outcome = outcome(scratch.vnic().arg("status").env("VNIC_CONTROL", second.control()));
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

#[test]
fn a_control_socket_nobody_serves_is_refused() {
    let scratch = Scratch::new();
    let missing = scratch.path("missing");
    let dead = scratch.path("dead");
    drop(UnixListener::bind(&dead).unwrap());
    for path in [missing, dead] {
        let path = path.to_str().unwrap();
        for command in ["status", "rings", "trace"] {
            scratch.run(&[command, "--control", path]).is_refusal(&["nobody serves the control socket", path]);
        }
    }
}

#[test]
fn a_socket_that_speaks_another_language_is_refused() {
    let scratch = Scratch::new();
    let path = scratch.path("other");
    let listener = UnixListener::bind(&path).unwrap();
    std::thread::spawn(move || {
        let mut greeted = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(b"220 smtp.example.org ESMTP\n").unwrap();
            greeted.push(stream);
        }
    });
    let path = path.to_str().unwrap();
    scratch.run(&["status", "--control", path]).is_refusal(&["does not speak vnic's protocol"]);
}

#[test]
fn watch_without_a_terminal_names_what_works_there() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    scratch.run(&["watch", "--control", device.control()]).is_refusal(&["needs a terminal", "vnic rings"]);
}

#[test]
fn a_scan_wants_a_held_queue_and_says_how_to_hold_it() {
    let scratch = Scratch::new();
    let device = start(&scratch);
    let scan = |queue| scratch.run(&["scan", "--control", device.control(), "--queue", queue]);
    scan("transmitq0").is_refusal(&["transmitq0 is running, not held", "vnic hold --queue transmitq0"]);
    scan("transmitq7").is_refusal(&["there is no queue `transmitq7`", "receiveq0, transmitq0"]);
    assert!(
        device.asked.lock().unwrap().iter().all(|request| *request == Asked::Device(Request::Status)),
        "nothing was touched"
    );
}

#[test]
fn a_scan_tells_how_often_what_is_held_stands_in_memory() {
    let scratch = Scratch::new();
    let mut script = device::busy();
    script.status.queues[1].state = "held".to_owned();
    script.instances = vec![3, 1, 3];
    let device = Device::start(&scratch.path("control"), script);
    let scan = |more: &[&str]| {
        scratch.run(&[&["scan", "--control", device.control(), "--queue", "transmitq0"], more].concat())
    };
    let outcome = scan(&[]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(
        outcome.stdout,
        "transmitq0: 300.0 MiB of guest memory read in 0.25 s\n\
         what is held stands 3 times in memory: 2 copies of it exist\n  \
         128 of 128 stamps stand 3 times\n  \
         the first of them: 0x100000 0x200000 0x300000\n"
    );
    assert!(scan(&[]).stdout.contains("what is held stands once in memory: nobody copied it"));
    assert_eq!(scan(&["--json"]).json(), serde_json::to_value(device::found(3)).unwrap());
}
