//! DPDK's virtio driver, which was not written by us, on the device: no guest, no huge pages, no root.

use std::path::Path;
use std::process::Command;

use guest_fixture::{Child, Deadline, Device, Folder, note, skip, until};
use serde_json::Value;

const MOVES: Deadline = Deadline::secs("DPDK's driver to move frames on every queue", 60);
const NOTICES: Deadline = Deadline::secs("the device to notice that the driver is gone", 20);

/// Is the driver there? Says so if not. testpmd without it would be no use, and is a package of its own.
fn is_here() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = std::env::split_paths(&path).any(|folder| folder.join("dpdk-testpmd").exists());
    let here =
        program && ["/usr/lib", "/usr/lib64", "/usr/local"].iter().any(|folder| holds_driver(Path::new(folder), 3));
    if !here {
        skip("DPDK's testpmd and its virtio driver are not installed (Debian: dpdk-dev, librte-meta-allpmds)");
    }
    here
}

/// Is DPDK's virtio driver somewhere in this folder, this deep?
fn holds_driver(folder: &Path, depth: u32) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).any(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("librte_net_virtio.so") || (depth > 0 && path.is_dir() && holds_driver(&path, depth - 1))
    })
}

/// How the driver is to work.
#[derive(Debug, Clone, Copy)]
struct Shape {
    /// Options of the virtual device.
    device: &'static str,
    /// Features that must then be negotiated, and ones that must not be.
    with: &'static [&'static str],
    without: &'static [&'static str],
    queue_size: u16,
    pairs: u16,
    /// More options of testpmd.
    more: &'static [&'static str],
}

const SPLIT: Shape = Shape {
    device: ",in_order=0",
    with: &["version_1", "mrg_rxbuf"],
    without: &["ring_packed", "in_order"],
    queue_size: 256,
    pairs: 1,
    more: &[],
};
const PACKED: Shape =
    Shape { device: ",packed_vq=1,in_order=0", with: &["ring_packed"], without: &["in_order"], ..SPLIT };

/// Frames go round: what is received is sent again.
const ROUND: &[&str] = &["--forward-mode=io", "--port-topology=loop", "--tx-first", "--burst=64"];

/// testpmd on the device's socket in this folder.
fn driver(folder: &Path, shape: &Shape, server: bool) -> Child {
    let mut command = Command::new("dpdk-testpmd");
    let Shape { device, queue_size, pairs, .. } = shape;
    let socket = folder.join("vnic.sock");
    let mut vdev = format!("--vdev=net_virtio_user0,path={},queue_size={queue_size},queues={pairs}", socket.display());
    vdev.push_str(device);
    // Several pairs need the control queue.
    vdev.push_str(if *pairs > 1 { ",cq=1" } else { "" });
    vdev.push_str(if server { ",server=1" } else { "" });
    // Two threads of its own, wherever there is room.
    let last = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
    command.args(["--lcores", &format!("0@(0-{last}),1@(0-{last})"), "--no-pci", "--no-huge", "--no-shconf"]);
    command.args(["--no-telemetry", "-m", "128", "--force-max-simd-bitwidth=512", "--log-level=pmd.net.virtio.*:info"]);
    command.arg(vdev).args(["--", "--total-num-mbufs=16384", "--auto-start", "--stats-period=5"]);
    command.args([format!("--rxd={queue_size}"), format!("--txd={queue_size}")]);
    command.args([format!("--rxq={pairs}"), format!("--txq={pairs}")]);
    command.args(shape.more);
    Child::start("testpmd", folder, command)
}

fn served(folder: &Path, link: &str, shape: &Shape) -> Device {
    let (pairs, size) = (shape.pairs.to_string(), shape.queue_size.to_string());
    Device::start(folder, &["--link", link, "--queue-pairs", &pairs, "--queue-size", &size])
}

fn counter(status: &Value, queue: &str, name: &str) -> u64 {
    let queues = status["queues"].as_array().expect("queues");
    let found = queues.iter().find(|found| found["queue"] == queue).expect("the queue");
    found["counters"][name].as_u64().expect("a count")
}

/// Waits until each of these queues has gone round some times, and checks that no frame was lost.
fn moves(device: &Device, driver: &mut Child, shape: &Shape, queues: &[&str]) {
    let names: Vec<String> =
        (0..shape.pairs).flat_map(|pair| queues.iter().map(move |queue| format!("{queue}{pair}"))).collect();
    let chains = |status: &Value| -> Vec<u64> { names.iter().map(|name| counter(status, name, "chains")).collect() };
    let before = chains(&device.status());
    let frames = 1000 + 3 * u64::from(shape.queue_size);
    let status = until(MOVES, || {
        if let Some(status) = driver.ended() {
            panic!("testpmd ended: {status}");
        }
        let status = device.status();
        let after = chains(&status);
        after.iter().zip(&before).all(|(after, before)| *after >= before + frames).then_some(status)
    });
    for name in &names {
        assert_eq!((counter(&status, name, "errors"), counter(&status, name, "drops")), (0, 0), "{status}");
    }
    let negotiated = status["features"]["negotiated"].as_array().expect("features");
    for feature in shape.with {
        assert!(negotiated.iter().any(|found| found == feature), "no {feature}: {negotiated:?}");
    }
    for feature in shape.without {
        assert!(!negotiated.iter().any(|found| found == feature), "{feature}: {negotiated:?}");
    }
}

