//! What looking costs the data path: `vnic top`, and every view of `vnic watch` at once.
//!
//! Operation: one back-end and one driver, which pumps all the time, over memory in which a kernel is to be found. Who looks
//! comes and goes, and in between nobody does; which of a round comes first changes. What is compared is how many frames go
//! through for each second that the workers have a CPU, while they never poll: not what the machine's other programs leave of it, and
//! the same process throughout, as two of them differ by more than looking costs, by where their memory happens to lie.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{scope, sleep};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vnic::introspect::testing::{Image, UPTODATE};
use vnic::memory::testing::GuestRam;

use crate::backend::{Backend, Process, Server};
use crate::case::{Format, SHAPES, UNDER_TOP};
use crate::outcome::{Outcome, Runs, Unit};
use crate::pump::{BUFFERS, Count, Pump, RAM, SIZE, STRIDE};
use crate::{Args, caught, on_cpu_1};

/// Rounds in place of each that is asked for: the ratio is near 1.
const ROUNDS: u32 = 16;
/// How long who looks has to begin, or to be gone, and how long frames are counted then.
const SETTLES: Duration = Duration::from_millis(400);
const COUNTS: Duration = Duration::from_millis(400);

/// Who looks.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Case {
    Top,
    Watch,
}

impl Case {
    pub(crate) fn name(self) -> String {
        let who = match self {
            Case::Top => "top",
            Case::Watch => "every view of watch",
        };
        format!("pump, {} {}, {who} on", SHAPES[0], Format::Split.name())
    }

    fn look(self, server: &Server) -> Result<Vec<(Process, &'static str)>> {
        match self {
            Case::Top => Ok(vec![server.look("top")?]),
            Case::Watch => ["rings", "chains", "flows", "counters"].map(|view| server.view(view)).into_iter().collect(),
        }
    }
}

/// The cases that are asked for.
pub(crate) fn cases(args: &Args) -> Vec<Case> {
    [Case::Top, Case::Watch].into_iter().filter(|case| args.wants(&case.name())).collect()
}

/// All rounds of a case.
pub(crate) fn measure(case: Case, args: &Args) -> Outcome {
    let mut runs = [Runs::of("looked at", Some(UNDER_TOP)), Runs::of("not", None)];
    let ran = caught(|| rounds(case, args, &mut runs));
    let not_run = ran.err().map(|error| format!("{error:#}"));
    let mut outcome = Outcome { case: case.name(), unit: Unit::FramesOfWorker, runs: runs.into(), not_run };
    outcome.compare();
    outcome
}

fn rounds(case: Case, args: &Args, runs: &mut [Runs; 2]) -> Result<()> {
    let server = Server::start(Backend::Unaccounted("sink"), 1, &args.vnic, &args.out)?;
    let ram = memory()?;
    let (all, over) = (Count::default(), AtomicBool::new(false));
    let pump = || {
        let mut pump = Pump::start(server.socket(), &ram, SHAPES[0], Format::Split.features(), None)?;
        pump.run(&all, |_| over.load(Ordering::Relaxed))
    };
    scope(|scope| {
        let pumping = scope.spawn(|| on_cpu_1(pump));
        let counted = (|| {
            for round in 0..ROUNDS * args.rounds {
                for at in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                    let _looks = (at == 0).then(|| case.look(&server)).transpose()?;
                    sleep(SETTLES);
                    let before = (all.chains(), workers_had(server.id())?);
                    sleep(COUNTS);
                    let (chains, had) = (all.chains() - before.0, workers_had(server.id())? - before.1);
                    ensure!(chains > 0 && !pumping.is_finished(), "the pump stands still");
                    runs[at].figures.push(chains as f64 / had.as_secs_f64());
                }
            }
            Ok(())
        })();
        over.store(true, Ordering::Relaxed);
        let pumped = pumping.join().map_err(|_| anyhow::anyhow!("the pump panicked"))?;
        pumped.and(counted)
    })
}

/// With a kernel in it whose files' pages the buffers are, and a frame of a connection in each.
fn memory() -> Result<GuestRam> {
    let mut image = Image::new(BUFFERS as usize);
    let root = image.file_system("ext4", "vda1", None);
    let file = image.file(&root, root.root, "big.bin", 12);
    for page in BUFFERS >> 12..RAM >> 12 {
        image.page(page, UPTODATE, file.mapping, page);
    }
    let ram = GuestRam::new(RAM)?;
    ram.write(0, &image.bytes).context("a kernel")?;
    let ethernet = [[2; 12].as_slice(), &[8, 0]].concat();
    let ip = [0x45, 0, 0, 50, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2];
    let tcp = [0, 80, 200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
    let frame = [[0; 12].as_slice(), &ethernet, &ip, &tcp].concat();
    for buffer in 0..u64::from(SIZE) {
        ram.write(BUFFERS + STRIDE * buffer, &frame).context("a frame")?;
    }
    Ok(ram)
}

/// How long a device's workers have had a CPU so far.
pub(crate) fn workers_had(process: u32) -> Result<Duration> {
    let tasks = PathBuf::from(format!("/proc/{process}/task"));
    let mut had = Duration::ZERO;
    for task in fs::read_dir(&tasks).with_context(|| tasks.display().to_string())? {
        let task = task?.path();
        // A thread that has ended meanwhile is none of the workers.
        let read = |name| fs::read_to_string(task.join(name)).unwrap_or_default();
        if read("comm").starts_with("worker") {
            let on_cpu = read("schedstat").split(' ').next().and_then(|ns| ns.parse().ok());
            had += Duration::from_nanos(on_cpu.context("the kernel does not say how long a thread had a CPU")?);
        }
    }
    ensure!(!had.is_zero(), "there are no workers");
    Ok(had)
}
