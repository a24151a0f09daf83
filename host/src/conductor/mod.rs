//! Conducts a transfer run: the guest's agent on one side, the device on the other.
//!
//! Place: `vnic judge` calls [`conduct`] or [`hazard::show`] once. The conversation with the agent is
//! [`vnic_experiment::wire`]'s, over QEMU's side of the record port; the one with the device goes over its control socket.
//!
//! Operation, for each row:
//! 1. [`probe`]: one chunk is sent and held in the device, and the guest's memory is looked through for it.
//! 2. `Transfer` → the agent makes the file, connects, answers `TransferBegin` with the flow and the file's pages.
//! 3. The device is told to watch the flow.
//!    So is QEMU's plugin, where it is there ([`touches`]).
//! 4. `Go` → the agent sends, with its kernel's accounts open, and answers `TransferEnd`.
//! 5. The device says what it saw of the flow; [`row`] joins all into the record. A file that was not in memory before has its
//!    pages only now: the device is told them with the question.
//!
//! A row that fails is a row that says why; a conversation that breaks ends the run, and the rows not reached say why.
//! Every wait has a name and a deadline, and ends when the user interrupts. In the end, whatever happened, no queue is
//! left held and the guest is told to power off.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use vnic::hardware::Model;
use vnic_experiment::control;
use vnic_experiment::filesystem::Filesystem;
use vnic_experiment::flow::FlowAccounts;
use vnic_experiment::row::{PROGRAM, PathKind, Row};
use vnic_experiment::run::{FileInfo, KernelModule, NicState, Run};
use vnic_experiment::wire::{Event, Request, TransferSpec};

use crate::control::Client;
use port::{Port, Wait};
use probe::Probed;
use progress::Progress;
use row::{Memory, Transfer};
use touches::Touches;

pub(crate) mod hazard;
mod held;
mod interrupt;
mod life;
mod port;
mod probe;
mod progress;
mod row;
mod touches;

/// Who is asked about a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Witnesses {
    /// The descriptors the NIC was handed.
    pub(crate) device: bool,
    /// The guest kernel's accounts.
    pub(crate) guest: bool,
    /// The guest's memory, read from outside.
    pub(crate) memory: bool,
    /// The guest kernel's structures, read from outside.
    pub(crate) introspection: bool,
}

impl Witnesses {
    /// Is a flow to be watched as it goes by?
    fn watch(self) -> bool {
        self.device || self.introspection
    }
}

/// What to run.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The rows, in order.
    pub(crate) rows: Vec<Row>,
    /// Bytes to send.
    pub(crate) bytes: u64,
    /// Bytes per system call.
    pub(crate) chunk: u64,
    /// Where the file is made: all rows on the first, then all on the next.
    pub(crate) filesystems: Vec<String>,
    /// Who is asked.
    pub(crate) witnesses: Witnesses,
    /// The user's own kernel modules that the guest has.
    pub(crate) kernel_modules: Vec<KernelModule>,
    /// What the row `program` is to run, with its arguments.
    pub(crate) program: Vec<String>,
    /// Where QEMU's plugin answers that counts the accesses to the file's pages.
    pub(crate) touches: Option<PathBuf>,
    /// The receiver.
    pub(crate) to: SocketAddr,
    /// The accelerator, for the record.
    pub(crate) accel: Option<String>,
    /// QEMU's version, for the record.
    pub(crate) qemu: Option<String>,
}

/// The receiver of rows over IPv6: the far end of our own link.
const PEER_IPV6: IpAddr = IpAddr::V6(vnic::link::peer::IPV6);

/// A guest under TCG on a busy machine needs this long to boot.
const BOOT: Duration = Duration::from_secs(240);
/// For anything the agent does beside moving bytes.
const ANSWER: Duration = Duration::from_secs(90);
/// The slowest guest still called alive, bytes per second: making the file, hashing it, sending it.
const SLOWEST: u64 = 256 << 10;

fn limit_for(bytes: u64) -> Duration {
    ANSWER + Duration::from_secs(bytes / SLOWEST)
}

/// The guest's agent, the device and the progress shown meanwhile.
struct Conductor<'a> {
    port: Port,
    control: Client,
    plan: &'a Plan,
    touches: Option<Touches>,
    progress: Progress,
    csum_offered: bool,
    /// The model of hardware that the device was told.
    model: Option<Model>,
}

