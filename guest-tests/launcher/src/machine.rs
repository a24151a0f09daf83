//! A virtual machine as data, and QEMU's command line for it.

use std::fmt::{Display, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result};

/// A virtual machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// What runs it.
    pub qemu: Qemu,
    /// How.
    pub accelerator: Accelerator,
    /// Of the guest, in QEMU's notation.
    pub memory: String,
    /// Of the guest, in QEMU's notation.
    pub cpus: String,
    /// A bzImage.
    pub kernel: PathBuf,
    /// The guest's first file system.
    pub initramfs: PathBuf,
    /// Whether there is an IOMMU between devices and the guest's memory.
    pub iommu: bool,
    /// Its NIC.
    pub nic: Option<Nic>,
    /// An image for its disk.
    pub disk: Option<PathBuf>,
    /// Where the vhost-user back-end is that serves it; none: QEMU does itself.
    pub disk_socket: Option<PathBuf>,
    /// Whether what the guest writes to the disk is forgotten, where QEMU serves it.
    pub disk_is_scratch: bool,
    /// A plugin of QEMU's, and where it answers.
    pub plugin: Option<(PathBuf, PathBuf)>,
    /// What it is to do.
    pub task: Task,
    /// More words for the kernel's command line.
    pub append: Option<String>,
}

/// A virtio-net device, and who is behind it.
#[derive(Debug, Clone)]
pub struct Nic {
    /// Who takes its frames.
    pub backend: Backend,
    /// Whether it has MSI-X; none: where this QEMU can.
    pub msix: Option<bool>,
    /// More of QEMU's options for it.
    pub options: Option<String>,
}

/// Who takes a NIC's frames.
#[derive(Debug, Clone)]
pub enum Backend {
    /// A vhost-user back-end, such as `vnic serve`.
    VhostUser {
        /// Where they meet.
        socket: PathBuf,
        /// Whether QEMU listens there; else it connects.
        listens: bool,
        /// At least one.
        queue_pairs: u16,
    },
    /// QEMU's own network without privileges.
    User {
        /// Ports of the host's loopback that lead to the guest's: host, guest.
        forwarded: Vec<(u16, u16)>,
    },
    /// QEMU itself, on this tap device.
    Tap(String),
    /// The program that listens at this socket.
    Stream(PathBuf),
}

/// What the guest does once it is up.
#[derive(Debug, Clone)]
pub enum Task {
    /// Says that it is up, and powers off.
    Probe,
    /// A shell on the terminal.
    Shell,
    /// This command, its output on standard output.
    Command(String),
    /// Its agent waits for a host.
    Agent {
        /// The socket where it can be spoken to.
        record: PathBuf,
        /// A file for what the guest's kernel says.
        console: PathBuf,
    },
    /// Its disk is its root file system, whose own first program waits for a host, as the agent does.
    Disk {
        /// The first program.
        init: String,
        /// The socket where it can be spoken to.
        record: PathBuf,
        /// A file for what the guest's kernel says.
        console: PathBuf,
    },
}

/// How the guest's instructions are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// By the CPU.
    Kvm,
    /// By QEMU.
    Tcg,
}

impl Accelerator {
    /// As QEMU calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        }
    }
}

impl FromStr for Accelerator {
    type Err = &'static str;

    fn from_str(name: &str) -> Result<Accelerator, Self::Err> {
        [Accelerator::Kvm, Accelerator::Tcg].into_iter().find(|known| known.name() == name).ok_or("it is kvm or tcg")
    }
}

/// A QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// Its program.
    pub program: PathBuf,
    /// As it says: 7.2.22.
    pub version: String,
}

impl Qemu {
    /// Asks a program for its version.
    ///
    /// # Errors
    /// It does not run, or is none.
    pub fn of(program: &Path) -> Result<Qemu> {
        let said = Command::new(program).arg("--version").output().with_context(|| program.display().to_string())?;
        let said = String::from_utf8_lossy(&said.stdout);
        let version = said.strip_prefix("QEMU emulator version ").and_then(|rest| rest.split([' ', '\n']).next());
        let version =
            version.with_context(|| format!("{} --version does not say QEMU's version", program.display()))?;
        Ok(Qemu { program: program.to_owned(), version: version.to_owned() })
    }

    /// At least this one?
    fn is_from(&self, major: u32) -> bool {
        self.version.split('.').next().and_then(|number| number.parse().ok()).is_some_and(|own: u32| own >= major)
    }

    /// QEMU crashes under TCG with a vhost-user NIC that has MSI-X vectors, at least up to 7.2; 10.0 does not.
    fn has_msix(&self, accelerator: Accelerator) -> bool {
        accelerator == Accelerator::Kvm || self.is_from(10)
    }

    /// QEMU 7.2's TCG leaves garbage in EFLAGS behind cmpxchg16b; an interrupt right there, and Linux 6.12, whose allocator
    /// uses the instruction, dies of a double fault. Seen with 7.2.22; QEMU 10 keeps the instruction.
    fn has_cmpxchg16b(&self) -> bool {
        self.is_from(10)
    }
}

/// A command line in the making.
struct Line(Vec<String>);

impl Line {
    fn add(&mut self, option: &str, value: impl Display) {
        self.0.extend([option.to_owned(), value.to_string()]);
    }

    /// A console into a file, and a port where a program in the guest can be spoken to.
    fn add_record(&mut self, record: &Path, console: &Path) {
        self.add("-serial", format_args!("file:{}", console.display()));
        self.add("-device", "virtio-serial-pci");
        self.add("-chardev", format_args!("socket,id=record,path={},server=on,wait=off", record.display()));
        self.add("-device", "virtserialport,chardev=record,name=vnic.record");
    }
}

