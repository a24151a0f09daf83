//! Debian's boot loader on our disk: SeaBIOS and EDK2 load GRUB from it, GRUB loads Debian's kernel from the root file system beside it
//! by the firmware's driver, and Linux has that file system on the same disk by its own. Takes minutes: `scripts/disk.sh grub`.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_fixture::{Device, Folder, Machine, note, prepared, repository, skip};
use guest_launcher::machine::Task;

use super::super::firmware::{run, take_kernel};
use super::boots::Shell;
use super::host;

const MIB: u64 = 1 << 20;
/// Where the partitions begin, and how long the first is.
const ESP: u64 = MIB;
const ESP_LEN: u64 = 32 * MIB;
const ROOT: u64 = ESP + ESP_LEN;

/// What starts the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Firmware {
    SeaBios,
    Edk2,
}

const OVMF: &str = "/usr/share/ovmf/OVMF.fd";
const MODULES: &str = "part_msdos ext2 fat search search_fs_file linux echo serial terminal boot";

/// GRUB's core with its modules and what it is to do, for one of its platforms.
fn core(folder: &Path, platform: &str, more: &str, words: &str) -> PathBuf {
    let (script, core) = (folder.join("early.cfg"), folder.join(format!("core.{platform}")));
    let kernel = format!(
        "serial --unit=0 --speed=115200\nterminal_output serial\necho GRUB was loaded from our disk\n\
         search --no-floppy --file /srv/vnic/init --set=root\nlinux /vmlinuz {words}\ninitrd /initrd.img\nboot\n"
    );
    fs::write(&script, kernel).expect("GRUB's script");
    let mut make = Command::new("grub-mkimage");
    make.args(["-O", platform, "-p", "/boot/grub", "-o"]).arg(&core).arg("-c").arg(&script);
    run(make.args(MODULES.split(' ')).args(more.split(' ')));
    core
}

/// An entry of the partition table: its type, and sectors.
fn entry(kind: u8, first: u64, len: u64) -> [u8; 16] {
    let [first, len] = [first, len].map(|bytes| u32::try_from(bytes / 512).expect("a small disk").to_le_bytes());
    let mut entry = [0; 16];
    entry[4] = kind;
    entry[8..12].copy_from_slice(&first);
    entry[12..].copy_from_slice(&len);
    entry
}

/// A disk as Debian's installer makes it: GRUB for BIOS before the first partition, GRUB for EFI in that one, the root file system in the
/// second.
fn disk_image(image: &Path, root: &Path, words: &str) {
    let folder = image.parent().expect("a folder");
    let len = root.metadata().expect("the root file system").len();
    let disk = File::create(image).expect("an image");
    disk.set_len(ROOT + len).expect("a sparse image");
    let place = |from: &Path, at: u64| {
        let (from, to) = (format!("if={}", from.display()), format!("of={}", image.display()));
        host(&["dd", &from, &to, "bs=1M", &format!("seek={}", at / MIB), "conv=sparse,notrunc", "status=none"]);
    };
    place(root, ROOT);
    let esp = folder.join("esp");
    File::create(&esp).and_then(|file| file.set_len(ESP_LEN)).expect("an image");
    let efi = core(folder, "x86_64-efi", "efi_gop", words);
    run(Command::new("mformat").arg("-i").arg(&esp).arg("::"));
    run(Command::new("mmd").arg("-i").arg(&esp).args(["::/EFI", "::/EFI/BOOT"]));
    run(Command::new("mcopy").arg("-i").arg(&esp).arg(&efi).arg("::/EFI/BOOT/BOOTX64.EFI"));
    place(&esp, ESP);
    // The boot sector loads what begins at sector 1, and that says itself how long it is.
    let bios = fs::read(core(folder, "i386-pc", "biosdisk", words)).expect("GRUB's core");
    assert!(512 + bios.len() as u64 <= ESP, "it does not fit before the first partition");
    let mut sector = fs::read("/usr/lib/grub/i386-pc/boot.img").expect("GRUB's boot sector");
    // All of the table: what GRUB has there is for floppy disks.
    sector[446..510].fill(0);
    sector[446..462].copy_from_slice(&entry(0xef, ESP, ESP_LEN));
    sector[462..478].copy_from_slice(&entry(0x83, ROOT, len));
    disk.write_all_at(&sector, 0).and_then(|()| disk.write_all_at(&bios, 512)).expect("an image");
}

/// What is not there.
fn missing() -> Option<&'static str> {
    let files = ["/usr/bin/grub-mkimage", "/usr/lib/grub/i386-pc/boot.img", "/usr/lib/grub/x86_64-efi/moddep.lst"];
    files.into_iter().chain([OVMF, "/usr/bin/mcopy"]).find(|file| !Path::new(file).exists())
}

fn boots(firmware: Firmware) {
    let root = repository().join("target/guest/servers/root.ext4");
    if !root.exists() {
        return skip("there is no target/guest/servers/root.ext4: scripts/get-root.sh makes it");
    }
    if let Some(missing) = missing() {
        return skip(&format!("there is no {missing}: scripts/disk.sh installs it"));
    }
    let folder = Folder::new();
    let mut machine = prepared(folder.path(), &["--disk", "vhost", "--memory", "1G"]);
    let record = folder.path().join("record.sock");
    let console = folder.path().join("console.log");
    machine.task = Task::Disk { init: "/srv/vnic/init".to_owned(), record: record.clone(), console: console.clone() };
    let mut command = machine.command();
    let words = take_kernel(&mut command, folder.path()).replace("root=/dev/vda ", "root=/dev/vda2 ");
    assert!(words.contains("root=/dev/vda2 "), "{words}");
    disk_image(&folder.path().join("disk.ext4"), &root, &words);
    let device = command.iter_mut().find(|word| word.starts_with("vhost-user-blk-pci,")).expect("a disk");
    device.push_str(",bootindex=1");
    if firmware == Firmware::Edk2 {
        command.extend(["-bios", OVMF].map(str::to_owned));
    }
    let card = Device::start(folder.path(), &[]);
    let disk = Device::disk(folder.path(), "disk.ext4");
    let mut machine = Machine::run(folder.path(), &command);
    machine.wait_for_console("GRUB was loaded from our disk");
    let read = disk.counter("requestq0", "bytes");
    machine.wait_for_record_port();
    let mut shell = Shell::connect(&record);
    assert_eq!(shell.run("findmnt -n -o SOURCE / | grep -q ^/dev/vda2$"), "0", "its root is our disk's partition");
    note(&format!("{firmware:?}: GRUB was there after {} KiB, the Debian after {} MiB", read >> 10, {
        disk.counter("requestq0", "bytes") >> 20
    }));
    assert_eq!(disk.drops_and_errors("requestq0"), (0, 0));
    assert_eq!(shell.run("sync; mount -o remount,ro / || echo s > /proc/sysrq-trigger; sync"), "0");
    drop(machine);
    assert!(disk.stop().success() && card.stop().success());
}

#[test]
#[ignore = "dear: scripts/disk.sh"]
fn seabios_loads_grub_which_loads_a_debian_from_our_disk() {
    boots(Firmware::SeaBios);
}

#[test]
#[ignore = "dear: scripts/disk.sh"]
fn edk2_loads_grub_which_loads_a_debian_from_our_disk() {
    boots(Firmware::Edk2);
}