/// Runs the plan. The record is there even if the run came to an early end, which is the second value then.
pub(crate) fn conduct(record: &Path, control: Client, plan: &Plan) -> Result<(Run, Result<()>)> {
    let (mut conductor, kernel, nic) = Conductor::meet(record, control, plan)?;
    let mut run = Run {
        kernel,
        qemu: plan.qemu.clone(),
        accel: plan.accel.clone(),
        file: FileInfo { bytes: plan.bytes, filesystem: plan.filesystems.join(","), chunk: Some(plan.chunk) },
        kernel_modules: plan.kernel_modules.clone(),
        methods: Vec::new(),
        watched: None,
        reasons: BTreeMap::new(),
    };
    for (figure, told) in [("qemu", run.qemu.is_some()), ("accel", run.accel.is_some())] {
        if !told {
            run.reasons.insert(figure.to_owned(), "the caller of `vnic judge` did not say".to_owned());
        }
    }
    let ended = conductor.rows(&mut run, nic);
    let off = conductor.power_off();
    // What broke the run explains a failing power-off too.
    Ok((run, ended.and(off)))
}

impl<'a> Conductor<'a> {
    /// Waits for the guest; also gives its kernel's release and its NIC as it came up.
    fn meet(record: &Path, mut control: Client, plan: &'a Plan) -> Result<(Self, String, NicState)> {
        interrupt::watch()?;
        let status = control.status()?;
        let csum_offered = !status.features.withheld.iter().any(|name| name == "csum");
        let model = status.hardware.map(|hardware| hardware.model.parse()).transpose();
        let model = model.context("this `vnic` does not know the device's model of hardware")?;
        let mut progress = Progress::new(plan);
        progress.say("waiting for the guest");
        let mut port = Port::connect(record)?;
        let wait = Wait { what: "the guest's agent to come up", limit: BOOT };
        let ready = port.wait(&wait, &mut || progress.tick(None))?;
        let Event::Ready { kernel, nic } = ready else {
            return Err(port::out_of_turn("coming up", &ready));
        };
        progress.say(&format!("guest is up: Linux {kernel}, NIC {nic}"));
        let touches = plan.touches.as_deref().map(Touches::connect).transpose()?;
        Ok((Conductor { port, control, plan, touches, progress, csum_offered, model }, kernel, nic))
    }

    fn rows(&mut self, run: &mut Run, nic: NicState) -> Result<()> {
        let mut ended = Ok(());
        let several = self.plan.filesystems.len() > 1;
        let plan = self.plan;
        for (filesystem, row) in
            plan.filesystems.iter().flat_map(|filesystem| plan.rows.iter().map(move |row| (filesystem, row)))
        {
            let known = filesystem.parse::<Filesystem>().ok();
            let served = known.is_some_and(|known| known.served);
            // What a server copies into the program's memory nobody has documented.
            let expected = row.expected(self.csum_offered).filter(|_| !served || row.path_kind() != PathKind::Direct);
            let mut method = match &ended {
                Ok(()) => match self.row(row, filesystem) {
                    Ok(Outcome::Done(mut transfer)) => {
                        transfer.kept_elsewhere = known.is_some_and(|known| known.packs);
                        transfer.served = served;
                        row::judged(row, expected, &transfer, self.csum_offered)
                    }
                    Ok(Outcome::Failed(error)) => row::failed(row, expected, nic, &error),
                    // What this kernel lacks cannot be expected of it.
                    Ok(Outcome::Unsupported(why)) => row::failed(row, None, nic, &why),
                    Err(error) => {
                        let method = row::failed(row, expected, nic, &format!("{error:#}"));
                        ended = Err(error.context(format!("the run ended in row {row}")));
                        method
                    }
                },
                Err(error) => row::failed(row, expected, nic, &format!("not run: {error:#}")),
            };
            if let Some(model) = &self.model {
                row::on_hardware(&mut method, model);
            }
            method.filesystem = several.then(|| filesystem.clone());
            self.progress.finished(&method);
            run.methods.push(method);
        }
        ended
    }

    /// One row: the probe, where the memory is a witness, and the transfer.
    fn row(&mut self, row: &Row, filesystem: &str) -> Result<Outcome> {
        self.progress.started(row);
        let memory = if row.over.stays_here() {
            Memory::Unknown("its bytes never meet the NIC, where they could be held".to_owned())
        } else if self.plan.witnesses.memory {
            match self.probe(row, filesystem)? {
                Probed::Instances(count) => Memory::Instances(count),
                Probed::Unknown(reason) => Memory::Unknown(reason),
                Probed::Unsupported(why) => return Ok(Outcome::Unsupported(why)),
            }
        } else {
            Memory::Unknown(LEFT_OUT.to_owned())
        };
        self.transfer(row, filesystem, memory)
    }

    fn spec(&self, row: &Row, filesystem: &str) -> TransferSpec {
        TransferSpec {
            method: row.method.clone(),
            bytes: self.plan.bytes,
            offset: 0,
            chunk: self.plan.chunk,
            filesystem: filesystem.to_owned(),
            to: if row.ipv6 { SocketAddr::new(PEER_IPV6, self.plan.to.port()) } else { self.plan.to },
            nic: row.nic,
            program: if row.method == PROGRAM { self.plan.program.clone() } else { Vec::new() },
            cold: row.cold,
            over: row.over,
            module: row.module.clone(),
            pause: false,
            accounts: self.plan.witnesses.guest,
        }
    }

