//! Firmware boots Linux over the device and a tap, by TFTP and by HTTP, and Linux takes the card over from it: the drivers of
//! iPXE, EDK2 (OVMF) and U-Boot post other buffers than Linux does.
//!
//! dnsmasq answers DHCP and TFTP in a network namespace of the test's own, a few lines here HTTP. What is served is the
//! kernel and the image that the other guests have; each firmware is handed them in the form that it takes.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use guest_fixture::{Child, Deadline, Device, Folder, Machine, note, prepared, skip, spec, until};

use super::tap::{TAP, far_end};

const SERVES: Deadline = Deadline::secs("dnsmasq to serve DHCP and TFTP", 20);
const FAR_END: &str = "10.0.2.2";
const KERNEL: &str = "vmlinuz";
const IMAGE: &str = "image.gz";

/// Who boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Firmware {
    Ipxe,
    Ovmf,
    /// Debian's has no HTTP: `CONFIG_CMD_WGET` and `CONFIG_PROT_TCP` are off. It is the 32-bit one, as a kernel that the 64-bit
    /// one starts resets the machine.
    Uboot,
}

/// From what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    Tftp,
    Http,
}

impl Firmware {
    /// Its file, and the Debian package that has it.
    const fn file(self) -> (&'static str, &'static str) {
        match self {
            Firmware::Ipxe => ("/usr/lib/ipxe/qemu/efi-virtio.rom", "ipxe-qemu"),
            Firmware::Ovmf => ("/usr/share/ovmf/OVMF.fd", "ovmf"),
            Firmware::Uboot => ("/usr/lib/u-boot/qemu-x86/u-boot.rom", "u-boot-qemu"),
        }
    }

    /// Writes what it is told by DHCP to load, which leads to kernel and image in the same folder. Returns the file's name.
    fn write_boot_file(self, folder: &Path, words: &str) -> &'static str {
        let (name, bytes) = match self {
            Firmware::Ipxe => {
                let script = format!("#!ipxe\nkernel {KERNEL} initrd={IMAGE} {words}\ninitrd {IMAGE}\nboot\n");
                ("boot.ipxe", script.into_bytes())
            }
            Firmware::Uboot => {
                let script = format!(
                    "tftpboot 0x1000000 {KERNEL}\ntftpboot 0x10000000 {IMAGE}\nsetenv bootargs {words}\n\
                     zboot 0x1000000 - 0x10000000 ${{filesize}}\n"
                );
                // What its own boot command asks for, whatever DHCP says.
                ("boot.scr.uimg", uboot_script(&script))
            }
            Firmware::Ovmf => return unified_image(folder, words),
        };
        fs::write(folder.join(name), bytes).expect("the boot file");
        name
    }
}

/// A script as U-Boot loads it: a legacy image header, the script's length, the script.
fn uboot_script(script: &str) -> Vec<u8> {
    let body = [&(script.len() as u32).to_be_bytes()[..], &[0; 4], script.as_bytes()].concat();
    let header = |checksum: u32| {
        let numbers = [0x2705_1956, checksum, 0, body.len() as u32, 0, 0, crc32(&body)];
        // Linux, i386, a script, not compressed; and a name.
        [numbers.map(u32::to_be_bytes).as_flattened(), &[5, 3, 6, 0], &[0; 32]].concat()
    };
    [header(crc32(&header(0))), body].concat()
}

/// IEEE 802.3's, as zlib has it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// Kernel, image and command line as one program of UEFI, by systemd's stub. Returns its name.
pub(super) fn unified_image(folder: &Path, words: &str) -> &'static str {
    let line = folder.join("words");
    fs::write(&line, words).expect("the kernel's words");
    let sections = [(".cmdline", line, 0x3_0000), (".linux", folder.join(KERNEL), 0x200_0000)];
    let mut objcopy = Command::new("objcopy");
    for (name, file, at) in sections.into_iter().chain([(".initrd", folder.join(IMAGE), 0x400_0000)]) {
        objcopy.arg("--add-section").arg(format!("{name}={}", file.display()));
        objcopy.arg("--change-section-vma").arg(format!("{name}={at:#x}"));
    }
    run(objcopy.arg(STUB).arg(folder.join("boot.efi")));
    "boot.efi"
}

