//! All witnesses of whole runs, as a user makes them: the table, its witnesses left out, missing or watched by others.

use std::time::Duration;

use guest_fixture::{Device, Folder, Machine, cannot, judged_run, note, repository, shown_hazard, spec};
use vnic_experiment::run::{DeviceAccounts, Method, Run, Verdict};

const BYTES: u64 = 16 << 20;

fn row<'r>(run: &'r Run, name: &str) -> &'r Method {
    run.methods.iter().find(|row| row.method == name).unwrap_or_else(|| panic!("no row {name}"))
}

/// The row, CPU copies per byte, and how often the bytes of a held chunk stand in the guest's memory.
const TABLE: &[(&str, f64, u64)] = &[
    ("read-write", 2.0, 3),
    ("read-write-no-sg", 3.0, 4),
    ("read-write-no-csum", 2.0, 3),
    ("mmap-write", 1.0, 2),
    ("mmap-write-no-sg", 2.0, 3),
    ("mmap-write-no-csum", 1.0, 2),
    ("sendfile", 0.0, 1),
    ("sendfile-no-sg", 1.0, 2),
    ("sendfile-no-csum", 1.0, 2),
    ("msg-zerocopy", 0.0, 1),
    ("msg-zerocopy-no-sg", 1.0, 2),
    ("msg-zerocopy-no-csum", 1.0, 2),
];

/// What does not depend on when the kernel sent which segment.
fn steady(device: &DeviceAccounts) -> [Option<u64>; 4] {
    [device.payload_bytes, device.from_page_cache_bytes, device.from_elsewhere_bytes, device.device_copied_bytes]
}

#[test]
fn three_witnesses_agree_on_the_table_and_the_device_sees_the_same_alone() {
    let rows: Vec<&str> = TABLE.iter().map(|(row, ..)| *row).collect();
    let rows = rows.join(",");
    note("all witnesses");
    let folder = Folder::new();
    let all = judged_run(folder.path(), &rows, &[]);
    assert_eq!(all.methods.len(), TABLE.len());
    for (name, copies, instances) in TABLE {
        let found = row(&all, name);
        let measured = found.cpu_copies.unwrap_or_else(|| panic!("{name}: {:?}", found.reasons));
        assert!((measured - copies).abs() <= 0.01, "{name}: {measured} copies, not {copies}");
        assert_eq!(found.memory.physical_instances, Some(*instances), "{name}: {:?}", found.reasons);
        assert_eq!(found.verdict, found.expected, "{name}: {}", found.why);
        assert!(found.guest.kernel_page_faults.is_some(), "{name}: {:?}", found.reasons);
    }
    assert!(row(&all, "sendfile-no-sg").why.contains("ethtool"), "{}", row(&all, "sendfile-no-sg").why);

    note("the device alone");
    let folder = Folder::new();
    let alone = judged_run(folder.path(), &rows, &["--witness", "device"]);
    for (name, ..) in TABLE {
        let (watched, alone) = (row(&all, name), row(&alone, name));
        assert_eq!(
            steady(&watched.device),
            steady(&alone.device),
            "{name}: being watched changes the device's figures"
        );
        assert_eq!(watched.verdict, alone.verdict, "{name}");
        assert_eq!((alone.cpu_copies, alone.memory.physical_instances), (None, None), "{name}");
        assert!(alone.reasons.contains_key("memory.physical_instances"), "{name}: {:?}", alone.reasons);
    }
}

#[test]
fn a_device_that_withholds_csum_makes_the_same_copies_and_the_row_says_so() {
    let folder = Folder::new();
    let options = ["--serve-options", "--withhold csum"];
    let run = judged_run(folder.path(), "read-write,sendfile,sendfile-no-sg,msg-zerocopy", &options);
    for (name, copies, instances) in
        [("read-write", 3.0, 4), ("sendfile", 1.0, 2), ("sendfile-no-sg", 1.0, 2), ("msg-zerocopy", 1.0, 2)]
    {
        let found = row(&run, name);
        assert!(!found.nic.sg && !found.nic.csum, "{name}: {}", found.nic);
        let measured = found.cpu_copies.unwrap_or_else(|| panic!("{name}: {:?}", found.reasons));
        assert!((measured - copies).abs() <= 0.01, "{name}: {measured} copies, not {copies}");
        assert_eq!(found.memory.physical_instances, Some(instances), "{name}: {:?}", found.reasons);
        assert_eq!(found.verdict, Some(Verdict::Copied), "{name}: {}", found.why);
        assert!(found.why.contains("withholds csum"), "{name}: {}", found.why);
    }
}

