//! Those who look at a device: everything that its control socket answers, `vnic watch` in a terminal, and clients that are rude.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use guest_fixture::{Deadline, Lines, guard, until, vnic};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

use crate::run::Run;

const SHOWS: Duration = Duration::from_secs(60);
const PLACE: Deadline = Deadline::secs("a place on the control socket", 60);
const ENDS: Deadline = Deadline::secs("vnic watch to end", 20);

/// One look at a device that has this queue, at work or not.
///
/// # Panics
/// It is not answered.
#[track_caller]
pub(crate) fn one(run: &Run, rng: &mut Rng, control: &Path, queue: &str) {
    match rng.u8(..7) {
        0 => run.did("status", said(control, "status", "status")),
        1 => run.did("rings", said(control, "rings", "rings")),
        2 => run.did("metrics", metrics(control)),
        3 => run.did("top", top(control)),
        4 => run.did("rude clients", rude(control, rng)),
        5 => run.did("page", page(control, rng)),
        _ => run.did("watch", watch(control, queue)),
    }
}

#[track_caller]
fn said(control: &Path, request: &str, reply: &str) -> u64 {
    let answer = Lines::say(control, &json!({"request": request}).to_string()).next();
    assert_eq!(answer["reply"], reply, "{answer}");
    1
}

#[track_caller]
fn page(control: &Path, rng: &mut Rng) -> u64 {
    let addresses: Vec<u64> = (0..64).map(|_| rng.u64(..1 << 30)).collect();
    let answer = Lines::say(control, &json!({"request": "page", "addresses": addresses}).to_string()).next();
    // Where there is no kernel to look into, it says so.
    assert!(answer["reply"] == "page" || answer["reply"] == "error", "{answer}");
    1
}

#[track_caller]
fn metrics(control: &Path) -> u64 {
    let mut stream = UnixStream::connect(control).expect("the control socket is there");
    stream.set_read_timeout(Some(SHOWS)).expect("a timeout");
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("it takes a request");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    assert!(text.starts_with("HTTP/1.") && text.contains("vnic_device_connected"), "{text}");
    1
}

#[track_caller]
fn top(control: &Path) -> u64 {
    let mut lines = Lines::ask(control, &json!({"request": "top", "every_ms": 100}).to_string());
    for _ in 0..3 {
        assert_eq!(lines.next()["reply"], "top");
    }
    1
}

/// So many chains as they pass; somebody sees to it that some do, again and again: an onlooker that has no turn may miss a whole round.
/// Where there is a kernel in the guest, with whose memory it is.
///
/// # Panics
/// None come.
#[track_caller]
pub(crate) fn trace(run: &Run, control: &Path, kernel: bool, chains: usize, mut meanwhile: impl FnMut()) {
    let mut lines = Lines::ask(control, &json!({"request": "trace", "labels": kernel, "headers": true}).to_string());
    thread::scope(|scope| {
        let reader = scope.spawn(move || {
            for _ in 0..chains {
                let event = lines.next();
                assert!(event.get("reply").is_none(), "{event}");
            }
        });
        while !reader.is_finished() {
            meanwhile();
        }
        reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    run.did("trace", 1);
}

/// Bytes that are no request, half a request, somebody who asks for everything for ever and does not listen; all gone in the middle.
#[track_caller]
fn rude(control: &Path, rng: &mut Rng) -> u64 {
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = UnixStream::connect(control).expect("the control socket is there");
        let bytes = match rng.u8(..3) {
            0 => (0..rng.usize(..4096)).map(|_| rng.u8(..)).collect(),
            1 => b"{\"request\": \"sta".to_vec(),
            _ => b"{\"request\": \"trace\", \"labels\": true, \"headers\": true}\n".to_vec(),
        };
        // One client too many is told so, and nobody reads what it writes.
        let _ = client.write_all(&bytes);
        clients.push(client);
    }
    let count = clients.len() as u64;
    drop(clients);
    // Whoever comes next finds a place, though some of these may still be listened to.
    until(PLACE, || {
        let answer = Lines::say(control, "{\"request\": \"status\"}").next();
        (answer["reply"] == "status").then_some(())
    });
    count
}

/// `vnic watch` on a full screen until it shows the queue; then it is told to end.
#[track_caller]
fn watch(control: &Path, queue: &str) -> u64 {
    let inside = format!("stty rows 40 cols 100; exec '{}' watch --control '{}'", vnic().display(), control.display());
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--flush", "--command", &inside, "/dev/null"]);
    command.env("TERM", "xterm-256color").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = guard::spawn(&mut command).expect("script, of util-linux, is there");
    let (mut keyboard, mut screen) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let (mut shown, mut answered, mut buffer, since) = (Vec::new(), 0, [0; 4096], Instant::now());
    let has = |shown: &[u8], words: &[u8]| shown.windows(words.len()).filter(|window| *window == words).count();
    while has(&shown, queue.as_bytes()) == 0 {
        let mut ready = [PollFd::new(screen.as_fd(), PollFlags::POLLIN)];
        let left = SHOWS.checked_sub(since.elapsed()).expect("vnic watch shows the queue in a minute");
        let waited = poll(&mut ready, PollTimeout::try_from(left).expect("a timeout"));
        assert!(waited.is_ok(), "{waited:?}");
        if waited == Ok(0) {
            continue;
        }
        let count = screen.read(&mut buffer).expect("a pipe");
        assert!(count > 0, "vnic watch ended: {}", String::from_utf8_lossy(&shown));
        shown.extend_from_slice(&buffer[..count]);
        // Where the cursor is, as every terminal tells.
        let asked = has(&shown, b"\x1b[6n");
        for _ in answered..asked {
            keyboard.write_all(b"\x1b[40;100R").expect("a pipe");
        }
        answered = asked;
    }
    // A reader of its own: it must not end for want of room to write.
    let drain = thread::spawn(move || std::io::copy(&mut screen, &mut std::io::sink()));
    keyboard.write_all(b"q").expect("a pipe");
    let status = until(ENDS, || child.try_wait().expect("a child"));
    guard::ended(child.id());
    let _ = drain.join();
    assert!(status.success(), "vnic watch: {status}");
    1
}
