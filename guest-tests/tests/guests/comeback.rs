//! The device dies under a transfer, or QEMU's connection to it is cut, a hundred times. (`scripts/comeback.sh`)

use std::fs::DirEntry;
use std::path::Path;
use std::process::{Command, Stdio};

use guest_fixture::{Child, Deadline, Device, Folder, Machine, Namespace, Stream, is_root, note, skip, until, vnic};

const TAP: &str = "vnictest2";
const TIMES: u64 = 100;
const CONNECTS: Deadline = Deadline::secs("QEMU to connect to the device again", 60);
const LISTENS: Deadline = Deadline::secs("passt to listen", 20);

/// What the deaths left in doubt: resubmitted, possibly sent twice.
fn in_doubt(device: &Device) -> [u64; 2] {
    let sum = |name| ["receiveq0", "transmitq0"].iter().map(|queue| device.counter(queue, name)).sum::<u64>();
    [sum("resumed"), sum("in_doubt")]
}

fn connected(device: &Device) -> bool {
    device.status()["connected"] == true
}

/// A namespace of the test's own, with what `prepare` puts there.
fn namespace(prepare: impl FnOnce(&Namespace) -> anyhow::Result<()>) -> Option<Namespace> {
    if !is_root() {
        skip("a network namespace needs root");
        return None;
    }
    let namespace = Namespace::new().and_then(|namespace| prepare(&namespace).map(|()| namespace));
    namespace.map_err(|error| skip(&format!("{error:#}"))).ok()
}

/// `vnic serve` is killed so many times while the guest sends, each time once more of the stream has come.
fn killed(namespace: &Namespace, link: &str, times: u64) {
    let folder = Folder::new();
    let start = || namespace.enter(|| Device::start(folder.path(), &["--link", link]));
    let stream = Stream::listen(namespace);
    let mut device = start();
    let mut machine = Machine::start(folder.path(), &["--memory", "256M"]);
    let mut agent = machine.agent();
    stream.start(&mut agent);
    let (mut resubmitted, mut twice) = (0, 0);
    for number in 1..=times {
        device.child().kill();
        device = start();
        until(CONNECTS, || connected(&device).then_some(()));
        stream.until(stream.blocks() + 1);
        let [more, perhaps] = in_doubt(&device);
        (resubmitted, twice) = (resubmitted + more, twice + perhaps);
        if number % 10 == 0 {
            note(&format!(
                "{number} kills, {} MiB; resubmitted: {resubmitted}, possibly sent twice: {twice}",
                stream.blocks()
            ));
        }
    }
    let bytes = stream.end(&mut agent);
    note(&format!(
        "{link}: {times} x kill -9 of vnic serve under one stream of {} MiB: 0 bytes lost, 0 twice; frames resubmitted: {resubmitted}, possibly sent twice: {twice}",
        bytes >> 20
    ));
    machine.power_off(agent);
    assert!(device.stop().success());
}

#[test]
#[ignore = "minutes: scripts/comeback.sh"]
fn a_transfer_over_a_tap_outlives_a_hundred_kills() {
    let Some(namespace) = namespace(|namespace| namespace.add_tap(TAP)) else { return };
    killed(&namespace, &format!("tap:{TAP}"), TIMES);
}

/// passt itself stays: what it knows of connections would be gone with it.
#[test]
#[ignore = "minutes: scripts/comeback.sh"]
fn a_transfer_through_passt_outlives_a_hundred_kills() {
    let Some(namespace) = namespace(Namespace::add_uplink) else { return };
    let folder = Folder::new();
    let socket = folder.path().join("passt.sock");
    let Some(_passt) = passt(&namespace, folder.path(), &socket) else { return };
    killed(&namespace, &format!("stream:{}", socket.display()), TIMES);
}

/// A passt that listens at `socket`; none where there is none.
fn passt(namespace: &Namespace, folder: &Path, socket: &Path) -> Option<Child> {
    if Command::new("passt").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
        skip("passt is not installed");
        return None;
    }
    let mut command = Command::new("passt");
    command.args(["--foreground", "--quiet", "--runas", "0", "--socket"]).arg(socket);
    command.args(["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2"]);
    let child = namespace.enter(|| Child::start("passt", folder, command));
    until(LISTENS, || socket.exists().then_some(()));
    Some(child)
}

/// CPUs that are never idle: what runs at idle priority comes late.
fn busy(folder: &Path) -> Vec<Child> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let program = || {
        let mut command = Command::new("nice");
        command.args(["-n", "19", "sh", "-c", "while :; do :; done"]);
        Child::start("busy", folder, command)
    };
    std::iter::repeat_with(program).take(cpus).collect()
}

