//! Clients of the control socket, of a device that a front-end has set up.
//!
//! Operation: lines, most of which are requests, all of a client's at once. Then the client stops to write, is talked with (on its own
//! thread, which costs least) and reads what came; one that wants to be told for ever goes away in the middle, or before it is heard.
//!
//! What must hold: no panic; each line is answered by a line of JSON, that of a request which is none by an error; the socket's own
//! threads are free again when their clients are gone; and the queues go on when all are (looked at every so often).

use std::cell::RefCell;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::mem::ManuallyDrop;
use std::net::{IpAddr, Shutdown};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Unstructured};
use serde::Deserialize;
use serde_json::{Value, json};
use vnic::backend::PollMode;
use vnic::serve::control::{Control, ControlSocket, Device, Server};

use crate::front_end::{self, FrontEnd, Rig};

/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Looks whether frames still come and go: once in so many runs.
const PROBE: u32 = 256;
/// Most lines of one client: so the answers to all of them fit into its socket.
const LINES: usize = 8;

/// What clients do, one after the other.
#[derive(Debug, Arbitrary)]
struct Input<'b> {
    /// The one that goes away does so before it is heard.
    early: bool,
    lines: Vec<Line<'b>>,
}

/// What every answer has.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(rename = "reply")]
    _reply: String,
    message: Option<String>,
}

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
    server: Server,
    /// Not ended with the process: its rings would look for what the thread has lost by then.
    front_end: ManuallyDrop<FrontEnd>,
    rig: Rig,
    path: PathBuf,
    runs: u32,
}

thread_local! {
    static SERVED: RefCell<Option<Served>> = const { RefCell::new(None) };
}

impl Served {
    fn new() -> Self {
        let rig = Rig::new(PollMode::Asked);
        let mut front_end = ManuallyDrop::new(FrontEnd::new(&rig));
        front_end.set_up(0);
        let path = std::env::temp_dir().join(format!("vnic-fuzz-{}.sock", std::process::id()));
        let socket = ControlSocket::bind(&path).expect("a control socket");
        let (shared, workers) = rig.parts();
        let device = Device { shared, workers, pinger: None };
        let server = socket.serve(Control::new(vec![device], None)).expect("threads");
        Served { _socket: socket, server, front_end, rig, path, runs: 0 }
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).expect("the control socket is there");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket has such");
        stream
    }

    /// The next client's lines, answered; and nothing of them is left. Returns whether all were answered.
    fn play(&mut self, lines: &[Line<'_>], early: bool) -> bool {
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
        let (mut client, served) = UnixStream::pair().expect("a socket pair");
        served.set_write_timeout(Some(PATIENCE)).expect("a socket has such");
        client.write_all(&asked).expect("a socket has room for some lines");
        if goes && early {
            drop(client);
            self.server.admit(served);
            return false;
        }
        client.shutdown(Shutdown::Write).expect("a socket can be shut down");
        self.server.admit(served);
        if goes {
            return false;
        }
        let mut heard = 0;
        for line in BufReader::new(client).lines() {
            let line = match line {
                // One client too many is told so, and nobody reads what it writes.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return false,
                line => line.expect("an answer"),
            };
            let Answer { message, .. } = serde_json::from_str(&line).expect("answers are JSON, and say of what kind");
            if message.is_some_and(|message| message.contains("clients are connected already")) {
                return false;
            }
            heard += 1;
        }
        assert_eq!(heard, answers, "lines were not answered");
        true
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
        *self.front_end = FrontEnd::new(&self.rig);
        // Packed or not, in order or not, behind an IOMMU or not.
        self.front_end.set_up((self.runs / PROBE) as u8);
    }
}

/// Plays `data`.
pub fn run(data: &[u8]) {
    let Ok(Input { early, lines }) = Input::arbitrary(&mut Unstructured::new(data)) else { return };
    let mut served = SERVED.take().unwrap_or_else(Served::new);
    let _ = lines.chunks(LINES).all(|lines| served.play(lines, early));
    served.runs = served.runs.wrapping_add(1);
    if served.runs.is_multiple_of(PROBE) {
        served.look();
    }
    SERVED.set(Some(served));
}
