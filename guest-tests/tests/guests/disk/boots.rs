//! Who boots from our disk: SeaBIOS and EDK2 load from it by drivers of their own, and a Debian has its root file system there. They
//! take minutes: `scripts/disk.sh` makes what they need and runs them.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use guest_fixture::{Child, Deadline, Device, Folder, Machine, note, prepared, repository, skip, until};
use guest_launcher::machine::Task;

use super::super::firmware::{run, take_kernel, unified_image};
use super::{host, kill_again_and_again};

const SAYS_WORD: Deadline = Deadline::secs("the boot sector to say its word", 60);
const WORD: &str = "loaded by SeaBIOS from our disk";

/// A boot sector that has the BIOS read the next one, and writes the text in there to the serial port.
fn boot_sectors() -> Vec<u8> {
    #[rustfmt::skip]
    let code = [
        0x31, 0xc0,             // xor ax, ax
        0x8e, 0xd8,             // mov ds, ax
        0xbe, 0x40, 0x7c,       // mov si, 0x7c40: what is to be read
        0xb4, 0x42,             // mov ah, 0x42: extended read; dl is the disk that we are from
        0xcd, 0x13,             // int 0x13
        0x72, 0xfe,             // jc $: no word, then
        0xbe, 0x00, 0x7e,       // mov si, 0x7e00
        0xfc,                   // cld
        // next:
        0xac,                   // lodsb
        0x84, 0xc0,             // test al, al
        0x74, 0xfe,             // jz $
        0xba, 0xf8, 0x03,       // mov dx, 0x3f8
        0xee,                   // out dx, al
        0xeb, 0xf5,             // jmp next
    ];
    // So long, so many sectors, to 0000:7e00, from sector 1.
    let packet = [0x10, 0, 1, 0, 0x00, 0x7e, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    let mut sectors = vec![0; 1 << 20];
    sectors[..code.len()].copy_from_slice(&code);
    sectors[0x40..0x50].copy_from_slice(&packet);
    sectors[510..512].copy_from_slice(&[0x55, 0xaa]);
    sectors[512..512 + WORD.len()].copy_from_slice(WORD.as_bytes());
    sectors
}

/// QEMU's words for our disk, the first to be booted from, served from this image; and who serves it.
fn disk(folder: &Path, image: &str) -> (Device, [String; 4]) {
    let chardev = format!("socket,id=boot,path={}", folder.join("disk.sock").display());
    let device = "vhost-user-blk-pci,chardev=boot,vectors=0,bootindex=1".to_owned();
    (Device::disk(folder, image), ["-chardev".to_owned(), chardev, "-device".to_owned(), device])
}

#[test]
#[ignore = "dear: scripts/disk.sh"]
fn seabios_loads_a_boot_sector_and_what_that_asks_for() {
    let folder = Folder::new();
    fs::write(folder.path().join("boot.img"), boot_sectors()).expect("an image");
    let (device, words) = disk(folder.path(), "boot.img");
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-machine", "q35,accel=tcg", "-m", "64M", "-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.args(["-object", "memory-backend-memfd,id=ram,size=64M,share=on", "-numa", "node,memdev=ram"]);
    let serial = folder.path().join("serial");
    qemu.arg("-serial").arg(format!("file:{}", serial.display())).args(words);
    let mut qemu = Child::start("qemu", folder.path(), qemu).and_show(serial.clone());
    until(SAYS_WORD, || {
        assert!(qemu.ended().is_none(), "QEMU ended");
        fs::read_to_string(&serial).is_ok_and(|said| said.contains(WORD)).then_some(())
    });
    assert!(device.counter("requestq0", "bytes") >= 1024);
    assert_eq!(device.drops_and_errors("requestq0"), (0, 0));
}

#[test]
#[ignore = "dear: scripts/disk.sh"]
fn edk2_loads_a_kernel_of_many_mebibytes() {
    const OVMF: &str = "/usr/share/ovmf/OVMF.fd";
    let tools = [OVMF, "/usr/bin/mcopy", "/usr/lib/systemd/boot/efi/linuxx64.efi.stub", "/usr/bin/objcopy"];
    if let Some(missing) = tools.iter().find(|tool| !Path::new(tool).exists()) {
        return skip(&format!("there is no {missing}: scripts/disk.sh installs it"));
    }
    let folder = Folder::new();
    let machine = prepared(folder.path(), &[]);
    let mut command = machine.command();
    let words = take_kernel(&mut command, folder.path());
    let program = folder.path().join(unified_image(folder.path(), &words));
    let loaded = fs::metadata(&program).expect("the program").len();
    // A FAT file system on the whole disk, as on a stick.
    let disk_image = folder.path().join("boot.img");
    fs::File::create(&disk_image).and_then(|file| file.set_len(256 << 20)).expect("an image");
    run(Command::new("mformat").arg("-i").arg(&disk_image).args(["-F", "::"]));
    run(Command::new("mmd").arg("-i").arg(&disk_image).args(["::/EFI", "::/EFI/BOOT"]));
    run(Command::new("mcopy").arg("-i").arg(&disk_image).arg(&program).arg("::/EFI/BOOT/BOOTX64.EFI"));
    let card = Device::start(folder.path(), &[]);
    let (device, words) = disk(folder.path(), "boot.img");
    command.extend(words);
    command.extend(["-bios", OVMF].map(str::to_owned));
    let mut machine = Machine::run(folder.path(), &command);
    let agent = machine.agent();
    let bytes = device.counter("requestq0", "bytes");
    assert!(bytes >= loaded, "{bytes} bytes were read, and the program has {loaded}");
    assert_eq!(device.drops_and_errors("requestq0"), (0, 0));
    note(&format!("Linux is up: {} MiB came from the disk", bytes >> 20));
    machine.power_off(agent);
    assert!(device.stop().success() && card.stop().success());
}

/// The Debian's first program: a command a line, its exit code back.
pub(super) struct Shell(BufReader<UnixStream>);

impl Shell {
    /// Waits until the Debian is up.
    #[track_caller]
    pub(super) fn connect(record: &Path) -> Shell {
        let stream = UnixStream::connect(record).expect("the guest's port");
        stream.set_read_timeout(Some(Duration::from_secs(300))).expect("a read timeout");
        let mut shell = Shell(BufReader::new(stream));
        assert_eq!(shell.hear(), "up", "the guest's first word");
        shell
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("the guest's port");
        line.trim_end().to_owned()
    }

    pub(super) fn run(&mut self, command: &str) -> String {
        self.0.get_mut().write_all(format!("{command}\n").as_bytes()).expect("the guest's port");
        self.hear()
    }
}

/// fio writes random blocks with checksums, several under way, and reads them all back; again and again.
const FIO: &str = "fio --name=v --filename=/root/v --size=32M --rw=randwrite --bs=4k --iodepth=16 --ioengine=io_uring --direct=1 \
    --verify=crc32c --do_verify=1 --verify_fatal=1 --time_based --runtime=60";

#[test]
#[ignore = "dear: scripts/disk.sh"]
fn a_debian_has_its_root_on_our_disk_which_is_killed_twenty_times_while_fio_verifies() {
    let made = repository().join("target/guest/servers");
    if !made.join("root.ext4").exists() {
        return skip("there is no target/guest/servers/root.ext4: scripts/get-root.sh makes it");
    }
    let folder = Folder::new();
    let mut machine = prepared(folder.path(), &["--disk", "vhost", "--memory", "1G"]);
    let record = folder.path().join("record.sock");
    (machine.kernel, machine.initramfs) = (made.join("vmlinuz"), made.join("initrd"));
    let console = folder.path().join("console.log");
    machine.task = Task::Disk { init: "/srv/vnic/init".to_owned(), record: record.clone(), console };
    // What `prepared` put there is an empty file system.
    let image = folder.path().join("disk.ext4").display().to_string();
    host(&["cp", "--sparse=always", &made.join("root.ext4").display().to_string(), &image]);
    let card = Device::start(folder.path(), &[]);
    let device = Device::disk(folder.path(), "disk.ext4");
    let mut machine = Machine::run(folder.path(), &machine.command());
    machine.wait_for_record_port();
    let mut shell = Shell::connect(&record);
    assert_eq!(shell.run("findmnt -n -o SOURCE / | grep -q ^/dev/vda$"), "0", "its root is our disk");
    note("the Debian is up");
    assert_eq!(shell.run(&format!("({FIO}; echo $? > /run/verified) > /run/fio 2>&1 &")), "0");
    let device = kill_again_and_again(device, folder.path(), 2 << 20).0;
    assert_eq!(shell.run("test ! -e /run/verified"), "0", "fio had ended before the last death");
    let ended = "while [ ! -e /run/verified ]; do sleep 1; done; cat /run/fio; exit $(cat /run/verified)";
    assert_eq!(shell.run(ended), "0", "fio says that it read other than it wrote: see the console");
    assert_eq!(device.drops_and_errors("requestq0"), (0, 0));
    assert_eq!(shell.run("sync; mount -o remount,ro / || echo s > /proc/sysrq-trigger; sync"), "0");
    drop(machine);
    assert!(device.stop().success() && card.stop().success());
    // The journal is played first, where the file system could not be made read-only under its first program.
    let _ = Command::new("e2fsck").args(["-fy", "-E", "journal_only", &image]).output();
    host(&["e2fsck", "-fn", &image]);
}
