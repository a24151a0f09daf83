//! Our disk beside `qemu-storage-daemon`'s: requests for the same image, from a driver without a VM and from a guest.
//!
//! Operation: each back-end in turn opens the image, which is full of data, and is driven for a while; round after round. It has
//! CPU 0, the driver CPU 1. The image is on tmpfs once, where the back-end is the limit, and once on this machine's disk, where
//! that one may be. From a guest: see [`guest`].

mod driver;
mod guest;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use crate::Args;
use crate::backend::{Process, on_cpu};
use crate::outcome::{Outcome, Progress, Runs, Unit};

/// Bytes of the image.
const IMAGE: u64 = 256 << 20;
/// What a request has where it is random.
const SMALL: u32 = 4 << 10;
/// The same where requests follow one another.
const LARGE: u32 = 128 << 10;
/// What ours is to reach.
const TARGET: f64 = 1.3;

/// What the driver asks for.
#[derive(Debug, Clone, Copy)]
struct Work {
    writes: bool,
    /// Bytes of a request.
    block: u32,
    /// Requests under way, of each queue.
    depth: u16,
    queues: u16,
}

impl Work {
    const fn is_random(self) -> bool {
        self.block == SMALL
    }
}

/// Where the image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Tmpfs,
    Disk,
}

/// Who serves it.
#[derive(Debug, Clone, Copy)]
enum Server {
    Vnic,
    /// `qemu-storage-daemon`, and by what it reads and writes.
    Daemon(&'static str),
}

/// In turn; the last is the yardstick.
const SERVERS: [Server; 3] = [Server::Vnic, Server::Daemon("native"), Server::Daemon("io_uring")];

impl Server {
    fn name(self) -> String {
        match self {
            Server::Vnic => "vnic".to_owned(),
            Server::Daemon(aio) => format!("qsd {aio}"),
        }
    }

    /// Serves this image at this socket, on this CPU; nothing stays in the host's page cache.
    fn command(self, vnic: &Path, image: &Path, socket: &Path, queues: u16, cpu: Option<usize>) -> Command {
        let (image, socket) = (image.display(), socket.display());
        match self {
            Server::Vnic => {
                let mut command = Command::new(vnic);
                command.arg("serve").args(cpu.iter().flat_map(|cpu| ["--cpu".to_owned(), cpu.to_string()]));
                command.arg("--blk");
                command.arg(format!("{socket},file={image},cache=direct,queues={queues}"));
                command
            }
            Server::Daemon(aio) => {
                let daemon = "qemu-storage-daemon";
                let mut command = cpu.map_or_else(|| Command::new(daemon), |cpu| on_cpu(cpu, daemon));
                command.args(["--object", "iothread,id=thread", "--blockdev"]);
                command.arg(format!("driver=file,node-name=disk,filename={image},cache.direct=on,aio={aio}"));
                let queues = format!("writable=on,num-queues={queues},iothread=thread");
                let export = format!("type=vhost-user-blk,id=export,node-name=disk,{queues}");
                command.args(["--export", &format!("{export},addr.type=unix,addr.path={socket}")]);
                command
            }
        }
    }
}

/// One comparison.
#[derive(Debug, Clone, Copy)]
struct Case {
    work: Work,
    place: Place,
    /// From a guest, or from a driver without one.
    in_guest: bool,
}

impl Case {
    fn name(&self) -> String {
        let Work { writes, block, depth, queues } = self.work;
        let kind = match (self.work.is_random(), writes) {
            (true, false) => "random read",
            (true, true) => "random write",
            (false, false) => "read",
            (false, true) => "write",
        };
        let place = if self.place == Place::Tmpfs { "tmpfs" } else { "disk" };
        let from = if self.in_guest { "guest" } else { "no VM" };
        let queues = if queues == 1 { String::new() } else { format!(", {queues} queues") };
        format!("{from}, {place}, {} KiB {kind}, depth {depth}{queues}", block >> 10)
    }
}

/// The cases that are asked for.
fn cases(args: &Args) -> Vec<Case> {
    let random = [1, 32, 128].map(|depth| (SMALL, depth, 1));
    let shapes = random.into_iter().chain([(LARGE, 16, 1), (SMALL, 32, 2)]);
    let both = |(block, depth, queues)| [false, true].map(|writes| Work { writes, block, depth, queues });
    let mut cases = Vec::new();
    for in_guest in [false, true] {
        for place in [Place::Tmpfs, Place::Disk] {
            let of_it = shapes.clone().flat_map(both).map(|work| Case { work, place, in_guest });
            // The guest has one CPU, and its disks a queue each.
            cases.extend(of_it.filter(|case| !(in_guest && case.work.queues > 1)));
        }
    }
    cases.retain(|case| args.wants(&case.name()));
    cases
}

/// All cases, in order, each as it is measured.
pub(crate) fn measure_all(args: &Args, mut done: impl FnMut(Outcome) -> Result<()>) -> Result<()> {
    let cases = cases(args);
    let mut progress = Progress::new(cases.len());
    let mut guest = None;
    for case in &cases {
        progress.next(&case.name());
        done(if case.in_guest { guest::measure(case, args, &mut guest) } else { measure(case, args) })?;
    }
    Ok(())
}

/// All rounds of a case.
fn measure(case: &Case, args: &Args) -> Outcome {
    let runs = SERVERS.iter().enumerate().map(|(at, server)| Runs::of(server.name(), (at == 0).then_some(TARGET)));
    let image = Image::make(case.place, &args.out, "alone");
    Outcome::of_rounds((case.name(), Unit::Requests), runs.collect(), args.rounds, |at| {
        let image = image.as_ref().map_err(|error| anyhow!("{error:#}"))?;
        once(case.work, SERVERS[at], &image.path, args)
    })
}

/// One run: a fresh back-end, a fresh driver. Requests per second.
fn once(work: Work, server: Server, image: &Path, args: &Args) -> Result<f64> {
    let name = server.name().replace(' ', "-");
    let socket = args.out.join(format!("{name}-disk.sock"));
    let _ = fs::remove_file(&socket);
    let command = server.command(&args.vnic, image, &socket, work.queues, Some(0));
    let _server = Process::listening(&format!("{name}-disk"), command, &socket, &args.out)?;
    crate::on_cpu_1(|| driver::run(&socket, work, IMAGE, args.seconds))
}

/// An image full of data: a hole would be read without a disk. Removed when dropped.
struct Image {
    path: PathBuf,
}

impl Image {
    fn make(place: Place, folder: &Path, name: &str) -> Result<Image> {
        let folder = if place == Place::Tmpfs { Path::new("/dev/shm") } else { folder };
        let image = Image { path: folder.join(format!("vnic-bench-{}-{name}.img", std::process::id())) };
        let failed = || format!("an image at {}", image.path.display());
        let mut file = File::create(&image.path).with_context(failed)?;
        let bytes: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
        for _ in 0..IMAGE / bytes.len() as u64 {
            file.write_all(&bytes).with_context(failed)?;
        }
        file.sync_all().with_context(failed)?;
        Ok(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}
