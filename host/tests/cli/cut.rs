//! A front-end that is gone in the middle of its session, after each message in turn, or has its back-end killed then: the next session
//! works. Both roles.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use vnic::memory::SharedArea;
use vnic::memory::testing::{GuestRam, USER_BASE};
use vnic::ring::{Buffer, DriverRing, Placement, RingLayout, SplitDriver};
use vnic::spec::vhost_user::{
    HEADER_LEN, Inflight, LogArea, ProtocolFeature, ProtocolFeatures, VRING_ADDR_F_LOG, VringAddr, VringState,
};
use vnic::spec::{Feature, Features};
use vnic::vhost_user::message::{InflightArea, Request, VringFile};
use vnic::vhost_user::socket::Connection;

use crate::front_end::Process;
use crate::util::{LIMIT, Scratch, skip, wait_for};

const RAM: u64 = 1 << 20;
const SIZE: u16 = 16;
/// Where the rings are: receiveq, transmitq.
const RINGS: [u64; 2] = [0x1000, 0x3000];
const FEATURES: Features = Features::of(&[Feature::Version1, Feature::ProtocolFeatures]);
const PROTOCOL: ProtocolFeatures = ProtocolFeatures::of(&[
    ProtocolFeature::Mq,
    ProtocolFeature::LogShmfd,
    ProtocolFeature::Rarp,
    ProtocolFeature::ConfigureMemSlots,
    ProtocolFeature::InflightShmfd,
    ProtocolFeature::Status,
]);

/// A guest and all that its front-end says, in order, each with its files.
struct FrontEnd {
    ram: GuestRam,
    layouts: [RingLayout; 2],
    kicks: [EventFd; 2],
    call: EventFd,
    log: OwnedFd,
    in_flight: OwnedFd,
}

impl FrontEnd {
    fn new() -> Self {
        let event = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        FrontEnd {
            ram: GuestRam::new(RAM).unwrap(),
            layouts: RINGS.map(|at| RingLayout::split_at(at, SIZE).unwrap().0),
            kicks: [event(), event()],
            call: event(),
            log: SharedArea::file(RAM / 4096 / 8).unwrap(),
            in_flight: SharedArea::file(4096).unwrap(),
        }
    }

    fn messages(&self) -> Vec<(Request, Option<BorrowedFd<'_>>)> {
        let area = InflightArea {
            told: Inflight { mmap_size: 4096, mmap_offset: 0, num_queues: 2, queue_size: SIZE },
            padded: false,
        };
        let plain = |request| (request, None);
        let mut all = vec![
            plain(Request::SetOwner),
            plain(Request::GetFeatures),
            plain(Request::GetProtocolFeatures),
            plain(Request::SetProtocolFeatures(PROTOCOL)),
            plain(Request::GetQueueNum),
            plain(Request::GetMaxMemSlots),
            plain(Request::SetFeatures(FEATURES)),
            plain(Request::SetStatus(15)),
            plain(Request::GetInflightFd(area)),
            (Request::SetInflightFd(area), Some(self.in_flight.as_fd())),
            (Request::AddMemReg(self.ram.specs()[0]), Some(self.ram.fd())),
        ];
        for (index, (layout, kick)) in (0..).zip(self.layouts.iter().zip(&self.kicks)) {
            let state = |num| VringState { index, num };
            let file = VringFile { index, present: true };
            let addr = VringAddr {
                index,
                flags: VRING_ADDR_F_LOG,
                descriptor: USER_BASE + layout.desc,
                used: USER_BASE + layout.used,
                available: USER_BASE + layout.avail,
                log: layout.used,
            };
            all.extend([
                plain(Request::SetVringNum(state(SIZE.into()))),
                plain(Request::SetVringBase(state(0))),
                plain(Request::SetVringAddr(addr)),
                (Request::SetVringCall(file), Some(self.call.as_fd())),
                (Request::SetVringKick(file), Some(kick.as_fd())),
                plain(Request::SetVringEnable(state(1))),
            ]);
        }
        let log = LogArea { mmap_size: RAM / 4096 / 8, mmap_offset: 0 };
        all.extend([
            (Request::SetLogBase(log), Some(self.log.as_fd())),
            plain(Request::SetFeatures(FEATURES.with(Feature::LogAll))),
            plain(Request::SendRarp([0x52, 0x54, 0, 1, 2, 3])),
            plain(Request::SetFeatures(FEATURES)),
        ]);
        all
    }

