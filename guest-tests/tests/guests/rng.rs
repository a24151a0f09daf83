//! A guest whose entropy is ours: a second device beside its NIC.

use guest_fixture::{Device, Folder, Machine};

#[test]
fn a_guest_reads_its_hardware_random_numbers_from_our_entropy_device() {
    let (folder, other) = (Folder::new(), Folder::new());
    let nic = Device::start(folder.path(), &[]);
    let rng = Device::start(other.path(), &["--device", "rng"]);
    let chardev = format!("socket,id=rng,path={}", other.path().join("vnic.sock").display());
    // Without MSI-X vectors, for the reason that the NIC has none under an old QEMU's TCG.
    let more = ["-chardev", &chardev, "-device", "vhost-user-rng-pci,chardev=rng,vectors=0"];
    let (machine, mut agent) = Machine::boot_with(folder.path(), &["--append", "vnic.modules=base,rng"], &more);
    let source = agent.run(&["cat", "/sys/class/misc/hw_random/rng_current"]);
    assert!(source.contains("virtio_rng"), "{source}");

    let before = rng.counter("requestq", "bytes");
    let mut draw = || agent.run(&["sh", "-c", "dd if=/dev/hwrng bs=4096 count=4 2>/dev/null | md5sum"]);
    let (first, second) = (draw(), draw());
    assert_ne!(first, second);
    let given = rng.counter("requestq", "bytes") - before;
    assert!(given >= 2 * 4 * 4096, "the guest read 32768 bytes, and the device gave {given}");
    assert_eq!(["drops", "errors"].map(|name| rng.counter("requestq", name)), [0, 0]);
    let status = rng.status();
    assert_eq!((&status["device"], &status["queues"][0]["state"]), (&"rng".into(), &"running".into()), "{status}");
    machine.power_off(agent);
    assert!(rng.stop().success() && nic.stop().success());
}
