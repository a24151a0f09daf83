//! A guest's `sendfile` end to end: our NIC beside QEMU's own back-ends, the same guest, kernel and file.
//!
//! Operation: both guests of a comparison are up at the same time, each in a network namespace of its own with the receiver in
//! it, where the link has none. They send in turn, round after round; the one that does not send sleeps. What `vnic top` costs is
//! asked of one guest, with it and without in turn, and of its device's workers: how many bytes go out for each second that they
//! have a CPU, while they never poll. What the guest makes of it is another thing: its rate halves and doubles from one send to
//! the next.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use guest_fixture::{
    Agent, Child, Deadline, Device, Folder, Machine, Namespace, available, is_root, receiver, spec, until,
};

use crate::case::UNDER_TOP;
use crate::looking::workers_had;
use crate::outcome::{Outcome, Runs, Unit};
use crate::{Args, caught};

/// Bytes of the file, which is on tmpfs.
const BYTES: u64 = 64 << 20;
/// Rounds in place of each that is asked for: a transfer takes the blink of an eye, and so does a whim of the scheduler.
const ROUNDS: u32 = 4;
/// The same, where a ratio near 1 is asked for; and how often the file is sent in each.
const WATCHED_ROUNDS: u32 = 16;
const SENDS: u32 = 4;
/// Where QEMU's `user` network looks for what its guest sends to 10.0.2.2.
const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
const PORT: u16 = 9000;
/// The tap device, in either namespace.
const TAP: &str = "vnicbench0";

/// One comparison.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    /// The guest's NICs, ours first.
    nics: [Nic; 2],
    /// What the ratio is to be, at least.
    target: f64,
}

/// Who serves a guest's NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nic {
    Peer,
    /// While a client is told what `vnic top` shows.
    PeerWatched,
    /// The same guest and device, while nobody asks, and no account is kept.
    PeerAlone,
    QemuUser,
    Tap,
    QemuTap,
    Passt,
    QemuPasst,
}

const CASES: [Case; 4] = [
    Case { nics: [Nic::PeerWatched, Nic::PeerAlone], target: UNDER_TOP },
    Case { nics: [Nic::Peer, Nic::QemuUser], target: 12.0 },
    Case { nics: [Nic::Tap, Nic::QemuTap], target: 1.3 },
    Case { nics: [Nic::Passt, Nic::QemuPasst], target: 1.5 },
];

impl Nic {
    const fn name(self) -> &'static str {
        match self {
            Nic::Peer => "peer",
            Nic::PeerWatched => "peer with top",
            Nic::PeerAlone => "without",
            Nic::QemuUser => "QEMU user",
            Nic::Tap => "tap",
            Nic::QemuTap => "QEMU tap",
            Nic::Passt => "passt",
            Nic::QemuPasst => "QEMU stream to passt",
        }
    }
}

impl Case {
    pub(crate) fn name(&self) -> String {
        let [ours, theirs] = self.nics;
        format!("guest sendfile, {} and {}", ours.name(), theirs.name())
    }

    /// Is it what looking costs?
    fn is_watched(&self) -> bool {
        self.nics[0] == Nic::PeerWatched
    }

    fn unit(&self) -> Unit {
        if self.is_watched() { Unit::BytesOfWorker } else { Unit::Bytes }
    }
}

/// The cases that are asked for.
pub(crate) fn cases(args: &Args) -> Vec<Case> {
    CASES.into_iter().filter(|case| args.wants(&case.name())).collect()
}

/// All rounds of a case.
pub(crate) fn measure(case: &Case, args: &Args) -> Outcome {
    let targets = [Some(case.target), None];
    let mut runs = [0, 1].map(|at: usize| Runs::of(case.nics[at].name(), targets[at]));
    let ran = caught(|| rounds(case, args, &mut runs));
    let not_run = ran.err().map(|error| format!("{error:#}"));
    let mut outcome = Outcome { case: case.name(), unit: case.unit(), runs: runs.into(), not_run };
    if outcome.not_run.is_none() {
        outcome.compare();
    }
    outcome
}

fn rounds(case: &Case, args: &Args, runs: &mut [Runs; 2]) -> Result<()> {
    ensure!(is_root(), "network namespaces need root");
    let [ours, theirs] = case.nics;
    if case.is_watched() {
        return watched_and_not(args, runs);
    }
    let mut guests = [Guest::boot(ours, args)?, Guest::boot(theirs, args)?];
    for guest in &mut guests {
        guest.send();
    }
    for _ in 0..ROUNDS * args.rounds {
        for (guest, runs) in guests.iter_mut().zip(runs.iter_mut()) {
            runs.figures.push(guest.send());
        }
    }
    guests.into_iter().for_each(Guest::power_off);
    Ok(())
}

