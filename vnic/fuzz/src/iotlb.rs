//! What a front-end says of its IOMMU, against a plain list of what it said.
//!
//! What must hold: a look-up finds what was said last of an address and was not taken back since, or nothing; nothing that was
//! taken back; never more translations than there is room for; no right that was not given, and none that nobody asked for;
//! who waits is told, and what is asked for is asked for once.

use std::collections::BTreeSet;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use vnic::memory::iotlb::{Miss, PAGE, Waiting};
use vnic::memory::{Access, Gpa, Iotlb, IotlbEntry, Iova};

const CAPACITY: usize = 8;

/// A front-end's message, or what a queue does in between.
#[derive(Debug, Arbitrary)]
enum Step {
    Update { at: Address, size: Size, gpa: u32, read: bool, write: bool },
    Invalidate { at: Address, size: Size },
    Clear,
    Ask { misses: [(Address, bool); 2] },
    Unask { miss: (Address, bool) },
    LookAgain,
    Leave,
}

/// Few addresses, so that they meet; some at the end of all there are.
#[derive(Debug, Clone, Copy, Arbitrary)]
enum Address {
    Page(u8),
    Byte(u16),
    FromEnd(u16),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Size {
    Pages(u8),
    Bytes(u16),
    All,
}

impl Address {
    fn address(self) -> u64 {
        match self {
            Address::Page(page) => PAGE * u64::from(page % 32),
            Address::Byte(byte) => u64::from(byte),
            Address::FromEnd(byte) => u64::MAX - u64::from(byte),
        }
    }
}

/// The last address of what begins there; as the session checks it, there is one.
fn last(first: u64, size: Size) -> u64 {
    let size = match size {
        Size::Pages(pages) => PAGE * u64::from(pages).max(1),
        Size::Bytes(bytes) => u64::from(bytes).max(1),
        Size::All => u64::MAX,
    };
    first.saturating_add(size - 1)
}

/// What was said of the addresses from `first` to `last`: where they are, if it was not taken back.
#[derive(Debug)]
struct Said {
    first: u64,
    last: u64,
    gpa: Option<(u64, bool, bool)>,
}

/// Plays `data`.
pub fn run(data: &[u8]) {
    let mut bytes = Unstructured::new(data);
    let iotlb = Arc::new(Iotlb::with_capacity(CAPACITY));
    let seen = Iotlb::for_observers();
    let mut said: Vec<Said> = Vec::new();
    let mut waiting: Option<Waiting> = None;
    while !bytes.is_empty() {
        let Ok(step) = Step::arbitrary(&mut bytes) else { return };
        let mut touched = Vec::new();
        match step {
            Step::Update { at, size, gpa, read, write } => {
                let (first, gpa) = (at.address(), u64::from(gpa));
                // All of it is in a region, the session sees to that: no address there is beyond the last.
                let last = last(first, size).min(first.saturating_add(u64::MAX - gpa));
                let size = (last - first).saturating_add(1);
                let entry = IotlbEntry { iova: Iova(first), size, gpa: Gpa(gpa), read, write };
                let updated = iotlb.update(&entry);
                assert_eq!(updated.awaited, waiting.is_some());
                seen.update(&entry);
                say(&mut said, Said { first, last, gpa: Some((gpa, read, write)) });
                touched = vec![first, last, first + (last - first) / 2];
            }
            Step::Invalidate { at, size } => {
                let (first, last) = (at.address(), last(at.address(), size));
                iotlb.invalidate(first, last);
                seen.invalidate(first, last);
                say(&mut said, Said { first, last, gpa: None });
                touched = vec![first, last, first.wrapping_sub(1), last.wrapping_add(1)];
            }
            Step::Clear => {
                iotlb.clear();
                seen.clear();
                said.clear();
                assert!(iotlb.is_empty() && iotlb.bytes() == 0);
            }
            Step::Ask { misses } => {
                let misses = misses.map(miss);
                waiting = None;
                if let Some((new, fresh)) = iotlb.ask(&misses) {
                    let pages: BTreeSet<_> = fresh.iter().map(|miss| (miss.iova / PAGE, miss.access)).collect();
                    assert_eq!(pages.len(), fresh.len(), "a page is asked for twice");
                    assert!(new.first().is_some());
                    waiting = Some(new);
                }
            }
            Step::Unask { miss: (at, write) } => iotlb.unask(&[miss((at, write))]),
            Step::LookAgain => {
                if let Some(mut queue) = waiting.take() {
                    let asked = queue.look_again().is_some();
                    assert_eq!(asked, queue.first().is_some());
                    waiting = asked.then_some(queue);
                }
            }
            Step::Leave => waiting = None,
        }
        check(&iotlb, &seen, &said, touched);
    }
}

/// The newest is the last. One of whose addresses all is said anew has nothing more to say.
fn say(said: &mut Vec<Said>, new: Said) {
    said.retain(|old| old.first < new.first || old.last > new.last);
    said.push(new);
}

fn miss((at, write): (Address, bool)) -> Miss {
    Miss { iova: at.address(), access: if write { Access::Write } else { Access::Read } }
}

fn check(iotlb: &Iotlb, seen: &Iotlb, said: &[Said], touched: Vec<u64>) {
    assert!(iotlb.len() <= CAPACITY, "{} translations", iotlb.len());
    let entries = iotlb.first(CAPACITY);
    for pair in entries.windows(2) {
        let [one, next] = pair else { continue };
        assert!(one.iova.0 + (one.size - 1) < next.iova.0, "{one:?} reaches into {next:?}");
    }
    let ends = entries.iter().flat_map(|entry| [entry.iova.0, entry.iova.0.saturating_add(entry.size - 1)]);
    for address in ends.chain(touched) {
        let now = said.iter().rev().find(|said| (said.first..=said.last).contains(&address));
        let now = now.and_then(|said| said.gpa.map(|(gpa, read, write)| (gpa + (address - said.first), read, write)));
        let expected = now.map(|(gpa, ..)| Gpa(gpa));
        // As many as were said here are never too many for those who look on.
        assert_eq!(seen.gpa_of(address), expected, "{address:#x}");
        if let Some(found) = iotlb.gpa_of(address) {
            assert_eq!(Some(found), expected, "{address:#x}");
        }
        let entry = entries.iter().find(|entry| address.checked_sub(entry.iova.0).is_some_and(|at| at < entry.size));
        if let Some(entry) = entry {
            let (_, read, write) = now.expect("it was said");
            assert!(read >= entry.read && write >= entry.write, "a right that was not given: {entry:?}");
        }
    }
}
