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
            "overwritten by receiveq0 #0",
            "sent by transmitq0 #0 to 10.0.2.2:1000 at seq 4097",
        ]
    );
    let owners: Vec<Option<String>> = life.steps.iter().map(|step| step.owner.as_ref().map(Owner::to_string)).collect();
    assert_eq!(owners, [Some("/a page 1".to_owned()), None, Some("/b page 1".to_owned())]);
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
    let had: Vec<(u64, u64)> = life.steps.iter().map(|step| (step.gpa & !0xfff, step.at_ns)).collect();
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
    assert_eq!(life.steps.len(), 4);
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
    let at = |at_ns| log.filled_before(0x10_1abc, at_ns).map(|step| step.at_ns);
    assert_eq!([9, 10, 29, 30, 99].map(at), [None, Some(10), Some(10), Some(30), Some(30)]);
    assert_eq!(log.filled_before(0x20_0000, 99), None);
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
    assert_eq!(log.of_page(0x100_0000 + (frames - 1) * 2 * PAGE).steps.len(), 1);
    let headers = log.of_page(0x5000);
    assert_eq!((headers.forgotten, headers.missed_chains), (frames * 3 - MAX_STEPS as u64, 7));
    let kept = headers.steps.len() as u64 + headers.left_out;
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
    assert!(log.of_page(0x10_0000).steps.len() <= 8);
    // One that is longer than all that may be kept leaves at least itself.
    send(&mut log, 100, 0x10_0000, &path.repeat(9));
    assert_eq!(log.of_page(0x10_1000).steps.len(), 1);
}

#[test]
fn a_chain_at_the_end_of_the_address_space_ends_there() {
    let mut log = Log::default();
    let mut event = Event { descriptors: 1, ..Event::default() };
    event.push(EventBuffer { addr: u64::MAX - 10, gpa: u64::MAX - 10, len: u32::MAX, writable: false });
    log.record(&"entropy".into(), &event, |_, _, _| {});
    assert_eq!(log.of_page(u64::MAX).steps.iter().map(|step| step.bytes).collect::<Vec<_>>(), [10]);
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
