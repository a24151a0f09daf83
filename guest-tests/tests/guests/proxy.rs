//! A guest whose card and disk are behind `vnic proxy`, in front of back-ends of ours and of others.

use std::io::{BufRead, BufReader};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_fixture::{Agent, Child, Deadline, Device, Folder, Lines, Machine, note, prepared, skip, spec, until, vnic};
use serde_json::{Value, json};

const LISTENS: Deadline = Deadline::secs("a socket to be listened at", 20);
const DRIVEN: Deadline = Deadline::secs("the guest's driver to be seen through the proxy", 60);
const AGAIN: Deadline = Deadline::secs("QEMU to connect to the new proxy", 30);
const SEEN: Deadline = Deadline::secs("a chain to be seen as it passes", 120);
const LOOPS: Deadline = Deadline::secs("frames to come back from DPDK", 60);

/// A proxy from `NAME.sock`, to which QEMU connects, to `NAME-back.sock`.
struct Proxy {
    child: Child,
    control: PathBuf,
}

impl Proxy {
    fn start(folder: &Path, name: &str) -> Proxy {
        let [front, back] = ["", "-back"].map(|end| folder.join(format!("{name}{end}.sock")));
        let control = folder.join(format!("{name}.control"));
        // One that was killed leaves it behind, and it would be taken for this one's.
        let _ = std::fs::remove_file(&control);
        let mut command = Command::new(vnic());
        command.arg("proxy").arg("--socket-path").arg(&front).arg("--back-end").arg(back);
        command.arg("--control").arg(&control);
        let child = listening(&format!("proxy-{name}"), folder, command, &control);
        Proxy { child, control }
    }

    fn ask(&self, request: &Value) -> Value {
        Lines::say(&self.control, &request.to_string()).next()
    }

    fn status(&self) -> Value {
        self.ask(&json!({"request": "status"}))
    }

    /// Its status once the guest's driver is found in the kernel's own structures.
    fn driven_by(&self, driver: &str) -> Value {
        until(DRIVEN, || {
            let status = self.status();
            status["proxy"]["kernel"].as_str().is_some_and(|kernel| kernel.contains(driver)).then_some(status)
        })
    }

    /// The first chain that is seen while something goes on which `wanted` likes.
    fn seen(&self, wanted: impl Fn(&Value) -> bool, mut go_on: impl FnMut()) -> Value {
        let mut stream = UnixStream::connect(&self.control).expect("the control socket");
        std::io::Write::write_all(&mut stream, b"{\"request\": \"trace\"}\n").expect("it takes a request");
        let reader = BufReader::new(stream.try_clone().expect("another end"));
        let (found, finds) = std::sync::mpsc::channel();
        let reads = std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                let said: Value = serde_json::from_str(&line).expect("JSON");
                // Nobody may be left to hear it.
                let _ = found.send(said);
            }
        });
        let seen = until(SEEN, || {
            go_on();
            finds.try_iter().find(|said| said["event"] == "chain" && wanted(said))
        });
        let _ = stream.shutdown(Shutdown::Both);
        reads.join().expect("it ends with the trace");
        seen
    }
}

/// A program that listens at a socket.
fn listening(name: &str, folder: &Path, command: Command, socket: &Path) -> Child {
    let mut child = Child::start(name, folder, command);
    until(LISTENS, || {
        assert!(child.ended().is_none(), "{name} ended at once:\n{}", child.output());
        socket.exists().then_some(())
    });
    child
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

fn queue<'s>(status: &'s Value, name: &str) -> &'s Value {
    let queues = status["queues"].as_array().expect("queues");
    queues.iter().find(|queue| queue["queue"] == name).unwrap_or_else(|| panic!("no {name}: {status}"))
}

/// What was written to the disk comes back from it.
fn writes_and_reads(agent: &mut Agent) {
    let said = agent.run(&[
        "sh",
        "-c",
        "set -e; dd if=/dev/urandom of=/tmp/there bs=1M count=4 2>/dev/null; dd if=/tmp/there of=/dev/vda bs=1M oflag=direct 2>/dev/null
         dd if=/dev/vda of=/tmp/back bs=1M count=4 iflag=direct 2>/dev/null; cmp /tmp/there /tmp/back && echo same",
    ]);
    assert_eq!(said.trim(), "same");
}

