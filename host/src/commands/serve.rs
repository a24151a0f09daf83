//! `vnic serve`: serves the device to a front-end.

use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use schemars::JsonSchema;
use serde::Serialize;
use vnic::backend::{DeviceModel, PollMode};
use vnic::blk::DiskOptions;
use vnic::hardware::Applied;
use vnic::link::LinkKind;
use vnic::link::stream::passt::{Network, Publish};
use vnic::net::features;
use vnic::rng::Rng;
use vnic::sandbox;
use vnic::serve::{DeviceKind, Endpoint, Keeping, Options, ServeError, serve};
use vnic::spec::Features;
use vnic_experiment::control::Witness;

use crate::{Finding, views};

/// As many as vhost-user has numbers for: 256 vrings.
const MAX_QUEUE_PAIRS: u16 = 128;

/// Of every command that stays and reads what others wrote.
#[derive(Debug, clap::Args)]
pub(super) struct Sandbox {
    /// What the process gives up once everything is open (privileges, files, programs, most system calls): on (all of it), log
    /// (nothing; the kernel's log has what would have been refused) or off
    #[arg(id = "sandbox", long = "sandbox", value_name = "MODE", default_value = "on")]
    pub(super) mode: sandbox::Mode,
}

/// Options of `vnic serve`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Listen for front-ends on this path (with --client: connect to it)
    #[arg(long, value_name = "PATH", required_unless_present_any = ["fd", "print_capabilities", "blk"], conflicts_with = "fd")]
    socket_path: Option<PathBuf>,
    /// Serve the front-end at this inherited socket
    #[arg(long, value_name = "N")]
    fd: Option<RawFd>,
    /// Say what this back-end is, as JSON, and do nothing else
    #[arg(long)]
    print_capabilities: bool,
    /// The front-end listens: connect to it, again whenever it goes away
    #[arg(long, conflicts_with = "fd")]
    client: bool,
    /// A disk, beside the network card or without one: at a socket of its own, with a file or block device behind it. May stand
    /// several times
    #[arg(long, value_name = "PATH,file=IMAGE[,readonly][,serial=TEXT][,queues=N]")]
    blk: Vec<DiskOptions>,
    /// Which device: net (a network card) or rng (an entropy device)
    #[arg(long, value_name = "KIND", default_value = "net")]
    device: DeviceKind,
    /// Where frames go: peer (a TCP/IP endpoint at 10.0.2.2 in this process), tap:NAME, passt (a network that needs no rights),
    /// stream:PATH (any program that speaks QEMU's -netdev stream), sink, sink:copy, loopback [default: peer]
    #[arg(long, value_name = "LINK")]
    link: Option<LinkKind>,
    /// With --link passt: a port of this host that leads to one of the guest's, such as 8080:80 or 5353:53/udp
    #[arg(long, value_name = "HOST:GUEST")]
    publish: Vec<Publish>,
    /// The control socket [default: SOCKET-PATH.control]
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// Write every frame to this file, each with its descriptors
    #[arg(long, value_name = "FILE.pcapng")]
    capture: Option<PathBuf>,
    /// With --capture: each comment says whose memory the buffers are that were sent, as `vnic trace --labels` does
    #[arg(long, requires = "capture")]
    labels: bool,
    /// Features not to offer: csum, host_tso4, event_idx, …
    #[arg(long, value_name = "FEATURE,…", default_value = "", hide_default_value = true, value_parser = features::parse_withheld)]
    withhold: Features,
    /// Queue pairs to offer
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = queue_pairs)]
    queue_pairs: u16,
    /// The largest queue a front-end may set up
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = queue_size)]
    queue_size: u16,
    /// A model of a card of hardware: 82599, e810-like, simple or ideal, with settings such as 82599,pcie=gen1x1,iotlb=64. What the
    /// chains would cost it is accounted; with :pace behind it, they are also done with no earlier than it would be
    #[arg(long, value_name = "MODEL[:account|:pace]")]
    hardware: Option<Applied>,
    /// When workers sleep: adaptive (poll while busy, then sleep), always (poll, never sleep), never (poll)
    #[arg(long, value_name = "WHEN", default_value = "adaptive")]
    poll: PollMode,
    /// Keep an account for `vnic top` of what the guest sends, and from where: always, or asked (only while somebody looks)
    #[arg(long, value_name = "WHEN", default_value = "always")]
    top: Keeping,
    /// Record for `vnic life` and `vnic page` what happens to each page of the guest: who reads and writes it, when, by which chain
    #[arg(long)]
    life: bool,
    #[command(flatten)]
    sandbox: Sandbox,
    /// A worker on each of these CPUs; queue pairs go round them
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    cpu: Vec<usize>,
}

fn queue_size(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(size @ 1..=32768) if u16::is_power_of_two(size) => Ok(size),
        _ => Err(format!("{text} is no queue size; a split ring has a power of two from 1 to 32768, such as 256")),
    }
}

