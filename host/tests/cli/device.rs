//! A device for tests: a control socket that speaks the protocol, and answers what the test says.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::vec::IntoIter;

use serde::{Deserialize, Serialize};
use vnic::observe::protocol::{
    BufferSnapshot, ChainEvent, ChainSnapshot, EventSuppression, FeatureSets, FlowReport, Headers, Kind, Label, Life,
    LifeOf, NetHeaderStatus, NotifyWhen, Owner, Passed, QueueStatus, RegionStatus, Reply, Report, Request,
    RingSnapshot, Segment, Source, SourceKind, SourceReport, Status, Step, TraceEvent, Use,
};
use vnic_experiment::control;
use vnic_experiment::flow::FlowAccounts;
use vnic_experiment::scan::ScanReport;

/// What a device may be asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Asked {
    Device(Request),
    Judge(control::Request),
}

/// What the device is like.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) status: Status,
    pub(crate) rings: Vec<RingSnapshot>,
    /// After these the connection is closed.
    pub(crate) events: Vec<TraceEvent>,
    pub(crate) accounts: Vec<FlowAccounts>,
    /// How often what is held stands in memory, scan by scan; after them it cannot tell.
    pub(crate) instances: Vec<u64>,
}

/// A running device. Its threads end with the test's process.
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    /// What it was asked.
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
}

impl Device {
    pub(crate) fn start(path: &Path, script: Script) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let device = Device { path: path.to_owned(), asked: asked.clone() };
        let memory = Arc::new(Mutex::new(Memory {
            accounts: script.accounts.clone().into_iter(),
            instances: script.instances.clone().into_iter(),
            held: BTreeSet::new(),
        }));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (script, asked, memory) = (script.clone(), asked.clone(), memory.clone());
                thread::spawn(move || serve(stream.unwrap(), &script, &asked, &memory));
            }
        });
        device
    }

    pub(crate) fn control(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// What the device knows beside its script.
struct Memory {
    accounts: IntoIter<FlowAccounts>,
    instances: IntoIter<u64>,
    held: BTreeSet<String>,
}

fn serve(stream: UnixStream, script: &Script, asked: &Mutex<Vec<Asked>>, memory: &Mutex<Memory>) {
    let mut writer = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let request: Asked = serde_json::from_str(&line).unwrap();
        asked.lock().unwrap().push(request.clone());
        let known = |queue: &str| script.status.queues.iter().any(|status| status.queue == queue);
        let refuse = |queue: &str| Reply::Error { message: format!("there is no queue `{queue}`") };
        let said = match &request {
            Asked::Device(request) => say(
                &mut writer,
                &match request {
                    Request::Status => Reply::Status(Box::new(script.status.clone())),
                    Request::Rings { queue: Some(queue) } if !known(queue) => refuse(queue),
                    Request::Rings { queue } => Reply::Rings {
                        rings: script
                            .rings
                            .iter()
                            .filter(|ring| queue.as_ref().is_none_or(|queue| *queue == ring.queue))
                            .cloned()
                            .collect(),
                    },
                    Request::Hold { queue } | Request::Release { queue } if !known(queue) => refuse(queue),
                    Request::Trace { .. } | Request::Ping { .. } | Request::Top { .. } => Reply::Done,
                    Request::Page { addresses } => Reply::Page {
                        labels: addresses.iter().map(label).collect(),
                        flags: addresses.iter().map(|_| names(&["uptodate", "lru"])).collect(),
                        last_uses: addresses.iter().map(|gpa| last_use(*gpa)).collect(),
                    },
                    Request::Life(of) => Reply::Life(Box::new(life(of))),
                    Request::Hold { queue } => {
                        memory.lock().unwrap().held.insert(queue.clone());
                        Reply::Done
                    }
                    Request::Release { queue } => {
                        memory.lock().unwrap().held.remove(queue);
                        Reply::Done
                    }
                },
            ),
            Asked::Judge(request) => say(&mut writer, &judged(request, script, &mut memory.lock().unwrap())),
        };
        if said.is_err() {
            return;
        }
        if let Asked::Device(Request::Top { every_ms, .. }) = request {
            for number in 1..=3 {
                let seconds = (number * every_ms) as f64 / 1000.0;
                if say(&mut writer, &Reply::Top(Box::new(sent(seconds)))).is_err() {
                    return;
                }
            }
        }
        if matches!(request, Asked::Device(Request::Trace { .. })) {
            for event in &script.events {
                if say(&mut writer, event).is_err() {
                    return;
                }
            }
            return;
        }
    }
}

