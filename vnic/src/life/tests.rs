//! The log, fed with made events.

use std::sync::Arc;

use super::*;
use crate::introspect::{Kind, Label};
use crate::observe::tracer::{Event, EventBuffer};
use crate::provenance::testing::{tcp, with};
use crate::spec::blk::{BlkHeader, T_IN};

const PAGE: u64 = 4096;

fn transmitq() -> Arc<str> {
    "transmitq0".into()
}

fn file(gpa: u64, path: &str, page: u64) -> Label {
    Label { path: Some(path.into()), page: Some(page), ..Label::of(gpa, Kind::File) }
}

/// Records a frame that has two pages of a file behind its headers.
fn send(log: &mut Log, at_ns: u64, gpa: u64, path: &str) {
    let event = Event { at_ns, ..with(tcp(1000, 8192), gpa, 8192) };
    log.record(&transmitq(), &event, |buffer, _, labels| match buffer.gpa == gpa {
        true => labels.extend([file(gpa, path, 0), file(gpa + PAGE, path, 1)]),
        false => labels.push(Label::of(buffer.gpa, Kind::Socket)),
    });
}

#[test]
fn a_page_that_was_sent_overwritten_and_sent_again_has_a_life_of_three_steps() {
    let mut log = Log::default();
    send(&mut log, 1, 0x10_0000, "/a");
    let mut event = Event { at_ns: 2, written: 100, descriptors: 1, ..Event::default() };
    event.push(EventBuffer { addr: 0x10_1800, gpa: 0x10_1800, len: 1526, writable: true });
    log.record(&"receiveq0".into(), &event, |_, _, _| panic!("it was not read"));
    send(&mut log, 3, 0x10_0000, "/b");
    let life = log.of_page(0x10_1abc);
    let words: Vec<String> = life.steps.iter().map(Step::to_string).collect();
    assert_eq!(
        words,
        [
            "sent by transmitq0 #0 to 10.0.2.2:1000 at seq 4097",
            "completed by transmitq0 #0",
            "overwritten by receiveq0 #0",
            "sent by transmitq0 #0 to 10.0.2.2:1000 at seq 4097",
            "completed by transmitq0 #0",
        ]
    );
    let owners: Vec<Option<String>> = life.steps.iter().map(|step| step.owner.as_ref().map(Owner::to_string)).collect();
    let [a, b] = ["/a page 1", "/b page 1"].map(|owner| Some(owner.to_owned()));
    assert_eq!(owners, [a.clone(), a, None, b.clone(), b]);
    assert_eq!(log.last_of(0x10_1000).map(|step| step.at_ns), Some(3));
    assert_eq!((log.of_page(0x20_0000), log.last_of(0x20_0000)), (Life::default(), None));
}

#[test]
fn the_lives_of_several_pages_come_one_after_the_other() {
    let mut log = Log::default();
    for at in 1..4 {
        send(&mut log, at, 0x10_0000, "/a");
    }
    let life = log.of_pages(&[0x10_1000, 0x77_0000, 0x10_0000]);
    let sent = life.steps.iter().filter(|step| !step.what.accompanies());
    let had: Vec<(u64, u64)> = sent.map(|step| (step.gpa & !0xfff, step.at_ns)).collect();
    assert_eq!(had, [0x10_1000, 0x10_0000].map(|gpa| [1, 2, 3].map(|at| (gpa, at))).concat());
}

#[test]
fn a_files_life_is_that_of_its_pages_before_and_after_too() {
    let mut log = Log::default();
    log.record(&"disk0.requestq0".into(), &fill(0, 0x10_0000), |_, _, _| {});
    send(&mut log, 1, 0x10_0000, "/a");
    send(&mut log, 2, 0x20_0000, "/b");
    let life = log.of_file("/a");
    let words: Vec<String> = life.steps.iter().take(2).map(Step::to_string).collect();
    let filled = |sector| format!("filled from sector {sector} by disk0.requestq0 #0");
    assert_eq!(words, [filled(100), filled(108)]);
    // Filled, sent and completed, of two pages.
    assert_eq!(life.steps.len(), 6);
    // Header and status are no page's life.
    assert_eq!(log.of_page(0x6000).steps, []);
    assert!(life.steps.iter().all(|step| step.gpa < 0x20_0000), "{life:?}");
    assert_eq!(log.of_file("/c").steps, []);
}

/// A read of two pages, to this address.
pub(crate) fn fill(at_ns: u64, gpa: u64) -> Event {
    let mut fill = Event { at_ns, written: 8193, descriptors: 3, head_len: 17, ..Event::default() };
    let header = BlkHeader { kind: T_IN, sector: 100 };
    fill.head_bytes[..16].copy_from_slice(&header.to_bytes());
    fill.push(EventBuffer { addr: 0x6000, gpa: 0x6000, len: 16, writable: false });
    fill.push(EventBuffer { addr: gpa, gpa, len: 8192, writable: true });
    fill.push(EventBuffer { addr: 0x6010, gpa: 0x6010, len: 1, writable: true });
    fill
}