/// Sends only, to the sink; then round and round through the loopback. What the driver said of itself then.
fn works(what: &str, shape: Shape) -> String {
    note(what);
    let folder = Folder::new();
    let device = served(folder.path(), "sink", &shape);
    let sends = [&["--forward-mode=txonly"], shape.more].concat();
    let mut sender = driver(folder.path(), &Shape { more: sends.leak(), ..shape }, false);
    moves(&device, &mut sender, &shape, &["transmitq"]);
    drop(sender);
    assert!(device.stop().success());

    let device = served(folder.path(), "loopback", &shape);
    let both = [ROUND, shape.more].concat();
    let mut loops = driver(folder.path(), &Shape { more: both.leak(), ..shape }, false);
    moves(&device, &mut loops, &shape, &["transmitq", "receiveq"]);
    let said = loops.output();
    drop(loops);
    assert!(device.stop().success());
    said
}

#[test]
fn split_and_packed_in_order_and_not_with_mergeable_buffers_and_without() {
    if !is_here() {
        return;
    }
    works("split", SPLIT);
    works("packed", PACKED);
    works("split, in order", Shape { device: ",in_order=1", with: &["in_order"], without: &["ring_packed"], ..SPLIT });
    let device = ",packed_vq=1,in_order=1";
    works("packed, in order", Shape { device, with: &["ring_packed", "in_order"], without: &[], ..SPLIT });
    let without = &["mrg_rxbuf", "ring_packed"];
    works("split, buffers not mergeable", Shape { device: ",in_order=0,mrg_rxbuf=0", with: &[], without, ..SPLIT });
    let device = ",packed_vq=1,in_order=0,mrg_rxbuf=0";
    works("packed, buffers not mergeable", Shape { device, without: &["mrg_rxbuf"], ..PACKED });
}

#[test]
fn its_vectorised_paths() {
    if !is_here() {
        return;
    }
    let more = &["--rx-offloads=0"];
    let device = ",in_order=0,mrg_rxbuf=0,vectorized=1";
    let said = works("split, vectorised", Shape { device, with: &[], without: &["mrg_rxbuf"], more, ..SPLIT });
    assert!(said.contains("using vectorized Rx path"), "{said}");
    let device = ",packed_vq=1,in_order=1,mrg_rxbuf=0,vectorized=1";
    let (with, without) = (&["ring_packed", "in_order"], &["mrg_rxbuf"]);
    let said = works("packed, vectorised", Shape { device, with, without, more, ..PACKED });
    if said.contains("disabled packed ring vectorized path") {
        return skip("DPDK's vectorised packed rings need AVX-512, which this machine has not");
    }
    for path in ["Rx", "Tx"] {
        assert!(said.contains(&format!("using packed ring vectorized {path} path")), "{said}");
    }
}

#[test]
fn two_queue_pairs() {
    if !is_here() {
        return;
    }
    works("split, two pairs", Shape { pairs: 2, with: &["mq"], ..SPLIT });
    works("packed, two pairs", Shape { pairs: 2, with: &["mq", "ring_packed"], ..PACKED });
}

#[test]
fn queue_sizes_from_64_to_4096() {
    if !is_here() {
        return;
    }
    for queue_size in [64, 128, 512, 1024, 2048, 4096] {
        works(&format!("split, rings of {queue_size}"), Shape { queue_size, ..SPLIT });
        works(&format!("packed, rings of {queue_size}"), Shape { queue_size, ..PACKED });
    }
}

#[test]
fn frames_of_several_segments() {
    if !is_here() {
        return;
    }
    let more = &["--forward-mode=txonly", "--txpkts=1000,1000,1000,1000", "--tx-offloads=0x8000"];
    // Of packed rings without indirect tables: the driver (22.11) marks the header in them as one for the device to write.
    for (shape, withhold) in [(SPLIT, ""), (PACKED, "indirect_desc")] {
        let folder = Folder::new();
        let device = Device::start(folder.path(), &["--link", "sink:copy", "--withhold", withhold]);
        let mut sender = driver(folder.path(), &Shape { more, ..shape }, false);
        moves(&device, &mut sender, &shape, &["transmitq"]);
        let status = device.status();
        let [chains, bytes, copied] =
            ["chains", "bytes", "device_copied_bytes"].map(|name| counter(&status, "transmitq0", name));
        assert!(bytes / chains == 4000 && copied > 0, "{status}");
    }
}

#[test]
fn a_driver_that_is_killed_and_started_again_finds_the_same_device() {
    if !is_here() {
        return;
    }
    for shape in [SPLIT, PACKED] {
        let folder = Folder::new();
        let device = served(folder.path(), "loopback", &shape);
        for round in 1..=3 {
            let mut loops = driver(folder.path(), &Shape { more: ROUND, ..shape }, false);
            moves(&device, &mut loops, &shape, &["transmitq", "receiveq"]);
            loops.kill();
            until(NOTICES, || (device.status()["connected"] == false).then_some(()));
            assert_eq!(device.status()["sessions"], round);
        }
        assert!(device.stop().success());
    }
}

#[test]
fn a_device_that_is_killed_and_started_again_serves_the_same_driver() {
    if !is_here() {
        return;
    }
    for shape in [SPLIT, PACKED] {
        let folder = Folder::new();
        // The driver listens; the device comes, goes, and comes again.
        let options = ["--client", "--link", "sink", "--queue-size", "256"];
        let mut device = Device::start(folder.path(), &options);
        let mut sender = driver(folder.path(), &Shape { more: &["--forward-mode=txonly"], ..shape }, true);
        for _ in 0..3 {
            moves(&device, &mut sender, &shape, &["transmitq"]);
            device.child().kill();
            device = Device::start(folder.path(), &options);
        }
        moves(&device, &mut sender, &shape, &["transmitq"]);
        assert!(device.stop().success());
    }
}
