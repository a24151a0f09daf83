//! Who looks at the chains, and what must be true of each.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use vnic::memory::Access;
use vnic::ring::{Chain, ChainView, Fate, Singles, Visitor};
use vnic::spec::{Feature, Features};

use super::guest::Guest;

pub(super) type Description = (Chain, Vec<(u64, u32, bool)>);

pub(super) fn describe(view: ChainView<'_>) -> Description {
    let segments = view.segments().iter().map(|segment| (segment.addr, segment.len, segment.continues)).collect();
    (Chain { first: 0, ..view.chain }, segments)
}

/// Leaves the ring as it is, so nothing goes back at a glance; but what was glanced at must be what is followed then.
pub(super) struct Describe {
    pub(super) glances: u8,
    pub(super) chains: Vec<Description>,
    pub(super) glanced: VecDeque<Description>,
}

impl Visitor for Describe {
    const READS: bool = false;

    fn glances(&self) -> bool {
        self.glances != 0
    }

    fn glance(&mut self, singles: Singles<'_>) -> usize {
        self.glances = self.glances.rotate_left(1);
        self.glanced.clear();
        if self.glances & 1 == 1 {
            self.glanced.extend(singles.views().map(describe));
        }
        0
    }

    fn visit(&mut self, chain: ChainView<'_>) -> Fate {
        if let Some(glanced) = self.glanced.pop_front() {
            assert_eq!(glanced, describe(chain), "followed anew");
        }
        self.chains.push(describe(chain));
        Fate::Keep
    }
}

pub(super) struct Look<'b> {
    pub(super) guest: &'b Rc<RefCell<Guest>>,
    pub(super) features: Features,
    pub(super) fates: u32,
    pub(super) glances: u8,
    pub(super) seen: Vec<(Chain, Fate)>,
}

impl Visitor for Look<'_> {
    const READS: bool = false;

    fn glances(&self) -> bool {
        self.glances != 0
    }

    fn glance(&mut self, singles: Singles<'_>) -> usize {
        let before = self.seen.len();
        for view in singles.views() {
            self.glances = self.glances.rotate_left(1);
            if self.glances & 1 == 0 {
                break;
            }
            check_chain(&self.guest.borrow(), view, self.features);
            self.seen.push((view.chain, Fate::Return));
        }
        self.seen.len() - before
    }

    fn visit(&mut self, chain: ChainView<'_>) -> Fate {
        check_chain(&self.guest.borrow(), chain, self.features);
        let fate = match self.fates & 3 {
            0 | 1 => Fate::Return,
            2 => Fate::Keep,
            _ => Fate::Leave,
        };
        self.fates = self.fates.rotate_right(2);
        self.seen.push((chain.chain, fate));
        fate
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