const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

pub(super) fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Why it cannot be tried here.
fn missing(firmware: Firmware) -> Option<String> {
    let mut needed = vec![firmware.file()];
    if firmware == Firmware::Ovmf {
        needed.extend([(STUB, "systemd-boot-efi"), ("/usr/bin/objcopy", "binutils")]);
    }
    let absent =
        |(file, package): &(&str, &str)| (!Path::new(file).exists()).then(|| format!("no {file}: install {package}"));
    let dnsmasq = ["/usr/sbin/dnsmasq", "/sbin/dnsmasq", "/usr/bin/dnsmasq"];
    let no_dnsmasq = || dnsmasq.iter().all(|file| !Path::new(file).exists());
    needed.iter().find_map(absent).or_else(|| no_dnsmasq().then(|| "no dnsmasq: install dnsmasq-base".to_owned()))
}

/// Answers GET and HEAD with the folder's files, on as many connections as come, for as long as the test's process lives.
fn serve_http(folder: PathBuf) {
    let listener = TcpListener::bind((FAR_END, 80)).expect("the namespace's port 80");
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let folder = folder.clone();
            std::thread::spawn(move || answer(connection, &folder));
        }
    });
}

/// Answers what comes on a connection, until the client closes it.
fn answer(connection: TcpStream, folder: &Path) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection.try_clone()?).lines();
    let mut to = connection;
    while let Some(request) = lines.next().transpose()? {
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        while lines.next().transpose()?.is_some_and(|header| !header.is_empty()) {}
        let name = path.trim_start_matches('/');
        // Only what lies right there.
        let found = if name.contains('/') { None } else { fs::read(folder.join(name)).ok() };
        let status = if found.is_some() { "200 OK" } else { "404 Not Found" };
        let bytes = found.unwrap_or_default();
        write!(to, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: application/efi\r\n\r\n", bytes.len())?;
        if method == "GET" {
            to.write_all(&bytes)?;
        }
    }
    Ok(())
}

/// Takes from QEMU's command line what it would boot by itself: kernel and image stand in the folder from then on, for a firmware.
/// Returns the kernel's words.
pub(crate) fn take_kernel(command: &mut Vec<String>, folder: &Path) -> String {
    let mut take = |option: &str| {
        let at = command.iter().position(|word| word == option).unwrap_or_else(|| panic!("{option} is not given"));
        command.drain(at..at + 2).next_back().expect("an option and its value")
    };
    let (kernel, image, words) = (take("-kernel"), take("-initrd"), take("-append"));
    fs::copy(kernel, folder.join(KERNEL)).expect("the kernel");
    let packed = Command::new("gzip").args(["-1", "-c", &image]).output().expect("gzip runs");
    fs::write(folder.join(IMAGE), packed.stdout).expect("the image");
    words
}