#[test]
fn what_filled_a_page_is_found_as_it_was_at_a_time() {
    let mut log = Log::default();
    for at_ns in [10, 30] {
        log.record(&"requestq0".into(), &fill(at_ns, 0x10_0000), |_, _, _| {});
        send(&mut log, at_ns + 5, 0x10_0000, "/a");
    }
    let at = |at_ns| log.filled_before(0x10_1abc, at_ns).map(|filled| filled.by.at_ns);
    assert_eq!([9, 10, 29, 30, 99].map(at), [None, Some(10), Some(10), Some(30), Some(30)]);
    assert_eq!(log.filled_before(0x20_0000, 99), None);
    // It was sent at 35, and is again: in two frames that the device is done with when the next comes.
    send(&mut log, 40, 0x10_0000, "/a");
    let said = |at_ns| log.filled_before(0x10_1000, at_ns).unwrap().to_string();
    let filled = "filled from sector 108 by requestq0 #0";
    assert_eq!(said(35), filled);
    assert_eq!(said(40), format!("{filled}, sent and completed since by transmitq0 #0"));
    assert_eq!(said(99), format!("{filled}, sent and completed 2 times since, last by transmitq0 #0"));
}

#[test]
fn headers_are_of_no_segment_and_what_a_device_did_not_write_has_no_step() {
    let mut log = Log::default();
    send(&mut log, 1, 0x10_0000, "/a");
    assert_eq!(log.of_page(0x5000).steps.first().map(|step| &step.what), Some(&Use::Sent { segment: None }));
    let mut event = Event { written: 0, descriptors: 1, ..Event::default() };
    event.push(EventBuffer { addr: 0x30_0000, gpa: 0x30_0000, len: 1526, writable: true });
    log.record(&"receiveq0".into(), &event, |_, _, _| panic!("it was not read"));
    assert_eq!(log.of_page(0x30_0000).steps, []);
}

#[test]
fn a_full_log_forgets_the_oldest_and_says_so() {
    let mut log = Log::default();
    log.miss(7);
    // Three steps each: the headers' page, and two of the file.
    let frames = MAX_STEPS as u64 / 3 + 10;
    for at in 0..frames {
        send(&mut log, at, 0x100_0000 + at * 2 * PAGE, "/a");
    }
    assert_eq!(log.of_page(0x100_0000).steps, []);
    assert_eq!(log.of_page(0x100_0000 + (frames - 1) * 2 * PAGE).steps.len(), 2);
    let headers = log.of_page(0x5000);
    assert_eq!((headers.forgotten, headers.missed_chains), (frames * 3 - MAX_STEPS as u64, 7));
    // Each was sent, and completed.
    let kept = (headers.steps.len() as u64 + headers.left_out) / 2;
    assert!(kept < frames, "{kept} of {frames}");
    assert_eq!(headers.steps.last().map(|step| step.at_ns), Some(frames - 1));
}

#[test]
fn endless_names_do_not_make_it_grow() {
    let mut log = Log::default();
    let path = "x".repeat(1 << 20);
    for at in 0..100 {
        send(&mut log, at, 0x10_0000, &format!("/{at}{path}"));
    }
    assert!(log.of_page(0x10_0000).steps.len() <= 16);
    // One that is longer than all that may be kept leaves at least itself.
    send(&mut log, 100, 0x10_0000, &path.repeat(9));
    assert_eq!(log.of_page(0x10_1000).steps.len(), 2);
}

#[test]
fn a_chain_at_the_end_of_the_address_space_ends_there() {
    let mut log = Log::default();
    let mut event = Event { descriptors: 1, ..Event::default() };
    event.push(EventBuffer { addr: u64::MAX - 10, gpa: u64::MAX - 10, len: u32::MAX, writable: false });
    log.record(&"entropy".into(), &event, |_, _, _| {});
    let steps = log.of_page(u64::MAX).steps;
    assert_eq!(
        steps.iter().map(|step| (step.bytes, step.what.accompanies())).collect::<Vec<_>>(),
        [(10, false), (10, true)]
    );
}

#[test]
fn json_comes_back_the_same() {
    let mut log = Log::default();
    send(&mut log, 1, 0x10_0000, "/a");
    let life = log.of_file("/a");
    let text = serde_json::to_string(&life).unwrap();
    assert!(text.contains(r#""use":"sent","segment":{"source":"10.0.2.15:80""#), "{text}");
    assert_eq!(serde_json::from_str::<Life>(&text).unwrap(), life);
}

#[test]
fn what_is_held_and_kept_has_steps_of_its_own_around_its_sending() {
    let mut log = Log::default();
    let sent = with(tcp(1000, 4096), 0x10_0000, 4096);
    let event = |idx, held_ns, taken_ns, at_ns| Event { idx, held_ns, taken_ns, at_ns, ..sent.clone() };
    // One that was held in the ring and then kept by the link; one that was done with at once.
    log.record(&transmitq(), &event(3, 1_000_000, 3_500_000, 4_250_000), |_, _, _| {});
    log.record(&transmitq(), &event(4, 0, 0, 5_000_000), |_, _, _| {});
    let life = log.of_page(0x10_0000);
    let words: Vec<(u64, String)> = life.steps.iter().map(|step| (step.at_ns / 1000, step.to_string())).collect();
    let expected = [
        (1000, "held by transmitq0 #3 for 2.50 ms, by vnic hold"),
        (3500, "sent by transmitq0 #3 to 10.0.2.2:1000 at seq 1"),
        (3500, "held by transmitq0 #3 for 750.00 µs"),
        (4250, "completed by transmitq0 #3"),
        (5000, "sent by transmitq0 #4 to 10.0.2.2:1000 at seq 1"),
        (5000, "completed by transmitq0 #4"),
    ];
    assert_eq!(words, expected.map(|(at, words)| (at, words.to_owned())));
    assert_eq!(log.last_of(0x10_0000).map(|step| step.idx), Some(4));
}
