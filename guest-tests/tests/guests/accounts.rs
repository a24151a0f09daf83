//! The guest kernel's own accounts, and the hazards that need no help of the device, in a guest on our NIC.

use guest_fixture::{Agent, Device, Folder, Machine, available, note, skip, spec};
use vnic_experiment::wire::{Event, NicWish, Request, TransferSpec};

const BYTES: u64 = 16 << 20;

/// Bytes that the CPU copied per byte sent, by the sum of the accounts.
#[track_caller]
fn copies(agent: &mut Agent, method: &str, nic: NicWish) -> f64 {
    let spec = TransferSpec { accounts: true, nic, ..spec(method, BYTES) };
    let (_, ended) = agent.transfer(&spec);
    let accounts = ended.accounts;
    assert_eq!(accounts.notes, [] as [&str; 0], "{method}: the guest was not quiet");
    let copied: Option<u64> = accounts.copied_bytes.values().copied().sum();
    copied.unwrap_or_else(|| panic!("{method}: {:?}", accounts.reasons)) as f64 / BYTES as f64
}

fn show(agent: &mut Agent, name: &str) {
    let to = spec("sendfile", 1).to;
    agent.say(&Request::Hazard { name: name.to_owned(), method: "sendfile".to_owned(), to });
    match agent.hear() {
        Some(Event::Shown { as_described: true, .. }) => {}
        other => panic!("{name}: {other:#?}"),
    }
}

/// The copies of each method are what its row is said to copy, with all that a NIC can do and with less.
fn the_sums_are_right(agent: &mut Agent) {
    let as_it_comes = NicWish::default();
    let no_sg = NicWish { sg: Some(false), ..as_it_comes };
    let no_csum = NicWish { csum: Some(false), ..as_it_comes };
    for (method, expected) in [
        ("read-write", [2.0, 3.0, 2.0]),
        ("mmap-write", [1.0, 2.0, 1.0]),
        ("sendfile", [0.0, 1.0, 1.0]),
        ("msg-zerocopy", [0.0, 1.0, 1.0]),
    ] {
        for (nic, expected) in [as_it_comes, no_sg, no_csum].into_iter().zip(expected) {
            note(&format!("{method} {nic:?}"));
            let copies = copies(agent, method, nic);
            assert!((copies - expected).abs() <= 0.01, "{method} {nic:?}: {copies} copies, not {expected}");
        }
    }
}

/// It copies in other functions than later ones do, and has no histograms of events.
#[test]
fn an_old_kernel_counts_every_copy_too() {
    const OLD: [&str; 2] = ["--debian-kernel", "5.10"];
    if let Err(why) = available(&OLD) {
        return skip(&why);
    }
    let folder = Folder::new();
    let device = Device::start(folder.path(), &["--link", "peer"]);
    let (machine, mut agent) = Machine::boot(folder.path(), &OLD);
    assert!(agent.kernel.starts_with("5.10."), "{}", agent.kernel);
    the_sums_are_right(&mut agent);
    machine.power_off(agent);
    assert!(device.stop().success());
}

#[test]
fn accounts_show_the_copies_of_every_textbook_method_and_hazards_go_as_described() {
    let folder = Folder::new();
    let device = Device::start(folder.path(), &["--link", "peer"]);
    let (machine, mut agent) = Machine::boot(folder.path(), &[]);
    the_sums_are_right(&mut agent);

    note("four mode switches per chunk of read-write, one call for all of sendfile");
    let (_, ended) = agent.transfer(&TransferSpec { accounts: true, ..spec("read-write", BYTES) });
    assert_eq!(ended.accounts.syscalls, Some(2 * BYTES / 65536), "{:?}", ended.accounts.reasons);
    let (_, ended) = agent.transfer(&TransferSpec { accounts: true, ..spec("sendfile", BYTES) });
    assert!(ended.accounts.syscalls.is_some_and(|calls| calls < 10), "{:?}", ended.accounts);

    note("accounts that another program got into say so, and count its copies out");
    let noise = "while :; do dd if=/bin/busybox of=/dev/null bs=64k; done >/dev/null 2>&1 & echo $!";
    let noisy = agent.run(&["/bin/sh", "-c", noise]);
    let (_, ended) = agent.transfer(&TransferSpec { accounts: true, ..spec("read-write", BYTES) });
    agent.run(&["/bin/sh", "-c", &format!("kill {noisy}")]);
    let note_of = |function: &str| ended.accounts.notes.iter().find(|note| note.contains(function));
    assert!(note_of("_copy_to_iter").is_some_and(|note| note.contains("not quiet")), "{:?}", ended.accounts);
    assert_eq!(ended.accounts.copied_bytes["_copy_to_iter"], Some(BYTES), "{:?}", ended.accounts);

    for hazard in ["truncate", "lease"] {
        note(hazard);
        show(&mut agent, hazard);
    }
    machine.power_off(agent);
    assert!(device.stop().success());
}
