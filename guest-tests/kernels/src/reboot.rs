//! Another kernel in the same machine: what the first one left in memory must deceive nobody.

use std::fs;

use guest_fixture::{Agent, Deadline, Device, Folder, Machine, prepared, until};
use vnic::introspect::Label;
use vnic_experiment::wire::{Event, Request};

use crate::rest;
use crate::tally::Line;

/// A kernel that cannot have five levels of page tables is not to be started by one that has.
const FOUR_LEVELS: &str = "no5lvl";
const SEES: Deadline = Deadline::secs("the device to see the new kernel", 60);

/// Boots one, looks, has it start the other (kexec), and looks again; the device is asked, which nobody tells of it.
#[track_caller]
pub(crate) fn into_another(from: &str, to: &str) -> Vec<Line> {
    let folder = Folder::new();
    let device = Device::start(folder.path(), &[]);
    let next = prepared(folder.path(), &["--debian-kernel", to]);
    // As a boot loader would have it, on disks.
    let mut more = Vec::new();
    for (name, file) in [("kernel", &next.kernel), ("initramfs", &next.initramfs)] {
        let file = fs::canonicalize(file).expect("it is there");
        let drive = format!("if=none,id={name},file={},format=raw,readonly=on", file.display());
        more.extend(["-drive".to_owned(), drive, "-device".to_owned(), format!("virtio-blk-pci,drive={name}")]);
    }
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let (machine, mut agent) =
        Machine::boot_with(folder.path(), &["--debian-kernel", from, "--append", FOUR_LEVELS], &more);
    let mut lines = looks(&device, &mut agent, "before");
    let line = agent.run(&["cat", "/proc/cmdline"]);
    let argv = ["kexec", "/dev/vdb", "/dev/vdc", line.trim()].map(str::to_owned).to_vec();
    agent.say(&Request::Run { argv });
    let first = agent.kernel.clone();
    match agent.hear() {
        Some(Event::Ready { kernel, .. }) => agent.kernel = kernel,
        other => panic!("waited for {to} to start: {other:?}"),
    }
    assert_ne!(agent.kernel, first, "the same kernel is there again");
    lines.extend(looks(&device, &mut agent, &format!("started by {from}")));
    machine.power_off(agent);
    lines
}

#[track_caller]
fn looks(device: &Device, agent: &mut Agent, when: &str) -> Vec<Line> {
    rest::some(agent, when, |addresses| {
        // It looks for the kernel when it is asked, at most so often.
        until(SEES, || {
            let labels = device.pages(addresses);
            let labels: Vec<Label> =
                labels.into_iter().map(|label| serde_json::from_value(label).expect("a label")).collect();
            labels.iter().any(|label| label.kind != vnic::introspect::Kind::Unknown).then_some(labels)
        })
    })
}
