//! Either side goes away in the middle of a transfer, and comes back.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread;

use guest_fixture::{Deadline, Device, Folder, Machine, Namespace, is_root, note, skip, spec, until, without_sg};
use sha2::{Digest, Sha256};
use vnic_experiment::wire::hex;

const MOVES: Deadline = Deadline::secs("the transfer to be under way", 60);
const NOTICES: Deadline = Deadline::secs("the device to notice that QEMU is gone", 10);
const CONNECTS: Deadline = Deadline::secs("QEMU to connect to the device again", 30);

fn connected(device: &Device) -> bool {
    device.status()["connected"] == true
}

#[test]
fn a_guest_killed_in_the_middle_of_a_transfer_leaves_the_device_ready_for_the_next() {
    let folder = Folder::new();
    let device = Device::start(folder.path(), &[]);
    for round in 0..2 {
        note(&format!("guest {round} is killed"));
        let (mut machine, mut agent) = Machine::boot(folder.path(), &[]);
        agent.transfer(&spec("sendfile", 1 << 20));
        let before = device.counter("transmitq0", "bytes");
        // Without scatter-gather the guest takes seconds for it.
        agent.begin(&without_sg(spec("read-write", 64 << 20)));
        agent.go();
        until(MOVES, || (device.counter("transmitq0", "bytes") > before + (1 << 20)).then_some(()));
        machine.child().kill();
        assert!(agent.hear().is_none(), "the transfer was over before the guest was killed");
        until(NOTICES, || (!connected(&device)).then_some(()));
    }
    note("the next guest");
    let (machine, mut agent) = Machine::boot(folder.path(), &[]);
    agent.transfer(&spec("sendfile", 16 << 20));
    machine.power_off(agent);
    until(NOTICES, || (!connected(&device)).then_some(()));
    assert_eq!(device.status()["sessions"], 3);
    assert!(device.stop().success());
}

#[test]
fn a_device_that_ends_and_is_started_again_serves_the_same_guest() {
    let folder = Folder::new();
    let device = Device::start(folder.path(), &[]);
    let (machine, mut agent) = Machine::boot(folder.path(), &[]);
    agent.transfer(&spec("sendfile", 1 << 20));
    assert!(device.stop().success(), "SIGTERM with a guest attached is an orderly end");
    let device = Device::start(folder.path(), &[]);
    until(CONNECTS, || connected(&device).then_some(()));
    agent.transfer(&spec("sendfile", 16 << 20));
    machine.power_off(agent);
    assert!(device.stop().success());
}

/// Takes one stream: stops reading after `pause_after` bytes, says so, and goes on when told.
fn stalling_receiver(namespace: &Namespace, pause_after: u64) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (paused, is_paused) = mpsc::channel();
    let (go_on, may_go_on) = mpsc::channel::<()>();
    let anywhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 9000);
    let listener = namespace.enter(|| TcpListener::bind(anywhere)).expect("a receiver in the namespace");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let (mut digest, mut bytes, mut buffer) = (Sha256::new(), 0_u64, vec![0; 1 << 16]);
        let mut waits = true;
        loop {
            let got = stream.read(&mut buffer).expect("the stream is read");
            if got == 0 {
                break;
            }
            digest.update(&buffer[..got]);
            bytes += got as u64;
            if waits && bytes >= pause_after {
                waits = false;
                // A test that failed meanwhile has dropped its ends.
                let _ = paused.send(());
                let _ = may_go_on.recv();
            }
        }
        writeln!(stream, "bytes {bytes} sha256 {}", hex(&digest.finalize())).expect("the receipt is sent");
    });
    (is_paused, go_on)
}

#[test]
fn a_device_killed_in_the_middle_of_a_transfer_comes_back_as_client_and_the_transfer_finishes() {
    const TAP: &str = "vnictest1";
    const BYTES: u64 = 64 << 20;
    if !is_root() {
        return skip("a tap device and a network namespace need root");
    }
    let namespace = match Namespace::new().and_then(|namespace| namespace.add_tap(TAP).map(|()| namespace)) {
        Ok(namespace) => namespace,
        Err(error) => return skip(&format!("{error:#}")),
    };
    let folder = Folder::new();
    // QEMU listens and waits for the device, which may come and go.
    let mut machine = Machine::start(folder.path(), &["--client"]);
    let link = format!("tap:{TAP}");
    let options = ["--client", "--link", link.as_str()];
    let mut device = namespace.enter(|| Device::start(folder.path(), &options));
    let mut agent = machine.agent();

    let (is_paused, go_on) = stalling_receiver(&namespace, BYTES / 8);
    let asked = spec("sendfile", BYTES);
    let began = agent.begin(&asked);
    agent.go();
    is_paused.recv_timeout(MOVES.limit).expect(MOVES.what);
    note("the device is killed while the receiver has an eighth");
    device.child().kill();
    let device = namespace.enter(|| Device::start(folder.path(), &options));
    until(CONNECTS, || connected(&device).then_some(()));
    note("it is back, and the receiver goes on");
    go_on.send(()).expect("the receiver waits");
    let ended = agent.end();
    assert_eq!((ended.bytes_sent, ended.receipt.bytes), (BYTES, BYTES));
    assert_eq!(ended.receipt.sha256, began.sha256, "other bytes arrived");
    machine.power_off(agent);
    assert!(device.stop().success());
}
