//! `vnic judge --hazard`: the story, the exit code, and what the device is asked meanwhile.

use vnic::observe::protocol;
use vnic_experiment::wire::Request;

use crate::device::{self, Asked, Script};
use crate::guest::Manner;
use crate::judge::{BYTES, Run, accounts, run_with};
use crate::util::Scratch;

fn show(manner: Manner, args: &[&str], cached: &[u64]) -> Run {
    let script = Script { accounts: cached.iter().map(|cached| accounts(*cached)).collect(), ..device::busy() };
    run_with(&Scratch::new(), manner, args, script)
}

fn methods(run: &Run) -> Vec<&str> {
    let hazards = run.guest.iter().filter_map(|request| match request {
        Request::Hazard { method, .. } => Some(method.as_str()),
        _ => None,
    });
    hazards.collect()
}

#[test]
fn a_story_as_described_exits_0_and_another_1() {
    for (manner, code, words) in
        [(Manner::Right, 0, "sendfile: as described"), (Manner::Unscathed, 1, "sendfile: not as described")]
    {
        let run = show(manner, &["--hazard", "truncate"], &[]);
        assert_eq!(run.outcome.code, Some(code), "{:?}", run.outcome);
        assert_eq!(methods(&run), ["sendfile"]);
        let lines: Vec<&str> = run.outcome.stdout.lines().collect();
        assert!(lines.contains(&words), "{lines:?}");
        assert!(lines[0].starts_with("truncate: another process truncates the file"), "{lines:?}");
        assert!(!run.outcome.stdout.contains('\u{1b}'), "a guest must not steer the terminal: {lines:?}");
        assert!(matches!(run.guest.last(), Some(Request::PowerOff)));
    }
}

#[test]
fn the_device_holds_while_the_program_changes_its_file() {
    let run = show(Manner::Right, &["--hazard", "mutate", "--method", "sendfile"], &[]);
    assert_eq!(run.outcome.code, Some(0), "{:?}", run.outcome);
    let acts: Vec<&Asked> =
        run.device.iter().filter(|request| !matches!(request, Asked::Device(protocol::Request::Status))).collect();
    let queue = "transmitq0".to_owned();
    assert_eq!(
        acts,
        [
            &Asked::Device(protocol::Request::Hold { queue: queue.clone() }),
            &Asked::Device(protocol::Request::Release { queue })
        ],
        "{:?}",
        run.device
    );
    let [Request::Hazard { .. }, Request::Go, Request::Go, Request::PowerOff] = &run.guest[..] else {
        panic!("{:?}", run.guest);
    };
}

#[test]
fn an_observer_is_judged_by_what_the_nic_was_handed() {
    let observe = |cached: &[u64]| show(Manner::Right, &["--hazard", "observer", "--method", "msg-zerocopy"], cached);
    let run = observe(&[BYTES, 0]);
    assert_eq!(run.outcome.code, Some(0), "{:?}", run.outcome);
    for words in
        ["nobody looking on in the guest, the NIC was handed 100.0 %", "in the guest, the NIC was handed 0.0 %"]
    {
        assert!(run.outcome.stdout.contains(words), "{:?}", run.outcome);
    }
    // Linux 6.1 copies for the capture, and hands the NIC the file's pages all the same.
    let run = observe(&[BYTES, BYTES]);
    assert_eq!(run.outcome.code, Some(0), "{:?}", run.outcome);
    assert!(run.outcome.stdout.contains("own pages: the copy was the capture's"), "{:?}", run.outcome);
    assert_eq!(observe(&[0, 0]).outcome.code, Some(1), "it was none without the capture either");
    let run = show(Manner::Right, &["--hazard", "observer", "--method", "sendfile"], &[BYTES, 0]);
    assert_eq!(run.outcome.code, Some(1), "{:?}", run.outcome);
    let run = show(Manner::Right, &["--hazard", "observer", "--method", "sendfile"], &[BYTES, BYTES]);
    assert_eq!(run.outcome.code, Some(0), "{:?}", run.outcome);
}

#[test]
fn a_guest_that_cannot_show_it_says_so() {
    let run = show(Manner::Lacks, &["--hazard", "mutate", "--method", "sendfile"], &[]);
    assert_eq!(run.outcome.code, Some(1), "{:?}", run.outcome);
    assert!(
        run.outcome.stdout.contains("this guest cannot show it: this kernel has no such call"),
        "{:?}",
        run.outcome
    );
}

#[test]
fn a_hazard_is_no_run() {
    let scratch = Scratch::new();
    for args in
        [&["--hazard", "flood"][..], &["--hazard", "lease", "--transfer", "sendfile"], &["--method", "sendfile"]]
    {
        let outcome = scratch.run(&[&["judge", "--record", "record"][..], args].concat());
        assert_eq!(outcome.code, Some(2), "{args:?}: {outcome:?}");
    }
}
