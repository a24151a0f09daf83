//! At a modelled card's pace: does the driver get the rate that the model says, and does an ideal card take nothing from it?
//!
//! Operation: without a VM, the pump drives the card on a narrow bus as it is. In a guest, the kernel sends frames of its own making (pktgen) as fast as it can, so that the ring is never empty and the bus
//! is what limits: a guest's TCP waits for frames to come back before it has the next. Emulated as it is it cannot fill the narrowest
//! bus there is with ordinary descriptors: there the card takes 4 bytes in each, and brings and writes back one at a time. Guests
//! run in turn, round after round; those that do not run sleep. The yardstick of what is paced is what the account makes of the
//! same chains.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guest_fixture::{Agent, Device, Folder, Machine, available, repository};
use serde_json::Value;

use crate::backend::{Backend, Server};
use crate::case::Format;
use crate::outcome::{Outcome, Runs, Unit};
use crate::pump::{self, Shape};
use crate::{Args, caught};

/// Bytes of a frame behind its Ethernet header.
const FRAME: u32 = 9000;
/// PCI Express' narrowest link, with descriptors that fill it.
const NARROW: &str = "82599,pcie=gen1x1,max-piece=4,fetch=1,writeback=1:pace";
const IDEAL: &str = "ideal:pace";
/// Frames that the pump sends: small ones, and those that a guest sends most of.
const PUMPED: [Shape; 2] = [Shape { segment: 64, segments: 1 }, Shape { segment: 1518, segments: 1 }];
/// Of the rate that is to be had.
const WITHIN: f64 = 0.95;

/// One comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Case {
    /// Without a VM, frames of this shape at Gen1 x1, beside what the model says.
    Pumped(Shape),
    /// The same in a guest, with descriptors that fill the bus.
    Modelled,
    /// An ideal card, beside none.
    Ideal,
}

impl Case {
    pub(crate) fn name(self) -> String {
        match self {
            Case::Pumped(shape) => format!("pump paced, Gen1 x1, {shape}"),
            Case::Modelled => "guest paced, Gen1 x1, 4-byte descriptors".to_owned(),
            Case::Ideal => "guest paced, ideal card".to_owned(),
        }
    }
}

/// The cases that are asked for.
pub(crate) fn cases(args: &Args) -> Vec<Case> {
    let pumped = PUMPED.into_iter().map(Case::Pumped);
    pumped.chain([Case::Modelled, Case::Ideal]).filter(|case| args.wants(&case.name())).collect()
}

/// All rounds of a case.
pub(crate) fn measure(case: Case, args: &Args) -> Outcome {
    let names = if case == Case::Ideal { ["ideal", "no model"] } else { ["paced", "the model says"] };
    let mut runs = [0, 1].map(|at| Runs::of(names[at], (at == 0).then_some(WITHIN)));
    let ran = caught(|| rounds(case, args, &mut runs));
    let not_run = ran.err().map(|error| format!("{error:#}"));
    let mut outcome = Outcome { case: case.name(), unit: Unit::Bytes, runs: runs.into(), not_run };
    if outcome.not_run.is_none() {
        outcome.compare();
    }
    outcome
}

fn rounds(case: Case, args: &Args, runs: &mut [Runs; 2]) -> Result<()> {
    let span = Duration::from_secs_f64(4.0 * args.seconds);
    match case {
        Case::Pumped(shape) => {
            let bytes = f64::from(shape.segment) * f64::from(shape.segments);
            for _ in 0..args.rounds {
                let server = Server::start(Backend::Paced("sink"), 1, &args.vnic, &args.out)?;
                let features = Format::Split.features();
                let chains = pump::on_cpu_1(server.socket(), shape, features, None, 4.0 * args.seconds)?;
                runs[0].figures.push(chains * bytes);
                runs[1].figures.push(modelled(&server.status().context("the device has no status")?)?);
            }
        }
        Case::Modelled => {
            let mut guest = Guest::boot(Some(NARROW), args)?;
            for _ in 0..args.rounds {
                runs[0].figures.push(guest.send(span)?);
                runs[1].figures.push(modelled(&guest.device.status())?);
            }
            guest.power_off();
        }
        Case::Ideal => {
            let mut guests = [Guest::boot(Some(IDEAL), args)?, Guest::boot(None, args)?];
            for _ in 0..args.rounds {
                for (guest, runs) in guests.iter_mut().zip(runs.iter_mut()) {
                    runs.figures.push(guest.send(span)?);
                }
            }
            guests.into_iter().for_each(Guest::power_off);
        }
    }
    Ok(())
}

/// What the account of all chains so far makes of them: bytes a second.
fn modelled(status: &Value) -> Result<f64> {
    let queues = status["hardware"]["queues"].as_array();
    let queue = queues.and_then(|queues| queues.iter().find(|queue| queue["queue"] == "transmitq0"));
    let rate = queue.and_then(|queue: &Value| queue["cost"]["gbit_per_s"].as_f64());
    Ok(rate.with_context(|| format!("no account of transmitq0: {}", status["hardware"]))? * 1e9 / 8.0)
}

/// A guest, ready to send.
struct Guest {
    machine: Machine,
    agent: Agent,
    device: Device,
    _folder: Folder,
}

impl Guest {
    fn boot(model: Option<&str>, args: &Args) -> Result<Guest> {
        // The kernel is fetched where it is not there.
        available(&[]).map_err(anyhow::Error::msg)?;
        let folder = Folder::new();
        let module = repository().join("target/guest/kernel/stable/modules/kernel/net/core/pktgen.ko");
        let options = ["--link", "sink"].into_iter().chain(model.into_iter().flat_map(|model| ["--hardware", model]));
        let device = Device::of(&args.vnic, folder.path(), &options.collect::<Vec<_>>());
        let with = format!("{}=/pktgen.ko", module.display());
        let (machine, agent) = Machine::boot(folder.path(), &["--with", &with]);
        let mut guest = Guest { machine, agent, device, _folder: folder };
        let settings =
            [&format!("pkt_size {FRAME}")[..], "count 0", "delay 0", "dst 10.0.2.2", "dst_mac 52:54:00:00:00:02"];
        let settings: String =
            settings.iter().map(|setting| format!("echo '{setting}' > /proc/net/pktgen/eth0; ")).collect();
        guest.run(&format!(
            "set -e; insmod /pktgen.ko; ip link set eth0 up mtu {FRAME}
            echo add_device eth0 > /proc/net/pktgen/kpktgend_0; {settings}"
        ));
        Ok(guest)
    }

    fn run(&mut self, script: &str) -> String {
        self.agent.run(&["sh", "-c", script])
    }

    /// Has it send for a while. Bytes a second that the device took.
    fn send(&mut self, span: Duration) -> Result<f64> {
        self.run("(echo start > /proc/net/pktgen/pgctrl) > /dev/null 2>&1 &");
        let start = self.device.counter("transmitq0", "bytes");
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.device.counter("transmitq0", "bytes") < start + 1000 * u64::from(FRAME) {
            anyhow::ensure!(Instant::now() < deadline, "the guest's pktgen does not send");
        }
        let (bytes, began) = (self.device.counter("transmitq0", "bytes"), Instant::now());
        std::thread::sleep(span);
        let moved = self.device.counter("transmitq0", "bytes") - bytes;
        let rate = moved as f64 / began.elapsed().as_secs_f64();
        self.run("echo stop > /proc/net/pktgen/pgctrl");
        Ok(rate)
    }

    fn power_off(self) {
        self.machine.power_off(self.agent);
    }
}
