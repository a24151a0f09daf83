//! The driver in user space: on QEMU's own virtio-net device, and on ours.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use guest_agent::userspace::METHOD;
use guest_fixture::{
    Agent, Deadline, Device, Folder, Machine, available, judged_run, note, receiver, skip, spec, until,
};
use vnic_experiment::run::{Run, Verdict};
use vnic_experiment::stamp::{MAGIC, STAMP_BYTES, Stamp};
use vnic_experiment::wire::{Event, Request, TransferSpec};

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
    let asked = TransferSpec { to, accounts: true, ..spec(METHOD, SMALL) };
    let (began, ended) = agent.transfer(&asked);
    assert_eq!(began.pages, ended.pages, "the file's pages moved");
    assert_eq!(ended.accounts.syscalls, Some(0), "{:?}", ended.accounts);
    assert!(ended.accounts.copied_bytes.values().all(|bytes| *bytes == Some(0)), "{:?}", ended.accounts);
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
fn our_driver_and_the_kernels_speak_packed_rings_with_our_device() {
    if !behind_an_iommu() {
        return;
    }
    for qemu in [&[][..], &["--newer-qemu"]] {
        if let Err(why) = available(qemu) {
            skip(&why);
            continue;
        }
        let folder = Folder::new();
        let device = Device::start(folder.path(), &[]);
        let options = [&["--iommu", "--nic-options", "packed=on"], qemu].concat();
        let (machine, mut agent) = Machine::boot(folder.path(), &options);
        let negotiated = || device.status()["features"]["negotiated"].to_string();
        note(&format!("the kernel's {}", qemu.join(" ")));
        agent.run(&["ping", "-c", "1", "10.0.2.2"]);
        assert!(negotiated().contains("ring_packed"), "{}", negotiated());
        agent.transfer(&spec("sendfile", 1 << 20));
        for how in [&[][..], &["--interrupts"], &["--without", "indirect-desc,event-idx", "--queue-size", "11"]] {
            note(&format!("ours {}", how.join(" ")));
            let said = agent.run(&[&["userspace-nic", "--ring", "packed", "--bytes", "1M"], how].concat());
            assert!(said.contains("the receiver got the file's bytes"), "{said}");
        }
        note("the kernel has its NIC again, and giving it back once more is no error");
        agent.run(&["userspace-nic", "--undo"]);
        agent.run(&["ping", "-c", "1", "10.0.2.2"]);
        assert_eq!(device.drops_and_errors("transmitq0"), (0, 0), "drops, errors");
        machine.power_off(agent);
        assert!(device.stop().success());
    }
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

/// Can our device stand behind an IOMMU?
fn behind_an_iommu() -> bool {
    let folder = Folder::new();
    let device = Device::start(folder.path(), &[]);
    let offered = device.status()["features"]["offered"].clone();
    let offers = offered.as_array().is_some_and(|names| names.iter().any(|name| name == "access_platform"));
    if !offers {
        skip("our device does not offer access_platform: no program can drive it");
    }
    assert!(device.stop().success());
    offers
}

#[test]
fn our_driver_works_on_our_device() {
    if !behind_an_iommu() {
        return;
    }
    let folder = Folder::new();
    let device = Device::start(folder.path(), &[]);
    let (machine, mut agent) = Machine::boot(folder.path(), &["--iommu"]);
    let peer = spec(METHOD, 0).to;
    our_driver_works(&mut agent, peer, SocketAddr::new(peer.ip(), 7));
    assert_eq!(device.drops_and_errors("transmitq0"), (0, 0), "drops, errors");
    machine.power_off(agent);
    assert!(device.stop().success());
}

/// The row as a user has it, by one command: every payload byte from the file's own pages, and none copied.
fn check_run(run: &Run, filesystems: &[&str]) {
    const BYTES: u64 = 16 << 20;
    assert_eq!(run.methods.len(), filesystems.len());
    for (row, filesystem) in run.methods.iter().zip(filesystems) {
        assert_eq!((row.method.as_str(), row.verdict), (METHOD, Some(Verdict::ZeroCopy)), "{filesystem}: {}", row.why);
        assert_eq!((row.sha256_ok, row.bytes_sent), (Some(true), Some(BYTES)), "{filesystem}");
        let device = &row.device;
        assert_eq!((device.payload_bytes, device.from_page_cache_bytes), (Some(BYTES), Some(BYTES)), "{filesystem}");
        assert_eq!((device.dma_read_bytes, device.device_copied_bytes), (Some(BYTES), Some(0)), "{filesystem}");
        // One descriptor for the headers, one for the payload: a page's border is none where the IOMMU maps pages in a row.
        assert_eq!(device.descriptors, device.chains.map(|chains| 2 * chains), "{filesystem}");
        assert_eq!((row.guest.syscalls, row.cpu_copies), (Some(0), Some(0.0)), "{filesystem}: {:?}", row.guest);
        assert_eq!(row.memory.physical_instances, Some(1), "{filesystem}: {:?}", row.reasons);
    }
}

#[test]
fn the_files_own_pages_reach_the_nic_on_the_stable_kernel() {
    if !behind_an_iommu() {
        return;
    }
    let folder = Folder::new();
    check_run(&judged_run(folder.path(), METHOD, &["--filesystem", "tmpfs,ext4"]), &["tmpfs", "ext4"]);
}

#[test]
fn the_files_own_pages_reach_the_nic_on_a_newer_kernel() {
    if !behind_an_iommu() {
        return;
    }
    if let Err(why) = available(&["--newer-kernel"]) {
        return skip(&why);
    }
    let folder = Folder::new();
    let run = judged_run(folder.path(), METHOD, &["--filesystem", "tmpfs,ext4", "--newer-kernel"]);
    check_run(&run, &["tmpfs", "ext4"]);
}

#[test]
fn a_killed_driver_leaves_a_card_that_the_kernel_gets_back_and_the_next_run_can_use() {
    if !behind_an_iommu() {
        return;
    }
    let folder = Folder::new();
    let device = Device::start(folder.path(), &[]);
    let (machine, mut agent) = Machine::boot(folder.path(), &["--iommu"]);
    for round in 1..=10_u64 {
        // Each time somewhere else, between the first burst and the last.
        let at = round * 1_500_000 + round * round * 1408;
        note(&format!("SIGKILL after {at} bytes"));
        let killed = format!("userspace-nic --bytes 20M --die-after {at}; test $? = 137");
        agent.run(&["sh", "-c", &killed]);
        agent.run(&["userspace-nic", "--undo"]);
        agent.run(&["ping", "-c", "1", "10.0.2.2"]);
        // What it left behind besides.
        agent.run(&["sh", "-c", "rm -f /tmp/vnic-*"]);
        let said = agent.run(&["userspace-nic", "--bytes", "1M"]);
        assert!(said.contains("the receiver got the file's bytes"), "{said}");
    }
    note("twice in a row, with nobody giving it back in between");
    for _ in 0..2 {
        agent.run(&["sh", "-c", "userspace-nic --bytes 20M --die-after 5M; test $? = 137 && rm -f /tmp/vnic-*"]);
    }
    agent.transfer(&spec(METHOD, 1 << 20));
    agent.run(&["ping", "-c", "1", "10.0.2.2"]);

    note("the device met no error: it never reached for what was not mapped");
    assert_eq!(device.drops_and_errors("transmitq0"), (0, 0));
    machine.power_off(agent);
    assert!(device.stop().success());
}

const HEARD: Deadline = Deadline::secs("the guest's kernel to hear of the same fault from its IOMMU", 20);
const FAULTS: Deadline = Deadline::secs("the device to report the descriptor that leads nowhere", 60);

#[test]
fn a_page_that_was_not_mapped_never_leaves() {
    const BYTES: u64 = 64 << 10;
    if !behind_an_iommu() {
        return;
    }
    let folder = Folder::new();
    let capture = folder.path().join("capture.pcapng");
    let capture_option = capture.to_str().expect("a path in UTF-8");
    let device = Device::start(folder.path(), &["--capture", capture_option]);
    let (machine, mut agent) = Machine::boot(folder.path(), &["--iommu"]);
    let size = BYTES.to_string();
    for decoy in ["behind", "physical"] {
        note(&format!("the page behind the file, {decoy}"));
        let start = format!("userspace-nic --bytes {size} --decoy {decoy} >/tmp/said 2>&1 & echo $! >/tmp/pid");
        agent.run(&["sh", "-c", &start]);
        until(FAULTS, || agent.run(&["cat", "/tmp/said"]).contains("posted").then_some(()));
        // The last chain in the ring is that one, and the guest's IOMMU has no answer for it.
        let fault = until(FAULTS, || {
            let waits = device.queue("transmitq0")["waits"].as_str().map(str::to_owned);
            waits.filter(|_| device.in_flight("transmitq0") == 1)
        });
        note(&format!("the device {fault}"));
        assert_eq!(device.queue("transmitq0")["state"], "waiting");
        let address = fault.split_ascii_whitespace().find(|word| word.starts_with("0x")).expect("an address");
        let heard = format!("dmesg | grep -c 'fault addr {} ' || true", address.trim_end_matches(','));
        until(HEARD, || (agent.run(&["sh", "-c", &heard]).trim() != "0").then_some(()));
        agent.run(&["sh", "-c", "kill -9 $(cat /tmp/pid)"]);
        agent.run(&["userspace-nic", "--undo"]);
        note("and the card works on");
        agent.transfer(&spec(METHOD, 1 << 20));
    }
    machine.power_off(agent);
    assert!(device.stop().success());

    let captured = fs::read(&capture).expect("the capture");
    let stamps = captured.windows(MAGIC.len()).enumerate().filter(|(_, window)| *window == MAGIC);
    let stamps = stamps.filter_map(|(at, _)| Stamp::read(captured.get(at..at + STAMP_BYTES)?.try_into().ok()?));
    // Four files in the order they went out: one with each decoy, one after each.
    let mut longest: Vec<(u64, u64)> = Vec::new();
    for Stamp { file_id, offset, .. } in stamps {
        match longest.iter_mut().find(|(id, _)| *id == file_id) {
            Some((_, last)) => *last = offset.max(*last),
            None => longest.push((file_id, offset)),
        }
    }
    let last = |bytes: u64| bytes - STAMP_BYTES as u64;
    assert_eq!(longest.len(), 4, "{longest:?}");
    // A decoy is the page behind its file: a stamp of one would be the file's last.
    let ends: Vec<u64> = longest.iter().map(|(_, offset)| *offset).collect();
    assert_eq!(ends, [BYTES, 1 << 20, BYTES, 1 << 20].map(last));
}
