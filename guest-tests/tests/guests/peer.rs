//! A guest on the device with its default link, `peer`: what the NIC was handed, and that all bytes arrive.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use guest_fixture::{
    Device, Folder, Machine, TEXTBOOK, available, judged_run, note, skip, spec, textbook_methods, without_sg,
};
use vnic_experiment::run::{Method, Run, Verdict};
use vnic_experiment::wire::TransferSpec;

/// What every row must show, whatever the method.
fn check_row(row: &Method, bytes: u64) {
    let name = &row.method;
    let device = &row.device;
    assert_eq!(row.sha256_ok, Some(true), "{name}: other bytes arrived");
    assert_eq!(row.bytes_sent, Some(bytes), "{name}");
    assert_eq!(device.payload_bytes, Some(bytes), "{name}: the device saw other payload than was sent");
    let (from_pages, elsewhere) = (device.from_page_cache_bytes, device.from_elsewhere_bytes);
    assert_eq!(from_pages.zip(elsewhere).map(|(a, b)| a + b), Some(bytes), "{name}: bytes without an origin");
    let sent_again = device.retransmitted_bytes.expect("retransmissions are counted");
    assert_eq!(device.dma_read_bytes, Some(bytes + sent_again), "{name}: payload is read out of the guest once");
    assert_eq!(device.device_copied_bytes, Some(0), "{name}: the device made a copy of its own");
    assert_eq!(row.verdict, row.expected, "{name}: {}", row.why);
    let (chains, descriptors) = device.chains.zip(device.descriptors).expect("chains and descriptors are counted");
    assert!(0 < chains && chains <= descriptors, "{name}: {chains} chains of {descriptors} descriptors");
}

/// Runs the rows and checks them.
fn the_textbook_holds(options: &[&str]) -> Run {
    const BYTES: u64 = 16 << 20;
    let folder = Folder::new();
    let run = judged_run(folder.path(), TEXTBOOK, options);
    let expected = [
        ("read-write", Verdict::Copied),
        ("mmap-write", Verdict::Copied),
        ("sendfile", Verdict::ZeroCopy),
        ("sendfile-no-sg", Verdict::Copied),
        ("splice", Verdict::ZeroCopy),
    ];
    assert_eq!(run.methods.len(), expected.len());
    for (row, (name, verdict)) in run.methods.iter().zip(expected) {
        assert_eq!(row.method, name);
        assert_eq!(row.verdict, Some(verdict), "{name}: {}", row.why);
        check_row(row, BYTES);
        let from_pages = row.device.from_page_cache_bytes.expect("measured");
        match verdict {
            Verdict::ZeroCopy => assert!(from_pages * 1000 >= BYTES * 999, "{name}: {from_pages} of {BYTES}"),
            _ => assert_eq!(from_pages, 0, "{name}: {from_pages} bytes came from the file's pages"),
        }
        assert_eq!(row.nic.sg, name != "sendfile-no-sg", "{name}");
    }
    run
}

#[test]
fn the_textbook_holds_on_the_stable_kernel() {
    let run = the_textbook_holds(&[]);
    assert!(run.kernel.contains('.') && run.qemu.is_some() && run.accel.is_some(), "{run:?}");
}

#[test]
fn the_textbook_holds_on_a_newer_kernel() {
    match available(&["--newer-kernel"]) {
        Ok(()) => drop(the_textbook_holds(&["--newer-kernel"])),
        Err(why) => skip(&why),
    }
}

#[test]
fn the_textbook_holds_with_msix_and_without_on_a_newer_qemu() {
    if let Err(why) = available(&["--newer-qemu"]) {
        return skip(&why);
    }
    for msix in ["on", "off"] {
        note(&format!("MSI-X {msix}"));
        the_textbook_holds(&["--newer-qemu", "--msix", msix]);
    }
}

#[test]
fn withholding_csum_takes_scatter_gather_from_the_guests_nic() {
    let folder = Folder::new();
    let device = Device::start(folder.path(), &["--withhold", "csum"]);
    let (machine, mut agent) = Machine::boot(folder.path(), &[]);
    assert!(!agent.nic.sg && !agent.nic.csum && !agent.nic.tso, "{}", agent.nic);
    agent.transfer(&spec("sendfile", 1 << 20));
    machine.power_off(agent);
    assert!(device.stop().success());
}

#[test]
fn all_sizes_offsets_and_families_arrive_and_both_ends_answer_ping() {
    let folder = Folder::new();
    let mut device = Device::start(folder.path(), &[]);
    let (machine, mut agent) = Machine::boot(folder.path(), &[]);

    note("ping");
    agent.run(&["ping", "-c", "3", "-s", "1400", "10.0.2.2"]);
    agent.run(&["ping", "-c", "3", "fec0::2"]);
    device.ping(Ipv4Addr::new(10, 0, 2, 15).into());
    device.ping(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0x15).into());

    for method in textbook_methods() {
        note(&format!("{method}: odd sizes and offsets"));
        for (offset, bytes) in
            [(0, 1), (0, 63), (0, 1448), (0, 4096), (1, 4096), (4095, 2), (4097, 65_537), (12_345, 1_234_567)]
        {
            let asked = TransferSpec { offset, ..spec(method, bytes) };
            agent.transfer(&asked);
            agent.transfer(&without_sg(asked));
        }
        note(&format!("{method}: odd chunks"));
        for chunk in [1, 4097, 1 << 20] {
            agent.transfer(&TransferSpec { chunk, ..spec(method, if chunk == 1 { 500 } else { 3 << 20 }) });
        }
        note(&format!("{method}: IPv6"));
        let to = SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 2)), 9000);
        agent.transfer(&TransferSpec { to, ..spec(method, 1 << 20) });
        note(&format!("{method}: 64 MiB"));
        agent.transfer(&spec(method, 64 << 20));
    }

    note("the rings are sound, and nothing was dropped or copied");
    let copied = device.counter("transmitq0", "device_copied_bytes");
    let (drops, errors) = device.drops_and_errors("transmitq0");
    assert_eq!((copied, drops, errors), (0, 0, 0));
    assert!(device.rings().to_string().contains("transmitq0"));

    note("while the guest sleeps, so does the device; and the guest's memory is not its own");
    let id = device.child().id();
    let before = wake_ups(id);
    let ticks_before = cpu_ticks(id);
    agent.run(&["sleep", "3"]);
    let (woke, used) = (wake_ups(id) - before, cpu_ticks(id) - ticks_before);
    // Those who keep accounts look ten times a second. A thread that polls without sleeping takes 300 ticks; one that polls every ten
    // milliseconds wakes up 300 times.
    assert!(woke <= 150 && used <= 60, "woke up {woke} times and took {used} clock ticks in 3 idle seconds");
    let private = private_kib(id);
    assert!(private < 24 << 10, "{private} KiB of its own");

    machine.power_off(agent);
    assert!(device.stop().success());
}

/// User and system time of a process, in clock ticks (proc(5), stat, fields 14 and 15).
fn cpu_ticks(id: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).expect("the process is there");
    let (_, after_name) = stat.rsplit_once(')').expect("the name is in parentheses");
    after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

/// How often threads of a process gave up the processor to wait (proc(5), status).
fn wake_ups(id: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{id}/task")).expect("the process is there");
    let of = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let waits = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        waits.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    tasks.flatten().map(of).sum()
}

/// Memory of a process that no other shares by a file of theirs: the guest's RAM is `RssShmem`.
pub(crate) fn private_kib(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).expect("the process is there");
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).expect("the field is there");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number of KiB")
    };
    field("RssAnon:") + field("RssFile:")
}
