//! `vnic proxy` between a front-end of ours and real back-ends, or ones of ours.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;

use serde_json::Value;
use vnic::ring::Buffer;
use vnic::spec::vhost_user::{HEADER_LEN, VERSION, VringState};
use vnic::vhost_user::message::Request;
use vnic::vhost_user::socket::{Connection, Message, Received};

use crate::front_end::{FrontEnd, Process};
use crate::util::{LIMIT, Outcome, Scratch, wait_for};

fn status(scratch: &Scratch) -> Value {
    let outcome = scratch.run(&["status", "--control", "front.sock.control", "--json"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    outcome.json()
}

fn shown(scratch: &Scratch, args: &[&str]) -> Outcome {
    scratch.run(&[args, &["--control", "front.sock.control"]].concat())
}

#[test]
fn a_nics_session_passes_and_its_queues_are_seen() {
    let scratch = Scratch::new();
    let _back_end = Process::start(&scratch, &["serve", "--link", "sink", "--socket-path", "back.sock"], "back.sock");
    let _proxy = Process::proxy(&scratch);
    let mut front_end = FrontEnd::start(&scratch, 1);
    for _ in 0..3 {
        front_end.ram.write(0x8000, &[0; 12 + 60]).unwrap();
        front_end.add(&[Buffer::readable(0x8000, 12 + 60)]);
        front_end.collect();
    }
    let status = status(&scratch);
    assert_eq!((&status["device"], &status["connected"]), (&"net".into(), &true.into()), "{status}");
    let [queue] = status["queues"].as_array().unwrap().as_slice() else { panic!("{status}") };
    let counters = &queue["counters"];
    assert_eq!(
        (&queue["queue"], &queue["state"], &queue["size"]),
        (&"transmitq0".into(), &"running".into(), &8.into())
    );
    assert_eq!(
        (&counters["avail_idx"], &counters["used_idx"], &counters["in_flight"]),
        (&3.into(), &3.into(), &0.into())
    );
    // Nobody reads its call file.
    let waits = queue["waits"].as_str().unwrap();
    assert!(
        waits.starts_with("nobody's turn: nothing is in flight; ")
            && waits.contains(" on their way, and nobody has read them"),
        "{waits}"
    );
    // Memory, call and kick.
    let passed = &status["proxy"]["counters"];
    assert_eq!((&passed["files"], &passed["not_understood"], &passed["refused"]), (&3.into(), &0.into(), &0.into()));
    assert_eq!(passed["back_end_messages"], 3, "{passed}");
    let negotiated = status["features"]["negotiated"].as_array().unwrap();
    assert_eq!(negotiated.len(), 3, "{status}");
    // What the back-end says of it is the same.
    let own = scratch.run(&["status", "--control", "back.sock.control", "--json"]).json();
    assert_eq!(own["regions"], status["regions"]);
    assert_eq!(own["features"]["negotiated"], status["features"]["negotiated"]);
    assert_eq!(own["queues"][1]["counters"]["chains"], 3, "{own}");
    let mut stream = UnixStream::connect(scratch.path("front.sock.control")).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: vnic\r\n\r\n").unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    for line in [
        "vnic_device_connected{socket=\"front.sock\"} 1",
        "vnic_proxy_back_end_connected{back_end=\"back.sock\"} 1",
        "vnic_proxy_files_total 3",
        "vnic_queue_used_idx{queue=\"transmitq0\"} 3",
        "vnic_queue_in_flight{queue=\"transmitq0\"} 0",
    ] {
        assert!(metrics.lines().any(|other| other == line), "no {line:?} in\n{metrics}");
    }
    let people = shown(&scratch, &["status"]).stdout;
    for words in ["proxy to back.sock", "transmitq0", "passed on", "no Linux found"] {
        assert!(people.contains(words), "no {words:?} in\n{people}");
    }
}

#[test]
fn a_disks_requests_are_traced_and_its_ring_is_shown() {
    let scratch = Scratch::new();
    let _back_end = Process::disk(&scratch);
    let _proxy = Process::proxy(&scratch);
    let mut front_end = FrontEnd::start(&scratch, 0);
    front_end.read_config();
    assert_eq!(front_end.read_sector(7), [7; 512]);
    assert_eq!(status(&scratch)["device"], "blk");
    let rings = shown(&scratch, &["rings", "--json"]).json();
    let ring = &rings["rings"][0];
    assert_eq!((&ring["queue"], &ring["used_idx"]), (&"requestq0".into(), &1.into()), "{rings}");
    // What passes between two looks is counted as missed: some of many are seen.
    let mut trace = scratch.vnic();
    trace.args(["trace", "--json", "--control", "front.sock.control"]).stdout(Stdio::piped());
    let mut trace = Process(trace.spawn().unwrap());
    let lines = BufReader::new(trace.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || lines.for_each(|line| drop(tell.send(line))));
    let mut sector = 0;
    let seen = wait_for("a request that is seen", || {
        sector = (sector + 1) % 64;
        assert_eq!(front_end.read_sector(sector), [sector as u8; 512]);
        let said = |line: String| serde_json::from_str::<Value>(&line).unwrap();
        told.try_iter().map(said).find(|seen| seen["event"] == "chain")
    });
    assert_eq!((&seen["queue"], &seen["descriptors"], &seen["written"]), (&"requestq0".into(), &3.into(), &513.into()));
    let words = seen["summary"].as_str().unwrap();
    assert!(words.starts_with("read sector ") && words.ends_with(" len 512"), "{seen}");
}

#[test]
fn when_either_side_is_killed_the_other_is_let_go_and_the_next_session_works() {
    let scratch = Scratch::new();
    let mut back_end = Process::disk(&scratch);
    let mut proxy = Process::proxy(&scratch);
    let mut front_end = FrontEnd::start(&scratch, 0);
    assert_eq!(front_end.read_sector(1), [1; 512]);
    back_end.kill();
    assert!(front_end.is_closed());
    let mut after = None;
    wait_for("the end of the session", || {
        after = Some(status(&scratch)).filter(|status| status["connected"] == false);
        after.clone()
    });
    assert_eq!(after.unwrap()["last_error"], "the back-end closed the session");
    // A front-end may come before the back-end does.
    let (connection, mut reader) = FrontEnd::connect(&scratch.path("front.sock"));
    connection.send(&Request::GetFeatures.to_bytes(0), &[]).unwrap();
    wait_for("a front-end that waits", || {
        let status = status(&scratch);
        (status["connected"] == true && status["proxy"]["back_end_connected"] == false).then_some(())
    });
    let waits = shown(&scratch, &["rings"]);
    assert!(waits.stderr.contains("waits for the back-end: nobody listens at back.sock"), "{waits:?}");
    let _back_end = Process::disk(&scratch);
    reader.read_exact(&mut [0; HEADER_LEN + 8]).unwrap();
    drop((connection, reader));
    let mut front_end = FrontEnd::start(&scratch, 0);
    assert_eq!(front_end.read_sector(2), [2; 512]);
    assert_eq!(status(&scratch)["sessions"], 3);
    proxy.kill();
    assert!(front_end.is_closed());
    wait_for("a back-end without a front-end", || {
        let own = scratch.run(&["status", "--control", "back.sock.control", "--json"]).json();
        (own["connected"] == false).then_some(())
    });
    let _proxy = Process::proxy(&scratch);
    let mut front_end = FrontEnd::start(&scratch, 0);
    assert_eq!(front_end.read_sector(3), [3; 512]);
}

/// A back-end of ours that says nothing.
struct Listening(UnixListener);

impl Listening {
    fn bind(scratch: &Scratch) -> Listening {
        Listening(UnixListener::bind(scratch.path("back.sock")).unwrap())
    }

    fn accept(&self) -> (Connection, UnixStream) {
        let (stream, _) = self.0.accept().unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        (Connection::new(OwnedFd::from(stream.try_clone().unwrap())), stream)
    }
}

fn next(connection: &mut Connection) -> Message {
    wait_for("a message", || match connection.receive().unwrap() {
        Received::Message(message) => Some(message),
        Received::Incomplete => None,
        Received::Closed => panic!("closed"),
    })
}

fn raw(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let head = [request, flags, payload.len() as u32].map(u32::to_le_bytes).concat();
    [head, payload.to_vec()].concat()
}

#[test]
fn what_nobody_understands_is_passed_on_as_it_came_and_counted() {
    let scratch = Scratch::new();
    let listening = Listening::bind(&scratch);
    let _proxy = Process::proxy(&scratch);
    let (connection, mut front_end) = FrontEnd::connect(&scratch.path("front.sock"));
    let (_, mut back_end) = listening.accept();
    let long: Vec<u8> = (0..100_000_u32).map(|at| (at * 7) as u8).collect();
    let all = [
        raw(77, VERSION, &[1, 2, 3]),
        // No vring has this size; no table has so many regions; another version; a reply that nobody awaits.
        Request::SetVringNum(VringState { index: 0, num: 0 }).to_bytes(0),
        raw(5, VERSION, &[0xff; 40]),
        raw(1, 2, &[]),
        raw(1, VERSION | 4, &[0; 8]),
        raw(24, VERSION, &long),
        Request::GetFeatures.to_bytes(0),
    ];
    for message in &all {
        let (mut there, expected) = (vec![0; message.len()], message.clone());
        let (bytes, writer) = (message.clone(), front_end.try_clone().unwrap());
        let sends = std::thread::spawn(move || (&writer).write_all(&bytes).unwrap());
        back_end.read_exact(&mut there).unwrap();
        sends.join().unwrap();
        assert!(there == expected, "{} bytes differ", message.len());
    }
    // And back.
    for answer in [raw(77, VERSION | 4, &[9; 3]), raw(1, VERSION, &[]), raw(8, VERSION | 4, &1_u64.to_le_bytes())] {
        back_end.write_all(&answer).unwrap();
        let mut there = vec![0; answer.len()];
        front_end.read_exact(&mut there).unwrap();
        assert_eq!(there, answer);
    }
    let counts = |name: &str| status(&scratch)["proxy"]["counters"][name].clone();
    wait_for("all to be counted", || (counts("back_end_messages") == 3).then_some(()));
    assert_eq!([counts("front_end_messages"), counts("not_understood"), counts("refused")], [7, 8, 1]);
    assert_eq!(status(&scratch)["last_error"], "the back-end refused SET_VRING_NUM (it answered 1)");
    drop(connection);
}

#[test]
fn files_stay_with_their_message_and_none_is_left_open() {
    let scratch = Scratch::new();
    let listening = Listening::bind(&scratch);
    let proxy = Process::proxy(&scratch);
    let (front_end, _stream) = FrontEnd::connect(&scratch.path("front.sock"));
    let (mut back_end, _other) = listening.accept();
    let files: Vec<fs::File> = (0..8).map(|at| fs::File::open(scratch.file(&format!("{at}"), "")).unwrap()).collect();
    let inode = |fd: BorrowedFd<'_>| nix::sys::stat::fstat(fd).unwrap().st_ino;
    let inodes: Vec<u64> = files.iter().map(|file| inode(file.as_fd())).collect();
    let before = {
        front_end.send(&raw(77, VERSION, &[0]), &[]).unwrap();
        next(&mut back_end);
        proxy.open_files()
    };
    // Those of unknown requests, and those that belong to none.
    for round in 0..300_usize {
        let count = round % 9;
        let fds: Vec<BorrowedFd<'_>> = files.iter().take(count).map(AsFd::as_fd).collect();
        front_end.send(&raw(77 + (round as u32 % 2), VERSION, &[round as u8; 5]), &fds).unwrap();
        front_end.send(&Request::GetFeatures.to_bytes(0), &[]).unwrap();
        let message = next(&mut back_end);
        assert_eq!((message.header.request, &message.payload), (77 + (round as u32 % 2), &vec![round as u8; 5]));
        let came: Vec<u64> = message.fds.iter().map(|fd| inode(fd.as_fd())).collect();
        assert_eq!(came, inodes[..count]);
        assert!(next(&mut back_end).fds.is_empty());
    }
    wait_for("all files to be closed", || (proxy.open_files() == before).then_some(()));
    // More than a message may carry cannot be taken, and so not passed on: that session ends by name.
    let many: Vec<BorrowedFd<'_>> = (0..200).map(|at| files[at % 8].as_fd()).collect();
    front_end.send(&raw(77, VERSION, &[]), &many).unwrap();
    wait_for("the end of the session", || (status(&scratch)["connected"] == false).then_some(()));
    let why = status(&scratch)["last_error"].as_str().unwrap().to_owned();
    assert!(
        why.starts_with("the front-end's messages cannot be passed on: ") && why.contains("file descriptors"),
        "{why}"
    );
    // Without a session there are two files less, those of its sockets.
    wait_for("no file to be left open", || (proxy.open_files() == before - 2).then_some(()));
}

#[test]
fn of_a_ring_that_is_stuck_it_is_said_whose_turn_it_is() {
    let scratch = Scratch::new();
    let listening = Listening::bind(&scratch);
    let _proxy = Process::proxy(&scratch);
    // It answers what it is asked, and serves nothing.
    let answers = std::thread::spawn(move || {
        let (mut connection, mut stream) = listening.accept();
        let mut kick = None;
        loop {
            let message = match connection.receive() {
                Ok(Received::Message(message)) => message,
                Ok(Received::Incomplete) => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    continue;
                }
                _ => return drop(kick),
            };
            match message.header.request {
                1 => stream.write_all(&raw(1, VERSION | 4, &u64::MAX.to_le_bytes())).unwrap(),
                15 => stream.write_all(&raw(15, VERSION | 4, &u64::MAX.to_le_bytes())).unwrap(),
                12 => kick = message.fds.into_iter().next(),
                _ => {}
            }
        }
    });
    let mut front_end = FrontEnd::start(&scratch, 1);
    front_end.add(&[Buffer::readable(0x8000, 100), Buffer::readable(0x9000, 200)]);
    let status = status(&scratch);
    let waits = status["queues"][0]["waits"].as_str().unwrap();
    assert!(
        waits
            .starts_with("the device's turn: 1 chain to serve; a kick is on its way, and the back-end has not read it"),
        "{waits}"
    );
    let rings = shown(&scratch, &["rings"]);
    assert!(rings.stdout.contains("0x8000+100") && rings.stdout.contains("in-flight=1"), "{rings:?}");
    // Somebody reads it, and does nothing.
    front_end.kick.read().unwrap();
    let waits = wait_for("it to stand still", || {
        let status = self::status(&scratch);
        let waits = status["queues"][0]["waits"].as_str().unwrap().to_owned();
        waits.contains("; so for ").then_some(waits)
    });
    assert!(waits.contains("; no kick is on its way: the back-end has read it, or there was none"), "{waits}");
    drop(front_end);
    answers.join().unwrap();
}

