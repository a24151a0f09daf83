//! The IOTLB: what is asked, what is trusted, what is forgotten.

use super::*;
use crate::memory::Memory;
use crate::memory::testing::GuestRam;
use crate::memory::{Gpa, Iova};

const IOVA: u64 = 0xffff_0000;

fn entry(iova: u64, size: u64, gpa: u64, rights: &str) -> IotlbEntry {
    let (read, write) = (rights.contains('r'), rights.contains('w'));
    IotlbEntry { iova: Iova(iova), size, gpa: Gpa(gpa), read, write }
}

/// All that it holds, as text.
fn shown(iotlb: &Iotlb) -> Vec<String> {
    let letter = |may, letter| if may { letter } else { '-' };
    let show = |e: &IotlbEntry| {
        let (read, write) = (letter(e.read, 'r'), letter(e.write, 'w'));
        format!("{}+{:#x} at {} {read}{write}", e.iova, e.size, e.gpa)
    };
    iotlb.first(usize::MAX).iter().map(show).collect()
}

fn seen(entries: &[IotlbEntry]) -> Iotlb {
    let iotlb = Iotlb::for_observers();
    for entry in entries {
        iotlb.update(entry);
    }
    iotlb
}

struct Bench {
    ram: GuestRam,
    iotlb: Arc<Iotlb>,
    memory: Memory,
}

impl Bench {
    fn new() -> Self {
        let ram = GuestRam::with_regions(&[(Gpa(0), 0x10_0000), (Gpa(0x20_0000), 0x10_0000)]).unwrap();
        let iotlb = Arc::new(Iotlb::default());
        let memory = ram.memory().behind(Arc::clone(&iotlb));
        Bench { ram, iotlb, memory }
    }

    /// Takes a translation that was asked for, for all that it grants.
    fn grant(&self, new: IotlbEntry) {
        let miss = |access| Miss { iova: new.iova.0, access };
        let wanted: Vec<Miss> = [(new.read, Access::Read), (new.write, Access::Write)]
            .into_iter()
            .filter(|(may, _)| *may)
            .map(|(_, access)| miss(access))
            .collect();
        let waiting = self.iotlb.ask(&wanted);
        self.iotlb.update(&new);
        drop(waiting);
    }
}

#[test]
fn an_address_leads_where_its_translation_says() {
    let bench = Bench::new();
    bench.ram.write(0x4008, b"hello").unwrap();
    bench.grant(entry(IOVA, 0x1000, 0x4000, "r"));
    let mut out = [0; 5];
    bench.memory.read(IOVA + 8, &mut out).unwrap();
    assert_eq!(&out, b"hello");
    let slice = bench.memory.slice(IOVA + 8, 5, Access::Read).unwrap();
    assert_eq!((slice.addr(), bench.memory.gpa_at(slice.as_ptr())), (IOVA + 8, Some(Gpa(0x4008))));
}

#[test]
fn what_is_not_translated_is_a_miss_even_if_it_is_guest_memory() {
    let bench = Bench::new();
    for (addr, len) in [(0x4000, 8), (IOVA, 1), (0, 0x10_0000)] {
        let miss = MemoryError::Untranslated { addr, access: Access::Read };
        assert_eq!(bench.memory.slice(addr, len, Access::Read).unwrap_err(), miss);
    }
    assert_eq!(bench.memory.slice(0x4000, 0, Access::Read).unwrap().len(), 0, "no bytes are nowhere");
    let wraps = bench.memory.slice(u64::MAX, 2, Access::Read).unwrap_err();
    assert_eq!(wraps, MemoryError::Wraps { addr: u64::MAX, len: 2 });
}

