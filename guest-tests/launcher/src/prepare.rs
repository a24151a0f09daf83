//! From options to a machine: fetches, builds and writes what it is made of.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use guest_image::Initramfs;
use vnic_experiment::filesystem::{Disk, EXT4};
use vnic_experiment::wire::KERNEL_MODULES;

use crate::children::dies_with_us;
use crate::machine::{Accelerator, Backend, Machine, Nic, Qemu, Task};
use crate::options::{DiskServer, Netdev};
use crate::{Failure, Options, accelerator, in_path, repository, shown};

const TARGET: &str = "x86_64-unknown-linux-gnu";
const OTHER_QEMUS: &str = "qemu-system-x86 (Debian, Ubuntu, Arch), qemu-system-x86-core (Fedora), qemu-x86 (openSUSE)";
const OTHER_BUSYBOXES: &str = "busybox-static (Debian, Ubuntu), busybox (Fedora, Arch)";

/// Bytes of the guest's disk.
const DISK: u64 = 512 << 20;

/// Everything the options' machine needs is there when this returns.
///
/// # Errors
/// Something cannot be fetched, built or written.
pub fn prepare(options: &Options) -> Result<Machine, Failure> {
    let guest = repository().join("target/guest");
    let folder = options.folder()?;
    for folder in [&guest, &folder] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    // One at a time: tests and people may start guests side by side.
    let lock = File::create(guest.join("lock")).context("target/guest/lock")?;
    lock.lock().context("target/guest/lock")?;
    let qemu = qemu(options, &guest)?;
    let (kernel, modules) = kernel(options, &guest)?;
    let initramfs = initramfs(options, &guest, &folder, &modules)?;
    drop(lock);
    let backend = match &options.netdev {
        Netdev::User => Backend::User { forwarded: Vec::new() },
        Netdev::Tap(name) => Backend::Tap(name.clone()),
        Netdev::Stream(path) => Backend::Stream(path.clone()),
        Netdev::Vhost => Backend::VhostUser {
            socket: folder.join("vnic.sock"),
            listens: options.client,
            queue_pairs: options.queue_pairs.get(),
        },
    };
    let task = match &options.command {
        _ if options.is_judged() || options.task.is_some() => {
            Task::Agent { record: folder.join("record.sock"), console: folder.join("console.log") }
        }
        Some(command) => Task::Command(command.clone()),
        None => Task::Shell,
    };
    let disk = disk(&folder, options)?;
    let served = options.disk_server() == DiskServer::Vhost && disk.is_some();
    let mut machine = Machine {
        qemu,
        accelerator: Accelerator::Tcg,
        memory: options.memory.clone(),
        cpus: options.cpus.clone(),
        kernel,
        initramfs,
        iommu: options.iommu,
        nic: Some(Nic { backend, msix: options.msix, options: options.nic_options.clone() }),
        disk_socket: served.then(|| folder.join("disk.sock")),
        disk,
        disk_is_scratch: false,
        plugin: options.touches.then(|| plugin().map(|plugin| (plugin, folder.join("touches.sock")))).transpose()?,
        task,
        append: append(options),
    };
    machine.accelerator = accelerator::choose(options.accel, &machine)?;
    Ok(machine)
}

/// More words for the kernel's command line.
fn append(options: &Options) -> Option<String> {
    // What a cold file's pages held while it was made would be found in free memory, too, and taken for copies.
    let cold = options.transfer.as_deref().is_some_and(|rows| rows.contains("-cold"));
    // So would what a file system took through other memory while the file was made: packers, servers.
    let beside = options.filesystem.0.iter().any(|filesystem| filesystem.modules.is_some());
    let words = (cold || beside).then(|| "init_on_free=1".to_owned()).into_iter().chain(options.append.clone());
    let words = words.collect::<Vec<_>>().join(" ");
    (!words.is_empty()).then_some(words)
}

/// `$QEMU`, that of Debian's backports, or the one in `PATH`, which is installed if it is not there.
fn qemu(options: &Options, guest: &Path) -> Result<Qemu, Failure> {
    let program = std::env::var("QEMU").ok().filter(|program| !program.is_empty());
    let program = program.unwrap_or_else(|| "qemu-system-x86_64".to_owned());
    if !program.contains('/') && in_path(&program).is_none() {
        need(&program, "qemu-system-x86", OTHER_QEMUS)?;
    }
    if options.newer_qemu {
        get_kernel(&["--newer-qemu"])?;
        return Ok(Qemu::of(&guest.join("qemu/usr/bin/qemu-system-x86_64"))?);
    }
    Ok(Qemu::of(Path::new(&program))?)
}

