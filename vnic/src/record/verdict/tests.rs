use super::*;
use crate::record::run::{GuestBooks, MemoryBooks, NicState};

fn books(payload: u64, cached: u64) -> DeviceBooks {
    DeviceBooks {
        chains: Some(1),
        descriptors: Some(2),
        payload_bytes: Some(payload),
        retransmitted_bytes: Some(0),
        from_page_cache_bytes: Some(cached),
        from_elsewhere_bytes: Some(payload - cached),
        dma_read_bytes: Some(payload),
        device_copied_bytes: Some(0),
    }
}

fn method(device: DeviceBooks) -> Method {
    Method {
        method: "sendfile".to_owned(),
        nic: NicState { csum: true, sg: true, tso: true },
        bytes_sent: device.payload_bytes,
        sha256_ok: Some(true),
        seconds: Some(0.5),
        guest: GuestBooks::default(),
        device,
        memory: MemoryBooks::default(),
        cpu_copies: None,
        dma_copies: None,
        verdict: None,
        why: String::new(),
        expected: Some(Verdict::ZeroCopy),
        reasons: Default::default(),
    }
}

fn verdict_of(payload: u64, cached: u64) -> Option<Verdict> {
    match device(&books(payload, cached), Some(payload), Circumstances::default()) {
        Testimony::Says { verdict, .. } => Some(verdict),
        Testimony::Silent { .. } => None,
    }
}

#[test]
fn the_share_from_the_page_cache_decides() {
    assert_eq!(verdict_of(10_000, 10_000), Some(Verdict::ZeroCopy));
    assert_eq!(verdict_of(10_000, 9_990), Some(Verdict::ZeroCopy));
    assert_eq!(verdict_of(10_000, 9_989), Some(Verdict::Mixed));
    assert_eq!(verdict_of(10_000, 11), Some(Verdict::Mixed));
    assert_eq!(verdict_of(10_000, 10), Some(Verdict::Copied));
    assert_eq!(verdict_of(10_000, 0), Some(Verdict::Copied));
}

fn reason_of(testimony: Testimony) -> String {
    match testimony {
        Testimony::Silent { reason } => reason,
        Testimony::Says { verdict, figures } => panic!("{verdict}: {figures}"),
    }
}

#[test]
fn a_device_that_missed_bytes_is_silent() {
    let reason = reason_of(device(&books(100, 100), Some(101), Circumstances::default()));
    assert_eq!(reason, "the device saw 100 payload bytes of 101 sent");
}

#[test]
fn missing_books_are_no_copy() {
    let reason = reason_of(device(&DeviceBooks::default(), Some(1), Circumstances::default()));
    assert!(reason.contains("no books"), "{reason}");
    let reason = reason_of(device(&books(0, 0), Some(0), Circumstances::default()));
    assert!(reason.contains("no payload"), "{reason}");
}

#[test]
fn books_that_do_not_add_up_are_not_believed() {
    let mut wrong = books(100, 100);
    wrong.from_elsewhere_bytes = Some(1);
    assert!(reason_of(device(&wrong, Some(100), Circumstances::default())).contains("do not add up"));
    wrong.from_elsewhere_bytes = Some(u64::MAX);
    assert!(reason_of(device(&wrong, Some(100), Circumstances::default())).contains("do not add up"));
}

#[test]
fn pages_that_moved_make_a_copy_doubtful_but_not_zero_copy() {
    let moved = Circumstances { pages_moved: 3, ..Circumstances::default() };
    assert!(reason_of(device(&books(100, 0), Some(100), moved)).contains("3 pages"));
    assert!(matches!(device(&books(100, 100), Some(100), moved), Testimony::Says { verdict: Verdict::ZeroCopy, .. }));
}

#[test]
fn misplaced_or_unparsed_bytes_silence_the_device() {
    let misplaced = Circumstances { misplaced_bytes: 1, ..Circumstances::default() };
    assert!(reason_of(device(&books(100, 100), Some(100), misplaced)).contains("not from their place"));
    let unparsed = Circumstances { unparsed_frames: 2, ..Circumstances::default() };
    assert!(reason_of(device(&books(100, 100), Some(100), unparsed)).contains("2 frames"));
}

fn says(verdict: Verdict) -> Testimony {
    Testimony::Says { verdict, figures: format!("it was {verdict}") }
}

#[test]
fn witnesses_that_contradict_one_another_disagree() {
    let judgement = join(&[("device", says(Verdict::ZeroCopy)), ("guest", says(Verdict::Copied))]);
    assert_eq!(judgement.verdict, Some(Verdict::WitnessesDisagree));
    assert_eq!(judgement.why, "device: it was zero-copy; guest: it was copied");
}

#[test]
fn a_silent_witness_neither_agrees_nor_disagrees() {
    let silent = Testimony::Silent { reason: "no tracefs".to_owned() };
    let judgement = join(&[("device", says(Verdict::Copied)), ("guest", silent.clone())]);
    assert_eq!(judgement.verdict, Some(Verdict::Copied));
    assert_eq!(judgement.why, "device: it was copied; guest: not known, no tracefs");
    assert_eq!(join(&[("guest", silent)]).verdict, None);
}

#[test]
fn judging_fills_the_row_and_explains_what_is_null() {
    let mut row = method(books(4096, 4096));
    judge(&mut row, Circumstances::default());
    assert_eq!(row.verdict, Some(Verdict::ZeroCopy));
    assert_eq!(row.dma_copies, Some(1.0));
    assert_eq!(row.cpu_copies, None);
    assert!(row.reasons.contains_key("cpu_copies"));
    assert!(!row.reasons.contains_key("dma_copies") && !row.reasons.contains_key("verdict"));
    assert!(row.why.contains("4096 of 4096 payload bytes (100.0 %)"), "{}", row.why);
    assert!(surprises(&row).is_empty());
}

#[test]
fn a_wrong_digest_is_a_surprise_whatever_the_verdict() {
    let mut row = method(books(4096, 4096));
    row.sha256_ok = Some(false);
    judge(&mut row, Circumstances::default());
    assert!(row.why.ends_with("the receiver's SHA-256 is not the file's"), "{}", row.why);
    assert_eq!(surprises(&row), ["sendfile: the receiver's SHA-256 is not the file's"]);
}

#[test]
fn a_verdict_without_a_digest_is_a_surprise() {
    let mut row = method(books(4096, 4096));
    row.sha256_ok = None;
    judge(&mut row, Circumstances::default());
    assert_eq!(surprises(&row), ["sendfile: the receiver's SHA-256 is not known"]);
}

#[test]
fn another_verdict_than_expected_or_none_is_a_surprise() {
    let mut row = method(books(4096, 0));
    judge(&mut row, Circumstances::default());
    assert!(surprises(&row)[0].starts_with("sendfile: copied, but zero-copy was expected"));
    let mut row = method(DeviceBooks::default());
    judge(&mut row, Circumstances::default());
    assert!(surprises(&row)[0].starts_with("sendfile: no verdict, but zero-copy was expected"));
    assert!(row.reasons.contains_key("verdict") && row.reasons.contains_key("dma_copies"));
}