#[test]
fn a_range_crosses_translations_that_need_not_be_neighbours() {
    let bench = Bench::new();
    bench.grant(entry(IOVA, 0x1000, 0x4000, "rw"));
    bench.grant(entry(IOVA + 0x1000, 0x1000, 0x20_8000, "rw"));
    bench.grant(entry(IOVA + 0x2000, 0x1000, 0x20_9000, "rw"));
    let bytes: Vec<u8> = (0..0x2080).map(|at| at as u8).collect();
    bench.memory.write(IOVA + 0xf80, &bytes).unwrap();
    let mut parts = bench.ram.read(0x4f80, 0x80).unwrap();
    parts.extend(bench.ram.read(0x20_8000, 0x2000).unwrap());
    assert_eq!(parts, bytes);
    // Neighbours on the host are one piece.
    let pieces = bench.memory.pieces(IOVA + 0xf80, 0x2080, Access::Read).unwrap();
    assert_eq!(pieces.map(|piece| piece.len()).collect::<Vec<_>>(), [0x80, 0x2000]);
    // The last page is not there: nothing is written.
    let miss = MemoryError::Untranslated { addr: IOVA + 0x3000, access: Access::Write };
    assert_eq!(bench.memory.write(IOVA + 0xf80, &[0xff; 0x2081]), Err(miss));
    assert_eq!(bench.ram.read(0x4f80, 1).unwrap(), [0]);
}

#[test]
fn a_translation_counts_only_for_what_was_asked() {
    let bench = Bench::new();
    let both = entry(IOVA, 0x1000, 0x4000, "rw");
    // QEMU says both, having checked one.
    let (_waiting, fresh) = bench.iotlb.ask(&[Miss { iova: IOVA, access: Access::Read }]).unwrap();
    assert_eq!(fresh.len(), 1);
    bench.iotlb.update(&both);
    assert!(bench.memory.slice(IOVA, 8, Access::Read).is_ok());
    let miss = MemoryError::Untranslated { addr: IOVA, access: Access::Write };
    assert_eq!(bench.memory.slice(IOVA, 8, Access::Write).unwrap_err(), miss);
    let (_waiting, fresh) = bench.iotlb.ask(&[Miss { iova: IOVA, access: Access::Write }]).unwrap();
    assert_eq!(fresh.len(), 1);
    assert!(!bench.iotlb.update(&both).replaced);
    assert!(bench.memory.slice(IOVA, 8, Access::Write).is_ok());
    assert!(bench.memory.slice(IOVA, 8, Access::Read).is_ok(), "the first answer still counts");
    // Unasked it counts for nothing.
    bench.iotlb.update(&entry(0x7000, 0x1000, 0x5000, "rw"));
    assert!(bench.memory.slice(0x7000, 8, Access::Read).is_err());
}

#[test]
fn what_is_not_granted_is_forbidden_and_no_miss() {
    let bench = Bench::new();
    bench.grant(entry(IOVA, 0x1000, 0x4000, "r"));
    let forbidden = MemoryError::Forbidden { addr: IOVA, access: Access::Write };
    assert_eq!(bench.memory.slice(IOVA, 8, Access::Write).unwrap_err(), forbidden);
    assert!(bench.iotlb.ask(&[Miss { iova: IOVA, access: Access::Write }]).is_none(), "no use in asking");
}

#[test]
fn a_translation_that_leads_out_of_memory_fails_by_name() {
    let bench = Bench::new();
    for (gpa, size) in [(0x10_0000, 0x1000), (0xf_f000, 0x2000), (0x4000, u64::MAX - IOVA), (u64::MAX, 1)] {
        bench.iotlb.clear();
        bench.grant(entry(IOVA, size, gpa, "r"));
        let astray = MemoryError::Astray { addr: IOVA, gpa, size };
        assert_eq!(bench.memory.slice(IOVA, 1, Access::Read).unwrap_err(), astray);
    }
}

