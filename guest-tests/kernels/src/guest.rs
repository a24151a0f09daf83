//! A guest of a kernel, with what is looked at in it.

use std::process::Command;

use guest_fixture::{Agent, Device, Folder, Machine, Watched};
use guest_launcher::in_path;
use vnic_experiment::wire::{Event, Request};

use crate::tally::{Line, Tally};

/// A machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// In QEMU's notation.
    pub(crate) memory: &'static str,
    /// More words for the kernel's command line.
    append: &'static str,
}

/// All memory is below the PCI hole; as many levels of page tables as the kernel can.
pub(crate) const WHOLE: Shape = Shape { memory: "512M", append: "" };
/// Some of the memory is beyond 4 GiB; four levels of page tables.
pub(crate) const SPLIT: Shape = Shape { memory: "3G", append: "no5lvl" };

/// The guest, and who looks at it.
pub(crate) struct Guest {
    pub(crate) agent: Agent,
    pub(crate) watched: Watched,
    shape: Shape,
    levels: u32,
    has_xfs: bool,
    // They go in this order.
    machine: Machine,
    _device: Device,
    _folder: Folder,
}

impl Guest {
    /// Boots it.
    #[track_caller]
    pub(crate) fn boot(kernel: &str, shape: Shape) -> Guest {
        let folder = Folder::new();
        let device = Device::start(folder.path(), &[]);
        let xfs = xfs_disk(&folder);
        let drive = xfs.as_ref().map(|image| format!("if=none,id=xfs,file={image},format=raw,cache=unsafe"));
        let more: Vec<&str> =
            drive.iter().flat_map(|drive| ["-drive", drive, "-device", "virtio-blk-pci,drive=xfs"]).collect();
        let mut options = vec!["--debian-kernel", kernel, "--cpus", "2", "--memory", shape.memory];
        if !shape.append.is_empty() {
            options.extend(["--append", shape.append]);
        }
        let (mut machine, mut agent) = Machine::boot_with(folder.path(), &options, &more);
        let watched = Watched::of(&mut machine, &device);
        let five = agent.run(&["sh", "-c", "grep -cw la57 /proc/cpuinfo || true"]).trim() != "0";
        let levels = if five { 5 } else { 4 };
        Guest { agent, watched, machine, _device: device, shape, levels, has_xfs: xfs.is_some(), _folder: folder }
    }

    /// Waits until the guest's console shows this.
    pub(crate) fn wait_for_console(&mut self, words: &'static str) {
        self.machine.wait_for_console(words);
    }

    /// Runs a program in the guest: what it says, or why this kernel cannot.
    ///
    /// # Panics
    /// It fails.
    #[track_caller]
    pub(crate) fn try_run(&mut self, argv: &[&str]) -> Result<String, String> {
        self.agent.say(&Request::Run { argv: argv.iter().map(|&word| word.to_owned()).collect() });
        match self.agent.hear() {
            Some(Event::Ran { status: 0, output }) => Ok(output),
            Some(Event::Ran { status: 3, output }) => Err(output.trim().to_owned()),
            other => panic!("{}: {other:?}", argv.join(" ")),
        }
    }

    /// Folders on each file system where files may come and go.
    pub(crate) fn churn(&self) -> Vec<String> {
        let xfs = self.has_xfs.then_some("/xfs");
        ["/tmp", "/mnt", "/overlay"].into_iter().chain(xfs).map(str::to_owned).collect()
    }

    /// A line of the table.
    pub(crate) fn line(&self, kind: &str, tally: Tally, note: Option<String>) -> Line {
        let Guest { shape, levels, .. } = self;
        let machine = format!("{}, {levels} levels", shape.memory);
        Line { kernel: self.agent.kernel.clone(), machine, kind: kind.to_owned(), tally, note }
    }

    /// The guest, and what else ran for it, end.
    #[track_caller]
    pub(crate) fn power_off(self) {
        self.machine.power_off(self.agent);
    }
}

/// An image with an empty xfs; none where there is no tool for it.
fn xfs_disk(folder: &Folder) -> Option<String> {
    let (tool, image) = (in_path("mkfs.xfs")?, folder.path().join("disk.xfs").display().to_string());
    let file = std::fs::File::create(&image).ok()?;
    file.set_len(512 << 20).ok()?;
    let made = Command::new(tool).args(["-q", &image]).status();
    made.is_ok_and(|status| status.success()).then_some(image)
}
