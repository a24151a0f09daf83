//! A guest on the device with the link `tap`, in a network namespace of the test's own (root).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;

use guest_fixture::{
    Device, Folder, Machine, Namespace, is_root, note, receiver, repository, skip, spec, textbook_methods, without_sg,
};
use vnic_experiment::wire::TransferSpec;

pub(crate) const TAP: &str = "vnictest0";

/// A namespace with a tap in it and a receiver behind that; `None` where this machine cannot.
pub(crate) fn far_end() -> Option<Namespace> {
    if !is_root() {
        skip("a tap device and a network namespace need root");
        return None;
    }
    let namespace = match Namespace::new().and_then(|namespace| namespace.add_tap(TAP).map(|()| namespace)) {
        Ok(namespace) => namespace,
        Err(error) => {
            skip(&format!("{error:#}"));
            return None;
        }
    };
    let anywhere = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 9000);
    namespace.enter(|| receiver::listen(anywhere)).expect("a receiver in the namespace");
    Some(namespace)
}

/// `ping` on the host's side: the guest's busybox, which runs here as well.
fn busybox() -> PathBuf {
    let unpacked = repository().join("target/guest/busybox/bin/busybox");
    if unpacked.exists() { unpacked } else { PathBuf::from("busybox") }
}

#[test]
fn the_textbooks_transfers_arrive_over_a_tap_and_both_ends_answer_ping() {
    let Some(namespace) = far_end() else { return };
    let folder = Folder::new();
    let device = namespace.enter(|| Device::start(folder.path(), &["--link", &format!("tap:{TAP}")]));
    let (machine, mut agent) = Machine::boot(folder.path(), &[]);

    note("ping, both ways");
    agent.run(&["ping", "-c", "3", "10.0.2.2"]);
    let pinged = namespace.enter(|| Command::new(busybox()).args(["ping", "-c", "3", "10.0.2.15"]).output());
    let pinged = pinged.expect("busybox runs");
    assert!(pinged.status.success(), "{}", String::from_utf8_lossy(&pinged.stdout));

    for method in textbook_methods() {
        note(method);
        let (began, _) = agent.transfer(&spec(method, 16 << 20));
        assert!(began.nic.sg && began.nic.csum && began.nic.tso, "{}", began.nic);
        for (offset, bytes) in [(0, 1), (4097, 65_537), (12_345, 1_234_567)] {
            agent.transfer(&TransferSpec { offset, ..spec(method, bytes) });
        }
    }
    note("sendfile without scatter-gather");
    agent.transfer(&without_sg(spec("sendfile", 16 << 20)));
    note("64 MiB");
    agent.transfer(&spec("sendfile", 64 << 20));

    let copied = device.counter("transmitq0", "device_copied_bytes");
    let (drops, errors) = device.drops_and_errors("transmitq0");
    assert_eq!((copied, drops, errors), (0, 0, 0), "copied, drops, errors");
    machine.power_off(agent);
    assert!(device.stop().success());
}