#[test]
fn an_invalidation_takes_a_piece_out_of_what_is_larger() {
    let iotlb = seen(&[entry(0x1_0000, 0x1_0000, 0x4_0000, "rw"), entry(0x3_0000, 0x1000, 0, "r")]);
    iotlb.invalidate(0x1_4000, 0x1_4fff);
    let left = ["0x10000+0x4000 at 0x40000 rw", "0x15000+0xb000 at 0x45000 rw", "0x30000+0x1000 at 0x0 r-"];
    assert_eq!(shown(&iotlb), left);
    iotlb.invalidate(0x1_3000, 0x1_5fff);
    assert_eq!(shown(&iotlb)[..2], ["0x10000+0x3000 at 0x40000 rw", "0x16000+0xa000 at 0x46000 rw"]);
    iotlb.invalidate(0x1_f000, 0x3_0000);
    assert_eq!(shown(&iotlb)[1..], ["0x16000+0x9000 at 0x46000 rw", "0x30001+0xfff at 0x1 r-"]);
    iotlb.invalidate(0, u64::MAX);
    assert_eq!(shown(&iotlb), [""; 0]);
}

#[test]
fn a_translation_replaces_what_it_overlaps_and_says_so() {
    let iotlb = seen(&[entry(0x1000, 0x1000, 0x4000, "r"), entry(0x2000, 0x1000, 0x8000, "r")]);
    assert!(!iotlb.update(&entry(0x3000, 0x1000, 0xc000, "r")).replaced);
    assert!(!iotlb.update(&entry(0x1000, 0x1000, 0x4000, "r")).replaced, "the same again");
    assert!(iotlb.update(&entry(0x1000, 0x1000, 0x4000, "rw")).replaced, "another right");
    assert!(iotlb.update(&entry(0x1800, 0x1000, 0xf000, "w")).replaced);
    let expected = [
        "0x1000+0x800 at 0x4000 rw",
        "0x1800+0x1000 at 0xf000 -w",
        "0x2800+0x800 at 0x8800 r-",
        "0x3000+0x1000 at 0xc000 r-",
    ];
    assert_eq!(shown(&iotlb), expected);
}

#[test]
fn the_last_page_of_the_address_space_is_a_page_like_others() {
    let bench = Bench::new();
    let page = u64::MAX - 0xfff;
    bench.grant(entry(page, 0x1000, 0x4000, "r"));
    assert!(bench.memory.slice(page, 0xfff, Access::Read).is_ok());
    let mut misses = Vec::new();
    bench.memory.misses(page - 0x1000, 0x1fff, Access::Read, &mut misses).unwrap();
    assert_eq!(misses, [Miss { iova: page - 0x1000, access: Access::Read }]);
    bench.iotlb.invalidate(page, u64::MAX);
    assert!(bench.memory.slice(page, 1, Access::Read).is_err());
}

#[test]
fn more_than_there_is_room_for_pushes_others_out_and_never_the_newest() {
    let iotlb = Iotlb { trusting: true, ..Iotlb::with_capacity(4) };
    for n in 0..100 {
        iotlb.update(&entry(n * 0x1000, 0x1000, n * 0x1000, "r"));
        assert!(iotlb.len() <= 4);
        assert_eq!(iotlb.gpa_of(n * 0x1000), Some(Gpa(n * 0x1000)));
    }
    assert_eq!(iotlb.counters.evicted.load(Ordering::Relaxed), 96);
    // A hole in a large one makes two of it: no more than there is room for, either.
    iotlb.invalidate(0, u64::MAX);
    iotlb.update(&entry(0, 0x10_0000, 0, "r"));
    for n in 0..8 {
        iotlb.update(&entry(n * 0x1_0000, 0x1000, 0x20_0000, "r"));
        assert!(iotlb.len() <= 4, "{:?}", shown(&iotlb));
    }
    iotlb.update(&entry(0, 0x10_0000, 0, "r"));
    for n in 1..8 {
        iotlb.invalidate(n * 0x1_0000, n * 0x1_0000);
        assert!(iotlb.len() <= 4, "{:?}", shown(&iotlb));
    }
}

