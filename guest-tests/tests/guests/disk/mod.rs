//! A guest whose disks are ours: file systems on them, from the guest and from the host.

mod boots;
mod cold;
mod grub;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use guest_fixture::{Deadline, Device, Folder, Machine, is_root, judged_run, note, prepared, skip, until};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const WRITES: Deadline = Deadline::secs("the guest to write to its disk", 60);

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
fn a_guest_has_its_file_systems_on_our_disks_over_split_and_packed_rings_and_behind_its_iommu() {
    let folder = Folder::new();
    let options = ["--disk", "vhost", "--iommu", "--append", "vnic.modules=base,disk"];
    let mut machine = prepared(folder.path(), &options);
    let images = ["disk.ext4", "packed.ext4"].map(|name| folder.path().join(name));
    std::fs::copy(&images[0], &images[1]).expect("a second image");
    let socket = |name: &str| folder.path().join(name).display().to_string();
    let disks = [socket("disk.sock"), socket("packed.sock")];
    let options = [0, 1].map(|at| format!("{},file={},serial=disk-{at},queues=2", disks[at], images[at].display()));
    let device = Device::start(folder.path(), &["--blk", &options[0], "--blk", &options[1]]);
    machine.cpus = "2".to_owned();
    let mut words = machine.command();
    let chardev = format!("socket,id=packed,path={}", disks[1]);
    let behind = "iommu_platform=on,ats=on,disable-legacy=on";
    let packed = format!("vhost-user-blk-pci,chardev=packed,packed=on,num-queues=2,vectors=0,{behind}");
    words.extend(["-chardev", &chardev, "-device", &packed].map(str::to_owned));
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
    let wanted = ["ring_packed", "mq", "access_platform"];
    assert!(wanted.iter().all(|name| features(2).contains(name)), "{}", features(2));
    machine.power_off(agent);
    assert!(device.stop().success());
    for (image, digest) in images.iter().zip(&digests) {
        host(&["e2fsck", "-fn", &image.display().to_string()]);
        assert_eq!(digest_on(image, "/file"), *digest, "{}", image.display());
    }
}

/// Two writers: one copies a file again and again; one writes a numbered block, has it on the disk, and only then says so in a
/// file that is not on it.
const WRITERS: &str = "set -e; mkdir -p /mnt; mount -t ext4 /dev/vda /mnt; head -c 8388608 /dev/urandom > /tmp/source; echo 0 > /tmp/told
    (i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); cp /tmp/source /mnt/copy$((i%3)); sync; done; touch /tmp/copied) > /dev/null 2>&1 &
    (i=0; while [ ! -e /tmp/stop ]; do i=$((i+1))
        printf '%4095d\n' $i | dd of=/mnt/log bs=4096 count=1 seek=$((i-1)) conv=notrunc,fsync 2> /dev/null && echo $i > /tmp/told
    done; touch /tmp/logged) > /dev/null 2>&1 &";

#[test]
fn a_disk_that_is_killed_again_and_again_under_writes_loses_nothing_that_was_acknowledged() {
    killed_again_and_again("");
}

#[test]
#[ignore = "dear: scripts/disk.sh"]
fn a_disk_with_packed_rings_that_is_killed_again_and_again_loses_nothing_either() {
    killed_again_and_again(",packed=on");
}

