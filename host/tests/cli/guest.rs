//! A guest for tests: an agent on a record port that follows the wire protocol to the letter.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use vnic_experiment::run::NicState;
use vnic_experiment::wire::{Accounts, Event, Flow, NicWish, Over, PageRun, Receipt, Request, TransferSpec};

/// What the guest does with a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// All as asked.
    Right,
    /// The receiver got other bytes.
    WrongDigest,
    /// It fails before it sends.
    Fails,
    /// The kernel lacks the method.
    Lacks,
    /// The guest dies between begin and end.
    Dies,
    /// It keeps scatter-gather on whatever is asked.
    KeepsSg,
    /// What it says is no JSON.
    Babbles,
    /// Its kernel's accounts say that each byte was copied so often.
    Copies(u64),
    /// It dies while its first chunk is held.
    DiesPaused,
    /// It fails in the call whose chunk is held.
    FailsHeld,
    /// It does not come back from that call.
    Hangs,
    /// A hazard does not go as described.
    Unscathed,
}

/// Serves one host on `path` in `manner`; gives back what it was asked.
pub(crate) fn start(path: &Path, manner: Manner) -> JoinHandle<Vec<Request>> {
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut agent = Agent { writer: stream.try_clone().unwrap(), asked: Vec::new(), manner };
        agent.serve(stream);
        agent.asked
    })
}

/// A hazard that is being shown.
struct Hazard {
    name: String,
    method: String,
    /// Transfers to come.
    left: u32,
}

struct Agent {
    writer: UnixStream,
    asked: Vec<Request>,
    manner: Manner,
}

impl Agent {
    fn serve(&mut self, stream: UnixStream) {
        let nic = NicState { csum: true, sg: true, tso: true };
        if self.manner == Manner::Babbles {
            self.writer.write_all(b"\x1b[2Jlogin: \n").unwrap();
        } else {
            self.say(&Event::Ready { kernel: "6.1.0-test".to_owned(), nic });
        }
        let mut prepared: Option<TransferSpec> = None;
        let mut hazard: Option<Hazard> = None;
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let request: Request = serde_json::from_str(&line).unwrap();
            self.asked.push(request.clone());
            match request {
                Request::Transfer(spec) => prepared = self.prepare(spec),
                Request::Go if prepared.as_ref().is_some_and(|spec| spec.pause) => match self.manner {
                    Manner::DiesPaused => return,
                    Manner::FailsHeld => {
                        self.say(&Event::Failed { error: "the call was refused".to_owned() });
                        prepared = None;
                    }
                    Manner::Hangs => {}
                    _ => {
                        let spec = prepared.as_mut().unwrap();
                        spec.pause = false;
                        let taken = spec.bytes;
                        self.say(&Event::Paused { taken });
                    }
                },
                Request::Go if self.manner == Manner::Dies => return,
                Request::Go => match hazard.as_mut() {
                    Some(hazard) => {
                        let spec = prepared.take().unwrap();
                        if hazard.name == "observer" {
                            self.send(spec.clone());
                            hazard.left -= 1;
                            if hazard.left > 0 {
                                prepared = self.prepare(spec);
                                continue;
                            }
                        }
                        self.shown(hazard);
                    }
                    None => self.send(prepared.take().unwrap()),
                },
                Request::Hazard { name, method, to } => {
                    let spec = TransferSpec {
                        method: method.clone(),
                        bytes: 16384,
                        offset: 0,
                        chunk: 16384,
                        filesystem: "tmpfs".to_owned(),
                        to,
                        nic: NicWish::default(),
                        program: Vec::new(),
                        cold: false,
                        over: Over::Tcp,
                        module: None,
                        pause: name == "mutate",
                        accounts: false,
                    };
                    let new = Hazard { name, method, left: 2 };
                    if matches!(new.name.as_str(), "mutate" | "observer") {
                        prepared = self.prepare(spec);
                    } else {
                        self.shown(&new);
                    }
                    hazard = Some(new);
                }
                Request::PowerOff => return,
                Request::Run { .. } | Request::Touch => panic!("nobody asks for this"),
            }
        }
    }

    fn prepare(&mut self, spec: TransferSpec) -> Option<TransferSpec> {
        match self.manner {
            Manner::Fails => {
                self.say(&Event::Failed { error: "no room on the file system".to_owned() });
                return None;
            }
            Manner::Lacks => {
                self.say(&Event::Unsupported { why: "this kernel has no such call".to_owned() });
                return None;
            }
            _ => {}
        }
        let sg = self.manner == Manner::KeepsSg || spec.nic.sg.unwrap_or(true);
        self.say(&Event::TransferBegin {
            flow: Flow { protocol: 6, local: "10.0.2.15:40000".parse().unwrap(), remote: spec.to },
            nic: NicState { csum: spec.nic.csum.unwrap_or(true), sg, tso: true },
            pages: vec![PageRun { page: 0, gpa: 0x20000, count: 4 }],
            sha256: "ab".repeat(32),
            stream_bytes: None,
            filesystem: spec.filesystem.clone(),
        });
        Some(spec)
    }

    fn send(&mut self, spec: TransferSpec) {
        let sha256 = if self.manner == Manner::WrongDigest { "cd" } else { "ab" };
        self.say(&Event::TransferEnd {
            bytes_sent: spec.bytes,
            seconds: 0.25,
            receipt: Receipt { bytes: spec.bytes, sha256: sha256.repeat(32) },
            pages: vec![PageRun { page: 0, gpa: 0x20000, count: 4 }],
            accounts: Accounts {
                syscalls: Some(3),
                disk_read_bytes: Some(0),
                mode_switches: Some(6),
                copied_bytes: self.copied(&spec),
                reasons: [("page_faults".to_owned(), "no tracefs".to_owned())].into(),
                ..Accounts::default()
            },
        });
    }

    /// The accounts of a kernel that does as documented, or of one that lies.
    fn copied(&self, spec: &TransferSpec) -> BTreeMap<String, Option<u64>> {
        if !spec.accounts {
            return BTreeMap::new();
        }
        let reads = u64::from(spec.method == "read-write");
        let writes = u64::from(matches!(spec.method.as_str(), "read-write" | "mmap-write"));
        let linearises = u64::from(spec.nic.sg == Some(false));
        let counts = match self.manner {
            Manner::Copies(count) => [0, count, 0],
            _ => [reads, writes, linearises],
        };
        let functions = ["_copy_to_iter", "_copy_from_iter", "skb_copy_bits"];
        functions.into_iter().zip(counts).map(|(name, count)| (name.to_owned(), Some(count * spec.bytes))).collect()
    }

    fn shown(&mut self, hazard: &Hazard) {
        let Hazard { name, method, .. } = hazard;
        let as_described = self.manner != Manner::Unscathed;
        self.say(&Event::Shown { as_described, story: vec![format!("{name} befell\u{1b}[2J {method}")] });
    }

    fn say(&mut self, event: &Event) {
        let mut line = serde_json::to_vec(event).unwrap();
        line.push(b'\n');
        self.writer.write_all(&line).unwrap();
    }
}