pub(super) fn queue_pairs(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(pairs) if (1..=MAX_QUEUE_PAIRS).contains(&pairs) => Ok(pairs),
        _ => Err(format!("{text} is no number of queue pairs; this device has 1 to {MAX_QUEUE_PAIRS}")),
    }
}

/// "Backend program conventions" of the vhost-user specification.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Capabilities {
    #[serde(rename = "type")]
    kind: &'static str,
    features: Vec<String>,
}

/// Serves until a signal.
pub(super) fn run(args: Args) -> Result<Finding> {
    if args.print_capabilities {
        let features = match args.device {
            DeviceKind::Net => features::OFFERED,
            DeviceKind::Rng => Rng { queue_size: args.queue_size }.offered(),
        };
        views::json(&Capabilities { kind: args.device.name(), features: features.names() })?;
        return Ok(Finding::Fine);
    }
    if args.device == DeviceKind::Rng {
        for_a_nic_only(&args)?;
    }
    let endpoint = match (args.socket_path, args.fd) {
        (Some(path), _) if args.client => Some(Endpoint::Connect(path)),
        (Some(path), _) => {
            folder_exists("--socket-path", &path)?;
            Some(Endpoint::Listen(path))
        }
        (None, Some(fd)) => Some(Endpoint::Fd(inherited(fd)?)),
        (None, None) if !args.blk.is_empty() => None,
        (None, None) => bail!("where is the front-end? Name its socket with --socket-path PATH or --fd N"),
    };
    if let Some(applied) = &args.hardware {
        if endpoint.is_none() {
            bail!(
                "--hardware is a model of a network card, and none is served: give it a socket with --socket-path PATH"
            );
        }
        if applied.pace && args.cpu.len() > 1 {
            bail!("--hardware {}:pace has one engine: name one CPU with --cpu, not {}", applied.model, args.cpu.len());
        }
    }
    for disk in &args.blk {
        folder_exists("--blk", &disk.socket)?;
    }
    let options = Options {
        endpoint,
        disks: args.blk,
        device: args.device,
        link: published(args.link.unwrap_or(LinkKind::Peer), args.publish)?,
        control: args.control,
        capture: args.capture,
        capture_labels: args.labels,
        withhold: args.withhold,
        queue_pairs: args.queue_pairs,
        queue_size: args.queue_size,
        hardware: args.hardware,
        poll: args.poll,
        cpus: args.cpu,
        accounts: args.top,
        lives: args.life,
        sandbox: args.sandbox.mode,
        extension: Some(Arc::new(Witness)),
    };
    if let Some(control) = options.control_path() {
        folder_exists("--control", &control)?;
    }
    if let Some(capture) = &options.capture {
        folder_exists("--capture", capture)?;
    }
    // Its words name their cause already.
    match serve(&options) {
        Ok(()) => Ok(Finding::Fine),
        // It began, and broke.
        Err(error @ ServeError::Worker(_)) => {
            tracing::error!("{error}");
            Ok(Finding::Broken)
        }
        Err(error) => bail!("{error}"),
    }
}

/// Nothing was said that means something to a NIC alone.
fn for_a_nic_only(args: &Args) -> Result<()> {
    let said = [
        ("--link", args.link.is_some()),
        ("--publish", !args.publish.is_empty()),
        ("--capture", args.capture.is_some()),
        ("--withhold", args.withhold != Features::NONE),
        ("--queue-pairs", args.queue_pairs != 1),
        ("--hardware", args.hardware.is_some()),
    ];
    if let Some((option, _)) = said.iter().find(|(_, said)| *said) {
        bail!("{option} is for a network card: with --device rng there are no frames");
    }
    if args.cpu.len() > 1 {
        bail!("--device rng has one worker: name one CPU with --cpu, not {}", args.cpu.len());
    }
    Ok(())
}

/// The link with these ports of the guest's published.
fn published(link: LinkKind, ports: Vec<Publish>) -> Result<LinkKind> {
    match link {
        LinkKind::Passt(_) => {
            // This process is locked in by then: another of this program starts passt, and starts it again.
            let starter = Some(std::env::current_exe().context("where is this program?")?);
            Ok(LinkKind::Passt(Network { publish: ports, starter }))
        }
        link if ports.is_empty() => Ok(link),
        link => bail!("--publish needs --link passt: {link} has no ports of this host's to forward"),
    }
}

/// Makes sure that the parent process did open this file: before this process opens one that gets the same number.
fn inherited(fd: RawFd) -> Result<RawFd> {
    match fs::read_link(format!("/proc/self/fd/{fd}")) {
        Ok(file) if file.to_string_lossy().starts_with("socket:") => Ok(fd),
        Ok(file) => bail!("--fd: file descriptor {fd} is no socket but {}", file.display()),
        Err(_) => bail!("--fd: there is no file descriptor {fd}; have the process that starts this one leave it open"),
    }
}

pub(super) fn folder_exists(option: &str, path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if folder.is_dir() {
        return Ok(());
    }
    bail!("{option}: the folder {} does not exist; make it, or choose another path", folder.display())
}