#[test]
fn what_is_wrong_with_the_options_is_said_in_a_sentence() {
    let scratch = Scratch::new();
    let proxy = |options: &[&str]| scratch.run(&[&["proxy", "--socket-path", "front.sock"], options].concat());
    proxy(&["--back-end", "missing/back.sock"]).is_refusal(&["--back-end", "folder missing does not exist"]);
    proxy(&["--back-end", "front.sock"]).is_refusal(&["--back-end", "of their own"]);
    proxy(&["--back-end", "b", "--control", "missing/c"]).is_refusal(&["--control", "folder missing does not exist"]);
    proxy(&["--back-end", "b", "--device", "toaster"]).is_refusal(&["--device", "toaster", "net, blk"]);
    scratch.file("taken", "");
    scratch.run(&["proxy", "--socket-path", "taken", "--back-end", "b"]).is_refusal(&["taken", "no socket"]);
    let _proxy = Process::proxy(&scratch);
    for command in [&["hold", "--queue", "transmitq0"][..], &["release", "--queue", "transmitq0"]] {
        let refused = shown(&scratch, command);
        assert!(refused.code == Some(2) && refused.stderr.contains("only looks"), "{refused:?}");
    }
    for command in [&["rings"][..], &["trace"], &["page", "0x1000"], &["top", "--once"]] {
        let refused = shown(&scratch, command);
        assert!(refused.code == Some(2) && refused.stderr.contains("no front-end is connected"), "{refused:?}");
    }
}