    /// Says the first `count`. The last one's reply, if it has one, is not waited for.
    fn begin(&self, stream: UnixStream, count: usize) -> Connection {
        let connection = Connection::new(stream.into());
        for (request, file) in self.messages().into_iter().take(count) {
            let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
            connection.send(&request.to_bytes(0), &files).unwrap();
        }
        connection
    }

    /// The same, and is gone.
    fn cut(&self, stream: UnixStream, count: usize) {
        drop(self.begin(stream, count));
    }

    /// Says all of it, and has a frame sent.
    fn whole(&self, stream: UnixStream) {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut reader = stream.try_clone().unwrap();
        let connection = self.begin(stream, usize::MAX);
        // The answer to this one comes when all before it was done.
        connection.send(&Request::GetStatus.to_bytes(0), &[]).unwrap();
        let mut header = [0; HEADER_LEN];
        loop {
            reader.read_exact(&mut header).expect("the session goes on to its end");
            let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
            let mut payload = vec![0; word(8) as usize];
            reader.read_exact(&mut payload).unwrap();
            if word(0) == Request::GetStatus.code() as u32 {
                break;
            }
        }
        let mut driver = SplitDriver::new(self.layouts[1], Arc::clone(self.ram.memory()), FEATURES).unwrap();
        driver.add(&[Buffer::readable(0x8000, 12 + 60)], Placement::Direct).unwrap();
        driver.publish();
        self.kicks[1].write(1).unwrap();
        wait_for("the frame's buffer to come back", || driver.pop_used().unwrap());
    }
}

#[test]
fn whoever_connects_after_a_session_that_was_cut_is_served_whatever_was_said_in_it() {
    let scratch = Scratch::new();
    let options = ["serve", "--link", "sink", "--socket-path", "net.sock"];
    let _serve = Process::start(&scratch, &options, "net.sock");
    let connect = || UnixStream::connect(scratch.path("net.sock")).unwrap();
    let most = FrontEnd::new().messages().len();
    for count in 0..=most {
        FrontEnd::new().cut(connect(), count);
        FrontEnd::new().whole(connect());
    }
    let status = scratch.run(&["status", "--control", "net.sock.control", "--json"]).stdout;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["sessions"], 2 * (most + 1));
    // A reply that nobody was left to read, at most.
    let error = status["last_error"].as_str().unwrap_or_default();
    assert!(error.is_empty() || error.contains("Broken pipe"), "{error}");
}

#[test]
fn a_client_whose_session_was_cut_connects_again_whatever_was_said_in_it() {
    let most = FrontEnd::new().messages().len();
    for count in 0..=most {
        let scratch = Scratch::new();
        let listener = UnixListener::bind(scratch.path("net.sock")).unwrap();
        let options = ["serve", "--client", "--link", "sink", "--socket-path", "net.sock"];
        let _serve = Process::start(&scratch, &options, "net.sock");
        FrontEnd::new().cut(listener.accept().unwrap().0, count);
        FrontEnd::new().whole(listener.accept().unwrap().0);
    }
}

