//! A guest that writes between any two loads of the device: what was checked is what is used (CVE-2020-14374 and its kin).
//!
//! Operation: the device takes a good ring's chains again and again, by popping and by draining, and just before its first,
//! second, third… load of ring memory another word of the ring turns bad, until there is no such load any more.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::fixture::{Fixture, warm_segments};
use super::*;
use crate::memory::Access;
use crate::spec::ring::{DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Descriptor};

const SPLIT: &[&str] = &[
    "split size=8 avail.idx=2\n [0] head 3: R 0x8000+78 -> W 0x9000+10\n [1] head 6: R 0x8000+60",
    "split size=8 avail.idx=2\n [0] head 2: R 0x8000+78\n [1] head 6: indirect(3): R 0x8000+1 -> R 0x9000+1 -> W 0xa000+9",
    "split size=8 avail.idx=3\n [0] head 1: R 0x8000+78\n [1] head 2: R 0x9000+60\n [2] head 3: R 0xa000+60",
];
const PACKED: &[&str] = &[
    "packed size=8\n [0] head 3: R 0x8000+78 -> W 0x9000+10\n [2] head 6: R 0x8000+60",
    "packed size=8\n [0] head 2: R 0x8000+78\n [1] head 6: indirect(3): R 0x8000+1 -> R 0x9000+1 -> W 0xa000+9",
    "packed size=8\n [0] head 1: R 0x8000+78\n [1] head 2: R 0x9000+60\n [2] head 3: R 0xa000+60",
];

/// What a descriptor turns into. Packed ones have their flags where split ones have `next`.
fn bad(packed: bool) -> impl Iterator<Item = Descriptor> {
    let flags = [0, DESC_F_NEXT, DESC_F_WRITE, DESC_F_INDIRECT, DESC_F_NEXT | DESC_F_INDIRECT];
    let places = [(0x8000, 78), (u64::MAX - 4, 60), (0x8000, u32::MAX), (0x40000, 32)];
    flags.into_iter().flat_map(move |flags| {
        places.into_iter().map(move |(addr, len)| {
            let (flags, next) = if packed { (1, flags | DESC_F_AVAIL) } else { (flags, 1) };
            Descriptor { addr, len, flags, next }
        })
    })
}

/// Takes what is there; every chain must be guest memory, and can be returned.
fn take(fixture: &Fixture, drained: bool) {
    let (mut device, mut segments) = (fixture.device(), warm_segments(&fixture.ram));
    let mut chains = Vec::new();
    if drained {
        let mut keep = Keep { fixture, chains: Vec::new(), in_batch: false };
        let _ = device.drain(&mut segments, u16::MAX, &mut keep);
        chains = keep.chains;
    } else {
        while let Ok(Some(chain)) = device.pop(&mut segments) {
            check(fixture, segments.view(chain));
            chains.push(chain);
        }
    }
    assert_eq!(usize::from(device.in_flight()), chains.len());
    for chain in chains {
        assert_eq!(device.push_used(&chain, 0), Ok(()));
    }
}

fn check(fixture: &Fixture, view: ChainView<'_>) {
    for slice in view.readable().chain(view.writable()).filter(|slice| !slice.is_empty()) {
        let here = fixture.ram.memory().slice(slice.addr(), slice.len() as u64, Access::Read).unwrap();
        assert_eq!(here.as_ptr(), slice.as_ptr());
    }
    let sum = view.segments().iter().map(|segment| u64::from(segment.len)).sum::<u64>();
    assert_eq!(sum, u64::from(view.chain.readable_len) + u64::from(view.chain.writable_len));
}

struct Keep<'f> {
    fixture: &'f Fixture,
    chains: Vec<Chain>,
    /// Was the last one seen in a batch?
    in_batch: bool,
}

impl Visitor for Keep<'_> {
    const READS: bool = false;

    fn takes_batches(&self) -> bool {
        true
    }

    fn visit_batch(&mut self, batch: SingleBufferBatch<'_>) -> usize {
        // Every other one is left by the batch, and followed anew; the others go back.
        if std::mem::replace(&mut self.in_batch, true) {
            self.in_batch = false;
            return 0;
        }
        batch.views().take(1).map(|view| check(self.fixture, view)).count()
    }

    fn visit(&mut self, chain: ChainView<'_>) -> Disposition {
        check(self.fixture, chain);
        self.chains.push(chain.chain);
        Disposition::Retain
    }
}

/// Has `what` happen just before load `at`. Returns whether there was such a load.
fn ambush(at: usize, what: impl Fn() + 'static, f: impl FnOnce()) -> bool {
    let loads = Rc::new(Cell::new(0));
    let count = loads.clone();
    let trap = move |touch, _| {
        if touch == Touch::Load {
            if count.get() == at {
                what();
            }
            count.set(count.get() + 1);
        }
    };
    interrupted(trap, f);
    loads.get() > at
}

#[test]
fn what_changes_between_any_two_loads_is_good_or_an_error() {
    for ring in SPLIT.iter().chain(PACKED) {
        let packed = ring.starts_with("packed");
        for (bad, drained) in bad(packed).flat_map(|bad| [(bad, false), (bad, true)]) {
            for slot in 0..8 {
                let mut at = 0;
                loop {
                    let fixture = Rc::new(Fixture::read(ring));
                    let guest = fixture.clone();
                    if !ambush(at, move || guest.set_desc(slot, bad), || take(&fixture, drained)) {
                        break;
                    }
                    at += 1;
                }
                assert!(at > 2, "{ring}");
            }
        }
    }
}

#[test]
fn an_index_that_changes_between_any_two_loads_is_good_or_an_error() {
    for ring in SPLIT {
        for (idx, head, drained) in [(1, 3, false), (9, 8, false), (40000, 65535, true), (8, 3, true)] {
            let mut at = 0;
            loop {
                let fixture = Rc::new(Fixture::read(ring));
                let guest = fixture.clone();
                let write = move || {
                    guest.set_avail_idx(idx);
                    (0..8).for_each(|slot| guest.set_avail(slot, head));
                };
                if !ambush(at, write, || take(&fixture, drained)) {
                    break;
                }
                at += 1;
            }
        }
    }
}

#[test]
fn no_word_of_a_usual_chain_is_loaded_twice() {
    for ring in SPLIT.iter().chain(PACKED) {
        let fixture = Fixture::read(ring);
        let (mut device, mut segments) = (fixture.device(), warm_segments(&fixture.ram));
        // The first chain: every load of it at another address, the available index and the first word of a packed chain
        // included.
        let loads = Rc::new(RefCell::new(Vec::new()));
        let note = loads.clone();
        let trap = move |touch, at| {
            if touch == Touch::Load {
                note.borrow_mut().push(at);
            }
        };
        interrupted(trap, || device.pop(&mut segments)).unwrap().unwrap();
        let all = loads.borrow().len();
        loads.borrow_mut().sort_unstable();
        loads.borrow_mut().dedup();
        assert!(all >= 2 && loads.borrow().len() == all, "{ring}: {all} loads of {} words", loads.borrow().len());
    }
}
