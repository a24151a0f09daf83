//! `vnic watch` in a terminal, on a real `vnic serve` with the driver half in front of it.

use std::io::Write;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use guest_fixture::FrontEnd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, read, write};
use vnic::memory::testing::GuestRam;
use vnic::ring::split::SplitDriver;
use vnic::ring::{Buffer, DriverRing, Placement, RingLayout};
use vnic::spec::{Feature, Features};

use crate::serve::Serve;
use crate::util::{Scratch, wait_for};
use crate::watch::{FAST, STALLED, Terminal, colours};

const FEATURES: Features = Features::of(&[Feature::Version1, Feature::MrgRxbuf, Feature::EventIdx]);
/// Where the virtio-net header and the frame's headers are, and its payload.
const HEAD: u64 = 0x10_0000;
const PAYLOAD: u64 = 0x11_0000;

/// A driver that sends one frame after the other until it is dropped.
pub(crate) struct Driver {
    over: Arc<AtomicBool>,
    /// The port that it sends to.
    port: Arc<AtomicU16>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    pub(crate) fn start(scratch: &Scratch, socket: &str) -> Self {
        let ram = GuestRam::new(4 << 20).unwrap();
        let layouts = [0x1000, 0x8000].map(|base| RingLayout::split_at(base, 256).unwrap().0);
        let mut transmitq = SplitDriver::new(layouts[1], ram.memory().clone(), FEATURES).unwrap();
        let front_end = FrontEnd::start(&scratch.path(socket), &ram, layouts, FEATURES, None).unwrap();
        let (over, port) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU16::new(9000)));
        let (ended, to) = (over.clone(), port.clone());
        let thread = thread::spawn(move || {
            // All of it: with the connection, which nothing below names, the session would end.
            let front_end = front_end;
            while !ended.load(Ordering::Relaxed) {
                ram.write(HEAD, &head(to.load(Ordering::Relaxed))).unwrap();
                let buffers = [Buffer::readable(HEAD, 12 + 54), Buffer::readable(PAYLOAD, 1000)];
                transmitq.add(&buffers, Placement::Direct).unwrap();
                if transmitq.publish() {
                    write(&front_end.kick, &1_u64.to_ne_bytes()).unwrap();
                }
                // A held queue gives nothing back, and a device that is gone never will.
                while transmitq.pop_used().unwrap().is_none() && !ended.load(Ordering::Relaxed) {
                    if !transmitq.enable_notifications() {
                        let mut call = [PollFd::new(front_end.call.as_fd(), PollFlags::POLLIN)];
                        if poll(&mut call, PollTimeout::from(20_u8)).unwrap() > 0 {
                            let _ = read(&front_end.call, &mut [0; 8]);
                        }
                    }
                }
                // Others have work, too.
                thread::sleep(Duration::from_micros(100));
            }
        });
        Driver { over, port, thread: Some(thread) }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking());
    }
}

/// A virtio-net header, and those of a TCP frame to this port.
fn head(port: u16) -> Vec<u8> {
    let mut head = vec![0; 12 + 12];
    head.extend([8, 0, 0x45, 0]);
    head.extend((40 + 1000_u16).to_be_bytes());
    head.extend([0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    head.extend(40_000_u16.to_be_bytes());
    head.extend(port.to_be_bytes());
    head.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 16, 1, 0, 0, 0, 0, 0]);
    head
}

fn watch(scratch: &Scratch, no_color: &str) -> Terminal {
    let mut command = scratch.vnic();
    command.env("NO_COLOR", no_color);
    Terminal::with(command, &["watch", "--control", "vnic.sock.control"], "transmitq0")
}

fn state_of_transmitq(scratch: &Scratch) -> String {
    let status = scratch.run(&["status", "--json", "--control", "vnic.sock.control"]).json();
    status["queues"][1]["state"].as_str().unwrap().to_owned()
}

fn counter(scratch: &Scratch, name: &str) -> u64 {
    let status = scratch.run(&["status", "--json", "--control", "vnic.sock.control"]).json();
    status["queues"][1]["counters"][name].as_u64().unwrap()
}

