//! A guest for tests: an agent on a record port that follows the wire protocol to the letter.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::{self, JoinHandle};

use vnic::record::run::NicState;
use vnic::record::wire::{Books, Event, Flow, PageRun, Receipt, Request, TransferSpec};

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
        let mut prepared = None;
        for line in BufReader::new(stream).lines() {
            let Ok(line) = line else { return };
            let request: Request = serde_json::from_str(&line).unwrap();
            self.asked.push(request.clone());
            match request {
                Request::Transfer(spec) => prepared = self.prepare(spec),
                Request::Go if self.manner == Manner::Dies => return,
                Request::Go => self.send(prepared.take().unwrap()),
                Request::PowerOff => return,
                Request::Run { .. } | Request::Hazard { .. } => panic!("nobody asks for this"),
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
            books: Books {
                syscalls: Some(3),
                reasons: [("page_faults".to_owned(), "no tracefs".to_owned())].into(),
                ..Books::default()
            },
        });
    }

    fn say(&mut self, event: &Event) {
        let mut line = serde_json::to_vec(event).unwrap();
        line.push(b'\n');
        self.writer.write_all(&line).unwrap();
    }
}
