//! The guest: boots, and does what it is told.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::mem;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use guest_fixture::Namespace;
use guest_launcher::children::{Child, Signals, tail};
use guest_launcher::machine::{Backend, Nic, Task};
use guest_launcher::{Failure, Options, prepare, repository, run};

/// How long it may take to boot, or to start a server.
const SILENCE: Duration = Duration::from_secs(300);

/// How long one look at its port takes.
const LOOK: Duration = Duration::from_millis(100);

/// A guest that runs, and the card it has.
pub(crate) struct Guest<'s> {
    signals: &'s Signals,
    line: String,
    port: BufReader<UnixStream>,
    folder: PathBuf,
    /// The host's port behind each of the guest's.
    published: Vec<(u16, u16)>,
    /// The published port that is the same on both sides.
    pub(crate) data: u16,
    card: Card,
    children: Children,
}

/// Whose card the guest has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Card {
    /// `vnic serve`, on passt.
    Ours,
    /// QEMU's own, on this network. `vnic attach` looks at it.
    Qemus(Outside),
}

/// What QEMU's own card is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Outside {
    /// `-netdev user`: it has no checksum offload, so the guest's kernel has no scatter-gather, and copies whatever the server does
    User,
    /// `-netdev tap`, in a network namespace that this run makes (root)
    Tap,
}

impl Card {
    const TAP: Card = Card::Qemus(Outside::Tap);

    /// Where the host finds the guest's ports.
    fn address(self) -> &'static str {
        if self == Card::TAP { GUEST } else { "127.0.0.1" }
    }
}

/// The tap device's name, and the guest's address on it.
const TAP: &str = "vnic-servers";
const GUEST: &str = "10.0.2.15";

/// A network namespace with the tap device in it: the host's network stays as it is.
pub(crate) fn namespace() -> Result<Namespace> {
    let namespace = Namespace::new().context("--outside=tap takes root")?;
    namespace.add_tap(TAP)?;
    Ok(namespace)
}

/// The guest ends before who looks at it.
struct Children {
    #[expect(dead_code, reason = "it ends when this is dropped")]
    qemu: Child,
    looking: Option<Child>,
}

impl<'s> Guest<'s> {
    /// Boots it, with these ports of its published, and one that has the same number on both sides.
    pub(crate) fn boot(signals: &'s Signals, ports: &[u16], card: Card) -> Result<Self, Failure> {
        let (published, data) = free_ports(ports)?;
        let options = options(card, &published).context("the launcher's options")?;
        let folder = options.folder()?;
        let [socket, control, record, console] =
            ["vnic.sock", "vnic.sock.control", "record.sock", "console.log"].map(|name| folder.join(name));
        let mut machine = prepare(&options)?;
        let root = repository().join("target/guest/servers");
        machine.kernel = root.join("vmlinuz");
        machine.initramfs = root.join("initrd");
        machine.disk = Some(root.join("root.ext4"));
        machine.disk_is_scratch = true;
        machine.task = Task::Disk { init: "/srv/vnic/init".to_owned(), record: record.clone(), console };
        if let Card::Qemus(outside) = card {
            let backend = match outside {
                Outside::User => Backend::User { forwarded: published.clone() },
                Outside::Tap => Backend::Tap(TAP.to_owned()),
            };
            machine.nic = Some(Nic { backend, msix: None, options: None });
        }
        let vnic = run::vnic()?.display().to_string();
        for file in [&socket, &control, &record] {
            // Of a run that was killed.
            let _ = std::fs::remove_file(file);
        }
        let log = folder.join("serve.log");
        let serve = match card {
            Card::Ours => {
                let there = || control.exists() && socket.exists();
                Some(signals.start(&run::serve(&options, &machine, &vnic, &folder), &log, there)?)
            }
            Card::Qemus(_) => None,
        };
        let qemu = signals.start(&machine.command(), &folder.join("qemu.log"), || record.exists())?;
        let pid = qemu.pid().to_string();
        let stream = UnixStream::connect(&record).context("the guest's port")?;
        stream.set_read_timeout(Some(LOOK)).context("the guest's port")?;
        let port = BufReader::new(stream);
        let children = Children { qemu, looking: serve };
        let mut guest = Guest { signals, line: String::new(), port, folder, published, data, card, children };
        match guest.hear()?.as_str() {
            "up" => {}
            word => return Err(anyhow!("the guest's first word is `{word}`").into()),
        }
        if matches!(card, Card::Qemus(_)) {
            // Now there is a kernel to be found.
            let words = [&vnic, "attach", "--pid", &pid, "--control", &control.display().to_string()];
            let words = words.map(str::to_owned);
            guest.children.looking = Some(signals.start(&words, &log, || control.exists())?);
        }
        Ok(guest)
    }