/// The plugin that counts accesses: `$TOUCHES`, or built now.
fn plugin() -> Result<PathBuf, Failure> {
    if let Some(plugin) = std::env::var_os("TOUCHES").filter(|plugin| !plugin.is_empty()) {
        return Ok(plugin.into());
    }
    if !cargo(&["cargo", "build", "--release", "--locked", "--package", "guest-touches"], &[]) {
        return Err(Failure::Said("QEMU's plugin does not build".to_owned()));
    }
    Ok(repository().join("target/release/libguest_touches.so"))
}

/// The kernel and its modules.
fn kernel(options: &Options, guest: &Path) -> Result<(PathBuf, PathBuf), Failure> {
    let (kernel, modules) = match (&options.kernel, &options.modules, &options.debian_kernel) {
        (Some(kernel), Some(modules), _) => (kernel.clone(), modules.clone()),
        (_, _, which) => {
            let name = match which {
                Some(which) => {
                    get_kernel(&["--kernel", which])?;
                    which
                }
                None if options.newer_kernel => {
                    get_kernel(&["--newer"])?;
                    "newer"
                }
                None => {
                    get_kernel(&[])?;
                    "stable"
                }
            };
            let folder = guest.join("kernel").join(name);
            (folder.join("vmlinuz"), folder.join("modules"))
        }
    };
    File::open(&kernel).map_err(|_| anyhow!("cannot read the kernel {}", kernel.display()))?;
    let found = modules.canonicalize().ok().filter(|folder| folder.is_dir());
    let modules =
        found.with_context(|| format!("there is no folder {} with the kernel's modules", modules.display()))?;
    Ok((kernel, modules))
}

/// The guest's own programs: `$GUEST_PROGRAMS`, or built now.
fn guest_programs(guest: &Path) -> Result<PathBuf, Failure> {
    if let Some(programs) = std::env::var_os("GUEST_PROGRAMS").filter(|programs| !programs.is_empty()) {
        return Ok(programs.into());
    }
    static BUILT: OnceLock<bool> = OnceLock::new();
    let build = guest.join("build");
    let built = BUILT.get_or_init(|| {
        let words = [
            "cargo",
            "build",
            "--locked",
            "--profile",
            "guest",
            "--package",
            "guest-agent",
            "--package",
            "vnic-driver",
            "--bins",
        ];
        let build = build.to_string_lossy();
        let words = [&words[..], &["--examples", "--target", TARGET, "--target-dir", &build]].concat();
        cargo(&words, &[("RUSTFLAGS", "-C target-feature=+crt-static")])
    });
    if !built {
        return Err(Failure::Said("the guest's programs do not build".to_owned()));
    }
    Ok(build.join(TARGET).join("guest"))
}

fn initramfs(options: &Options, guest: &Path, folder: &Path, modules: &Path) -> Result<PathBuf, Failure> {
    let programs = guest_programs(guest)?;
    let fetched = guest.join("busybox/bin/busybox");
    let busybox = match Some(fetched).filter(|program| program.is_file()).or_else(|| in_path("busybox")) {
        Some(busybox) => busybox,
        None => {
            need("busybox", "busybox-static", OTHER_BUSYBOXES)?;
            in_path("busybox").context("busybox is installed and not there")?
        }
    };
    let groups: Vec<&str> = options.filesystem.0.iter().filter_map(|filesystem| filesystem.modules).collect();
    let mut with: Vec<_> = options.with.iter().map(|with| (with.path.clone(), with.place.clone())).collect();
    with.extend(options.kernel_module.iter().map(|file| {
        let name = file.file_name().unwrap_or_default();
        (file.clone(), Path::new(KERNEL_MODULES).join(name))
    }));
    for (tool, package) in options.filesystem.0.iter().filter_map(|filesystem| filesystem.tool) {
        need(tool, package, package)?;
        let program = in_path(tool).with_context(|| format!("{package} is installed, and there is no {tool}"))?;
        with.push((program, Path::new("/bin").join(tool)));
        // The C library loads it when a thread ends, and no program names it.
        with.extend(library("libgcc_s.so.1").map(|library| (library.clone(), library)));
    }
    // In a tree where a kernel is built modules change one by one: its image is not kept. Nor is one with files of the host's.
    let is_kept = modules.starts_with(guest.join("kernel")) && with.is_empty();
    let output = match is_kept && !groups.iter().any(|group| guest_image::modules::is_extra(group)) {
        true => guest.join(format!("initramfs-{}.cpio", modules.file_name().unwrap_or_default().display())),
        false => folder.join("initramfs.cpio"),
    };
    let image = Initramfs { modules: modules.to_owned(), groups, programs, busybox, with };
    for line in image.write(&output).context("the initramfs cannot be written")? {
        eprintln!("{line}");
    }
    Ok(output)
}

