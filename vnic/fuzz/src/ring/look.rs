//! Who looks at the chains, and what must be true of each.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use vnic::memory::Access;
use vnic::ring::{Chain, ChainView, Disposition, SingleBufferBatch, Visitor};
use vnic::spec::{Feature, Features};

use super::guest::Guest;

pub(super) type Description = (Chain, Vec<(u64, u32, bool)>);

pub(super) fn describe(view: ChainView<'_>) -> Description {
    let segments = view.segments().iter().map(|segment| (segment.addr, segment.len, segment.continues)).collect();
    (Chain { first: 0, ..view.chain }, segments)
}

/// Leaves the ring as it is, so nothing of a batch goes back; but what stood in a batch must be what is followed then.
pub(super) struct Describe {
    pub(super) batches: u8,
    pub(super) chains: Vec<Description>,
    pub(super) in_batch: VecDeque<Description>,
}

impl Visitor for Describe {
    const READS: bool = false;

    fn takes_batches(&self) -> bool {
        self.batches != 0
    }

    fn visit_batch(&mut self, batch: SingleBufferBatch<'_>) -> usize {
        self.batches = self.batches.rotate_left(1);
        self.in_batch.clear();
        if self.batches & 1 == 1 {
            self.in_batch.extend(batch.views().map(describe));
        }
        0
    }

    fn visit(&mut self, chain: ChainView<'_>) -> Disposition {
        if let Some(in_batch) = self.in_batch.pop_front() {
            assert_eq!(in_batch, describe(chain), "followed anew");
        }
        self.chains.push(describe(chain));
        Disposition::Retain
    }
}

pub(super) struct Look<'b> {
    pub(super) guest: &'b Rc<RefCell<Guest>>,
    pub(super) features: Features,
    pub(super) dispositions: u32,
    pub(super) batches: u8,
    pub(super) seen: Vec<(Chain, Disposition)>,
}

impl Visitor for Look<'_> {
    const READS: bool = false;

    fn takes_batches(&self) -> bool {
        self.batches != 0
    }

    fn visit_batch(&mut self, batch: SingleBufferBatch<'_>) -> usize {
        let before = self.seen.len();
        for view in batch.views() {
            self.batches = self.batches.rotate_left(1);
            if self.batches & 1 == 0 {
                break;
            }
            check_chain(&self.guest.borrow(), view, self.features);
            self.seen.push((view.chain, Disposition::Return));
        }
        self.seen.len() - before
    }

    fn visit(&mut self, chain: ChainView<'_>) -> Disposition {
        check_chain(&self.guest.borrow(), chain, self.features);
        let disposition = match self.dispositions & 3 {
            0 | 1 => Disposition::Return,
            2 => Disposition::Retain,
            _ => Disposition::Leave,
        };
        self.dispositions = self.dispositions.rotate_right(2);
        self.seen.push((chain.chain, disposition));
        disposition
    }
}

/// What must be true of every chain that is handed out.
pub(super) fn check_chain(guest: &Guest, view: ChainView<'_>, features: Features) {
    let chain = view.chain;
    let size = guest.layout.size;
    let segments = view.segments();
    assert_eq!(segments.len(), chain.count as usize);
    assert!(chain.descriptors >= 1 && u32::from(chain.descriptors) <= chain.count && chain.readable <= chain.count);
    assert!(chain.slots >= 1 && chain.slots <= size);
    assert!(chain.descriptors <= size.max(1024));
    assert!(chain.indirect || chain.descriptors <= size);
    assert!(!chain.indirect || features.has(Feature::IndirectDesc));
    let buffers = segments.iter().filter(|segment| !segment.continues).count();
    assert_eq!(buffers, usize::from(chain.descriptors));
    let (readable, writable) = segments.split_at(chain.readable as usize);
    let sum = |list: &[vnic::ring::Segment]| list.iter().map(|segment| u64::from(segment.len)).sum::<u64>();
    assert_eq!((sum(readable), sum(writable)), (chain.readable_len.into(), chain.writable_len.into()));
    let mut known: HashMap<u64, usize> = HashMap::new();
    let memory = guest.ram.memory();
    for slice in view.readable().chain(view.writable()).filter(|slice| !slice.is_empty()) {
        let here = memory.slice(slice.addr(), slice.len() as u64, Access::Read).expect("it is guest memory");
        assert_eq!(here.as_ptr(), slice.as_ptr());
        known.insert(slice.addr(), slice.len());
    }
}