    /// The card's control socket.
    pub(crate) fn control(&self) -> PathBuf {
        self.folder.join("vnic.sock.control")
    }

    /// For what is fetched.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Address and port at which the host finds this port of the guest's.
    pub(crate) fn found_at(&self, port: u16) -> Result<(&'static str, u16)> {
        if self.card == Card::TAP {
            return Ok((self.card.address(), port));
        }
        let found = self.published.iter().find(|(_, guest)| *guest == port);
        found.map(|(host, _)| (self.card.address(), *host)).with_context(|| format!("port {port} is not published"))
    }

    /// Runs a command in the guest's shell; an error, with the console's last lines, where it fails.
    pub(crate) fn run(&mut self, command: &str) -> Result<(), Failure> {
        self.port.get_mut().write_all(format!("{command}\n").as_bytes()).context("the guest's port")?;
        match self.hear()?.as_str() {
            "0" => Ok(()),
            code => Err(self.failed(&format!("`{command}` ended with {code} in the guest"))),
        }
    }

    fn failed(&self, what: &str) -> Failure {
        anyhow!("{what}; its console ends with:\n{}", tail(&self.folder.join("console.log"), 12)).into()
    }

    /// Its next line.
    fn hear(&mut self) -> Result<String, Failure> {
        let start = Instant::now();
        let signals = self.signals;
        signals.until(|| match self.port.read_line(&mut self.line) {
            Ok(0) => Err(self.failed("the guest is gone")),
            Ok(_) => Ok(Some(mem::take(&mut self.line).trim_end().to_owned())),
            Err(error) if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                Err(self.failed(&format!("the guest's port fails: {error}")))
            }
            Err(_) if start.elapsed() > SILENCE => Err(self.failed("the guest says nothing")),
            Err(_) => Ok(None),
        })
    }
}

/// What the launcher is asked for.
fn options(card: Card, published: &[(u16, u16)]) -> Result<Options> {
    let run_dir = repository().join("target/run/servers").display().to_string();
    let mut words = ["--task", "agent", "--memory", "1G", "--run-dir", &run_dir].map(str::to_owned).to_vec();
    match card {
        Card::Ours => {
            let publish: Vec<String> =
                published.iter().map(|(host, guest)| format!("--publish {host}:{guest}")).collect();
            words.extend(["--link", "passt", "--serve-options", &publish.join(" ")].map(str::to_owned));
        }
        Card::Qemus(_) => words.extend(["--netdev", "user"].map(str::to_owned)),
    }
    Ok(Options::read(words)?)
}

/// A free port of the host's for each, and one more. All are held until all are found, so that they differ.
fn free_ports(ports: &[u16]) -> Result<(Vec<(u16, u16)>, u16)> {
    let free = || TcpListener::bind("127.0.0.1:0");
    let held: Vec<TcpListener> = ports.iter().map(|_| free()).collect::<Result<_, _>>()?;
    let data = free()?.local_addr()?.port();
    let pair = |(held, guest): (&TcpListener, &u16)| Ok((held.local_addr()?.port(), *guest));
    let mut published: Vec<(u16, u16)> = held.iter().zip(ports).map(pair).collect::<Result<_>>()?;
    published.push((data, data));
    Ok((published, data))
}
