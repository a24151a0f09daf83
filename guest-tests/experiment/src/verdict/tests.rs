use super::*;
use crate::run::{DeviceAccounts, DiskAccounts, Dma, GuestAccounts, IntrospectionAccounts, MemoryAccounts, NicState};
use crate::wire::{CIPHER, LACKS};

fn accounts(payload: u64, cached: u64) -> DeviceAccounts {
    DeviceAccounts {
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

fn method(device: DeviceAccounts) -> Method {
    Method {
        method: "sendfile".to_owned(),
        filesystem: None,
        nic: NicState { csum: true, sg: true, tso: true },
        bytes_sent: device.payload_bytes,
        sha256_ok: Some(true),
        seconds: Some(0.5),
        guest: GuestAccounts { disk_read_bytes: Some(0), ..GuestAccounts::default() },
        device,
        memory: MemoryAccounts::default(),
        introspection: None,
        touches: None,
        dma: Dma::default(),
        cpu_copies: None,
        page_life: None,
        dma_copies: None,
        verdict: None,
        why: String::new(),
        expected: Some(Verdict::ZeroCopy),
        notes: Vec::new(),
        reasons: Default::default(),
    }
}

fn verdict_of(payload: u64, cached: u64) -> Option<Verdict> {
    match device(&accounts(payload, cached), Some(payload), PathKind::PageCache, Circumstances::default()) {
        Testimony::Says { verdict, .. } => verdict,
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
        Testimony::Says { verdict, figures, .. } => panic!("{verdict:?}: {figures}"),
    }
}

#[test]
fn a_device_that_missed_bytes_is_silent() {
    let reason = reason_of(device(&accounts(100, 100), Some(101), PathKind::PageCache, Circumstances::default()));
    assert_eq!(reason, "the device saw 100 payload bytes of 101 sent");
}

#[test]
fn missing_accounts_are_no_copy() {
    let reason = reason_of(device(&DeviceAccounts::default(), Some(1), PathKind::PageCache, Circumstances::default()));
    assert!(reason.contains("no accounts"), "{reason}");
    let reason = reason_of(device(&accounts(0, 0), Some(0), PathKind::PageCache, Circumstances::default()));
    assert!(reason.contains("no payload"), "{reason}");
}

#[test]
fn accounts_that_do_not_add_up_are_not_believed() {
    let mut wrong = accounts(100, 100);
    wrong.from_elsewhere_bytes = Some(1);
    assert!(
        reason_of(device(&wrong, Some(100), PathKind::PageCache, Circumstances::default())).contains("do not add up")
    );
    wrong.from_elsewhere_bytes = Some(u64::MAX);
    assert!(
        reason_of(device(&wrong, Some(100), PathKind::PageCache, Circumstances::default())).contains("do not add up")
    );
}

#[test]
fn pages_that_moved_make_a_copy_doubtful_but_not_zero_copy() {
    let moved = Circumstances { pages_moved: 3, ..Circumstances::default() };
    assert!(reason_of(device(&accounts(100, 0), Some(100), PathKind::PageCache, moved)).contains("3 pages"));
    assert!(matches!(
        device(&accounts(100, 100), Some(100), PathKind::PageCache, moved),
        Testimony::Says { verdict: Some(Verdict::ZeroCopy), .. }
    ));
}

#[test]
fn misplaced_or_unparsed_bytes_silence_the_device() {
    let misplaced = Circumstances { misplaced_bytes: 1, ..Circumstances::default() };
    assert!(
        reason_of(device(&accounts(100, 100), Some(100), PathKind::PageCache, misplaced))
            .contains("not from their place")
    );
    let unparsed = Circumstances { unparsed_frames: 2, ..Circumstances::default() };
    assert!(reason_of(device(&accounts(100, 100), Some(100), PathKind::PageCache, unparsed)).contains("2 frames"));
    let forgotten = Circumstances { forgotten_bytes: 3, ..Circumstances::default() };
    assert!(
        reason_of(device(&accounts(100, 97), Some(100), PathKind::PageCache, forgotten)).contains("where 3 bytes lay")
    );
}

fn says(copies: f64, scope: Scope) -> Testimony {
    let copies = Copies::exactly(copies);
    Testimony::Says { verdict: copies.verdict(), copies, scope, figures: format!("{} copies", copies.least) }
}

#[test]
fn witnesses_that_contradict_one_another_disagree() {
    let judgement = join(&[("device", says(0.0, Scope::Whole)), ("guest", says(2.0, Scope::Whole))]);
    assert_eq!(judgement.verdict, Some(Verdict::WitnessesDisagree));
    assert_eq!(judgement.why, "device: 0 copies; guest: 2 copies");
}

#[test]
fn a_silent_witness_neither_agrees_nor_disagrees() {
    let silent = Testimony::Silent { reason: "no tracefs".to_owned() };
    let judgement = join(&[("device", says(1.0, Scope::Whole)), ("guest", silent.clone())]);
    assert_eq!(judgement.verdict, Some(Verdict::Copied));
    assert_eq!(judgement.why, "device: 1 copies; guest: not known, no tracefs");
    assert_eq!(join(&[("guest", silent)]).verdict, None);
}

#[test]
fn one_chunk_stands_for_all_only_where_all_went_the_same_way() {
    let chunk = ("memory", says(1.0, Scope::FirstChunk));
    assert_eq!(join(&[("guest", says(0.5, Scope::Whole)), chunk.clone()]).verdict, Some(Verdict::Mixed));
    assert_eq!(join(&[("guest", says(0.0, Scope::Whole)), chunk]).verdict, Some(Verdict::WitnessesDisagree));
}

/// A row with all four witnesses: from the page cache of 64 KiB, bytes copied by two functions, instances.
fn row(name: &str, cached: u64, copied: [u64; 2], instances: u64) -> Method {
    let mut row = Method { method: name.to_owned(), ..method(accounts(65536, cached)) };
    let copied = ["_copy_from_iter", "_copy_to_iter"].into_iter().zip(copied);
    row.guest.copied_bytes = copied.map(|(function, bytes)| (function.to_owned(), Some(bytes))).collect();
    row.memory.physical_instances = Some(instances);
    let known = match name {
        "sendfile" => 65536,
        "cow" => 32768,
        _ => 0,
    };
    row.introspection = Some(IntrospectionAccounts {
        payload_bytes: 65536,
        // What it finds where the row does as documented.
        from_page_cache_bytes: known,
        unsettled_bytes: 0,
        paths: if known > 0 { vec!["/mnt/f".to_owned()] } else { Vec::new() },
    });
    judge(&mut row, Circumstances::default());
    row
}

/// The same, and the look into the guest's kernel says other than the rest.
fn unknown(name: &str, cached: u64, copied: [u64; 2], instances: u64, known: u64) -> Method {
    let mut row = row(name, cached, copied, instances);
    row.introspection.as_mut().unwrap().from_page_cache_bytes = known;
    judge(&mut row, Circumstances::default());
    row
}

#[test]
fn four_witnesses_tell_the_textbooks_rows_apart() {
    let zero = row("sendfile", 65536, [0, 90], 1);
    assert_eq!((zero.verdict, zero.cpu_copies.map(|copies| copies < 0.01)), (Some(Verdict::ZeroCopy), Some(true)));
    let copied = row("read-write", 0, [65536, 65536], 3);
    assert_eq!((copied.verdict, copied.cpu_copies), (Some(Verdict::Copied), Some(2.0)));
    assert_eq!(
        copied.why,
        "device: 0 of 65536 payload bytes (0.0 %) were gathered from the file's own pages, 65536 from elsewhere; \
         guest: the CPU copied each payload byte 2.00 times (_copy_from_iter 1.00, _copy_to_iter 1.00); \
         memory: the held chunk stood 3 times in the guest's memory; \
         introspection: 0 of 65536 payload bytes (0.0 %) lay in pages of files"
    );
}

#[test]
fn a_fault_in_any_one_witness_makes_them_disagree_and_every_figure_is_told() {
    for (what, row) in [
        ("the device calls copies the page cache", row("read-write", 65536, [65536, 65536], 3)),
        ("the device calls the page cache copies", row("sendfile", 0, [0, 0], 1)),
        ("the accounts miss a copy", row("read-write", 0, [65536, 0], 3)),
        ("the accounts miss all copies", row("mmap-write", 0, [0, 0], 2)),
        ("the accounts count one that was not", row("sendfile", 65536, [65536, 0], 1)),
        ("the scan misses an instance", row("read-write", 0, [65536, 65536], 2)),
        ("the scan sees one too many", row("sendfile", 65536, [0, 0], 2)),
        ("the scan sees one too many", row("mmap-write", 0, [65536, 0], 3)),
        ("the kernel's structures hide the file", unknown("sendfile", 65536, [0, 0], 1, 0)),
        ("the kernel's structures show a file", unknown("read-write", 0, [65536, 65536], 3, 65536)),
    ] {
        assert_eq!(row.verdict, Some(Verdict::WitnessesDisagree), "{what}: {}", row.why);
        for name in ["device: ", "guest: the CPU copied", "memory: the held chunk stood", "introspection: "] {
            assert!(row.why.contains(name), "{what}: {}", row.why);
        }
        assert!(surprises(&row)[0].contains("witnesses disagree"), "{what}");
    }
}

#[test]
fn each_pair_of_witnesses_is_enough_to_disagree() {
    let row = |name, cached, copied, instances| Method { introspection: None, ..row(name, cached, copied, instances) };
    let mut blind = row("sendfile", 65536, [65536, 0], 1);
    blind.memory.physical_instances = None;
    judge(&mut blind, Circumstances::default());
    assert_eq!(blind.verdict, Some(Verdict::WitnessesDisagree), "device and guest");
    let mut blind = row("sendfile", 65536, [0, 0], 2);
    blind.guest.copied_bytes.clear();
    judge(&mut blind, Circumstances::default());
    assert_eq!(blind.verdict, Some(Verdict::WitnessesDisagree), "device and memory");
    let mut blind = row("read-write", 0, [65536, 0], 3);
    blind.device = DeviceAccounts::default();
    judge(&mut blind, Circumstances::default());
    assert_eq!(blind.verdict, Some(Verdict::WitnessesDisagree), "guest and memory");
}

#[test]
fn any_one_witness_alone_gives_the_verdict_and_the_missing_ones_are_said() {
    for (name, cached, copied, instances, verdict) in
        [("sendfile", 65536, [0, 0], 1, Verdict::ZeroCopy), ("read-write", 0, [65536, 65536], 3, Verdict::Copied)]
    {
        for speaking in ["device", "guest", "memory", "introspection"] {
            let mut row = row(name, cached, copied, instances);
            row.reasons.insert("memory.physical_instances".to_owned(), "no chunk was held".to_owned());
            if speaking != "device" {
                row.device = DeviceAccounts::default();
            }
            if speaking != "guest" {
                row.guest.copied_bytes.clear();
            }
            if speaking != "memory" {
                row.memory.physical_instances = None;
            }
            if speaking != "introspection" {
                row.introspection = None;
            }
            judge(&mut row, Circumstances::default());
            assert_eq!(row.verdict, Some(verdict), "{name}, {speaking}: {}", row.why);
            assert_eq!(row.why.matches("not known").count(), 3, "{}", row.why);
            assert_eq!(row.why.contains("no chunk was held"), speaking != "memory", "{}", row.why);
        }
    }
}

#[test]
fn a_function_the_kernel_lacks_copies_nothing_and_one_that_was_not_counted_might() {
    let mut row = row("sendfile", 65536, [0, 0], 1);
    row.guest.copied_bytes.insert("skb_copy_bits".to_owned(), None);
    let path = "guest.copied_bytes.skb_copy_bits";
    row.reasons.insert(path.to_owned(), format!("{LACKS}skb_copy_bits"));
    judge(&mut row, Circumstances::default());
    assert_eq!(row.cpu_copies, Some(0.0));
    row.reasons.insert(path.to_owned(), "out of breakpoints".to_owned());
    judge(&mut row, Circumstances::default());
    assert_eq!((row.cpu_copies, row.verdict), (None, Some(Verdict::ZeroCopy)));
    assert_eq!(row.reasons["cpu_copies"], "skb_copy_bits was not counted: out of breakpoints");
    assert!(row.why.contains("guest: not known, skb_copy_bits was not counted"), "{}", row.why);
}

#[test]
fn what_goes_other_ways_than_through_the_page_cache_is_judged_by_who_can_tell() {
    // The disk's DMA put it into the program's memory; nothing was copied by the CPU.
    assert_eq!(row("direct-io-zerocopy", 0, [0, 0], 1).verdict, Some(Verdict::ZeroCopy));
    assert_eq!(row("direct-io-zerocopy-no-sg", 0, [65536, 0], 2).verdict, Some(Verdict::Copied));
    assert_eq!(row("direct-io", 0, [65536, 0], 2).verdict, Some(Verdict::Copied));
    assert_eq!(row("direct-io", 0, [65536, 0], 3).verdict, Some(Verdict::Copied), "it is in the page cache too");
    assert_eq!(row("direct-io", 0, [65536, 0], 1).verdict, Some(Verdict::WitnessesDisagree));
    // Page faults copy half of it; the first chunk stands for nothing but itself.
    assert_eq!(row("cow", 32768, [32768, 0], 1).verdict, Some(Verdict::Mixed));
    assert_eq!(row("cow", 32768, [0, 0], 1).verdict, Some(Verdict::WitnessesDisagree));
    assert_eq!(row("cow", 65536, [65536, 0], 1).verdict, Some(Verdict::WitnessesDisagree));
    // The cipher writes other bytes, and more of them.
    let mut row = row("ktls-sendfile", 0, [0, 0], 1);
    row.bytes_sent = Some(65000);
    judge(&mut row, Circumstances::default());
    assert_eq!(row.verdict, Some(Verdict::Copied), "{}", row.why);
    assert!(row.why.contains("not counting what the cipher wrote"), "{}", row.why);
}

#[test]
fn a_cipher_that_was_watched_is_a_copy_like_others() {
    let watched = |bytes| {
        let mut row = row("ktls-sendfile", 0, [0, 0], 1);
        row.guest.copied_bytes.insert(CIPHER.to_owned(), bytes);
        row.reasons.insert(format!("guest.copied_bytes.{CIPHER}"), "it is not seen".to_owned());
        judge(&mut row, Circumstances::default());
        row
    };
    // A byte of each record is its type.
    let seen = watched(Some(65540));
    assert_eq!((seen.verdict, seen.cpu_copies.map(|copies| copies > 0.99)), (Some(Verdict::Copied), Some(true)));
    assert!(seen.why.contains("(cipher 1.00)"), "{}", seen.why);
    // The NIC was handed other pages than the file's: somebody must have written them.
    assert_eq!(watched(Some(0)).verdict, Some(Verdict::WitnessesDisagree));
    let unseen = watched(None);
    assert_eq!((unseen.verdict, unseen.cpu_copies), (Some(Verdict::Copied), None));
    assert_eq!(unseen.reasons["cpu_copies"], "cipher was not counted: it is not seen");
}

#[test]
fn judging_fills_the_row_and_explains_what_is_null() {
    let mut row = method(accounts(4096, 4096));
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
fn the_disks_dma_is_counted_beside_the_nics() {
    let mut row = method(accounts(4096, 4096));
    row.guest.disk_read_bytes = Some(4096);
    judge(&mut row, Circumstances::default());
    assert_eq!((row.dma_copies, disk_copies(&row)), (Some(2.0), Ok(1.0)));
    row.guest.disk_read_bytes = None;
    judge(&mut row, Circumstances::default());
    assert_eq!((row.dma_copies, row.reasons["dma_copies"].as_str()), (None, "what the disk brought was not counted"));
}

#[test]
fn a_wrong_digest_is_a_surprise_whatever_the_verdict() {
    let mut row = method(accounts(4096, 4096));
    row.sha256_ok = Some(false);
    judge(&mut row, Circumstances::default());
    assert!(row.why.ends_with("the receiver's SHA-256 is not the file's"), "{}", row.why);
    assert_eq!(surprises(&row), ["sendfile: the receiver's SHA-256 is not the file's"]);
}

#[test]
fn a_program_that_fails_is_a_surprise_though_nothing_is_expected_of_it() {
    let mut row = method(accounts(4096, 0));
    (row.method, row.expected) = ("program-no-sg".to_owned(), None);
    judge(&mut row, Circumstances::default());
    row.verdict = Some(Verdict::Copied);
    assert!(surprises(&row).is_empty());
    (row.verdict, row.why, row.sha256_ok) = (None, "it ended with exit status: 2".to_owned(), None);
    assert_eq!(surprises(&row), ["program-no-sg: no verdict (it ended with exit status: 2)"]);
}

#[test]
fn a_verdict_without_a_digest_is_a_surprise() {
    let mut row = method(accounts(4096, 4096));
    row.sha256_ok = None;
    judge(&mut row, Circumstances::default());
    assert_eq!(surprises(&row), ["sendfile: the receiver's SHA-256 is not known"]);
}

#[test]
fn another_verdict_than_expected_or_none_is_a_surprise() {
    let mut row = method(accounts(4096, 0));
    judge(&mut row, Circumstances::default());
    assert!(surprises(&row)[0].starts_with("sendfile: copied, but zero-copy was expected"));
    let mut row = method(DeviceAccounts::default());
    judge(&mut row, Circumstances::default());
    assert!(surprises(&row)[0].starts_with("sendfile: no verdict, but zero-copy was expected"));
    assert!(row.reasons.contains_key("verdict") && row.reasons.contains_key("dma_copies"));
}

#[test]
fn introspection_says_what_it_found_and_nothing_of_what_changed_hands() {
    let says = |cached, unsettled, path_kind| {
        let mut row = method(accounts(10_000, 0));
        let paths = if cached > 0 { vec!["/mnt/f".to_owned()] } else { Vec::new() };
        let payload_bytes = 10_000;
        let (from_page_cache_bytes, unsettled_bytes) = (cached, unsettled);
        row.introspection =
            Some(IntrospectionAccounts { payload_bytes, from_page_cache_bytes, unsettled_bytes, paths });
        match introspection(&row, path_kind, Circumstances::default()) {
            Testimony::Says { verdict, copies, figures, .. } => (verdict, copies.least, figures),
            Testimony::Silent { reason } => panic!("{reason}"),
        }
    };
    let (verdict, least, figures) = says(10_000, 0, PathKind::PageCache);
    assert_eq!((verdict, least), (Some(Verdict::ZeroCopy), 0.0));
    assert_eq!(figures, "10000 of 10000 payload bytes (100.0 %) lay in pages of /mnt/f");
    assert_eq!(says(0, 0, PathKind::PageCache).0, Some(Verdict::Copied));
    assert_eq!(says(5_000, 0, PathKind::CopyOnWrite).0, Some(Verdict::Mixed));
    let (verdict, least, _) = says(0, 4_096, PathKind::PageCache);
    assert_eq!((verdict, (least * 10_000.0).round()), (None, 5_904.0));
    assert_eq!(
        says(0, 0, PathKind::Direct),
        (None, 0.0, "0 of 10000 payload bytes (0.0 %) lay in pages of files".to_owned())
    );
    let mut row = method(accounts(10_000, 0));
    assert!(reason_of(introspection(&row, PathKind::PageCache, Circumstances::default())).contains("not looked into"));
    row.introspection =
        Some(IntrospectionAccounts { payload_bytes: 1, unsettled_bytes: u64::MAX, ..Default::default() });
    assert!(reason_of(introspection(&row, PathKind::PageCache, Circumstances::default())).contains("do not add up"));
}

#[test]
fn where_a_file_system_packs_its_files_more_instances_are_no_contradiction_and_fewer_are() {
    let packs = Circumstances { kept_elsewhere: true, ..Circumstances::default() };
    let judged = |copied: u64, instances: u64, circumstances| {
        let mut method = method(accounts(1000, if copied == 0 { 1000 } else { 0 }));
        method.guest.copied_bytes.insert("_copy_to_iter".to_owned(), Some(copied));
        method.memory.physical_instances = Some(instances);
        judge(&mut method, circumstances);
        method.verdict
    };
    assert_eq!(judged(0, 2, Circumstances::default()), Some(Verdict::WitnessesDisagree));
    assert_eq!(judged(0, 2, packs), Some(Verdict::ZeroCopy));
    assert_eq!(judged(1000, 3, packs), Some(Verdict::Copied));
    // Two copies that are still there need three places.
    assert_eq!(judged(2000, 2, packs), Some(Verdict::WitnessesDisagree));
}

#[test]
fn what_a_file_systems_server_copies_is_nobodys_zero_copy_and_contradicts_nobody() {
    let served = Circumstances { served: true, ..Circumstances::default() };
    let judged = |name: &str, cached: u64, copied: u64, circumstances| {
        let mut method = Method { method: name.to_owned(), ..method(accounts(1000, cached)) };
        method.guest.copied_bytes.insert("_copy_from_iter".to_owned(), Some(copied));
        method.memory.physical_instances = Some(1 + copied / 1000);
        let disk = DiskAccounts { requests: 1, bytes: 1000, ..DiskAccounts::default() };
        method.dma.disk = Some(disk);
        judge(&mut method, circumstances);
        method.verdict
    };
    // The disk filled the server's pages, and not those that were sent.
    assert_eq!(judged("sendfile-cold", 1000, 0, served), Some(Verdict::ZeroCopy));
    assert_eq!(judged("sendfile-cold", 1000, 0, Circumstances::default()), Some(Verdict::WitnessesDisagree));
    assert_eq!(judged("direct-io-zerocopy", 0, 0, served), None);
    assert_eq!(judged("direct-io", 0, 1000, served), Some(Verdict::Copied));
}
