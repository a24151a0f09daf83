//! A guest whose disks are ours: file systems on them, from the guest and from the host.

use std::path::Path;
use std::process::Command;

use guest_fixture::{Device, Folder, Machine, prepared};

/// What a program of the host's says.
#[track_caller]
fn host(words: &[&str]) -> String {
    let told = Command::new(words[0]).args(&words[1..]).output().unwrap_or_else(|error| panic!("{words:?}: {error}"));
    let said = [told.stdout, told.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(told.status.success(), "{words:?}: {}: {said}", told.status);
    said
}

/// The digest of a file on an image whose guest is gone.
fn digest_on(image: &Path, file: &str) -> String {
    let out = image.with_extension("file");
    host(&["debugfs", "-R", &format!("dump {file} {}", out.display()), &image.display().to_string()]);
    host(&["sha256sum", &out.display().to_string()]).split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn a_guest_has_its_file_systems_on_our_disks_over_split_and_packed_rings() {
    let folder = Folder::new();
    let mut machine = prepared(folder.path(), &["--disk", "vhost", "--append", "vnic.modules=base,disk"]);
    let images = ["disk.ext4", "packed.ext4"].map(|name| folder.path().join(name));
    std::fs::copy(&images[0], &images[1]).expect("a second image");
    let socket = |name: &str| folder.path().join(name).display().to_string();
    let disks = [socket("disk.sock"), socket("packed.sock")];
    let options = [0, 1].map(|at| format!("{},file={},serial=disk-{at},queues=2", disks[at], images[at].display()));
    let device = Device::start(folder.path(), &["--blk", &options[0], "--blk", &options[1]]);
    machine.cpus = "2".to_owned();
    let mut words = machine.command();
    let chardev = format!("socket,id=packed,path={}", disks[1]);
    let packed = "vhost-user-blk-pci,chardev=packed,packed=on,num-queues=2,vectors=0";
    words.extend(["-chardev", &chardev, "-device", packed].map(str::to_owned));
    let mut machine = Machine::run(folder.path(), &words);
    let mut agent = machine.agent();

    let mut digests = Vec::new();
    for (disk, serial) in [("vda", "disk-0"), ("vdb", "disk-1")] {
        assert_eq!(agent.run(&["cat", &format!("/sys/block/{disk}/serial")]), serial);
        let script = format!(
            "set -e; mkdir -p /mnt/{disk}; mount -t ext4 /dev/{disk} /mnt/{disk}; cd /mnt/{disk}
             dd if=/dev/urandom of=file bs=1M count=16 2>/dev/null; sync; sha256sum file | cut -d' ' -f1
             echo 3 > /proc/sys/vm/drop_caches; sha256sum file | cut -d' ' -f1; cd /; umount /mnt/{disk}"
        );
        let said = agent.run(&["sh", "-c", &script]);
        let said: Vec<&str> = said.split_whitespace().collect();
        assert!(said.len() == 2 && said[0] == said[1], "{disk}: read back other than was written: {said:?}");
        digests.push(said[0].to_owned());
    }
    for disk in ["blk0", "blk1"] {
        let count =
            |name: &str| ["requestq0", "requestq1"].map(|queue| device.counter(&format!("{disk}/{queue}"), name));
        let bytes: u64 = count("bytes").iter().sum();
        assert!(bytes >= 2 * (16 << 20), "{disk}: 16 MiB were written and read back, and {bytes} bytes moved");
        assert_eq!((count("drops"), count("errors")), ([0, 0], [0, 0]), "{disk}");
    }
    let status = device.status();
    let features = |at: usize| status["devices"][at]["features"]["negotiated"].to_string();
    assert!(features(1).contains("flush") && !features(1).contains("ring_packed"), "{}", features(1));
    assert!(features(2).contains("ring_packed") && features(2).contains("mq"), "{}", features(2));
    machine.power_off(agent);
    assert!(device.stop().success());
    for (image, digest) in images.iter().zip(&digests) {
        host(&["e2fsck", "-fn", &image.display().to_string()]);
        assert_eq!(digest_on(image, "/file"), *digest, "{}", image.display());
    }
}