/// What nginx sent so far: a file as it is, and something over TLS.
fn sent(seconds: f64) -> Report {
    let file = Source {
        path: Some("/var/www/html/big.bin".to_owned()),
        filesystem: Some("ext4".to_owned()),
        device: Some("vda1".to_owned()),
        inode: Some(12),
        deleted: Some(false),
        ..Source::of(SourceKind::File)
    };
    let from = |source: &Source, bytes| SourceReport { source: source.clone(), bytes };
    let socket = Source::of(SourceKind::Socket);
    let flow = |name: &str, zero_copy_bytes, sources: Vec<SourceReport>| FlowReport {
        flow: name.to_owned(),
        protocol: "tcp".to_owned(),
        bytes: sources.iter().map(|source| source.bytes).sum(),
        zero_copy_bytes,
        file_bytes: zero_copy_bytes,
        unsettled_bytes: 0,
        frames: 100,
        descriptors: 1700,
        sources,
    };
    let passed = |bytes| Passed { frames: 300, bytes };
    Report {
        seconds,
        kernel: Some("6.1.0-56-cloud-amd64".to_owned()),
        seen_share: Some(0.8),
        passed: passed(100_000_000),
        seen: passed(80_000_000),
        bytes: 79_000_000,
        zero_copy_bytes: 67_000_000,
        flows: vec![
            flow("10.0.2.15:80 > 10.0.2.2:51514", 67_000_000, vec![from(&file, 67_000_000), from(&socket, 10_000)]),
            flow("10.0.2.15:443 > 10.0.2.2:51600", 0, vec![from(&socket, 11_990_000)]),
        ],
        files: vec![from(&file, 67_000_000)],
        elsewhere: vec![from(&socket, 12_000_000)],
        ..Report::default()
    }
}

/// Each page is one of nginx' file.
fn label(gpa: &u64) -> Label {
    Label {
        path: Some("/var/www/big.bin".into()),
        filesystem: Some("ext4".into()),
        device: Some("vda1".into()),
        page: Some(gpa >> 12),
        inode: Some(12),
        deleted: Some(false),
        ..Label::of(*gpa, Kind::File)
    }
}

/// The file's first page was read from the disk and sent; of other pages nothing is known.
fn life(of: &LifeOf) -> Life {
    let path: Arc<str> = match of {
        // As `top` has it.
        LifeOf::File { path } if path.starts_with("/var/www/html/") => path.as_str().into(),
        _ => "/var/www/big.bin".into(),
    };
    let owner = Some(Owner::File { path: path.clone(), page: Some(0) });
    let step = |at_ns, queue: &str, idx, what| Step {
        at_ns,
        queue: queue.into(),
        idx,
        gpa: 0x2ee_1000,
        bytes: 4096,
        what,
        owner: None,
    };
    let to = Segment {
        source: "10.0.2.15:80".parse().unwrap(),
        destination: "10.0.2.2:51514".parse().unwrap(),
        seq: Some(4711),
    };
    let steps = vec![
        step(1_000_000_000, "disk0.requestq0", 12, Use::ReadFrom { sector: 2048 }),
        Step { owner, ..step(1_500_000_000, "transmitq0", 14, Use::Sent { segment: Some(to) }) },
        step(1_500_000_000, "transmitq0", 14, Use::Held { for_ns: 1_250_000, by_hand: false }),
        step(1_501_250_000, "transmitq0", 14, Use::Completed),
    ];
    match of {
        LifeOf::File { path: asked } if **asked == *path => Life { steps, missed_chains: 1234, ..Life::default() },
        LifeOf::Page { gpa: 0x2ee_1000 } => Life { steps, ..Life::default() },
        _ => Life::default(),
    }
}

/// What it was used for last.
fn last_use(gpa: u64) -> Option<Step> {
    life(&LifeOf::Page { gpa }).steps.into_iter().rfind(|step| !step.what.accompanies())
}

/// What the judge is answered.
fn judged(request: &control::Request, script: &Script, memory: &mut Memory) -> control::Reply {
    match request {
        control::Request::WatchFlow { .. } => control::Reply::Done,
        control::Request::Scan { queue } => {
            let held = |queue: &str| script.status.queues.iter().any(|at| at.queue == queue && at.state == "held");
            assert!(memory.held.contains(queue) || held(queue), "only what is held can be scanned for");
            let refused = "the host does not let its memory be looked through".to_owned();
            let count = memory.instances.next();
            count.map_or(control::Reply::Error { message: refused }, |count| control::Reply::Scan(found(count)))
        }
        control::Request::EndWatch { .. } => {
            let refused = control::Reply::Error { message: "no flow is watched".to_owned() };
            memory.accounts.next().map_or(refused, |accounts| control::Reply::FlowAccounts(accounts.into()))
        }
    }
}