/// Kills the disk of the image `disk.ext4` while a guest writes, each time when it has moved so many bytes more, and starts it anew:
/// twenty times at least, and until it once had something under way. Returns the last one, and how many requests were taken again.
fn kill_again_and_again(mut disk: Device, folder: &Path, bytes: u64) -> (Device, u64) {
    const DEATHS: u32 = 20;
    // On a crowded machine there are moments in which the device has nothing: then it is killed more often.
    const MOST: u32 = 4 * DEATHS;
    let mut resumed = 0;
    for death in 0..MOST {
        if death >= DEATHS && resumed > 0 {
            break;
        }
        let before = disk.counter("requestq0", "bytes");
        until(WRITES, || (disk.counter("requestq0", "bytes") > before + bytes).then_some(()));
        resumed += disk.counter("requestq0", "resumed");
        disk.child().kill();
        disk = Device::disk(folder, "disk.ext4");
        until(WRITES, || (disk.counter("requestq0", "chains") > 0).then_some(()));
        if death % 5 == 4 {
            note(&format!("killed {} times, {resumed} requests taken again", death + 1));
        }
    }
    assert!(resumed > 0, "killed {MOST} times, and nothing was ever in flight");
    (disk, resumed)
}

/// With these options for QEMU's device.
fn killed_again_and_again(options: &str) {
    let folder = Folder::new();
    let machine = prepared(folder.path(), &["--disk", "vhost", "--append", "vnic.modules=base,disk"]);
    let mut words = machine.command();
    let of_disk = words.iter_mut().find(|word| word.starts_with("vhost-user-blk-pci,")).expect("a disk");
    of_disk.push_str(options);
    let nic = Device::start(folder.path(), &[]);
    let disk = Device::disk(folder.path(), "disk.ext4");
    let mut machine = Machine::run(folder.path(), &words);
    let mut agent = machine.agent();
    let negotiated = disk.status()["features"]["negotiated"].to_string();
    assert_eq!(negotiated.contains("ring_packed"), options.contains("packed=on"), "{negotiated}");
    agent.run(&["sh", "-c", WRITERS]);
    let (disk, resumed) = kill_again_and_again(disk, folder.path(), 1 << 20);
    let said = agent.run(&[
        "sh",
        "-c",
        "touch /tmp/stop; while [ ! -e /tmp/copied ] || [ ! -e /tmp/logged ]; do sleep 1; done
        cat /tmp/told; umount /mnt; sha256sum /tmp/source | cut -d' ' -f1",
    ]);
    let said: Vec<&str> = said.split_whitespace().collect();
    let (told, digest): (usize, &str) = (said[0].parse().expect("a number"), said[1]);
    assert_eq!([disk.counter("requestq0", "drops"), disk.counter("requestq0", "errors")], [0, 0]);
    machine.power_off(agent);
    assert!(disk.stop().success() && nic.stop().success());
    let image = folder.path().join("disk.ext4");
    host(&["e2fsck", "-fn", &image.display().to_string()]);
    for copy in 0..3 {
        assert_eq!(digest_on(&image, &format!("/copy{copy}")), digest, "copy {copy}");
    }
    digest_on(&image, "/log");
    let log = std::fs::read_to_string(image.with_extension("file")).expect("the log");
    let lines: Vec<&str> = log.lines().map(str::trim_start).collect();
    assert!(told > 0 && lines.len() >= told, "{told} were acknowledged, and {} are there", lines.len());
    assert!((1..=told).all(|number| lines[number - 1] == number.to_string()), "an acknowledged block is another");
    note(&format!("{told} blocks acknowledged, {resumed} requests taken again"));
}

#[test]
fn a_cold_file_leaves_out_of_the_frames_that_our_disk_filled_unless_it_is_copied() {
    let folder = Folder::new();
    let rows = "sendfile-cold,read-write-cold,sendfile";
    let capture = folder.path().join("cold.pcapng");
    let recorded = format!("--labels --capture {}", capture.display());
    let run = judged_run(folder.path(), rows, &["--filesystem", "ext4", "--serve-options", &recorded]);
    let disk = |at: usize| run.methods[at].dma.disk.clone().expect("what the disk brought");
    let bytes = 16 << 20;
    let sent = disk(0);
    assert!(sent.requests > 0 && sent.descriptors >= sent.requests, "{sent:?}");
    assert!(sent.bytes >= bytes && sent.bytes_in_pages_sent >= bytes * 999 / 1000, "{sent:?}");
    assert!(sent.payload_bytes_in_pages_read >= bytes * 999 / 1000, "{sent:?}");
    let why = &run.methods[0].why;
    assert!(why.contains("disk: 100.0 % of the payload lay in pages"), "{why}");
    let copied = disk(1);
    assert!(copied.bytes >= bytes && copied.payload_bytes_in_pages_read <= bytes / 1000, "{copied:?}");
    assert!(disk(2).bytes < bytes / 100, "it was in memory already: {:?}", disk(2));
    // A frame's buffers in the capture: whose they were, and what had filled them.
    let capture = std::fs::read(&capture).expect("the capture");
    let said = String::from_utf8_lossy(&capture);
    assert!(said.contains(", filled from sector "), "the capture does not say from where its frames' pages came");
}