#[test]
fn a_card_of_ours_and_a_disk_of_qemus_are_seen_through_proxies_which_may_die() {
    if !is_installed("qemu-storage-daemon") {
        return skip("qemu-storage-daemon is not installed (Debian: qemu-system-common)");
    }
    let (folder, back) = (Folder::new(), Folder::new());
    let folder = folder.path();
    let machine = prepared(folder, &["--disk", "vhost", "--append", "vnic.modules=base,disk"]);
    let card = Device::start(back.path(), &[]);
    std::os::unix::fs::symlink(back.path().join("vnic.sock"), folder.join("vnic-back.sock")).expect("a name");
    let socket = folder.join("disk-back.sock");
    let mut command = Command::new("qemu-storage-daemon");
    let image = folder.join("disk.ext4");
    command.arg("--blockdev").arg(format!("driver=file,node-name=disk,filename={}", image.display()));
    let export = format!(
        "type=vhost-user-blk,id=export,node-name=disk,writable=on,addr.type=unix,addr.path={}",
        socket.display()
    );
    command.args(["--export", &export]);
    let _daemon = listening("storage-daemon", folder, command, &socket);
    let (mut to_card, to_disk) = (Proxy::start(folder, "vnic"), Proxy::start(folder, "disk"));
    let mut machine = Machine::run(folder, &machine.command());
    let mut agent = machine.agent();

    note("the card");
    agent.transfer(&spec("sendfile", 4 << 20));
    let status = to_card.driven_by("virtio_net (virtio");
    assert_eq!(status["device"], "net");
    let (through, own) = (queue(&status, "transmitq0"), card.queue("transmitq0"));
    assert_eq!((&through["state"], &through["size"]), (&"running".into(), &own["size"]), "{status}");
    assert!(
        through["counters"]["uncollected"].is_u64() && through["counters"]["used_idx"].as_u64() > Some(0),
        "{through}"
    );
    let receives = queue(&status, "receiveq0")["waits"].as_str().expect("a sentence").to_owned();
    assert!(receives.starts_with("the device's turn once frames come: "), "{receives}");
    assert_eq!(status["features"]["negotiated"], card.status()["features"]["negotiated"]);
    assert_eq!(status["proxy"]["counters"]["not_understood"], 0, "{status}");
    let seen = to_card.seen(
        |chain| {
            chain["queue"] == "transmitq0" && chain["summary"].as_str().is_some_and(|words| words.contains(" tcp "))
        },
        || drop(agent.transfer(&spec("sendfile", 1 << 20))),
    );
    note(&format!("seen: {}", seen["summary"]));

    note("the disk");
    writes_and_reads(&mut agent);
    let status = to_disk.driven_by("virtio_blk (virtio");
    assert_eq!(status["device"], "blk");
    assert!(status["features"]["negotiated"].to_string().contains("flush"), "{status}");
    let counters = &queue(&status, "requestq0")["counters"];
    assert!(counters["used_idx"].as_u64() > Some(0) && counters["in_flight"] == 0, "{status}");
    assert_eq!(status["proxy"]["counters"]["not_understood"], 0, "{status}");
    let seen = to_disk.seen(
        |chain| chain["summary"].as_str().is_some_and(|words| words.starts_with("read sector ")),
        || writes_and_reads(&mut agent),
    );
    assert_eq!(seen["queue"], "requestq0");
    note(&format!("seen: {}", seen["summary"]));

    note("the card's proxy is killed");
    to_card.child.kill();
    let to_card = Proxy::start(folder, "vnic");
    until(AGAIN, || (to_card.status()["proxy"]["back_end_connected"] == true).then_some(()));
    agent.transfer(&spec("sendfile", 4 << 20));
    to_card.driven_by("virtio_net (virtio");
    assert_eq!(card.status()["sessions"], 2);
    machine.power_off(agent);
    until(AGAIN, || (to_card.status()["connected"] == false).then_some(()));
    assert!(card.stop().success());
}

#[test]
fn dpdks_own_back_end_is_seen_through_a_proxy() {
    if !is_installed("dpdk-testpmd") {
        return skip("DPDK's testpmd is not installed (Debian: dpdk-dev, librte-net-vhost23)");
    }
    let folder = Folder::new();
    let folder = folder.path();
    let machine = prepared(folder, &[]);
    let socket = folder.join("vnic-back.sock");
    let mut command = Command::new("dpdk-testpmd");
    // What comes from the guest goes back to it.
    command.args([
        "--lcores",
        "0@(0-1),1@(0-1)",
        "--no-pci",
        "--no-huge",
        "--no-shconf",
        "--no-telemetry",
        "-m",
        "128",
    ]);
    command.arg(format!("--vdev=net_vhost0,iface={},queues=1", socket.display()));
    command.args(["--", "--total-num-mbufs=4096", "--auto-start", "--stats-period=5"]);
    command.args(["--forward-mode=io", "--port-topology=loop"]);
    let _back_end = listening("testpmd", folder, command, &socket);
    let proxy = Proxy::start(folder, "vnic");
    let mut machine = Machine::run(folder, &machine.command());
    let mut agent = machine.agent();
    let received = |agent: &mut Agent| -> u64 {
        let said = agent.run(&[
            "sh",
            "-c",
            "ping -c 1 -W 1 10.0.2.77 >/dev/null 2>&1; cat /sys/class/net/eth0/statistics/rx_packets",
        ]);
        said.trim().parse().expect("a number")
    };
    let before = received(&mut agent);
    until(LOOPS, || (received(&mut agent) > before + 3).then_some(()));
    let status = proxy.driven_by("virtio_net (virtio");
    assert_eq!(status["device"], "net");
    for name in ["receiveq0", "transmitq0"] {
        let queue = queue(&status, name);
        assert!(queue["state"] == "running" && queue["counters"]["used_idx"].as_u64() > Some(0), "{queue}");
    }
    // It polls: the index past which it wants a kick it leaves where it was.
    assert_eq!(queue(&status, "transmitq0")["event_suppression"]["kick"], json!({"past": 0}), "{status}");
    assert_eq!(status["proxy"]["counters"]["not_understood"], 0, "{status}");
    machine.power_off(agent);
}