/// The device hears late of what happens to its socket, and its worker goes on meanwhile.
fn hears_late(device: &mut Device) {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", device.child().id())).expect("a device that runs");
    let mut sessions = tasks.filter_map(Result::ok).filter(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.trim_end() == "session")
    });
    let at_idle_priority = |task: DirEntry| {
        let changed = Command::new("chrt").args(["--idle", "--pid", "0"]).arg(task.file_name()).status();
        changed.expect("chrt").success()
    };
    assert!(sessions.any(at_idle_priority), "the device has a thread for its session");
}

/// Between QEMU and the device stands a `vnic proxy`, which is killed: both lose the other, and neither ends. QEMU hears of it
/// first, takes what is to be sent off the ring and drops it, while the device goes on with that ring.
#[test]
#[ignore = "minutes: scripts/comeback.sh"]
fn a_transfer_outlives_a_hundred_cuts_of_qemus_socket() {
    let Some(namespace) = namespace(|namespace| namespace.add_tap(TAP)) else { return };
    let folder = Folder::new();
    let (front, back) = (folder.path().join("vnic.sock"), folder.path().join("back"));
    std::fs::create_dir(&back).expect("a folder");
    let stream = Stream::listen(&namespace);
    let mut device = namespace.enter(|| Device::start(&back, &["--link", &format!("tap:{TAP}")]));
    let _busy = busy(folder.path());
    let between = || {
        let mut command = Command::new(vnic());
        command.arg("proxy").arg("--socket-path").arg(&front).arg("--back-end").arg(back.join("vnic.sock"));
        Child::start("proxy", folder.path(), command)
    };
    let mut proxy = between();
    let mut machine = Machine::start(folder.path(), &["--memory", "256M"]);
    let mut agent = machine.agent();
    stream.start(&mut agent);
    for number in 1..=TIMES {
        let sessions = device.status()["sessions"].as_u64().unwrap_or_default();
        hears_late(&mut device);
        proxy.kill();
        proxy = between();
        until(CONNECTS, || {
            let status = device.status();
            (status["connected"] == true && status["sessions"].as_u64() > Some(sessions)).then_some(())
        });
        stream.until(stream.blocks() + 1);
        if number % 10 == 0 {
            note(&format!("{number} cuts, {} MiB", stream.blocks()));
        }
    }
    let bytes = stream.end(&mut agent);
    let [resubmitted, twice] = in_doubt(&device);
    assert_eq!([resubmitted, twice], [0, 0], "a session that is cut leaves nothing behind");
    let stops = device.child().output();
    let stops: Vec<&str> = stops.lines().filter(|line| line.contains("ring stopped")).collect();
    assert!(stops.iter().all(|line| line.contains("used.idx went from")), "{stops:#?}");
    note(&format!(
        "{TIMES} cuts of QEMU's socket under one stream of {} MiB: 0 bytes lost, 0 twice; QEMU was first with the ring {} times",
        bytes >> 20,
        stops.len()
    ));
    machine.power_off(agent);
    assert!(device.stop().success());
}

/// Longer than TCP, QEMU or the device wait for anything in between.
#[test]
#[ignore = "minutes: scripts/comeback.sh"]
fn a_transfer_outlives_an_outage_of_more_than_a_minute() {
    const OUTAGE_MS: u32 = 70_000;
    let Some(namespace) = namespace(|namespace| namespace.add_tap(TAP)) else { return };
    let folder = Folder::new();
    let start = || namespace.enter(|| Device::start(folder.path(), &["--link", &format!("tap:{TAP}")]));
    let stream = Stream::listen(&namespace);
    let mut device = start();
    let mut machine = Machine::start(folder.path(), &["--memory", "256M"]);
    let mut agent = machine.agent();
    stream.start(&mut agent);
    device.child().kill();
    note("nobody is there for 70 s");
    let outage = nix::poll::PollTimeout::try_from(OUTAGE_MS).expect("a timeout");
    let _ = nix::poll::poll(&mut [], outage);
    let device = start();
    until(CONNECTS, || connected(&device).then_some(()));
    stream.until(stream.blocks() + 2);
    let bytes = stream.end(&mut agent);
    note(&format!("an outage of 70 s in one stream of {} MiB: 0 bytes lost, 0 twice", bytes >> 20));
    machine.power_off(agent);
    assert!(device.stop().success());
}