/// Does this in a mount namespace of its own: what is mounted is seen by those that are started there, and gone with them.
fn with_mounts_of_its_own(test: impl FnOnce() + Send) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    let own = || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace");
        // Nothing that is mounted here is mounted outside.
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("mounts of its own");
        test();
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name).spawn_scoped(scope, own).expect("a thread");
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

#[test]
fn a_full_host_disk_a_locked_image_and_one_that_shrinks_are_errors_that_the_guest_survives() {
    if !is_root() {
        return skip("a small file system is mounted by root only");
    }
    let folder = Folder::new();
    with_mounts_of_its_own(|| host_disks_that_fail(&folder));
}

fn host_disks_that_fail(folder: &Folder) {
    let small = folder.path().join("small");
    std::fs::create_dir(&small).expect("a folder");
    mount(Some("tmpfs"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=8M")).expect("a small file system");
    let image = small.join("disk.img");
    File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("a sparse image");
    let machine = prepared(folder.path(), &["--disk", "vhost", "--append", "vnic.modules=base,disk"]);
    let card = Device::start(folder.path(), &[]);
    let device = Device::disk(folder.path(), "small/disk.img");
    let locked = format!("{},file={}", folder.path().join("other.sock").display(), image.display());
    let refused = Command::new(guest_fixture::vnic()).args(["serve", "--blk", &locked]).output().expect("vnic runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(2) && said.contains("is locked by another program"), "{said}");
    let mut machine = Machine::run(folder.path(), &machine.command());
    let mut agent = machine.agent();
    let mut dd = |words: &str| {
        let script = format!("dd {words} bs=1M 2>&1 && echo fine || echo failed");
        agent.run(&["sh", "-c", &script])
    };
    let drops = |name: &str| device.counter("requestq0", name);

    let said = dd("if=/dev/urandom of=/dev/vda count=32 oflag=direct");
    assert!(said.contains("failed") && said.contains("Input/output error"), "{said}");
    assert!(drops("drop_io_error") > 0, "{}", device.status());
    let said = dd("if=/dev/vda of=/dev/null count=2 iflag=direct");
    assert!(said.contains("fine"), "what is there is read: {said}");

    File::options().write(true).open(&image).and_then(|file| file.set_len(1 << 20)).expect("it shrinks");
    let before = drops("drop_io_error");
    let said = dd("if=/dev/vda of=/dev/null skip=4 count=1 iflag=direct");
    assert!(said.contains("failed") && drops("drop_io_error") > before, "behind its end: {said}");
    let said = dd("if=/dev/zero of=/dev/vda seek=4 count=1 oflag=direct");
    assert!(said.contains("failed") && drops("drop_image_shrank") > 0, "it is not made longer again: {said}");
    assert_eq!(std::fs::metadata(&image).expect("the image").len(), 1 << 20);
    let said = dd("if=/dev/zero of=/dev/vda count=1 oflag=direct");
    assert!(said.contains("fine"), "what is left is written: {said}");
    assert_eq!(drops("errors"), 0);
    machine.power_off(agent);
    assert!(device.stop().success() && card.stop().success());
}
