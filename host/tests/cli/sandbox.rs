//! What being locked in costs, and that the commands which look are.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;

use guest_fixture::note;
use vnic::ring::Buffer;

use crate::front_end::{FrontEnd, Process};
use crate::util::{Scratch, skip, wait_for};

/// What it may cost.
const MOST: u64 = 2 << 20;

/// Bytes of a process's memory that no file stands behind. The program's own pages are private, too, but only for as long as no other
/// test runs the same program.
fn private(process: &Process) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.0.id())).ok()?;
    let kib = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")?.split_ascii_whitespace().next());
    Some(kib?.parse::<u64>().ok()? << 10)
}

/// Of a `vnic serve` that has a front-end and has sent frames.
fn serving(mode: &str) -> Option<u64> {
    let scratch = Scratch::new();
    let options = ["serve", "--link", "sink:copy", "--sandbox", mode, "--socket-path", "front.sock"];
    let serve = Process::start(&scratch, &options, "front.sock");
    let mut front_end = FrontEnd::start(&scratch, 1);
    for _ in 0..100 {
        front_end.add(&[Buffer::readable(0x8000, 12 + 60)]);
        front_end.collect();
    }
    private(&serve)
}

#[test]
fn being_locked_in_costs_two_mebibytes_of_private_memory_at_most() {
    let three = |mode| {
        let mut figures: Vec<u64> = (0..3).filter_map(|_| serving(mode)).collect();
        figures.sort_unstable();
        figures.get(1).copied()
    };
    let (Some(on), Some(off)) = (three("on"), three("off")) else { return skip("this kernel has no smaps_rollup") };
    note(&format!("vnic serve, private memory: {} KiB locked in, {} KiB not", on >> 10, off >> 10));
    assert!(on <= off + MOST, "{on} bytes, {off} without");
}

/// A field of each of the process's threads, by the kernel's word.
fn of_threads(process: &Process, name: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{}/task", process.0.id())).unwrap();
    // One that has ended meanwhile says nothing.
    let status = threads.filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("status")).ok());
    let field = |status: String| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim));
        value.unwrap_or_else(|| panic!("no {name} in {status}")).to_owned()
    };
    status.map(field).collect()
}

#[test]
fn a_proxy_is_locked_in_unless_it_is_told_not_to_be_and_says_so() {
    for (mode, filtered) in [("on", "2"), ("log", "2"), ("off", "0")] {
        let scratch = Scratch::new();
        let _back_end =
            Process::start(&scratch, &["serve", "--link", "sink", "--socket-path", "back.sock"], "back.sock");
        let options = ["proxy", "--socket-path", "front.sock", "--back-end", "back.sock", "--sandbox", mode];
        let proxy = Process::start(&scratch, &options, "front.sock");
        let mut front_end = FrontEnd::start(&scratch, 1);
        front_end.add(&[Buffer::readable(0x8000, 12 + 60)]);
        front_end.collect();
        // Whoever follows is served by threads that are started for it.
        let mut follows = UnixStream::connect(scratch.path("front.sock.control")).unwrap();
        follows.write_all(b"{\"request\":\"trace\"}\n").unwrap();
        wait_for("a thread that looks at the rings", || {
            of_threads(&proxy, "Name").iter().any(|name| name == "rings").then_some(())
        });
        let status = scratch.run(&["status", "--control", "front.sock.control", "--json"]).json();
        assert_eq!((&status["connected"], &status["sandbox"]["mode"]), (&true.into(), &mode.into()), "{status}");
        let all = of_threads(&proxy, "Seccomp");
        assert!(all.len() > 17 && all.iter().all(|seccomp| seccomp == filtered), "{all:?}");
        if mode == "on" {
            assert!(of_threads(&proxy, "CapEff").iter().all(|mask| mask.chars().all(|digit| digit == '0')));
            assert!(of_threads(&proxy, "NoNewPrivs").iter().all(|set| set == "1"));
        }
    }
}
