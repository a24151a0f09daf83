//! The same from a guest, by fio: our disk, `qemu-storage-daemon`'s and QEMU's own, all three in one guest, each with an image of
//! its own. They are asked in turn, round after round; those that are not asked sleep.

use anyhow::{Context, Result, anyhow};
use guest_fixture::{Agent, Device, Folder, Machine, prepared};
use serde_json::Value;

use super::{Case, Image, Place, Server, Work};
use crate::backend::Process;
use crate::outcome::{Outcome, Runs, Unit};
use crate::{Args, caught};

/// What ours is to reach.
const TARGET: f64 = 1.0;
const FIO: &str = "/usr/bin/fio";

/// In turn; the last is the yardstick. The guest's first disk is QEMU's own, as the launcher has it.
const DISKS: [(&str, &str); 3] = [("vnic", "vdb"), ("QEMU's own", "vda"), ("qsd io_uring", "vdc")];

/// A guest with its disks, and who serves them; ended when dropped.
pub(super) struct Guest {
    place: Place,
    agent: Agent,
    _machine: Machine,
    _daemon: Process,
    _device: Device,
    _images: [Image; 3],
    _folder: Folder,
}

impl Guest {
    fn boot(place: Place, args: &Args) -> Result<Guest> {
        let folder = Folder::new();
        let options = ["--memory", "1G", "--with", FIO, "--append", "vnic.modules=base,disk"];
        let machine = prepared(folder.path(), &options);
        let mut words = machine.command();
        let [own, ours, theirs] = ["own", "ours", "daemon"].map(|name| Image::make(place, &args.out, name));
        let images = [own?, ours?, theirs?];
        let drive =
            words.iter_mut().find(|word| word.starts_with("if=none,id=disk,")).context("the guest has no disk")?;
        let own = images[0].path.display();
        *drive = format!("if=none,id=disk,file={own},format=raw,cache=none,aio=io_uring");
        let device = words.iter_mut().find(|word| *word == "virtio-blk-pci,drive=disk").context("its device")?;
        device.push_str(",iothread=thread");
        words.extend(["-object", "iothread,id=thread"].map(str::to_owned));
        let [ours, theirs] = ["ours.sock", "daemon.sock"].map(|name| folder.path().join(name));
        let blk = format!("{},file={},cache=direct", ours.display(), images[1].path.display());
        let device = Device::of(&args.vnic, folder.path(), &["--blk", &blk]);
        let daemon = Server::Daemon("io_uring").command(&args.vnic, &images[2].path, &theirs, 1, None);
        let daemon = Process::listening("daemon", daemon, &theirs, folder.path())?;
        for (id, socket) in [("ours", &ours), ("theirs", &theirs)] {
            let chardev = format!("socket,id={id},path={}", socket.display());
            let disk = format!("vhost-user-blk-pci,chardev={id},vectors=0");
            words.extend(["-chardev", &chardev, "-device", &disk].map(str::to_owned));
        }
        let mut machine = Machine::run(folder.path(), &words);
        let agent = machine.agent();
        Ok(Guest {
            place,
            agent,
            _machine: machine,
            _daemon: daemon,
            _device: device,
            _images: images,
            _folder: folder,
        })
    }

    /// Has fio work on a disk. Requests per second.
    fn run(&mut self, work: Work, disk: &str, seconds: f64) -> Result<f64> {
        let kind = match (work.is_random(), work.writes) {
            (true, false) => "randread",
            (true, true) => "randwrite",
            (false, false) => "read",
            (false, true) => "write",
        };
        let millis = (seconds * 1000.0).round();
        let words = [
            format!("--name=x --filename=/dev/{disk} --rw={kind} --bs={} --iodepth={}", work.block, work.depth),
            format!("--direct=1 --ioengine=io_uring --time_based --ramp_time=300ms --runtime={millis}ms"),
            "--thread --output-format=json".to_owned(),
        ];
        let words: Vec<&str> = [FIO].into_iter().chain(words.iter().flat_map(|words| words.split(' '))).collect();
        let said = self.agent.run(&words);
        let found = said.find('{').and_then(|at| said.get(at..)).context("fio said no JSON")?;
        let found: Value = serde_json::from_str(found).with_context(|| format!("fio said {said}"))?;
        let of = if work.writes { "write" } else { "read" };
        let rate = found["jobs"][0][of]["iops"].as_f64();
        rate.filter(|rate| *rate > 0.0).ok_or_else(|| anyhow!("fio says of no {of}s: {said}"))
    }
}

/// All rounds of a case, in a guest that is there, or boots for it.
pub(super) fn measure(case: &Case, args: &Args, guest: &mut Option<Guest>) -> Outcome {
    let runs = DISKS.iter().enumerate().map(|(at, (name, _))| Runs::of(*name, (at == 0).then_some(TARGET)));
    Outcome::of_rounds((case.name(), Unit::Requests), runs.collect(), args.rounds, |at| {
        // What the guest tests' fixtures cannot do, they panic about.
        caught(|| {
            if guest.as_ref().is_none_or(|guest| guest.place != case.place) {
                *guest = None;
                *guest = Some(Guest::boot(case.place, args)?);
            }
            guest.as_mut().context("there is a guest")?.run(case.work, DISKS[at].1, 2.0 * args.seconds)
        })
    })
}