/// One guest sends, with a client of its device's account and without, in turn; which comes first changes.
fn watched_and_not(args: &Args, runs: &mut [Runs; 2]) -> Result<()> {
    let mut guest = Guest::boot(Nic::PeerAlone, args)?;
    guest.send();
    for round in 0..WATCHED_ROUNDS * args.rounds {
        for at in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
            let _client = (at == 0).then(|| guest.watch()).transpose()?;
            let before = guest.workers_had()?;
            for _ in 0..SENDS {
                guest.send();
            }
            let bytes = (BYTES * u64::from(SENDS)) as f64;
            runs[at].figures.push(bytes / (guest.workers_had()? - before).as_secs_f64());
        }
    }
    guest.power_off();
    Ok(())
}

/// A guest and its NIC. What is dropped ends.
struct Guest {
    machine: Machine,
    agent: Agent,
    device: Option<Device>,
    _passt: Option<Child>,
    _namespace: Namespace,
    _folder: Folder,
}

impl Guest {
    fn boot(nic: Nic, args: &Args) -> Result<Guest> {
        let folder = Folder::new();
        let namespace = Namespace::new()?;
        if matches!(nic, Nic::Tap | Nic::QemuTap) {
            namespace.add_tap(TAP)?;
        }
        if matches!(nic, Nic::Passt | Nic::QemuPasst) {
            namespace.add_uplink()?;
        }
        let listens = match nic {
            Nic::Peer | Nic::PeerWatched | Nic::PeerAlone => None,
            Nic::QemuUser | Nic::Passt | Nic::QemuPasst => Some(LOOPBACK),
            Nic::Tap | Nic::QemuTap => Some(Ipv4Addr::UNSPECIFIED),
        };
        let tap = format!("tap:{TAP}");
        let socket = folder.path().join("passt.sock");
        let stream = format!("stream:{}", socket.display());
        let (link, netdev) = match nic {
            Nic::Peer | Nic::PeerWatched | Nic::PeerAlone => (Some("peer"), "vhost"),
            Nic::Tap => (Some(tap.as_str()), "vhost"),
            Nic::Passt => (Some("passt"), "vhost"),
            Nic::QemuPasst => (None, stream.as_str()),
            Nic::QemuUser => (None, "user"),
            Nic::QemuTap => (None, tap.as_str()),
        };
        // Kernel and image are fetched and built where there is a network.
        available(&["--netdev", netdev]).map_err(|why| anyhow!(why))?;
        let (device, passt, (machine, agent)) = namespace.enter(|| -> Result<_> {
            if let Some(address) = listens {
                let address = SocketAddr::new(IpAddr::V4(address), PORT);
                receiver::listen(address).with_context(|| format!("a receiver at {address}"))?;
            }
            let (keeping, poll) = if nic == Nic::PeerAlone { ("asked", "never") } else { ("always", "adaptive") };
            let options = |link| ["--link", link, "--top", keeping, "--poll", poll];
            let device = link.map(|link| Device::of(&args.vnic, folder.path(), &options(link)));
            let passt = (nic == Nic::QemuPasst).then(|| passt(&folder, &socket));
            Ok((device, passt, Machine::boot(folder.path(), &["--netdev", netdev])))
        })?;
        Ok(Guest { machine, agent, device, _passt: passt, _namespace: namespace, _folder: folder })
    }

    /// Sends the file. Bytes per second, from the first call to the receiver's receipt.
    fn send(&mut self) -> f64 {
        let (_, ended) = self.agent.transfer(&spec("sendfile", BYTES));
        BYTES as f64 / ended.seconds
    }

    /// From now on somebody is told from where its bytes come, until what this returns is dropped.
    fn watch(&self) -> Result<BufReader<UnixStream>> {
        let device = self.device.as_ref().context("only ours is looked at")?;
        let mut client = BufReader::new(UnixStream::connect(device.control())?);
        client.get_mut().write_all(b"{\"request\":\"top\",\"every_ms\":1000}\n")?;
        let mut said = String::new();
        client.read_line(&mut said)?;
        ensure!(said.contains("done"), "the device said {said}");
        Ok(client)
    }

    /// How long the device's workers have had a CPU so far.
    fn workers_had(&mut self) -> Result<Duration> {
        workers_had(self.device.as_mut().context("only ours is looked at")?.child().id())
    }

    fn power_off(self) {
        self.machine.power_off(self.agent);
    }
}

/// Starts passt for QEMU, with the addresses it has with us.
fn passt(folder: &Folder, socket: &Path) -> Child {
    let mut command = Command::new("passt");
    command.args(["--foreground", "--quiet", "--runas", "0", "--socket"]).arg(socket);
    command.args(["--address", "10.0.2.15", "--netmask", "24", "--gateway", "10.0.2.2"]);
    let child = Child::start("passt", folder.path(), command);
    until(Deadline::secs("passt to listen", 20), || socket.exists().then_some(()));
    child
}
