//! Clients of the control socket, of a device that a front-end has set up.
//!
//! Operation: lines, most of which are requests, all of a client's at once. Then the client stops to write and reads what comes;
//! one that wants to be told for ever goes away in the middle.
//!
//! What must hold: no panic; each line is answered by a line of JSON, that of a request which is none by an error; a client's
//! thread is free again when the client is gone; and the queues go on when all are (looked at every so often).

use std::cell::RefCell;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use serde_json::{Value, json};
use vnic::serve::control::{Control, ControlSocket, Device};

use crate::front_end::{self, FrontEnd, Rig};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Looks whether frames still come and go: once in so many runs.
const PROBE: u32 = 256;

/// A line of a client.
#[derive(Debug, Arbitrary)]
enum Line<'b> {
    Status,
    Rings(Option<Name<'b>>),
    Hold(Name<'b>),
    Release(Name<'b>),
    Ping(IpAddr),
    Page(Vec<Address>),
    LifeOfFile(&'b str),
    LifeOfPages(Vec<Address>),
    Trace {
        labels: bool,
        headers: bool,
    },
    Top {
        every_ms: u64,
        so_far: bool,
    },
    Metrics(&'b str),
    /// A request with something else in place of what it takes.
    Odd(u8, &'b str),
    Bytes(&'b [u8]),
}

#[derive(Debug, Arbitrary)]
enum Name<'b> {
    Queue(u8),
    Any(&'b str),
}

#[derive(Debug, Arbitrary)]
enum Address {
    Memory(u16),
    Any(u64),
}

impl Name<'_> {
    fn json(&self) -> Value {
        match self {
            Name::Queue(index) => vnic::nic::queue_name((index % 4).into()).into(),
            Name::Any(name) => (*name).into(),
        }
    }
}

impl Line<'_> {
    /// As it is sent, and whether what comes after it never ends, or is no line of JSON.
    fn bytes(&self) -> (Vec<u8>, bool) {
        let addresses = |all: &[Address]| -> Vec<u64> {
            let address = |address: &Address| match address {
                Address::Memory(page) => u64::from(*page) << 8,
                Address::Any(address) => *address,
            };
            all.iter().map(address).collect()
        };
        let request = match self {
            Line::Status => json!({"request": "status"}),
            Line::Rings(queue) => json!({"request": "rings", "queue": queue.as_ref().map(Name::json)}),
            Line::Hold(queue) => json!({"request": "hold", "queue": queue.json()}),
            Line::Release(queue) => json!({"request": "release", "queue": queue.json()}),
            Line::Ping(to) => json!({"request": "ping", "to": to}),
            Line::Page(all) => json!({"request": "page", "addresses": addresses(all)}),
            Line::LifeOfFile(path) => json!({"request": "life", "file": {"path": path}}),
            Line::LifeOfPages(all) => json!({"request": "life", "pages": {"addresses": addresses(all)}}),
            Line::Trace { labels, headers } => json!({"request": "trace", "labels": labels, "headers": headers}),
            Line::Top { every_ms, so_far } => json!({"request": "top", "every_ms": every_ms, "so_far": so_far}),
            Line::Metrics(rest) => return (format!("GET /metrics HTTP/1.0{rest}\r\n\r\n").into_bytes(), true),
            Line::Odd(which, text) => {
                let names = ["status", "rings", "hold", "ping", "page", "life", "top", "none"];
                let name = names.get(usize::from(*which) % names.len()).copied().unwrap_or_default();
                json!({"request": name, "queue": [text], "to": text, "addresses": {"a": text}, "every_ms": text})
            }
            Line::Bytes(bytes) => {
                let bytes: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != b'\n').collect();
                let for_ever = bytes.starts_with(b"GET ") || String::from_utf8(bytes.clone()).is_err();
                return ([&bytes[..], b"\n"].concat(), for_ever);
            }
        };
        let for_ever = matches!(self, Line::Trace { .. } | Line::Top { .. });
        (format!("{request}\n").into_bytes(), for_ever)
    }
}

/// What lives as long as the process.
struct Served {
    // In this order: the socket first, so that nobody asks any more.
    _socket: ControlSocket,
    front_end: FrontEnd,
    rig: Rig,
    path: PathBuf,
    runs: u32,
}

thread_local! {
    static SERVED: RefCell<Option<Served>> = const { RefCell::new(None) };
}

impl Served {
    fn new() -> Self {
        let rig = Rig::new();
        let mut front_end = FrontEnd::new(&rig);
        front_end.set_up();
        let path = std::env::temp_dir().join(format!("vnic-fuzz-{}.sock", std::process::id()));
        let socket = ControlSocket::bind(&path).expect("a control socket");
        let (shared, workers) = rig.parts();
        let device = Device { shared, workers, pinger: None };
        socket.serve(Control::new(vec![device], None)).expect("threads");
        Served { _socket: socket, front_end, rig, path, runs: 0 }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).expect("the control socket is there");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket has such");
        stream
    }

    /// The next client's lines, answered; and nothing of them is left.
    fn play(&mut self, lines: &[Line<'_>]) {
        let mut asked = Vec::new();
        let mut answers = 0;
        let mut goes = false;
        for (bytes, for_ever) in lines.iter().map(Line::bytes) {
            asked.extend(bytes);
            goes = for_ever;
            if goes {
                break;
            }
            answers += 1;
        }
        let mut client = self.connect();
        // One client too many is told so, and nobody reads what it writes.
        if client.write_all(&asked).is_err() || goes || client.shutdown(Shutdown::Write).is_err() {
            return;
        }
        let mut heard = 0;
        for line in BufReader::new(client).lines() {
            let line = match line {
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                line => line.expect("an answer in time"),
            };
            let answer: Value = serde_json::from_str(&line).expect("answers are JSON");
            if answer["message"].as_str().is_some_and(|message| message.contains("clients are connected already")) {
                return;
            }
            assert!(answer["reply"].is_string(), "{line}");
            heard += 1;
        }
        assert_eq!(heard, answers, "lines were not answered");
    }

    /// Every queue goes on, and one who asks is answered: all who were there before have gone.
    fn look(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        for index in 0..4 {
            let name = vnic::nic::queue_name(index);
            loop {
                let mut client = self.connect();
                let _ = writeln!(client, "{}", json!({"request": "release", "queue": name}));
                let mut line = String::new();
                let heard = BufReader::new(&client).read_line(&mut line);
                if heard.is_ok() && line.contains("\"reply\"") && !line.contains("connected already") {
                    break;
                }
                assert!(Instant::now() < deadline, "nobody is answered any more: {line}");
            }
        }
        assert!(self.front_end.is_served(), "the session has ended");
        front_end::probe(&self.rig);
        self.front_end = FrontEnd::new(&self.rig);
        self.front_end.set_up();
    }
}

/// Plays `data`.
pub fn run(data: &[u8]) {
    let Ok(lines) = <Vec<Line<'_>>>::arbitrary(&mut Unstructured::new(data)) else { return };
    let mut served = SERVED.take().unwrap_or_else(Served::new);
    served.play(&lines);
    served.runs = served.runs.wrapping_add(1);
    if served.runs.is_multiple_of(PROBE) {
        served.look();
    }
    SERVED.set(Some(served));
}