/// 128 stamps that stand this often.
pub(crate) fn found(count: u64) -> ScanReport {
    ScanReport {
        held_stamps: 128,
        sent_again: 0,
        instances: [(count, 128)].into(),
        places: (1..=count).map(|at| at << 20).collect(),
        scanned_bytes: 300 << 20,
        seconds: 0.25,
    }
}

fn say(writer: &mut UnixStream, words: &impl serde::Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(words).unwrap();
    line.push(b'\n');
    writer.write_all(&line)
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

/// A device that waits for the next chain, and a driver that polls.
const EVENT_SUPPRESSION: EventSuppression = EventSuppression { kick: NotifyWhen::Past(5), call: NotifyWhen::Never };

fn queue(name: &str, chains: u64) -> QueueStatus {
    QueueStatus {
        queue: name.to_owned(),
        state: "running".to_owned(),
        waits: None,
        error: None,
        size: 256,
        event_suppression: Some(EVENT_SUPPRESSION),
        counters: [("chains", chains), ("descriptors", 3 * chains), ("bytes", 65160 * chains), ("drops", 0)]
            .map(|(name, count)| (name.to_owned(), count))
            .into(),
    }
}

fn readable(addr: u64, len: u32, file_page: Option<u64>) -> BufferSnapshot {
    BufferSnapshot { file_page, ..BufferSnapshot::at(addr, len) }
}

/// Of a large TCP segment.
const NET_HEADER: NetHeaderStatus =
    NetHeaderStatus { flags: 1, gso_type: 1, hdr_len: 66, gso_size: 1448, csum_start: 34, csum_offset: 16 };

/// A device with a guest at work.
pub(crate) fn busy() -> Script {
    let ring = |queue: &str, chains: Vec<ChainSnapshot>| RingSnapshot {
        queue: queue.to_owned(),
        format: "split".to_owned(),
        size: 256,
        avail_idx: 5 + chains.len() as u16,
        used_idx: 5,
        in_flight: chains.len() as u16,
        consistent: true,
        chains,
        faults: Vec::new(),
    };
    let chain = ChainSnapshot {
        slot: 5,
        head: 12,
        indirect: false,
        buffers: vec![
            readable(0x1f000, 78, None),
            readable(0x20000, 4096, Some(17)),
            readable(0x21000, 3144, Some(18)),
        ],
        fault: None,
    };
    Script {
        status: Status {
            device: "net".to_owned(),
            devices: Vec::new(),
            socket: "/run/vnic.sock".to_owned(),
            pid: 4711,
            link: "peer".to_owned(),
            connected: true,
            sessions: 2,
            last_error: None,
            features: FeatureSets {
                offered: names(&["csum", "host_tso4", "event_idx"]),
                withheld: Vec::new(),
                negotiated: names(&["csum", "event_idx"]),
            },
            protocol_features: names(&["mq", "reply_ack"]),
            regions: vec![RegionStatus { gpa: 0, size: 512 << 20, user_addr: 0x7f00_0000_0000, offset: 0 }],
            sandbox: None,
            hardware: None,
            proxy: None,
            migration: None,
            iotlb: None,
            queues: vec![queue("receiveq0", 40), queue("transmitq0", 1234)],
            idle_ns: 0,
            link_counters: [("tx_frames".to_owned(), 1234)].into(),
        },
        rings: vec![ring("receiveq0", Vec::new()), ring("transmitq0", vec![chain])],
        events: vec![
            TraceEvent::Chain(ChainEvent {
                at_ns: 1_500_000_000,
                available_ns: 1_499_000_000,
                queue: "transmitq0".to_owned(),
                head: 12,
                idx: 5,
                indirect: false,
                buffers: vec![readable(0x1f000, 78, None), readable(0x20000, 4096, Some(17))],
                descriptors: 2,
                written: 0,
                summary: "10.0.2.15:40000 > 10.0.2.2:9000 tcp seq 1 len 4096".to_owned(),
                headers: Some(Headers { net: Some(NET_HEADER), frame_len: 4162, bytes: "52550a0000020800".to_owned() }),
            }),
            TraceEvent::Lost { queue: "transmitq0".to_owned(), events: 7 },
        ],
        accounts: Vec::new(),
        instances: Vec::new(),
    }
}
