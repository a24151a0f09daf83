//! The driver in user space: on QEMU's own virtio-net device, and on ours.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use guest_tests::fixture::{Agent, Folder, Machine, available, note, receiver, skip, spec};
use guest_tests::guest::userspace::METHOD;
use vnic::record::wire::{Event, Request, TransferSpec};

/// A receiver's address on this machine, as a guest on QEMU's own network sees it.
fn seen(receiver: std::io::Result<SocketAddr>) -> SocketAddr {
    SocketAddr::new(spec(METHOD, 0).to.ip(), receiver.expect("a receiver").port())
}

const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// What arrives at a socket of this machine at a time without one being lost.
const SMALL: u64 = 100_001;

/// Everything that the driver can do, on whatever device.
fn our_driver_works(agent: &mut Agent, to: SocketAddr, echo: SocketAddr) {
    let (to_text, echo_text) = (to.to_string(), echo.to_string());
    note("the example: a frame out, a frame in");
    let said = agent.run(&["frame"]);
    assert!(said.contains("10.0.2.2 is at 52:55:0a:00:02:02"), "{said}");

    for filesystem in ["tmpfs", "ext4"] {
        for how in [
            &[][..],
            &["--interrupts"],
            &["--without", "indirect-desc"],
            &["--without", "event-idx"],
            &["--without", "indirect-desc,event-idx", "--interrupts", "--queue-size", "16"],
        ] {
            note(&format!("{filesystem} {}", how.join(" ")));
            let bytes = SMALL.to_string();
            let command = ["userspace-nic", "--to", &to_text, "--filesystem", filesystem, "--bytes", &bytes];
            let said = agent.run(&[&command[..], how].concat());
            assert!(said.contains("the receiver got the file's bytes"), "{said}");
        }
    }
    note("offsets that are not at a page's border");
    for offset in ["1", "4095", "12345"] {
        agent.run(&["userspace-nic", "--to", &to_text, "--offset", offset, "--bytes", "9000"]);
    }
    note("what comes back is digested where the device wrote it");
    for how in [&[][..], &["--interrupts"]] {
        let command = ["userspace-nic", "--receive", "--to", &echo_text, "--bytes", "1M"];
        let said = agent.run(&[&command[..], how].concat());
        assert!(said.contains("the file's bytes came back"), "{said}");
    }

    note("as the row does it: no system call, no copy, and the kernel has its interface again");
    let asked = TransferSpec { to, books: true, ..spec(METHOD, SMALL) };
    let (began, ended) = agent.transfer(&asked);
    assert_eq!(began.pages, ended.pages, "the file's pages moved");
    assert_eq!(ended.books.syscalls, Some(0), "{:?}", ended.books);
    assert!(ended.books.copied_bytes.values().all(|bytes| *bytes == Some(0)), "{:?}", ended.books);
    agent.run(&["ping", "-c", "1", "10.0.2.2"]);
}

fn our_driver_works_on_qemus_own_device(options: &[&str]) {
    let folder = Folder::new();
    let options = [&["--netdev", "user", "--iommu"], options].concat();
    let (machine, mut agent) = Machine::boot(folder.path(), &options);
    our_driver_works(&mut agent, seen(receiver::datagrams(ANY_PORT)), seen(receiver::echo(ANY_PORT)));
    machine.power_off(agent);
}

#[test]
fn our_driver_works_on_qemus_own_device_on_the_stable_kernel() {
    our_driver_works_on_qemus_own_device(&[]);
}

#[test]
fn our_driver_works_on_qemus_own_device_on_a_newer_kernel() {
    match available(&["--newer-kernel"]) {
        Ok(()) => our_driver_works_on_qemus_own_device(&["--newer-kernel"]),
        Err(why) => skip(&why),
    }
}

#[test]
fn our_driver_speaks_packed_rings_with_qemus_own_device() {
    let folder = Folder::new();
    let options = ["--netdev", "user", "--iommu", "--nic-options", "packed=on"];
    let (machine, mut agent) = Machine::boot(folder.path(), &options);
    let to = seen(receiver::datagrams(ANY_PORT)).to_string();
    let echo = seen(receiver::echo(ANY_PORT)).to_string();
    for how in [
        &[][..],
        &["--interrupts"],
        &["--without", "indirect-desc"],
        &["--without", "event-idx"],
        // The ring goes round many times, and not at a power of two.
        &["--without", "indirect-desc,event-idx", "--interrupts", "--queue-size", "11"],
    ] {
        note(&how.join(" "));
        let bytes = SMALL.to_string();
        let command = ["userspace-nic", "--ring", "packed", "--to", &to, "--bytes", &bytes];
        let said = agent.run(&[&command[..], how].concat());
        assert!(said.contains("the receiver got the file's bytes"), "{said}");
        let command = ["userspace-nic", "--ring", "packed", "--receive", "--to", &echo, "--bytes", "1M"];
        agent.run(&[&command[..], how].concat());
    }
    machine.power_off(agent);
}

#[test]
fn without_an_iommu_the_row_says_so_and_the_kernel_keeps_its_nic() {
    let folder = Folder::new();
    let (machine, mut agent) = Machine::boot(folder.path(), &["--netdev", "user"]);
    refused(&mut agent, "IOMMU");
    agent.run(&["ping", "-c", "1", "10.0.2.2"]);
    machine.power_off(agent);
}

/// The row cannot be had in this guest; the reason has this word.
fn refused(agent: &mut Agent, word: &str) {
    agent.say(&Request::Transfer(spec(METHOD, SMALL)));
    match agent.hear() {
        Some(Event::Unsupported { why }) => assert!(why.contains(word), "{why}"),
        other => panic!("expected unsupported, got {other:?}"),
    }
}