#[test]
fn a_page_is_asked_for_once_however_many_wait() {
    let bench = Bench::new();
    let read = |iova| Miss { iova, access: Access::Read };
    let (mut first, fresh) = bench.iotlb.ask(&[read(IOVA), read(IOVA + 0x1000), read(IOVA + 8)]).unwrap();
    assert_eq!(fresh, [read(IOVA), read(IOVA + 0x1000)]);
    let (mut second, fresh) = bench.iotlb.ask(&[read(IOVA + 16)]).unwrap();
    assert_eq!(fresh, []);
    assert_eq!(first.look_again(), Some(vec![]));
    assert!(bench.iotlb.update(&entry(IOVA, 0x1000, 0x4000, "r")).awaited);
    assert_eq!((second.look_again(), first.look_again()), (None, Some(vec![])));
    assert_eq!(first.first(), Some(read(IOVA + 0x1000)));
    bench.iotlb.update(&entry(IOVA + 0x1000, 0x1000, 0x5000, "r"));
    assert_eq!(first.look_again(), None);
    drop((first, second));
    assert!(!bench.iotlb.update(&entry(0, 0x1000, 0x4000, "r")).awaited);
    assert_eq!(bench.iotlb.counters.misses.load(Ordering::Relaxed), 2);
}

#[test]
fn what_was_invalidated_while_someone_waited_is_asked_again() {
    let bench = Bench::new();
    let miss = Miss { iova: IOVA, access: Access::Read };
    let (mut waiting, _) = bench.iotlb.ask(&[miss]).unwrap();
    bench.iotlb.update(&entry(IOVA, 0x1000, 0x4000, "r"));
    bench.iotlb.invalidate(IOVA, IOVA);
    assert_eq!(waiting.look_again(), Some(vec![miss]));
    // And what nobody waits for any more, the next time someone needs it.
    drop(waiting);
    assert_eq!(bench.iotlb.ask(&[miss]).unwrap().1, [miss]);
}

#[test]
fn a_translation_of_less_than_a_page_answers_no_more_than_it_says() {
    let bench = Bench::new();
    let miss = Miss { iova: IOVA + 0x800, access: Access::Read };
    let (mut waiting, _) = bench.iotlb.ask(&[miss]).unwrap();
    bench.iotlb.update(&entry(IOVA, 0x800, 0x4000, "r"));
    assert_eq!(waiting.look_again(), Some(vec![miss]), "asked again: the answer was for something else");
    bench.iotlb.update(&entry(IOVA + 0x800, 0x800, 0x4800, "r"));
    assert_eq!(waiting.look_again(), None);
}

#[test]
fn a_queues_copy_serves_without_the_table_until_it_is_told_to_forget() {
    let bench = Bench::new();
    for (size, rights) in [(0x1000, "r"), (0x1000, "rw"), (0x4000, "rw")] {
        bench.iotlb.clear();
        bench.grant(entry(IOVA, size, 0x4000, rights));
        let mut tlb = Tlb::new(Arc::clone(&bench.iotlb));
        assert_eq!(tlb.hit(IOVA, 8, Access::Read), None);
        let piece = tlb.piece(&bench.memory, IOVA + 8, u64::MAX, Access::Read).unwrap();
        assert_eq!((piece.len, bench.memory.gpa_at(piece.host)), (size - 8, Some(Gpa(0x4008))));
        assert!(tlb.hit(IOVA, size, Access::Read).is_some());
        assert_eq!(tlb.hit(IOVA, size + 1, Access::Read), None);
        assert_eq!(tlb.hit(IOVA, 8, Access::Write).is_some(), rights == "rw");
        // Another page of the same translation, and a page that shares its place.
        let _ = tlb.piece(&bench.memory, IOVA + size - 1, 1, Access::Read).unwrap();
        assert_eq!(tlb.hit(IOVA + (4096 << 12), 8, Access::Read), None);
        assert!(tlb.take_hits() > 0);

        let last = IOVA + size - 1;
        bench.iotlb.invalidate(last, last);
        tlb.forget(last, last);
        for addr in [last, IOVA + size - 0x1000] {
            assert_eq!(tlb.hit(addr, last - addr + 1, Access::Read), None, "{size:#x}");
        }
    }
}