impl Machine {
    /// QEMU's program and its arguments.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        let kvm = self.accelerator == Accelerator::Kvm;
        let mut line = Line(vec![self.qemu.program.display().to_string()]);
        line.add("-machine", format_args!("q35,accel={}", self.accelerator.name()));
        line.add("-m", &self.memory);
        line.add("-smp", &self.cpus);
        line.0.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(str::to_owned));
        line.add("-display", "none");
        // All of the guest's RAM is one shared file: that is how a vhost-user device sees it.
        line.add("-object", format_args!("memory-backend-memfd,id=ram,size={},share=on", self.memory));
        line.add("-numa", "node,memdev=ram");
        line.add("-kernel", self.kernel.display());
        line.add("-initrd", self.initramfs.display());
        line.add(
            "-cpu",
            match kvm {
                true => "host",
                false if self.qemu.has_cmpxchg16b() => "max",
                false => "max,cx16=off",
            },
        );
        let mut words = "console=ttyS0 quiet panic=-1".to_owned();
        if self.iommu {
            // Interrupts go through it too, or no program may have a device; with KVM that takes half of its interrupt controller.
            if kvm {
                line.add("-machine", "kernel-irqchip=split");
            }
            line.add("-device", "intel-iommu,intremap=on,device-iotlb=on,caching-mode=on");
            words += " intel_iommu=on";
        }
        if !kvm {
            // The kernel counts timer interrupts against its own clock at start, and panics where a busy host's emulator delivers
            // too few.
            words += " no_timer_check";
        }
        if let Some(nic) = &self.nic {
            self.add_nic(&mut line, nic);
        }
        if let Some(socket) = &self.disk_socket {
            line.add("-chardev", format_args!("socket,id=disk,path={},{}", socket.display(), self.reconnect()));
            // The same as a NIC has.
            let vectors = if self.qemu.has_msix(self.accelerator) { "" } else { ",vectors=0" };
            // QEMU wants a queue for each of the guest's CPUs unless it is told how many there are.
            line.add("-device", format_args!("vhost-user-blk-pci,chardev=disk,num-queues=1{vectors}"));
        } else if let Some(disk) = &self.disk {
            let scratch = if self.disk_is_scratch { ",snapshot=on" } else { "" };
            line.add(
                "-drive",
                format_args!("if=none,id=disk,file={},format=raw,cache=unsafe{scratch}", disk.display()),
            );
            line.add("-device", "virtio-blk-pci,drive=disk");
        }
        if let Some((plugin, socket)) = &self.plugin {
            line.add("-plugin", format_args!("file={},socket={}", plugin.display(), socket.display()));
        }
        self.add_task(&mut line, &mut words);
        if let Some(more) = &self.append {
            words += " ";
            words += more;
        }
        line.add("-append", words);
        line.0
    }

    /// As client of a serve that may be away for a while, QEMU tries again every second.
    fn reconnect(&self) -> &'static str {
        if self.qemu.is_from(10) { "reconnect-ms=1000" } else { "reconnect=1" }
    }

    fn add_nic(&self, line: &mut Line, nic: &Nic) {
        let mut device = "virtio-net-pci,netdev=net,mac=52:54:00:12:34:56,romfile=".to_owned();
        if self.iommu {
            // A vhost device learns what is unmapped only by ATS.
            device += ",iommu_platform=on,ats=on,disable-legacy=on";
        }
        match &nic.backend {
            Backend::User { forwarded } => {
                let rules = forwarded.iter().map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
                line.add("-netdev", format_args!("user,id=net{}", rules.collect::<String>()));
            }
            Backend::Tap(name) => line.add("-netdev", format_args!("tap,id=net,ifname={name},script=no,downscript=no")),
            Backend::Stream(path) => {
                let to = format!("addr.type=unix,addr.path={}", path.display());
                line.add("-netdev", format_args!("stream,id=net,server=off,{to}"));
            }
            Backend::VhostUser { socket, listens, queue_pairs } => {
                let role = match listens {
                    true => "server=on",
                    false => self.reconnect(),
                };
                line.add("-chardev", format_args!("socket,id=vhost,path={},{role}", socket.display()));
                line.add("-netdev", format_args!("vhost-user,id=net,chardev=vhost,queues={queue_pairs}"));
                if *queue_pairs != 1 {
                    device += ",mq=on";
                }
                if !nic.msix.unwrap_or_else(|| self.qemu.has_msix(self.accelerator)) {
                    device += ",vectors=0";
                } else if *queue_pairs != 1 {
                    // One for each queue, one for the control queue, one for changes of the configuration.
                    let _ = write!(device, ",vectors={}", 2 * u32::from(*queue_pairs) + 2);
                }
            }
        }
        if let Some(options) = &nic.options {
            device += ",";
            device += options;
        }
        line.add("-device", device);
    }

    fn add_task(&self, line: &mut Line, words: &mut String) {
        match &self.task {
            Task::Probe => {
                *words += " vnic.run=true vnic.modules= vnic.net=off";
                line.add("-serial", "stdio");
            }
            Task::Shell => {
                *words += " vnic.run=shell";
                line.add("-serial", "mon:stdio");
            }
            Task::Command(command) => {
                // What the kernel's command line has a meaning of its own for is written as URLs have it.
                let command = command.replace('%', "%25").replace('"', "%22").replace('\n', "%0a");
                *words += &format!(" \"vnic.run={command}\"");
                line.add("-serial", "stdio");
            }
            Task::Agent { record, console } => {
                *words += " vnic.run=agent";
                line.add_record(record, console);
            }
            Task::Disk { init, record, console } => {
                *words += &format!(" root=/dev/vda rw init={init}");
                line.add_record(record, console);
            }
        }
    }
}

#[cfg(test)]
mod tests;
