//! What `vnic qemu-args` prints is what this machine's QEMU takes: it connects to card and disk.
//!
//! QEMU has both connected before a guest's first instruction, so none is run.

use std::fs::File;
use std::process::Command;

use guest_fixture::{Child, Deadline, Device, Folder, until, vnic};

const CONNECTS: Deadline = Deadline::secs("QEMU to connect", 60);
const ENDS: Deadline = Deadline::secs("QEMU to end", 20);

#[test]
fn qemu_takes_the_options_that_are_printed_and_connects() {
    let folder = Folder::new();
    File::create(folder.path().join("disk.img")).and_then(|image| image.set_len(1 << 20)).expect("an image");
    for options in [&["--queue-pairs", "4"][..], &["--iommu", "--packed", "--memory", "256"]] {
        let (nic, disk) =
            (Device::start(folder.path(), options_of_serve(options)), Device::disk(folder.path(), "disk.img"));
        let mut print = Command::new(vnic());
        print.args(["qemu-args", "--socket-path"]).arg(folder.path().join("vnic.sock"));
        print.arg("--blk").arg(folder.path().join("disk.sock")).args(options);
        let printed = print.output().expect("vnic runs");
        assert!(printed.status.success(), "{printed:?}");

        // As a person would: pasted into a shell.
        let program = std::env::var("QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
        let line = format!(
            "exec {program} -S -machine q35 -nodefaults -display none {}",
            String::from_utf8(printed.stdout).expect("words")
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]);
        let mut qemu = Child::start("qemu", folder.path(), shell);
        until(CONNECTS, || {
            assert!(qemu.ended().is_none(), "{line}\n{}", qemu.output());
            [&nic, &disk].iter().all(|device| device.status()["connected"] == true).then_some(())
        });
        qemu.terminate(ENDS);
        assert!(nic.stop().success() && disk.stop().success());
    }
}

/// `vnic serve` offers as many pairs as the VM has.
fn options_of_serve<'a>(options: &'a [&'a str]) -> &'a [&'a str] {
    if options.contains(&"--queue-pairs") { options } else { &[] }
}