/// A shared library of the host's, as its linker finds it.
fn library(name: &str) -> Option<PathBuf> {
    let known = Command::new(in_path("ldconfig")?).arg("-p").output().ok()?;
    let known = String::from_utf8(known.stdout).ok()?;
    let line = known.lines().find(|line| line.trim_start().starts_with(name) && line.contains("x86-64"))?;
    line.split(" => ").nth(1).map(PathBuf::from)
}

/// A disk for the rows that read a file from one, with an empty file system that was asked for, else with ext4: sparse, so it
/// takes little room. Without the tool for ext4 the guest has none, and says so where it is asked for a file there.
fn disk(folder: &Path, options: &Options) -> Result<Option<PathBuf>, Failure> {
    let asked = options.filesystem.disk().map_err(|why| anyhow!(why))?;
    let image = folder.join("disk.ext4");
    // There is one from an earlier run, or none.
    let _ = fs::remove_file(&image);
    let file = File::create(&image).with_context(|| image.display().to_string())?;
    file.set_len(DISK).context("the guest's disk")?;
    let wanted = if asked == Disk::Any { EXT4 } else { asked };
    let Disk::Made(tool, words, package) = wanted else { return Ok(Some(image)) };
    if wanted != EXT4 {
        need(tool, package, package)?;
    }
    let Some(program) = in_path(tool) else { return Ok(None) };
    let made = Command::new(program).args(words).arg(&image).stdout(Stdio::null()).status().context(tool)?;
    if !made.success() && wanted != EXT4 {
        return Err(Failure::Said(format!("{tool} makes no file system on {}", image.display())));
    }
    Ok(made.success().then_some(image))
}

/// Runs cargo in the repository. Did it go well? If not, it has said why.
pub(crate) fn cargo(words: &[&str], variables: &[(&str, &str)]) -> bool {
    eprintln!("+ {}", shown(words));
    let mut command = dies_with_us(words);
    command.envs(variables.iter().copied()).current_dir(repository()).stdin(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Sees to it that a tool is there, as the scripts do.
fn need(tool: &str, package: &str, others: &str) -> Result<(), Failure> {
    let lib = repository().join("scripts/lib.sh");
    let words = ["bash", "-c", ". \"$1\" && shift && need \"$@\"", "run-qemu.sh"];
    let mut command = dies_with_us(&words);
    let status = command.arg(lib).args([tool, package, others]).status().context("bash")?;
    if status.success() { Ok(()) } else { Err(Failure::Said(format!("{tool} is missing"))) }
}

/// Runs `scripts/get-kernel.sh`; what it says last is the reason where something is not to be had.
fn get_kernel(words: &[&str]) -> Result<(), Failure> {
    let script = repository().join("scripts/get-kernel.sh");
    let mut command = dies_with_us(&[&script.to_string_lossy()]);
    let mut child = command.args(words).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().context("get-kernel.sh")?;
    let mut last = String::new();
    for line in child.stderr.take().into_iter().flat_map(|said| BufReader::new(said).lines()).map_while(Result::ok) {
        eprintln!("{line}");
        last = line;
    }
    match child.wait().context("get-kernel.sh")? {
        status if status.success() => Ok(()),
        status if status.code() == Some(3) => Err(Failure::NotToBeHad(last)),
        _ => Err(Failure::Said(last)),
    }
}