/// Boots a guest over the device, has it send a file, and powers it off.
fn boots(firmware: Firmware, over: Over, nic: &str) {
    if let Some(why) = missing(firmware) {
        return skip(&why);
    }
    let Some(namespace) = far_end() else { return };
    let folder = Folder::new();
    let served = folder.path().join("served");
    fs::create_dir(&served).expect("a folder for what is served");

    let machine = prepared(folder.path(), &[]);
    let mut command = machine.command();
    let words = take_kernel(&mut command, &served);
    let boot_file = firmware.write_boot_file(&served, &words);

    let (file, _) = firmware.file();
    // A ROM by default, not by name: only then QEMU writes the device's ID into it, which a transitional one needs (the file is
    // for 1af4:1041, and SeaBIOS passes over a ROM of another device).
    let rom = if firmware == Firmware::Ipxe { "" } else { "romfile=," };
    let device = command.iter_mut().find(|word| word.starts_with("virtio-net-pci,")).expect("a NIC");
    *device = device.replace("romfile=", &format!("{rom}bootindex=1{nic}"));
    if firmware != Firmware::Ipxe {
        command.extend(["-bios", file].map(str::to_owned));
    }
    if firmware == Firmware::Uboot {
        // Its device tree is that of this machine: on a q35 it finds no NIC.
        let machine = command.iter_mut().find(|word| word.starts_with("q35,")).expect("a machine");
        *machine = machine.replace("q35", "pc");
    }
    if (firmware, over) == (Firmware::Ovmf, Over::Http) {
        // What it would try first, for a minute.
        for version in ["IPv4", "IPv6"] {
            command.push("-fw_cfg".to_owned());
            command.push(format!("name=opt/org.tianocore/{version}PXESupport,string=no"));
        }
    }

    let mut card = namespace.enter(|| Device::start(folder.path(), &["--link", &format!("tap:{TAP}")]));
    let _dnsmasq = namespace.enter(|| {
        let url = format!("http://{FAR_END}/{boot_file}");
        serve_http(served.clone());
        let mut dnsmasq = Command::new("dnsmasq");
        dnsmasq.args(["--no-daemon", "--conf-file=/dev/null", "--port=0", "--no-ping", "--user=root", "--pid-file="]);
        dnsmasq.args(["--bind-interfaces", "--dhcp-range=10.0.2.15,10.0.2.15,1h", "--enable-tftp"]);
        dnsmasq.arg(format!("--interface={TAP}")).arg(format!("--tftp-root={}", served.display()));
        dnsmasq.arg(format!("--dhcp-leasefile={}", folder.path().join("leases").display()));
        dnsmasq.arg(format!("--dhcp-boot={}", if over == Over::Http { &url } else { boot_file }));
        if over == Over::Http {
            // EDK2 takes a server for one that boots by HTTP only if that says so.
            dnsmasq.args(["--dhcp-vendorclass=set:http,HTTPClient", "--dhcp-option-force=tag:http,60,HTTPClient"]);
        }
        let dnsmasq = Child::start("dnsmasq", folder.path(), dnsmasq);
        until(SERVES, || dnsmasq.output().contains("TFTP root is").then_some(()));
        dnsmasq
    });

    note(&format!("{firmware:?} boots by {over:?}"));
    let mut machine = Machine::run(folder.path(), &command);
    let mut agent = machine.agent();
    note("Linux has taken the card over");
    agent.transfer(&spec("sendfile", 1 << 20));
    let counters = card.status()["link_counters"].clone();
    let loaded = fs::metadata(served.join(KERNEL)).expect("the kernel").len();
    assert!(counters["received_bytes"].as_u64() > Some(loaded), "the kernel came over the card: {counters}");
    assert_eq!(counters["dropped_no_room"], 0, "{counters}");
    assert_eq!(card.child().output().matches("front-end connected").count(), 1, "one session for both drivers");
    for queue in ["receiveq0", "transmitq0"] {
        assert_eq!(card.drops_and_errors(queue), (0, 0), "{queue}: drops, errors");
    }
    machine.power_off(agent);
    assert!(card.stop().success());
}

#[test]
fn ipxe_boots_by_tftp_and_linux_takes_the_card_over() {
    boots(Firmware::Ipxe, Over::Tftp, "");
}

#[test]
fn edk2_boots_by_http_and_linux_takes_the_card_over() {
    boots(Firmware::Ovmf, Over::Http, "");
}

#[test]
fn uboot_boots_by_tftp_from_a_modern_device_and_linux_takes_the_card_over() {
    boots(Firmware::Uboot, Over::Tftp, ",disable-legacy=on");
}

#[test]
fn ipxe_boots_by_http_and_linux_takes_the_card_over() {
    boots(Firmware::Ipxe, Over::Http, ",disable-legacy=on");
}

#[test]
fn edk2_boots_by_tftp_and_linux_takes_the_card_over() {
    boots(Firmware::Ovmf, Over::Tftp, ",disable-legacy=on");
}

#[test]
fn uboot_boots_by_tftp_from_a_transitional_device_and_linux_takes_the_card_over() {
    boots(Firmware::Uboot, Over::Tftp, "");
}