#[test]
fn a_file_on_a_disk_and_one_under_tls_show_what_is_expected() {
    let folder = Folder::new();
    let options = ["--filesystem", "tmpfs,ext4"];
    let rows = "read-write,sendfile,sendfile-cold,sendfile-cold-no-sg,direct-io,ktls-sendfile";
    let run = judged_run(folder.path(), rows, &options);
    assert_eq!(run.methods.len(), 12, "six rows on each of two file systems");
    for found in &run.methods {
        let name = (&found.method, &found.filesystem);
        // What the disk brings first, or past the page cache, its DMA copies too.
        let from_disk = found.method.contains("-cold") || found.method == "direct-io";
        if from_disk && found.filesystem.as_deref() == Some("tmpfs") {
            assert_eq!((found.verdict, found.expected), (None, None), "{name:?}: a tmpfs is nothing but page cache");
            assert!(found.reasons["verdict"].contains("nothing but page cache"), "{name:?}: {:?}", found.reasons);
            continue;
        }
        let dma = found.dma_copies.unwrap_or_else(|| panic!("{name:?}: {:?}", found.reasons));
        let expected = if from_disk { 2.0 } else { 1.0 };
        assert!((dma - expected).abs() <= 0.02, "{name:?}: {dma} copies by DMA, not {expected}");
        // What a kernel lacks (TLS) is a row that says so.
        let Some(verdict) = found.verdict else {
            assert!(found.reasons.contains_key("verdict"), "{name:?}: {:?}", found.reasons);
            cannot(&run.kernel, &found.method, &found.why);
            continue;
        };
        assert_eq!(Some(verdict), found.expected, "{name:?}: {}", found.why);
        assert!(found.device.payload_bytes.is_some_and(|bytes| bytes >= BYTES), "{name:?}");
    }
    let zero_copy = |name| {
        let rows = run.methods.iter().filter(|row| row.method == name && row.verdict == Some(Verdict::ZeroCopy));
        let whole = rows.filter(|row| row.device.from_page_cache_bytes == Some(BYTES) && row.cpu_copies < Some(0.01));
        whole.count()
    };
    assert_eq!((zero_copy("sendfile"), zero_copy("sendfile-cold")), (2, 1));
    let tls = run.methods.iter().filter(|row| row.method == "ktls-sendfile" && row.verdict.is_some());
    for found in tls {
        let copies = found.cpu_copies.unwrap_or_else(|| panic!("{:?}", found.reasons));
        assert!((copies - 1.0).abs() <= 0.01, "the cipher made {copies} copies");
    }
}

#[test]
fn a_program_of_the_users_own_is_judged_by_what_it_does() {
    // There from the first run on, which builds the guest's programs.
    let send = repository().join("target/guest/build/x86_64-unknown-linux-gnu/guest/examples/send");
    let send = send.to_str().expect("a path in UTF-8");
    for (program, expected, copies, instances) in
        [("/bin/cat", Verdict::Copied, 2.0, 3), (send, Verdict::ZeroCopy, 0.0, 1)]
    {
        note(program);
        let folder = Folder::new();
        let run = judged_run(folder.path(), "program,program-no-sg", &["--program", program]);
        for (name, more, expected) in [("program", 0_u32, expected), ("program-no-sg", 1, Verdict::Copied)] {
            let found = row(&run, name);
            let measured = found.cpu_copies.unwrap_or_else(|| panic!("{name}: {:?}", found.reasons));
            assert!((measured - copies - f64::from(more)).abs() <= 0.01, "{name}: {measured} copies");
            let instances = Some(instances + u64::from(more));
            assert_eq!(found.memory.physical_instances, instances, "{name}: {:?}", found.reasons);
            assert_eq!((found.verdict, found.expected), (Some(expected), None), "{name}: {}", found.why);
            let named = program.rsplit_once('/').map_or(program, |(_, name)| name);
            assert!(found.why.ends_with(named) || found.why.contains(&format!("{named};")), "{name}: {}", found.why);
            assert!(found.guest.syscalls.is_some_and(|calls| calls > 1), "{name}: {:?}", found.guest);
        }
    }
}