/// The front-end has it accepted, and it dies before it has said or heard a word; so does the next. The third one serves.
#[test]
fn a_client_that_is_killed_between_the_connection_and_the_first_message_is_followed_by_another() {
    let scratch = Scratch::new();
    let listener = UnixListener::bind(scratch.path("net.sock")).unwrap();
    let options = ["serve", "--client", "--link", "sink", "--socket-path", "net.sock"];
    for _ in 0..2 {
        let mut serve = Process::start(&scratch, &options, "net.sock");
        let (mut stream, _) = listener.accept().unwrap();
        serve.kill();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "it said something");
    }
    let _serve = Process::start(&scratch, &options, "net.sock");
    FrontEnd::new().whole(listener.accept().unwrap().0);
}

#[test]
fn a_server_that_is_killed_with_a_connection_waiting_is_followed_by_another_at_the_same_place() {
    let scratch = Scratch::new();
    let options = ["serve", "--link", "sink", "--socket-path", "net.sock"];
    let connect = || UnixStream::connect(scratch.path("net.sock")).unwrap();
    for _ in 0..2 {
        let mut serve = Process::start(&scratch, &options, "net.sock");
        let mut stream = connect();
        serve.kill();
        // Closed, or reset where it had not been accepted.
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)), "it said something");
    }
    let _serve = Process::start(&scratch, &options, "net.sock");
    FrontEnd::new().whole(connect());
}

/// The front-end stays as it is, with its memory, its rings and its record of what is in flight, as QEMU does; the next back-end is told
/// everything anew.
#[test]
fn a_server_that_is_killed_after_any_message_is_followed_by_one_that_serves_the_same_front_end() {
    let scratch = Scratch::new();
    let options = ["serve", "--link", "sink", "--socket-path", "net.sock"];
    let connect = || UnixStream::connect(scratch.path("net.sock")).unwrap();
    for count in 0..=FrontEnd::new().messages().len() {
        let front_end = FrontEnd::new();
        let mut serve = Process::start(&scratch, &options, "net.sock");
        let _connection = front_end.begin(connect(), count);
        serve.kill();
        let _serve = Process::start(&scratch, &options, "net.sock");
        front_end.whole(connect());
    }
}

#[test]
fn a_client_that_is_killed_after_any_message_is_followed_by_one_that_serves_the_same_front_end() {
    let scratch = Scratch::new();
    let listener = UnixListener::bind(scratch.path("net.sock")).unwrap();
    let options = ["serve", "--client", "--link", "sink", "--socket-path", "net.sock"];
    for count in 0..=FrontEnd::new().messages().len() {
        let front_end = FrontEnd::new();
        let mut serve = Process::start(&scratch, &options, "net.sock");
        let _connection = front_end.begin(listener.accept().unwrap().0, count);
        serve.kill();
        let _serve = Process::start(&scratch, &options, "net.sock");
        front_end.whole(listener.accept().unwrap().0);
    }
}

/// As with the control socket's clients: it waits, and so do we.
#[test]
fn a_front_end_that_comes_when_there_is_no_file_descriptor_left_is_served_when_there_is_one() {
    let scratch = Scratch::new();
    let options = ["serve", "--link", "sink", "--socket-path", "net.sock"];
    let serve = Process::start(&scratch, &options, "net.sock");
    let limit = |most: &str| {
        let process = serve.0.id().to_string();
        Command::new("prlimit").args(["--pid", &process, &format!("--nofile={most}:")]).status()
    };
    // All of these are in use.
    match limit("4") {
        Ok(status) => assert!(status.success()),
        Err(error) => return skip(&format!("prlimit, of util-linux: {error}")),
    }
    let mut stream = UnixStream::connect(scratch.path("net.sock")).unwrap();
    let mut next = UnixStream::connect(scratch.path("net.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "it was told something");
    assert!(limit("256").unwrap().success());
    FrontEnd::new().whole(stream);
    // And the next one, who has waited meanwhile.
    next.write_all(&Request::GetFeatures.to_bytes(0)).unwrap();
    next.set_read_timeout(Some(LIMIT)).unwrap();
    next.read_exact(&mut [0; HEADER_LEN + 8]).unwrap();
}