#[test]
fn every_key_does_what_it_says_on_a_device_at_work_though_it_goes_and_comes_back() {
    let scratch = Scratch::new();
    let serve = Serve::start(&scratch, "vnic.sock", &[]);
    let driver = Driver::start(&scratch, "vnic.sock");
    let mut terminal = watch(&scratch, "");
    terminal.press("?", "any key closes");
    // By a vi key and by an arrow to the next view and back.
    terminal.press("xl", "10.0.2.15:40000 > 10.0.2.2:9000");
    terminal.press("\u{1b}[D", "avail.idx");
    terminal.press("2p", "stands still");
    terminal.press("p/:9999\r", ":9999");
    driver.port.store(9999, Ordering::Relaxed);
    terminal.waits_for("10.0.2.2:9999");
    assert!(!terminal.shows("10.0.2.2:9000 "), "the filter is for others: {}", terminal.picture());
    // What is touched is the device's.
    terminal.press("6H", "transmitq0: held");
    wait_for("the queue to be held", || (state_of_transmitq(&scratch) == "held").then_some(()));
    let sent = counter(&scratch, "chains");
    terminal.press("1", "held");
    terminal.press("6R", "transmitq0: released");
    wait_for("frames to go on", || (counter(&scratch, "chains") > sent).then_some(()));
    // A click, and another size.
    let row = 1 + terminal.picture().lines().position(|line| line.contains("6 Hold")).unwrap();
    terminal.press(&format!("\u{1b}[<0;3;{row}M"), "avail.idx");
    terminal.sized(40, 140);
    wait_for("the size to be used", || terminal.picture().lines().any(|line| line.chars().count() > 100).then_some(()));
    // It goes and comes back, with another front-end and all that is in it.
    drop(serve);
    terminal.waits_for("the device is gone");
    drop(driver);
    let _serve = Serve::start(&scratch, "vnic.sock", &[]);
    let _driver = Driver::start(&scratch, "vnic.sock");
    terminal.waits_for("avail.idx");
    terminal.press("2/\u{7f}\u{7f}\u{7f}\u{7f}\u{7f}\r", "10.0.2.2:9000");
    terminal.closes();
}

#[test]
fn several_devices_are_watched_at_once_and_each_key_reaches_its_own() {
    let scratch = Scratch::new();
    let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let pairs = ["--queue-pairs", "4"];
    let mut devices: Vec<_> =
        names.iter().map(|name| Some(Serve::start(&scratch, &format!("{name}.sock"), &pairs))).collect();
    let _drivers = ["b.sock", "g.sock"].map(|socket| Driver::start(&scratch, socket));
    let controls = names.map(|name| format!("{name}.sock.control"));
    let words = controls.iter().flat_map(|control| ["--control", control.as_str()]);
    let words: Vec<&str> = ["watch"].into_iter().chain(words).collect();
    let mut terminal = Terminal::with(scratch.vnic(), &words, "8 of 8 control sockets");
    terminal.sized(60, 200);
    // Chains of both, each under its device's name.
    terminal.press("2", "b/transmitq0");
    terminal.waits_for("g/transmitq0");
    let state = |device: &str| {
        let control = format!("{device}.sock.control");
        let status = scratch.run(&["status", "--json", "--control", &control]).json();
        status["queues"][1]["state"].as_str().unwrap().to_owned()
    };
    // A click on a queue of the last but one, and what touches it.
    let row = |terminal: &Terminal| terminal.picture().lines().position(|line| line.starts_with("g/transmitq0"));
    let at = 1 + row(&terminal).unwrap();
    terminal.press(&format!("1\u{1b}[<0;3;{at}M"), "g/transmitq0  in flight");
    terminal.press("6H", "g/transmitq0: held");
    wait_for("the queue to be held", || (state("g") == "held").then_some(()));
    assert_eq!(state("b"), "running");
    // One goes and comes back: the others are looked at meanwhile.
    devices[2] = None;
    terminal.waits_for("7 of 8 control sockets");
    terminal.waits_for("nobody serves the control socket c.sock.control");
    devices[2] = Some(Serve::start(&scratch, "c.sock", &pairs));
    terminal.waits_for("8 of 8 control sockets");
    terminal.keyboard.write_all(b"q").unwrap();
    let written = terminal.written.clone();
    terminal.ends_well();
    let written = written.lock().unwrap();
    assert!(written.contains("`vnic release --control g.sock.control --queue transmitq0`"), "{written:?}");
}

#[test]
fn a_device_at_work_has_no_colour_where_none_is_wanted() {
    let scratch = Scratch::new();
    let _serve = Serve::start(&scratch, "vnic.sock", &[]);
    let _driver = Driver::start(&scratch, "vnic.sock");
    for no_color in ["1", ""] {
        let mut terminal = watch(&scratch, no_color);
        terminal.press("2", "10.0.2.15:40000 > 10.0.2.2:9000");
        let written = terminal.written.clone();
        terminal.keyboard.write_all(b"q").unwrap();
        terminal.ends_well();
        assert_eq!(colours(&written.lock().unwrap()) == 0, no_color == "1");
    }
}