#[test]
fn a_guest_without_tracefs_leaves_figures_out_with_a_reason_and_the_rest_is_judged() {
    let folder = Folder::new();
    let run = judged_run(folder.path(), "read-write,sendfile", &["--append", "vnic.tracing=off"]);
    for (name, verdict) in [("read-write", Verdict::Copied), ("sendfile", Verdict::ZeroCopy)] {
        let found = row(&run, name);
        assert_eq!(found.verdict, Some(verdict), "{name}: {}", found.why);
        assert_eq!(found.sha256_ok, Some(true), "{name}");
        assert_eq!((found.guest.syscalls, found.guest.mode_switches), (None, None), "{name}: {:?}", found.guest);
        let reason = |figure: &str| found.reasons.get(figure).map_or("", String::as_str);
        assert!(reason("guest.syscalls").contains("trac"), "{name}: {:?}", found.reasons);
        assert!(reason("guest.mode_switches").contains("not counted"), "{name}: {:?}", found.reasons);
    }
}

#[test]
fn the_hazards_that_need_the_device_go_as_described() {
    for hazard in ["mutate", "observer"] {
        note(hazard);
        let folder = Folder::new();
        shown_hazard(folder.path(), hazard);
    }
}

#[test]
#[ignore = "takes a minute and more: scripts/long.sh"]
fn a_hold_of_a_minute_loses_nothing() {
    let folder = Folder::new();
    let device = Device::start(folder.path(), &[]);
    let (machine, mut agent) = Machine::boot(folder.path(), &[]);
    let transfer = spec("sendfile", 64 << 20);
    let began = agent.begin(&transfer);
    device.hold("transmitq0");
    agent.go();
    device.wait_until_stuck("transmitq0");
    std::thread::sleep(Duration::from_secs(60));
    device.release("transmitq0");
    let ended = agent.end();
    assert_eq!((ended.receipt.sha256, ended.receipt.bytes), (began.sha256, transfer.bytes));
    machine.power_off(agent);
    assert!(device.stop().success());
}

#[test]
fn a_hold_loses_nothing_also_when_the_front_end_goes_in_the_middle_of_it() {
    let folder = Folder::new();
    let device = Device::start(folder.path(), &[]);
    let (mut machine, mut agent) = Machine::boot(folder.path(), &[]);
    note("a transfer whose queue is held in the middle, and let go");
    let transfer = spec("sendfile", 64 << 20);
    let began = agent.begin(&transfer);
    device.hold("transmitq0");
    agent.go();
    // The driver fills the ring, and then nothing moves.
    device.wait_until_stuck("transmitq0");
    device.release("transmitq0");
    let ended = agent.end();
    assert_eq!(ended.receipt.sha256, began.sha256, "other bytes arrived");
    assert_eq!(ended.receipt.bytes, transfer.bytes);

    note("QEMU is killed while the queue is held; the next guest starts with a queue that runs");
    agent.begin(&transfer);
    device.hold("transmitq0");
    agent.go();
    device.wait_until_stuck("transmitq0");
    machine.child().kill();
    device.wait_for_no_front_end();
    drop((machine, agent));
    let (machine, mut agent) = Machine::boot(folder.path(), &[]);
    agent.transfer(&spec("sendfile", 1 << 20));
    machine.power_off(agent);
    assert!(device.stop().success());
}
