//! The two back-ends that are compared, as processes on one CPU.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use guest_fixture::guard;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// Who serves the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// `vnic serve --link` with this link.
    Vnic(&'static str),
    /// The same with `--poll never`: it sleeps whenever there is nothing to do.
    Sleepy(&'static str),
    /// The same with `vnic trace` beside it.
    Traced(&'static str),
    /// The same without the account that it keeps for `vnic top`, and asleep whenever there is nothing to do.
    Unaccounted(&'static str),
    /// The same with an account of what its chains would cost a card of hardware.
    Modelled(&'static str),
    /// The same, as slow as that card on a link of the first generation with one lane.
    Paced(&'static str),
    /// The same that has given up nothing: `--sandbox off`.
    Unlocked(&'static str),
    /// The same of another build.
    Other(&'static str),
    /// DPDK's `net_vhost` in testpmd with this forward mode.
    Dpdk(&'static str),
    /// The same behind `vnic proxy`.
    Proxied(&'static str),
}

impl Backend {
    pub(crate) fn name(self) -> String {
        match self {
            Backend::Vnic(link) => link.to_owned(),
            Backend::Sleepy(link) => format!("{link} sleepy"),
            Backend::Traced(link) => format!("{link} traced"),
            Backend::Unaccounted(link) => format!("{link} --top asked"),
            Backend::Modelled(link) => format!("{link} modelled"),
            Backend::Paced(link) => format!("{link} paced"),
            Backend::Unlocked(link) => format!("{link} --sandbox off"),
            Backend::Other(link) => format!("{link} before"),
            Backend::Dpdk(mode) => format!("dpdk {mode}"),
            Backend::Proxied(mode) => format!("dpdk {mode} behind a proxy"),
        }
    }
}

/// A process of ours; [ended](end) when dropped, and when this program ends.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts it without a terminal, its output into `NAME.log`, and waits until its socket is there.
    pub(crate) fn listening(name: &str, mut command: Command, socket: &Path, folder: &Path) -> Result<Self> {
        let log = File::create(folder.join(format!("{name}.log")))?;
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        let mut process = Process::start(command)?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            if let Some(status) = process.0.try_wait()? {
                bail!("{name} ended at once: {status}; see {}/{name}.log", folder.display());
            }
            if Instant::now() > deadline {
                bail!("{name} does not listen after 20 s; see {}/{name}.log", folder.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(process)
    }

    fn start(mut command: Command) -> Result<Self> {
        Ok(Process(guard::spawn(&mut command).with_context(|| format!("start {command:?}"))?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// A program that has this CPU only.
pub(crate) fn on_cpu(cpu: usize, program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["--cpu-list", &cpu.to_string(), program]);
    command
}

/// A back-end at work; ended when dropped, after what looks at it.
#[derive(Debug)]
pub(crate) struct Server {
    looks: Vec<(Process, &'static str)>,
    process: Process,
    socket: PathBuf,
    vnic: Option<PathBuf>,
}

impl Server {
    /// Starts one with `pairs` queue pairs on CPU 0 and waits until its socket is there. `vnic` is the program, of whichever
    /// build.
    pub(crate) fn start(backend: Backend, pairs: u16, vnic: &Path, folder: &Path) -> Result<Self> {
        let name = backend.name().replace([' ', ':'], "-");
        let socket = folder.join(format!("{name}.sock"));
        let _ = fs::remove_file(&socket);
        let command = match backend {
            Backend::Vnic(link)
            | Backend::Sleepy(link)
            | Backend::Traced(link)
            | Backend::Unaccounted(link)
            | Backend::Modelled(link)
            | Backend::Paced(link)
            | Backend::Unlocked(link)
            | Backend::Other(link) => {
                let mut command = Command::new(vnic);
                command.args(["serve", "--link", link, "--cpu", "0", "--socket-path"]).arg(&socket);
                command.args(["--queue-pairs", &pairs.to_string()]);
                if matches!(backend, Backend::Sleepy(_) | Backend::Unaccounted(_)) {
                    command.args(["--poll", "never"]);
                }
                if matches!(backend, Backend::Unaccounted(_)) {
                    command.args(["--top", "asked"]);
                }
                match backend {
                    Backend::Unlocked(_) => drop(command.args(["--sandbox", "off"])),
                    Backend::Modelled(_) => drop(command.args(["--hardware", "82599,iotlb=64"])),
                    Backend::Paced(_) => drop(command.args(["--hardware", "82599,pcie=gen1x1:pace"])),
                    _ => {}
                }
                command
            }
            Backend::Dpdk(mode) | Backend::Proxied(mode) => {
                let mut command = Command::new("dpdk-testpmd");
                command.args(["--lcores", "0@0,1@0", "--no-pci", "-m", "256", "--file-prefix=back-end"]);
                command.arg(format!("--vdev=net_vhost0,iface={},queues={pairs}", socket.display()));
                command.args(["--", "--total-num-mbufs=16384", "--auto-start", "--stats-period=1000"]);
                command.args(["--port-topology=loop", &format!("--forward-mode={mode}")]);
                command.args([format!("--rxq={pairs}"), format!("--txq={pairs}")]);
                command
            }
        };
        let process = Process::listening(&name, command, &socket, folder)?;
        if let Backend::Proxied(_) = backend {
            let front = folder.join(format!("{name}-front.sock"));
            let _ = fs::remove_file(&front);
            let mut proxy = Command::new(vnic);
            proxy.args(["proxy", "--socket-path"]).arg(&front).arg("--back-end").arg(&socket);
            let proxy = Process::listening(&format!("{name}-front"), proxy, &front, folder)?;
            return Ok(Server { looks: vec![(proxy, "proxy")], process, socket: front, vnic: None });
        }
        let vnic = (!matches!(backend, Backend::Dpdk(_))).then(|| vnic.to_owned());
        let mut server = Server { looks: Vec::new(), process, socket, vnic };
        if matches!(backend, Backend::Traced(_)) {
            server.looks.push(server.look("trace")?);
        }
        Ok(server)
    }

    /// Follows its events with `vnic trace` or `vnic top`; what that says goes nowhere. The client is the nicest there is, as is
    /// the thread that feeds it: both CPUs are taken, and what is asked is what looking costs the data path, not how two
    /// programs share a CPU.
    pub(crate) fn look(&self, with: &'static str) -> Result<(Process, &'static str)> {
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(self.vnic.as_ref().context("only ours is looked at")?);
        command.args([with, "--json", "--control"]).arg(self.control());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok((Process::start(command)?, with))
    }

    /// Looks with `vnic watch` in a large terminal of its own; as nice as the others.
    pub(crate) fn view(&self, view: &str) -> Result<(Process, &'static str)> {
        let vnic = self.vnic.as_ref().context("only ours is looked at")?;
        let watch = format!(
            "stty rows 60 cols 200; exec nice -n 19 '{}' watch --view {view} --control '{}'",
            vnic.display(),
            self.control().display()
        );
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &watch, "/dev/null"]);
        // Its keyboard is a pipe that stays open and says nothing.
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).env("TERM", "xterm-256color");
        Ok((Process::start(command)?, "watch"))
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.0.id()
    }

    fn control(&self) -> PathBuf {
        PathBuf::from(format!("{}.control", self.socket.display()))
    }

    /// What `vnic status --json` says; only ours does.
    pub(crate) fn status(&self) -> Option<Value> {
        let mut command = Command::new(self.vnic.as_ref()?);
        let asked = command.args(["status", "--json", "--control"]).arg(self.control()).output().ok()?;
        serde_json::from_slice(&asked.stdout).ok()
    }

    /// Share of the first transmitq's chains that the tracer lost, if there is one.
    pub(crate) fn trace_lost(&self) -> Option<f64> {
        self.looks.iter().find(|(_, with)| *with == "trace")?;
        // It is behind: it counts what it has lost as it comes to the gap.
        let (deadline, mut before) = (Instant::now() + Duration::from_secs(3), None);
        loop {
            let status = self.status()?;
            let counters = status.get("queues")?.get(1)?.get("counters")?;
            let [lost, chains] = [counters.get("trace_lost")?.as_f64()?, counters.get("chains")?.as_f64()?];
            if before == Some((lost, chains)) || Instant::now() > deadline {
                return Some(lost / chains);
            }
            before = Some((lost, chains));
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Nanoseconds in which it had nothing to do, so far; only ours says so.
    pub(crate) fn idle_ns(&self) -> Option<u64> {
        self.status()?.get("idle_ns")?.as_u64()
    }
}

/// Ends a process of ours, and for good where it does not listen.
pub(crate) fn end(child: &mut Child) {
    let Ok(id) = i32::try_from(child.id()) else { return };
    let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
            return guard::ended(child.id());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    guard::ended(child.id());
}