/// KiB of memory that the process has.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn a_terminal_that_takes_nothing_makes_it_neither_grow_nor_lag() {
    /// Bytes of pictures between a stall and what is new: a terminal's buffer, and a few pictures.
    const BEHIND: usize = 128 << 10;
    let scratch = Scratch::new();
    let _serve = Serve::start(&scratch, "vnic.sock", &[]);
    let driver = Driver::start(&scratch, "vnic.sock");
    let mut terminal = watch(&scratch, "");
    terminal.press("2", "10.0.2.15:40000 > 10.0.2.2:9000");
    let pid = terminal.child.0.id();
    let before = memory(pid);
    terminal.takes(STALLED);
    // Nobody reads its pictures: it reads no more of the trace, and the device does not even record what nobody will ever see.
    let passed = counter(&scratch, "chains");
    wait_for("more chains than anything has room for", || {
        (counter(&scratch, "chains") > passed + 10_000).then_some(())
    });
    assert!(memory(pid) < before + 4096, "{} KiB, then {}", before, memory(pid));
    driver.port.store(7777, Ordering::Relaxed);
    let read = terminal.written.lock().unwrap().len();
    terminal.takes(FAST);
    terminal.waits_for("10.0.2.2:7777");
    let behind = terminal.written.lock().unwrap().len() - read;
    assert!(behind < BEHIND, "{behind} bytes of pictures were waiting");
    terminal.keyboard.write_all(b"q").unwrap();
    terminal.ends_well();
}

#[test]
fn it_grows_by_nothing_however_many_chains_pass() {
    let scratch = Scratch::new();
    let _serve = Serve::start(&scratch, "vnic.sock", &[]);
    let _driver = Driver::start(&scratch, "vnic.sock");
    let mut terminal = watch(&scratch, "");
    terminal.press("2", "10.0.2.15:40000 > 10.0.2.2:9000");
    let pid = terminal.child.0.id();
    let pass = |chains: u64| {
        let since = counter(&scratch, "chains");
        wait_for("so many chains", || (counter(&scratch, "chains") > since + chains).then_some(()));
    };
    // What it keeps of them is full by then.
    pass(5_000);
    let before = memory(pid);
    pass(20_000);
    assert!(memory(pid) < before + 1024, "{before} KiB, then {}", memory(pid));
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).unwrap();
    terminal.ends_well();
}

/// What 9,600 baud bring in a tenth of a second.
const BAUD_9600: usize = 96;

/// How often ten minutes are looked at.
const MINUTES: u64 = 10;

#[test]
#[ignore = "takes ten minutes: scripts/long.sh"]
#[expect(clippy::print_stderr, reason = "what came of a measurement")]
fn in_ten_minutes_it_grows_by_less_than_a_mebibyte_and_over_a_slow_line_it_is_seconds_behind() {
    let scratch = Scratch::new();
    let _serve = Serve::start(&scratch, "vnic.sock", &[]);
    let driver = Driver::start(&scratch, "vnic.sock");
    let mut fast = watch(&scratch, "");
    let mut slow = watch(&scratch, "");
    fast.press("2", "10.0.2.15:40000 > 10.0.2.2:9000");
    slow.press("2", "10.0.2.15:40000 > 10.0.2.2:9000");
    slow.takes(BAUD_9600);
    thread::sleep(Duration::from_secs(20));
    let pids = [fast.child.0.id(), slow.child.0.id()];
    let before = pids.map(memory);
    for minute in 1..=MINUTES {
        let port = 10_000 + minute as u16;
        driver.port.store(port, Ordering::Relaxed);
        let since = Instant::now();
        slow.waits_for(&format!("10.0.2.2:{port}"));
        eprintln!("minute {minute}: {:?} behind, {:?} KiB, at first {before:?}", since.elapsed(), pids.map(memory));
        thread::sleep(Duration::from_secs(60).saturating_sub(since.elapsed()));
    }
    for (before, after) in before.into_iter().zip(pids.map(memory)) {
        assert!(after < before + 1024, "{before} KiB, then {after}");
    }
    slow.takes(FAST);
    for mut terminal in [fast, slow] {
        terminal.keyboard.write_all(b"q").unwrap();
        terminal.ends_well();
    }
}
