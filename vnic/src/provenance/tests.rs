//! The account, fed with made events.

use super::testing::{tcp, with};
use super::*;
use crate::introspect::{Kind, Label};
use crate::observe::tracer::Event;

const GPA: u64 = 0x100_0000;

fn file(name: &str) -> Label {
    Label { path: Some(name.into()), filesystem: Some("ext4".into()), ..Label::of(0, Kind::File) }
}

#[test]
fn payload_is_told_from_headers_and_shared_out_among_pages() {
    let mut account = Account::default();
    let mut event = with(tcp(1000, 100 + 8192), GPA + 0xf00, 8192);
    // The first buffer has headers and 100 bytes of payload.
    event.buffers[0].len += 100;
    account.add(&event, |buffer, _, labels| match buffer.gpa {
        0x5000 => labels.push(Label::of(buffer.gpa, Kind::Socket)),
        _ => labels.extend([file("/a"), file("/a"), file("/b")]),
    });
    let report = account.report();
    assert_eq!((report.bytes, report.zero_copy_bytes, report.header_bytes), (8292, 8192, 54));
    let [flow] = report.flows.as_slice() else { panic!("{report:?}") };
    assert_eq!((flow.flow.as_str(), flow.protocol.as_str()), ("10.0.2.15:80 > 10.0.2.2:1000", "tcp"));
    assert_eq!((flow.frames, flow.descriptors), (1, 2));
    let files: Vec<(Option<&str>, u64)> =
        report.files.iter().map(|one| (one.source.path.as_deref(), one.bytes)).collect();
    assert_eq!(files, [(Some("/a"), 0x100 + 0x1000), (Some("/b"), 8192 - 0x1100)]);
    assert_eq!(report.elsewhere[0].source.to_string(), "socket buffers (copied)");
}

#[test]
fn frames_without_payload_are_no_flow() {
    let mut account = Account::default();
    account.add(&tcp(1000, 0), |_, _, _| panic!("there is nothing to look at"));
    account.add(&Event { frame_len: 42, ..Event::default() }, |_, _, _| panic!("there is nothing to look at"));
    let report = account.report();
    assert_eq!((report.flows.len(), report.bytes, report.other_bytes, report.seen.frames), (0, 0, 54 + 42, 2));
}

#[test]
fn what_the_event_has_no_room_for_and_pages_without_a_label_are_unsettled() {
    let mut account = Account::default();
    let mut event = with(tcp(1, 20_000), GPA, 8192);
    (event.descriptors, event.net_header_len) = (30, 12);
    account.add(&event, |_, _, labels| labels.push(file("/a")));
    account.add(&with(tcp(1, 8192), GPA, 8192), |_, _, labels| labels.extend([file("/a"), Label::of(0, Kind::Free)]));
    account.add(&with(tcp(1, 100), GPA, 100), |_, _, _| {});
    let report = account.report();
    assert_eq!((report.bytes, report.zero_copy_bytes), (28_292, 8192 + 4096));
    assert_eq!(report.unsettled_bytes, 20_000 - 8192 + 4096 + 100);
    assert_eq!(report.zero_copy_share(), Some(1.0));
}

#[test]
fn a_flood_of_flows_and_files_is_summed_up_and_nothing_of_it_lost() {
    let mut account = Account::default();
    let frames = 20_000;
    for number in 0..frames {
        let event = with(tcp(number as u16, 1000), GPA, 1000);
        account.add(&event, |_, _, labels| labels.push(file(&format!("/f{number}"))));
        // One flow and one file stay at work.
        account.add(&with(tcp(7, 10), GPA, 10), |_, _, labels| labels.push(file("/stays")));
    }
    let report = account.report();
    assert!(report.flows.len() <= MAX_FLOWS && report.files.len() <= MAX_SOURCES);
    assert!(report.flows.iter().all(|flow| flow.sources.len() <= MAX_FLOW_SOURCES));
    let listed: u64 = report.flows.iter().map(|flow| flow.bytes).sum();
    assert_eq!(listed + report.others.flow_bytes, report.bytes);
    assert_eq!(report.bytes, frames * 1010);
    let listed: u64 = report.files.iter().map(|one| one.bytes).sum();
    assert_eq!(listed + report.others.source_bytes, report.bytes);
    assert_eq!(report.others.flow_zero_copy_bytes, report.others.flow_bytes);
    let stays = report.files.iter().find(|one| one.source.path.as_deref() == Some("/stays"));
    assert_eq!(stays.map(|one| one.bytes), Some(frames * 10));
}

#[test]
fn a_guest_may_write_any_lengths_and_addresses() {
    for (gpa, len) in [(u64::MAX, u32::MAX), (u64::MAX - 4096, 8192), (0, 0), (u64::MAX, 0)] {
        let mut account = Account::default();
        let mut event = with(tcp(1, 60_000), gpa, len);
        event.frame_len = u32::MAX;
        for labels in 0..3 {
            account.add(&event, |_, _, all| all.extend((0..labels).map(|_| file("/a"))));
        }
        let report = account.report();
        assert_eq!(report.bytes, report.zero_copy_bytes + report.unsettled_bytes, "{gpa:#x}+{len}");
        assert_eq!(report.seen.bytes, 3 * u64::from(u32::MAX));
    }
}

#[test]
fn a_source_in_words_commands_no_terminal() {
    let label = Label { device: Some("vda1".into()), deleted: Some(true), ..file("/x\u{1b}[2J") };
    assert_eq!(Source::from(&label).to_string(), r"/x\u{1b}[2J (deleted) (ext4 on vda1)");
    let program = Label { program: Some("nginx".into()), pid: Some(8), ..Label::of(0, Kind::Anonymous) };
    assert_eq!(Source::from(&program).to_string(), "memory of nginx[8]");
    for (cache, kind) in
        [("kmalloc-1k", SourceKind::Socket), ("skbuff_small_head", SourceKind::Socket), ("dentry", SourceKind::Other)]
    {
        let label = Label { cache: Some(cache.into()), ..Label::of(0, Kind::Slab) };
        assert_eq!(Source::from(&label).kind, kind);
    }
}

#[test]
fn an_owner_is_what_all_pages_of_a_buffer_have_in_common() {
    let page = |number| Label { page: Some(number), ..file("/srv/a") };
    let of_file = owner(&[page(3), page(4)]).unwrap();
    assert_eq!((of_file.kind.as_str(), of_file.path.as_deref(), of_file.page), ("file", Some("/srv/a"), Some(3)));
    let both = owner(&[page(3), Label::of(0, Kind::Socket)]).unwrap();
    assert_eq!((both.kind.as_str(), &both.path, both.page), ("mixed", &None, None));
    assert_eq!(owner(&[]), None);
}