#[test]
fn a_copy_notes_its_misses_and_no_end_of_them() {
    let bench = Bench::new();
    let mut tlb = Tlb::new(Arc::clone(&bench.iotlb));
    for page in 0..1000_u64 {
        assert!(tlb.piece(&bench.memory, page << 12, 1, Access::Write).is_err());
    }
    assert!(tlb.is_full());
    assert_eq!(tlb.missing()[1], Miss { iova: 0x1000, access: Access::Write });
    tlb.forget_misses();
    assert_eq!(tlb.missing(), []);
}

#[test]
fn neighbours_are_found_at_once_and_forgotten_with_each_other() {
    let bench = Bench::new();
    // Pages 0 to 19 in a row, the 20th elsewhere; page 5 may not be written.
    let page = |at: u64| IOVA + at * PAGE;
    for at in 0..20 {
        bench.grant(entry(page(at), PAGE, 0x2_0000 + at * PAGE, if at == 5 { "r" } else { "rw" }));
    }
    bench.grant(entry(page(20), PAGE, 0x8_0000, "rw"));
    let mut tlb = Tlb::new(Arc::clone(&bench.iotlb));
    let over = |tlb: &mut Tlb, at: u64| {
        for _ in 0..3 {
            tlb.piece(&bench.memory, page(at) + 0x800, PAGE, Access::Read).unwrap();
            tlb.piece(&bench.memory, page(at + 1), 0x800, Access::Read).unwrap();
        }
        tlb.hit(page(at) + 0x800, PAGE, Access::Read)
    };
    let host = over(&mut tlb, 0).expect("in one piece");
    assert_eq!(bench.memory.gpa_at(host), Some(Gpa(0x2_0800)));
    assert!(tlb.hit(page(0), 2 * PAGE, Access::Write).is_some());
    assert_eq!(over(&mut tlb, 4), None, "other rights");
    assert_eq!(over(&mut tlb, 19), None, "elsewhere");
    // Long ones, too, but not without end.
    for _ in 0..40 {
        for at in 6..20 {
            tlb.piece(&bench.memory, page(at), u64::MAX, Access::Read).unwrap();
        }
    }
    assert!(tlb.hit(page(6), 14 * PAGE, Access::Read).is_some());
    // The last of them goes: no place still leads there.
    bench.iotlb.invalidate(page(19), page(19));
    tlb.forget(page(19), page(19));
    for at in 0..20 {
        assert_eq!(tlb.hit(page(at), page(19) - page(at) + 1, Access::Read), None, "page {at}");
    }
}

/// The sum is kept, not made while an update waits: after every kind of change it is what adding up gives.
#[test]
fn the_bytes_translated_are_counted_through_every_change() {
    let iotlb = Iotlb::with_capacity(5);
    let update = |iova, size| {
        let entry = IotlbEntry { iova: Iova(iova), size, gpa: Gpa(0x1_0000), read: true, write: true };
        iotlb.update(&entry);
    };
    let check = |expected: u64| {
        let sum: u64 = iotlb.first(usize::MAX).iter().map(|entry| entry.size).sum();
        assert_eq!((iotlb.bytes(), sum), (expected, expected));
    };
    update(0x1000, 0x3000);
    update(0x1000, 0x3000);
    check(0x3000);
    // A hole in the middle, over both ends, and in nothing.
    iotlb.invalidate(0x2000, 0x2fff);
    check(0x2000);
    update(0x1800, 0x2000);
    check(0x3000);
    iotlb.invalidate(0x9000, 0x9fff);
    (0..8).for_each(|page| update(0x10_0000 + page * 0x1000, 0x1000));
    assert!(iotlb.counters.evicted.load(Ordering::Relaxed) > 0);
    check(0x5000);
    iotlb.clear();
    check(0);
}