    fn transfer(&mut self, row: &Row, filesystem: &str, memory: Memory) -> Result<Outcome> {
        self.port.send(&Request::Transfer(self.spec(row, filesystem)))?;
        self.watched_transfer(memory, Some(self.plan.bytes), Some(row))
    }

    /// From `TransferBegin` to `TransferEnd`, the device watching in between. The receiver is to get `bytes`, where that
    /// is known here and the guest does not say otherwise. Of a cold row's file the pages are known only afterwards.
    fn watched_transfer(&mut self, memory: Memory, bytes: Option<u64>, row: Option<&Row>) -> Result<Outcome> {
        let cold = row.is_some_and(|row| row.cold);
        let begin = match self.wait("the guest to prepare the transfer")? {
            Event::TransferBegin { flow, nic, pages, sha256, stream_bytes, filesystem: _ } => {
                if self.plan.witnesses.watch() {
                    self.control
                        .order(&control::Request::WatchFlow { flow, pages: pages.clone(), later: cold })
                        .context("the device cannot watch the transfer")?;
                }
                row::Begin { nic, pages, sha256, stream_bytes: stream_bytes.or(bytes) }
            }
            Event::Failed { error } => return Ok(Outcome::Failed(error)),
            Event::Unsupported { why } => return Ok(Outcome::Unsupported(why)),
            other => return Err(port::out_of_turn("preparing a transfer", &other)),
        };
        let control = self.begin_touches(row, &begin.pages)?;
        self.port.send(&Request::Go)?;
        let end = self.wait("the transfer to end");
        let pages = match &end {
            Ok(Event::TransferEnd { pages, .. }) if cold => pages.clone(),
            _ => Vec::new(),
        };
        let accounts = if self.plan.witnesses.watch() {
            let introspect = self.plan.witnesses.introspection;
            self.control.end_watch(pages, introspect).context("the device gives no accounts of the transfer")?
        } else {
            FlowAccounts::default()
        };
        match end? {
            Event::TransferEnd { bytes_sent, seconds, receipt, pages, accounts: guest } => {
                // Where the disk's way into memory was seen, the lives of pages go with it.
                let told = cold && self.plan.witnesses.device && matches!(accounts.disk, Some(Ok(_)));
                let page_life = told.then(|| life::of_file(&mut self.control, &pages)).flatten();
                let end = row::End { bytes_sent, seconds, receipt, pages, accounts: guest, page_life };
                let mut transfer = Transfer::new(self.plan.witnesses, begin, end, accounts, memory);
                transfer.touched = match control {
                    Ok(control) => Ok(self.end_touches(control)?),
                    Err(why) => Err(why),
                };
                Ok(Outcome::Done(Box::new(transfer)))
            }
            Event::Failed { error } => Ok(Outcome::Failed(error)),
            other => Err(port::out_of_turn("a transfer", &other)),
        }
    }

    /// Waits for the agent, and shows meanwhile what the device sent.
    fn wait(&mut self, what: &'static str) -> Result<Event> {
        let Conductor { port, control, progress, plan, .. } = self;
        let shows_bytes = progress.shows_bytes();
        let wait = Wait { what, limit: limit_for(plan.bytes) };
        port.wait(&wait, &mut || progress.tick(if shows_bytes { transmitted(control) } else { None }))
    }

    fn power_off(&mut self) -> Result<()> {
        if interrupt::came() {
            // Whoever interrupts us ends the guest too; it may be anywhere in a transfer.
            return Ok(());
        }
        self.progress.say("powering the guest off");
        self.port.send(&Request::PowerOff)?;
        // An agent that was left waiting for `Go` takes the first request as a wrong answer, and says so.
        self.port.wait_closed(&Wait { what: "the guest to power off", limit: ANSWER }, &Request::PowerOff)
    }
}

/// Bytes the device's transmit queues have sent so far. A figure for the progress bar only: no answer is no news.
fn transmitted(control: &mut Client) -> Option<u64> {
    let status = control.status().ok()?;
    let transmitqs = status.queues.iter().filter(|queue| queue.queue.starts_with("transmitq"));
    Some(transmitqs.filter_map(|queue| queue.counters.get("bytes")).sum())
}

/// Why a figure is missing whose witness was not asked.
const LEFT_OUT: &str = "this witness was left out (--witness)";

/// How a transfer went.
#[derive(Debug)]
enum Outcome {
    Done(Box<Transfer>),
    Failed(String),
    Unsupported(String),
}
